import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from polyfuse.data.batch import Batch
from polyfuse.fusion import FUSIONS
from polyfuse.heads import ClassificationHead
from polyfuse.losses.task import task_loss
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train.validation import SubsetLoss, validation_subsets

NAMES = ("a", "b", "c")


def make_table(rows: int) -> Batch:
    g = torch.Generator().manual_seed(2)
    present = torch.rand(rows, 3, generator=g) > 0.4
    inputs = {name: torch.randn(rows, 5, generator=g) for name in NAMES}
    return Batch(NAMES, inputs, present, torch.randint(0, 4, (rows,), generator=g), torch.arange(rows))


class Counting(nn.Linear):
    """An encoder that counts the rows it sees."""

    rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        return super().forward(x)


def make_model() -> FusionModel:
    torch.manual_seed(0)
    encoders = {name: Counting(5, 7) for name in NAMES}
    return FusionModel(encoders, FUSIONS["gated"](NAMES, 7, 6), ClassificationHead(6, 4)).eval()


@pytest.mark.parametrize("batch_size", [4, 1024])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_equals_the_plain_loops(batch_size: int, world_size: int) -> None:
    table, model = make_table(23), make_model()
    expected = []
    for subset in itertools.product((False, True), repeat=3):
        chosen = torch.tensor(subset)
        rows = [n for n in range(23) if all(table.present[n, m] for m in range(3) if subset[m])]
        if chosen.any() and rows:
            part = table.rows(torch.tensor(rows))
            logits = model(part.inputs, chosen.expand(len(rows), -1)).logits
            expected.append(task_loss("classification", logits, part.target).item())
    losses = [SubsetLoss(table, "classification", rank=rank, world_size=world_size, batch_size=batch_size) for rank in range(world_size)]  # fmt: skip  # noqa: E501
    for encoder in model.encoders.values():
        encoder.rows = 0
    sums = sum(loss.sums(model, contextlib.nullcontext()) for loss in losses)
    assert [encoder.rows for encoder in model.encoders.values()] == [23, 23, 23]  # once, not once per subset
    record = losses[0].reduce(sums)
    assert record["validation_loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert record["validation_loss_complete"] == pytest.approx(expected[-1], abs=1e-6)


def test_a_subset_that_no_row_has_is_left_out() -> None:
    table = make_table(11)
    table = table.with_present(table.present & torch.tensor([True, True, False]))
    loss = SubsetLoss(table, "classification")
    assert loss.subsets.tolist() == [[True, False, False], [False, True, False], [True, True, False]]


def test_empty_rows_belong_to_no_subset() -> None:
    table = make_table(5)
    loss = SubsetLoss(table.with_present(torch.tensor([[True] * 3] * 4 + [[False] * 3])), "classification")
    assert loss.counts.tolist() == [4.0] * 7


def test_rows_without_a_target_are_refused() -> None:
    with pytest.raises(ValueError, match="must have a target, got None"):
        SubsetLoss(replace(make_table(3), target=None), "classification")


@pytest.mark.parametrize("modalities", [1, 2, 6])
def test_few_modalities_get_every_subset(modalities: int) -> None:
    subsets = validation_subsets(modalities)
    assert len(subsets) == len(subsets.unique(dim=0)) == 2**modalities - 1
    assert subsets.any(dim=1).all()


@pytest.mark.parametrize("modalities", [7, 11, 40])
def test_many_modalities_get_a_sample_with_the_ends(modalities: int) -> None:
    subsets = validation_subsets(modalities)
    rows = {tuple(row) for row in subsets.tolist()}
    assert len(rows) == len(subsets) == max(32, modalities + 1)
    assert (True,) * modalities in rows
    assert sum(sum(row) == 1 for row in rows) == modalities
    assert torch.equal(subsets, validation_subsets(modalities))
