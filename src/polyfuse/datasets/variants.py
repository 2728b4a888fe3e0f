"""Variants of a data set, as pure functions: inputs missing in training, missing by label, one modality poor.

Patterns P7 to P9 of the protocol. Every draw is keyed by the row, so a variant is the same in every process and for
every arm. What a row loses is zeroed as well as marked absent.

Shapes: N rows, M modalities.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from polyfuse.data.batch import Batch, map_tensors
from polyfuse.data.corrupt import corrupt_modality, fit_scales
from polyfuse.data.keyed import seed_of, uniform
from polyfuse.data.missing import ByGroup, Incomplete, sample_drop
from polyfuse.datasets.base import DataSet
from polyfuse.errors import UserError
from polyfuse.registry import Registry

Arguments = tuple[str, ...]

LOWEST, HIGHEST = 0.1, 0.7
ALONE = 0.5
SIGMA = 2.0


def missing(data: DataSet, words: Arguments, seed: int) -> DataSet:
    """``missing RATE``: that share of the training and validation rows is incomplete; the test rows stay."""
    _expect(words, "missing RATE", 1)
    rate = _share("missing", words[0])
    note = f"In {rate:.0%} of the training and validation rows a random part of the inputs is missing."
    return replace(
        data,
        train=_incomplete(data.train, rate, seed),
        validation=_incomplete(data.validation, rate, seed),
        notes=(*data.notes, note),
    )


def mnar(data: DataSet, words: Arguments, seed: int) -> DataSet:
    """``mnar``: test inputs are lost more often the rarer the label; training and validation rows stay.

    Classes are ordered by their share of the training rows, and the rate rises evenly from ``LOWEST`` (the most
    frequent) to ``HIGHEST`` (the rarest). A multilabel row goes by its rarest label; a regression row by the quarter of
    the training targets that its own is in. One input always stays. The posterior is no longer known: the pattern says
    something about the label.
    """
    _expect(words, "mnar", 0)
    group, count = _rarity(data)
    rates = torch.linspace(LOWEST, HIGHEST, count).tolist()
    draws = uniform(seed, "variant/mnar", 0, data.test.keys, len(data.test.modalities))
    drop = sample_drop(data.test.present, ByGroup(tuple(rates)), draws, group=group)
    gone = {
        key: _zeroed(value, drop[:, data.test.modalities.index(key[0])] | ~_has(data.test, key[0]))
        for key, value in data.broken.items()
    }
    note = f"Test inputs are missing by label: from {LOWEST:.0%} (frequent) to {HIGHEST:.0%} (rare); one stays."
    return replace(data, test=_without(data.test, drop), broken=gone, posterior=None, notes=(*data.notes, note))


def scarce(data: DataSet, words: Arguments, seed: int) -> DataSet:
    """``scarce MODALITY SHARE``: only that share of the training rows has the modality; the others stay.

    A row that has nothing else keeps it; a modality that is rarer already loses nothing.
    """
    _expect(words, "scarce MODALITY SHARE", 2)
    column, share = _column(data, words[0]), _share("scarce", words[1])
    present = data.train.present
    can_lose = present[:, column] & (present.sum(dim=1) > 1)
    held, loose = float(present[:, column].sum()), float(can_lose.sum())
    excess = held - share * len(present)
    rate = min(max(excess / loose, 0.0), 1.0) if loose else 0.0
    draws = uniform(seed, f"variant/scarce/{words[0]}", 0, data.train.keys, 1)[:, 0]
    drop = torch.zeros_like(present)
    drop[:, column] = can_lose & (draws < rate)
    note = f"Only {share:.0%} of the training rows have '{words[0]}'."
    return replace(data, train=_without(data.train, drop), notes=(*data.notes, note))


def weak(data: DataSet, words: Arguments, seed: int) -> DataSet:
    """``weak MODALITY``: noise of ``SIGMA`` training standard deviations on it, in all rows, unflagged.

    A vector modality is scaled back to unit variance. Broken test inputs get the same noise on top. The posterior is
    no longer known.
    """
    _expect(words, "weak MODALITY", 1)
    name = words[0]
    _column(data, name)
    noise = seed_of("variant", "weak", seed)  # not the seed of the test's own corruptions: those come on top
    scales = fit_scales(data.train)
    shrink = (1.0 + SIGMA**2) ** -0.5 if data.specs[name].type == "vector" else None

    def noisy(batch: Batch) -> Batch:
        out = corrupt_modality(batch, name, "noise", SIGMA, seed=noise, scales=scales)
        if shrink is None:
            return out
        value = map_tensors({name: out.inputs[name]}, lambda x: x * shrink)
        return replace(out, inputs={**out.inputs, **value})

    def noisy_value(value: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        return noisy(replace(data.test, inputs={**data.test.inputs, name: value})).inputs[name]

    note = f"'{name}' has noise of {SIGMA:g} standard deviations in all rows."
    return replace(
        data,
        train=noisy(data.train),
        validation=noisy(data.validation),
        test=noisy(data.test),
        broken={key: noisy_value(value) if key[0] == name else value for key, value in data.broken.items()},
        posterior=None,
        notes=(*data.notes, note),
    )


def mislabelled(data: DataSet, words: Arguments, seed: int) -> DataSet:
    """``mislabelled MODALITY RATE``: half of the training rows hold it alone, and that share of their labels is wrong.

    The picture: a second collection of this modality alone, labelled carelessly, put together with a clean one. A wrong
    label is another class, uniformly (multilabel and regression: the target of another of those rows). ``RATE`` 0 is
    the control with the same inputs. Rows without the modality, validation and test rows stay.
    """
    _expect(words, "mislabelled MODALITY RATE", 2)
    column, rate = _column(data, words[0]), _share("mislabelled", words[1])
    train = data.train
    if train.target is None:
        raise UserError(f"variant 'mislabelled' needs targets, data set '{data.name}' has none")
    draws = uniform(seed, f"variant/mislabelled/{words[0]}", 0, train.keys, 3)
    alone = train.present[:, column] & (draws[:, 0] < ALONE)
    drop = train.present & alone[:, None]
    drop[:, column] = False
    wrong = alone & (draws[:, 1] < rate)
    if data.target.task == "classification":
        classes = data.target.outputs
        shift = 1 + (draws[:, 2].double() * (classes - 1)).long()
        other = torch.where(train.target >= 0, (train.target + shift) % classes, train.target)
    else:
        rows = alone.nonzero()[:, 0]
        other = train.target.clone()
        other[rows] = train.target[rows[draws[rows, 2].argsort(stable=True)].roll(1)]
    picked = wrong.view(-1, *[1] * (other.ndim - 1))
    note = f"{ALONE:.0%} of the training rows hold '{words[0]}' alone, and {rate:.0%} of their labels are wrong."
    return replace(
        data,
        train=replace(_without(train, drop), target=torch.where(picked, other, train.target)),
        notes=(*data.notes, note),
    )


Variant = Callable[[DataSet, Arguments, int], DataSet]

VARIANTS = Registry(
    "variant",
    {"missing": missing, "mnar": mnar, "scarce": scarce, "weak": weak, "mislabelled": mislabelled},
)


def apply(data: DataSet, variant: str, seed: int = 0) -> DataSet:
    """A data set, changed as the words of ``variant`` say: ``missing 0.7``, ``scarce image 0.2``; empty = unchanged.

    Args:
        data: Not changed.
        variant: An entry of ``VARIANTS`` and its arguments.
        seed: Of the keyed draws.

    Returns:
        The changed set; its name has the variant after a comma, its last note says what was done.

    Raises:
        UserError: If the variant or its modality is unknown, or an argument is missing or no share in [0, 1].
    """
    words = tuple(variant.split())
    if not words:
        return data
    try:
        change: Variant = VARIANTS[words[0]]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    return replace(change(data, words[1:], seed), name=f"{data.name}, {' '.join(words)}")


def _incomplete(batch: Batch, rate: float, seed: int) -> Batch:
    policy = Incomplete(rate)
    draws = uniform(seed, "variant/missing", 0, batch.keys, policy.draws(len(batch.modalities)))
    return _without(batch, sample_drop(batch.present, policy, draws))


def _without(batch: Batch, drop: Tensor) -> Batch:
    """The rows without the inputs of ``drop`` ``(N, M)``: absent, and zero."""
    inputs: Mapping[str, Tensor | dict[str, Tensor]] = {
        name: _zeroed(batch.inputs[name], drop[:, m]) for m, name in enumerate(batch.modalities)
    }
    return replace(batch, inputs=dict(inputs), present=batch.present & ~drop)


def _zeroed(value: Tensor | dict[str, Tensor], rows: Tensor) -> Tensor | dict[str, Tensor]:
    """``value`` with zeros in ``rows`` ``(N,)``."""
    return map_tensors({"": value}, lambda x: x.masked_fill(rows.view(-1, *[1] * (x.ndim - 1)), 0))[""]


def _has(batch: Batch, modality: str) -> Tensor:
    return batch.present[:, batch.modalities.index(modality)]


def _rarity(data: DataSet) -> tuple[Tensor, int]:
    """How rare the target of each test row is, 0 for the most frequent, and the number of steps."""
    train, test = data.train.target, data.test.target
    if train is None or test is None:
        raise UserError(f"variant 'mnar' needs targets, data set '{data.name}' has none")
    if data.target.task == "regression":
        return torch.bucketize(test, torch.quantile(train.float(), torch.tensor([0.25, 0.5, 0.75]))), 4
    outputs = data.target.outputs
    count = torch.bincount(train[train >= 0], minlength=outputs) if train.ndim == 1 else train.nansum(dim=0)
    rank = torch.empty(outputs, dtype=torch.int64)
    rank[count.argsort(descending=True, stable=True)] = torch.arange(outputs)
    if test.ndim == 1:
        return torch.where(test >= 0, rank[test.clamp(min=0)], 0), outputs
    return torch.where(test > 0.5, rank, 0).amax(dim=1), outputs


def _expect(words: Arguments, usage: str, count: int) -> None:
    if len(words) != count:
        raise UserError(f"variant must read '{usage}', got {len(words)} words after its name: {' '.join(words) or '-'}")


def _share(variant: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise UserError(f"variant '{variant}' needs a share in [0, 1], got '{word}'")
    return value


def _column(data: DataSet, modality: str) -> int:
    if modality not in data.train.modalities:
        raise UserError(
            f"data set '{data.name}' has no modality '{modality}'; it has {', '.join(data.train.modalities)}"
        )
    return data.train.modalities.index(modality)
