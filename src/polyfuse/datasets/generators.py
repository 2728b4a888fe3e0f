"""Generated data sets with the exact Bayes posterior for every subset of inputs: the only ones with a known optimum.

A law (``datasets/laws.py``) draws latent bits and the target. A modality shows its bits in the first of ``WIDTH``
numbers with unit Gaussian noise in all of them, then lifts the whole by two fixed random rotations with a leaky ReLU
between them. The lift is invertible, so the posterior given the inputs is the posterior given the signals.

Shapes: N rows, M modalities, D = WIDTH inputs each, B latent bits, C classes or labels.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.data.keyed import key_of, normal, seed_of
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.datasets import laws
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.laws import Law

NAMES = "abcdefgh"
WIDTH = 12
SLOPE = 0.3
ROWS = {"train": 2000, "validation": 1000, "test": 2000}


@dataclass(frozen=True)
class Lift:
    """Signals to inputs and back: ``(leaky_relu(signal @ first) @ second - mean) / std``.

    Attributes:
        first: ``(D, D)`` rotation, float64.
        second: ``(D, D)`` rotation, float64.
        mean: ``(D,)`` of the training rows.
        std: ``(D,)`` of the training rows.
    """

    first: Tensor
    second: Tensor
    mean: Tensor
    std: Tensor

    def raw(self, signal: Tensor) -> Tensor:
        """``(N, D)`` before it is standardised."""
        return torch.nn.functional.leaky_relu(signal @ self.first, SLOPE) @ self.second

    def standardised(self, raw: Tensor) -> Tensor:
        """``(N, D)`` float32 inputs."""
        return ((raw - self.mean) / self.std).float()

    def invert(self, inputs: Tensor) -> Tensor:
        """``(N, D)`` signals, float64."""
        hidden = (inputs.double() * self.std + self.mean) @ self.second.T
        return torch.where(hidden < 0, hidden / SLOPE, hidden) @ self.first.T


@dataclass(frozen=True)
class ExactPosterior:
    """``posterior(batch, present)``: class or label probabilities given the present inputs, float64 ``(N, C)``.

    Attributes:
        law: What the rows were drawn from.
        lifts: One per modality.
    """

    law: Law
    lifts: tuple[Lift, ...]

    def __call__(self, batch: Batch, present: Tensor) -> Tensor:
        """Bayes' rule; contents of absent inputs are not read."""
        evidence = torch.zeros(len(batch), self.law.bits, dtype=torch.float64)
        for m, name in enumerate(batch.modalities):
            inputs = batch.inputs[name]
            if not isinstance(inputs, Tensor):
                raise ValueError(f"modality '{name}' must be a (N, {WIDTH}) tensor, got a dict")
            seen, strength = list(self.law.seen[m]), torch.tensor(self.law.strength[m], dtype=torch.float64)
            signal = self.lifts[m].invert(inputs)[:, : len(seen)]
            evidence[:, seen] += (signal * strength).masked_fill(~present[:, m, None], 0.0)
        return self.law.posterior(evidence)


def generate(name: str, law: Law, about: str, split: int = 0) -> DataSet:
    """Draw a data set.

    Args:
        name: Its registry key; the lifts follow from it.
        law: What to draw from.
        about: A note.
        split: Seed of the rows; the law and the lifts stay.
    """
    modalities = tuple(NAMES[: len(law.seen)])
    keys = {part: key_of([f"{name} {split} {part} {i}" for i in range(rows)]) for part, rows in ROWS.items()}
    drawn = {part: law.draw(split, keys[part]) for part in ROWS}
    inputs: dict[str, dict[str, Tensor]] = {part: {} for part in ROWS}
    lifts = []
    for m, modality in enumerate(modalities):
        lift = Lift(
            _rotation(seed_of(name, modality, 1)),
            _rotation(seed_of(name, modality, 2)),
            torch.zeros(WIDTH, dtype=torch.float64),
            torch.ones(WIDTH, dtype=torch.float64),
        )
        raw = {}
        for part, (signs, _) in drawn.items():
            signal = normal(split, f"generator/{modality}", 0, keys[part], WIDTH).double()
            loud = torch.tensor(law.strength[m], dtype=torch.float64)
            signal[:, : len(loud)] += signs[:, list(law.seen[m])] * loud
            raw[part] = lift.raw(signal)
        lift = Lift(lift.first, lift.second, raw["train"].mean(dim=0), raw["train"].std(dim=0, correction=0))
        for part in ROWS:
            inputs[part][modality] = lift.standardised(raw[part])
        lifts.append(lift)
    batches = {
        part: Batch(
            modalities=modalities,
            inputs=dict(inputs[part]),
            present=torch.ones(rows, len(modalities), dtype=torch.bool),
            target=drawn[part][1],
            keys=keys[part],
        )
        for part, rows in ROWS.items()
    }
    return DataSet(
        name=name,
        train=batches["train"],
        validation=batches["validation"],
        test=batches["test"],
        specs={modality: ModalitySpec(modality, "vector", {"width": WIDTH}) for modality in modalities},
        target=TargetSpec(law.task, tuple(f"{k:02d}" for k in range(law.outputs))),
        posterior=ExactPosterior(law, tuple(lifts)),
        notes=(about, "Generated, not measured; the exact posterior of every subset is known."),
    )


def _rotation(seed: int) -> Tensor:
    """A random orthogonal ``(D, D)`` matrix, float64."""
    noise = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(noise)
    return q * r.diagonal().sign()


def _source(name: str, law: Law, about: str) -> DataSetSource:
    return DataSetSource(about, "none: generated", partial(generate, name, law, about), real=False)


SOURCES = {
    name: _source(name, law, about)
    for name, law, about in (
        (
            "redundancy",
            laws.redundancy(3, strength=1.3, label_noise=0.1),
            "Three modalities see the same two bits: each alone is nearly as good as all.",
        ),
        (
            "unique",
            laws.unique(3, strength=1.5, label_noise=0.05),
            "Three modalities see one bit of the class each: whatever is missing is lost.",
        ),
        (
            "synergy",
            laws.synergy(3, strength=1.7, label_noise=0.05),
            "The class is the parity of bits in different modalities: one alone says nothing.",
        ),
        (
            "mixed",
            laws.mixed(3, shared=1.0, own=1.4, paired=2.0, faint=0.9, label_noise=0.05),
            "A shared bit, a unique bit and a parity of two modalities: uneven subsets of three modalities.",
        ),
        (
            "mixed5",
            laws.mixed(5, shared=1.0, own=1.2, paired=2.0, faint=1.1, label_noise=0.05),
            "A shared bit, two unique bits and a parity in five modalities.",
        ),
        (
            "mixed8",
            laws.mixed(8, shared=0.8, own=1.1, paired=2.0, faint=1.1, label_noise=0.05),
            "A shared bit, two unique bits and a parity in eight modalities.",
        ),
        (
            "collapsed",
            laws.collapsed(strong=2.2, faint=0.5, own=0.9, label_noise=0.05),
            "One modality is much stronger than the two others, but shows one of the three bits only faintly.",
        ),
        (
            "longtail",
            laws.longtail(shared=1.0, own=1.5, paired=2.0, faint=1.0),
            "Twelve labels from 50 % to 2 % of the rows: shared, unique and parity ones in three modalities.",
        ),
    )
}
