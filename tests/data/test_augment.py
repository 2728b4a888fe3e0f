import pytest
import torch

from polyfuse.data.augment import strengthen
from polyfuse.data.batch import Batch
from polyfuse.errors import UserError


def table(rows: int = 400, share: float = 0.25) -> Batch:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (rows,), generator=g)
    centre = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    spread = torch.randn(rows, 2, generator=g) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    present = torch.stack([torch.ones(rows, dtype=torch.bool), torch.rand(rows, generator=g) < share], dim=1)
    weak = torch.where(present[:, 1:], centre[target] + spread, 0.0)
    return Batch(("strong", "weak"), {"strong": torch.randn(rows, 3, generator=g), "weak": weak}, present, target,
                 torch.arange(rows) * 7)  # fmt: skip


def test_oversampling_repeats_the_rows_that_have_it() -> None:
    train = table()
    n = int(train.present[:, 1].sum())
    more = strengthen(train, "weak", "oversample", 2.5, "classification", 0)
    assert len(more) == len(train) + 2 * n + round(0.5 * n)
    assert more.present[len(train) :, 1].all()
    assert len(more.keys.unique()) == len(more)
    added = {tuple(row.tolist()) for row in more.inputs["weak"][len(train) :]}
    assert added == {tuple(row.tolist()) for row in train.inputs["weak"][train.present[:, 1]]}


def test_mixing_stays_within_the_class_and_on_the_segment() -> None:
    train = table()
    more = strengthen(train, "weak", "mixup", 1.0, "classification", 0)
    new, old = more.rows(torch.arange(len(train), len(more))), train.rows(train.present[:, 1].nonzero()[:, 0])
    torch.testing.assert_close(new.inputs["strong"], old.inputs["strong"])
    assert not torch.allclose(new.inputs["weak"], old.inputs["weak"])
    for c in range(3):
        low, high = (f(old.inputs["weak"][old.target == c], dim=0).values for f in (torch.min, torch.max))
        mixed = new.inputs["weak"][new.target == c]
        assert ((mixed >= low) & (mixed <= high)).all()


def test_generated_inputs_have_the_law_of_their_class() -> None:
    train = table(4000)
    filled = strengthen(train, "weak", "generate", 1.0, "classification", 0)
    n = int(train.present[:, 1].sum())
    new = filled.present[:, 1] & ~train.present[:, 1]
    assert int(new.sum()) == n
    assert torch.equal(filled.inputs["weak"][train.present[:, 1]], train.inputs["weak"][train.present[:, 1]])
    for c in range(3):
        real = train.inputs["weak"][train.present[:, 1] & (train.target == c)]
        made = filled.inputs["weak"][new & (train.target == c)]
        torch.testing.assert_close(made.mean(0), real.mean(0), atol=0.25, rtol=0)
        torch.testing.assert_close(made.T.cov(), real.T.cov(), atol=0.3, rtol=0)


@pytest.mark.parametrize("method", ["oversample", "mixup", "generate"])
def test_belongs_to_the_rows_not_to_their_order(method: str) -> None:
    train = table(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    a = strengthen(train, "weak", method, 1.0, "classification", 0)
    b = strengthen(train.rows(order), "weak", method, 1.0, "classification", 0)
    a, b = a.rows(a.keys.argsort()), b.rows(b.keys.argsort())
    assert torch.equal(a.keys, b.keys)
    assert torch.equal(a.present, b.present)
    if method != "mixup":  # which row of the class is mixed in depends on their order
        torch.testing.assert_close(a.inputs["weak"], b.inputs["weak"], atol=1e-4, rtol=0)


def test_refusals() -> None:
    train = table(20)
    with pytest.raises(UserError, match="must be one of strong, weak, got 'wek'"):
        strengthen(train, "wek", "oversample", 1.0, "classification", 0)
    with pytest.raises(UserError, match="for classification on vectors"):
        strengthen(train, "weak", "mixup", 1.0, "regression", 0)
    with pytest.raises(UserError, match="no training row has"):
        strengthen(train.with_present(torch.zeros_like(train.present)), "weak", "oversample", 1.0, "classification", 0)
