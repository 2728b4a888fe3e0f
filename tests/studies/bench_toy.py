"""A data set and a study that worker processes can import."""

import os
from typing import Any

import torch

from polyfuse.config import ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.datasets import DataSet
from polyfuse.errors import UserError
from polyfuse.studies.arms import Plan
from polyfuse.studies.study import Size, Study

NAMES, WIDTH = ("a", "b"), 5


def rows(count: int, seed: int) -> Batch:
    """Three classes; each input tells a part; a fifth of the cells is missing."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (count,), generator=g)
    a, b = torch.randn(count, WIDTH, generator=g), torch.randn(count, WIDTH, generator=g)
    a[:, 0] += 2.5 * (target == 0)
    b[:, 0] += 2.5 * (target == 1)
    present = torch.rand(count, 2, generator=g) > 0.2
    present[~present.any(dim=1), 0] = True
    inputs: dict[str, Any] = {"a": a * present[:, :1], "b": b * present[:, 1:]}
    return Batch(NAMES, inputs, present, target, torch.arange(count) + 1000 * seed)


def guess(batch: Batch, present: torch.Tensor) -> torch.Tensor:
    """Stands in for an exact posterior: what the absent input would say is left out."""
    seen = [batch.inputs[n][:, 0] * present[:, m] * 2.5 - 3.1 * present[:, m] for m, n in enumerate(NAMES)]  # type: ignore[index]
    return torch.stack([*seen, torch.zeros(len(batch))], dim=1).softmax(dim=1)


def load(name: str, split: int) -> DataSet:
    """Two sizes of it."""
    if name == "gone":
        raise UserError("its files are not there")
    count = {"one": 1, "two": 2}[name]
    test = rows(41 * count, 3)
    a = test.inputs["a"]
    assert isinstance(a, torch.Tensor)
    return DataSet(
        name=name,
        train=rows(83 * count, 1),
        validation=rows(43 * count, 2),
        test=test,
        specs={n: ModalitySpec(n, "vector", {"width": WIDTH}) for n in NAMES},
        target=TargetSpec("classification", ("x", "y", "z")),
        groups={
            "validation": [str(i // 2) for i in range(43 * count)],
            "test": [str(i // 2) for i in range(len(test))],
        },
        broken={("a", "upside down"): -a},
        posterior=guess if name == "one" else None,
        notes=("Generated.",),
    )


def arms(data: DataSet, size: Size) -> list[Plan]:
    """A reference, an arm that chooses, one input alone, one that knows nothing."""
    model = ModelConfig(embed_dim=8, hidden=8, corruption=0.0)
    train = TrainConfig(steps=size.steps, batch_size=32, evaluations=2, lr=1e-2)
    late = model.model_copy(update={"fusion": "late"})
    plans = [
        Plan("reference", kind="reference", model=model, train=train),
        Plan("late", model=late, train=train, tries=({"train.lr": 1e-8}, {"train.lr": 2e-2})),
        Plan("b alone", kind="unimodal", model=model, train=train, uses=("b",)),
        Plan("presence", kind="baseline", model=model, train=train, baseline="presence_only"),
    ]
    if os.environ.get("TOY_SICK"):
        plans.append(Plan("sick", model=model, train=train.model_copy(update={"lr": 1e30, "clip": None})))
    return plans


SCALES = {
    "smoke": Size(steps=11, tries=2, seeds=2, oracles=1, bootstrap=20),
    "small": Size(steps=12, seeds=1, bootstrap=20),
}
STUDY = Study("toy", "A toy", ("one", "two"), arms, SCALES, load=load)
