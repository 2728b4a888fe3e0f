"""Variants: the stated rates, on the stated rows, keyed, with one input left."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.datasets.base import DataSet
from polyfuse.datasets.variants import VARIANTS, apply
from polyfuse.errors import UserError

NAMES, D, C = ("image", "audio", "text"), 5, 7


def make(rows: int, seed: int, task: str, holes: bool) -> Batch:
    g = torch.Generator().manual_seed(seed)
    present = torch.ones(rows, 3, dtype=torch.bool)
    if holes:
        present = torch.rand(rows, 3, generator=g) < 0.7
        present[~present.any(1), 2] = True
    ids = torch.randint(1, 9, (rows, 4), generator=g) * present[:, 2:]
    inputs: dict[str, Any] = {n: torch.randn(rows, D, generator=g) * present[:, [m]] for m, n in enumerate(NAMES[:2])}
    inputs["text"] = {"ids": ids.int(), "mask": (ids > 0)}
    share = 0.5 ** torch.arange(1.0, C + 1)
    target = torch.multinomial(share, rows, replacement=True, generator=g)
    if task == "multilabel":
        target = (torch.rand(rows, C, generator=g) < share).float()  # type: ignore[assignment]
    if task == "regression":
        target = torch.randn(rows, generator=g)
    return Batch(NAMES, inputs, present, target, torch.arange(rows) + 10**6 * seed)


def data_set(task: str = "classification", holes: bool = False) -> DataSet:
    specs = {n: ModalitySpec(n, "vector", {"width": D}) for n in NAMES[:2]}
    specs["text"] = ModalitySpec("text", "text", {"vocab_size": 9, "max_length": 4})
    test = make(3001, 3, task, holes)
    return DataSet(
        name="toy",
        train=make(4001, 1, task, holes),
        validation=make(2003, 2, task, holes),
        test=test,
        specs=specs,
        target=TargetSpec(task, () if task == "regression" else tuple("abcdefg")),
        broken={("image", "blur 1"): test.inputs["image"], ("audio", "gaps 2"): test.inputs["audio"]},
        posterior=lambda batch, present: torch.ones(len(batch), C) / C,
    )


def same(a: Batch, b: Batch) -> bool:
    parts = [(a.present, b.present), (a.target, b.target), (a.keys, b.keys)]
    for name in NAMES:
        x, y = a.inputs[name], b.inputs[name]
        parts += [(x[key], y[key]) for key in x] if isinstance(x, dict) and isinstance(y, dict) else [(x, y)]
    return all(isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y) for x, y in parts)


def close(share: Tensor | float, wanted: float, rows: int) -> bool:
    return abs(float(share) - wanted) < 4 * (max(wanted * (1 - wanted), 0.01) / rows) ** 0.5


CASES: dict[str, tuple[str, ...]] = {  # which splits a variant may touch
    "missing 0.3": ("train", "validation"),
    "missing 0.7": ("train", "validation"),
    "mnar": ("test",),
    "scarce audio 0.2": ("train",),
    "weak audio": ("train", "validation", "test"),
    "mislabelled audio 0.3": ("train",),
}


def test_every_variant_has_a_case() -> None:
    assert {case.split()[0] for case in CASES} == set(VARIANTS)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("variant", CASES)
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_only_the_stated_rows_change_and_draws_belong_to_rows(task: str, variant: str, holes: bool) -> None:
    data = data_set(task, holes)
    out = apply(data, variant)
    assert out.name == f"toy, {variant}"
    assert len(out.notes) == 1
    for split in ("train", "validation", "test"):
        before, after = getattr(data, split), getattr(out, split)
        assert same(before, after) == (split not in CASES[variant])
        assert same(after, getattr(apply(data, variant), split))
        if split in CASES[variant]:
            assert not same(after, getattr(apply(data, variant, seed=1), split))
        assert torch.equal(after.present.any(1), before.present.any(1))
        assert not (after.present & ~before.present).any()
        for m, name in enumerate(NAMES):
            value = after.inputs[name]
            for part in value.values() if isinstance(value, dict) else [value]:
                assert part.dtype in (torch.float32, torch.int32, torch.bool)
                assert not part[~after.present[:, m]].any()
    assert (out.posterior is None) == (variant in ("mnar", "weak audio"))
    if task == "classification" and variant != "weak audio":  # another order of the rows: the same fate for each
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
        turned = apply(replace(data, train=data.train.rows(order)), variant)
        assert same(turned.train, out.train.rows(order))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 1.0])
def test_missing_counts_incomplete_rows(rate: float) -> None:
    out = apply(data_set(), f"missing {rate}")
    for batch in (out.train, out.validation):
        assert close((~batch.present.all(1)).double().mean(), rate, len(batch))
        patterns = batch.present[~batch.present.all(1)].unique(dim=0)
        assert len(patterns) == (6 if rate else 0)


def lost(data: DataSet, out: DataSet) -> Tensor:
    return (data.test.present & ~out.test.present).double().sum(1) / data.test.present.sum(1)


def test_mnar_takes_more_from_rare_classes() -> None:
    data = data_set()
    out, y = apply(data, "mnar"), data.test.target
    assert y is not None
    by_class = [float(lost(data, out)[y == k].mean()) for k in range(C)]
    for k, p in enumerate(torch.linspace(0.1, 0.7, C).tolist()):
        assert abs(by_class[k] - (1 - (1 - p) / (1 - p**3))) < 3.5 * 0.3 / float((y == k).sum()) ** 0.5
    blurred = out.broken["image", "blur 1"]
    assert isinstance(blurred, Tensor)
    assert not blurred[~out.test.present[:, 0]].any()
    assert blurred[out.test.present[:, 0]].any(1).all()


def test_mnar_goes_by_the_rarest_label_and_by_the_quarter() -> None:
    data = data_set("multilabel")
    y = data.test.target
    assert y is not None
    gone = lost(data, apply(data, "mnar"))
    first, last = gone[y.sum(1) == 0].mean(), gone[y[:, -1] > 0].mean()
    assert first < 0.15 < 0.3 < last
    data = data_set("regression")
    y = data.test.target
    assert y is not None
    gone = lost(data, apply(data, "mnar"))
    assert gone[y < -0.8].mean() < 0.15 < 0.3 < gone[y > 0.8].mean()


@pytest.mark.parametrize("holes", [False, True])
def test_scarce_leaves_the_share_of_rows(holes: bool) -> None:
    data = data_set(holes=holes)
    out = apply(data, "scarce audio 0.2")
    assert close(out.train.present[:, 1].double().mean(), 0.2, len(data.train))
    assert torch.equal(out.train.present[:, [0, 2]], data.train.present[:, [0, 2]])
    assert torch.equal(apply(data, "scarce audio 1").train.present, data.train.present)


def test_weak_adds_noise_of_two_deviations() -> None:
    data = data_set()
    out = apply(data, "weak audio")
    shrink = 5**-0.5
    for split in ("train", "validation", "test"):
        before, after = getattr(data, split).inputs, getattr(out, split).inputs
        noise = after["audio"] / shrink - before["audio"]
        torch.testing.assert_close(noise.std(0), 2 * data.train.inputs["audio"].std(0), rtol=0.06, atol=0)  # type: ignore[union-attr]
        assert abs(float((noise * before["audio"]).mean())) < 0.1
        assert torch.equal(after["image"], before["image"])
    assert torch.equal(out.broken["audio", "gaps 2"], out.test.inputs["audio"])  # type: ignore[arg-type]
    assert torch.equal(out.broken["image", "blur 1"], out.test.inputs["image"])  # type: ignore[arg-type]


def test_the_unit_of_weak_noise_is_that_of_the_training_rows() -> None:
    data = data_set()
    x = data.test.inputs["audio"]
    assert isinstance(x, Tensor)
    out = apply(replace(data, test=replace(data.test, inputs={**data.test.inputs, "audio": 0 * x})), "weak audio")
    noise = out.test.inputs["audio"]
    assert isinstance(noise, Tensor)
    assert abs(float(noise.std()) - 2 / 5**0.5) < 0.05


def test_weak_text_keeps_its_form() -> None:
    data = data_set()
    before, after = data.train.inputs["text"], apply(data, "weak text").train.inputs["text"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert torch.equal(after["mask"], before["mask"])
    kept = (after["ids"] == before["ids"]).double().mean()
    assert 0.2 < kept < 0.45  # four of five ids are drawn anew


@pytest.mark.parametrize(("task", "chance"), [("classification", 0.0), ("multilabel", 0.35), ("regression", 0.0)])
def test_mislabelled_rows_hold_the_modality_alone(task: str, chance: float) -> None:
    data = data_set(task)
    out, control = apply(data, "mislabelled audio 0.3"), apply(data, "mislabelled audio 0")
    assert data.train.target is not None
    assert out.train.target is not None
    alone = (out.train.present == torch.tensor([False, True, False])).all(1)
    assert close(alone.double().mean(), 0.5, len(alone))
    assert out.train.present[~alone].all()
    changed = (out.train.target != data.train.target).view(len(alone), -1).any(1)
    assert not changed[~alone].any()
    rows = int(alone.sum())
    share = float(changed[alone].double().mean())
    assert close(share, 0.3, rows) if not chance else 0.3 * (1 - chance) < share < 0.3
    assert torch.equal(control.train.present, out.train.present)
    assert torch.equal(control.train.target, data.train.target)  # type: ignore[arg-type]
    if task == "classification":
        shift = (out.train.target - data.train.target)[changed] % C
        assert torch.bincount(shift, minlength=C)[1:].double().std() < 30
        assert int(out.train.target.max()) < C


@pytest.mark.parametrize(
    ("variant", "match"),
    [
        ("missin 0.3", "unknown variant 'missin'; did you mean 'missing'"),
        ("missing", "must read 'missing RATE', got 0 words"),
        ("mnar 0.3", "must read 'mnar', got 1 words after its name: 0.3"),
        ("missing much", r"share in \[0, 1\], got 'much'"),
        ("missing 1.5", r"share in \[0, 1\], got '1.5'"),
        ("scarce smell 0.2", "no modality 'smell'; it has image, audio, text"),
    ],
)
def test_bad_names_are_refused(variant: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        apply(data_set(), variant)


@pytest.mark.parametrize("variant", ["mnar", "mislabelled audio 0.3"])
def test_a_target_is_needed(variant: str) -> None:
    data = data_set()
    with pytest.raises(UserError, match="needs targets, data set 'toy' has none"):
        apply(replace(data, train=replace(data.train, target=None)), variant)


def test_nothing_is_no_variant() -> None:
    data = data_set()
    assert apply(data, "") is data
