"""Contrast against a momentum teacher: soft targets in plain loops, the queue, the teacher's steps."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.losses import ITCLoss, Keys, MomentumQueue, MomentumTeacher, info_nce, itc_loss

B, K, E = 5, 11, 7


def unit(count: int, seed: int) -> Tensor:
    x = torch.randn(count, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1)


def keys(ids: Tensor | None = None, present: Tensor | None = None) -> Keys:
    return Keys(unit(K, 2), unit(K, 3), ids, torch.ones(K, dtype=torch.bool) if present is None else present)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_equals_plain_loops(alpha: float) -> None:
    first, second = unit(B, 0).requires_grad_(), unit(B, 1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 2, 1, 4, 4, 9, 9, 0, 10, 0])
    present = torch.tensor([1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1]).bool()
    teacher = keys(ids, present)
    columns = [j for j in range(K) if present[j]]
    losses = []
    for i in range(B):
        if not present[i]:
            continue
        same = [j for j in columns if ids[j] == ids[i]]
        for own, said, others in ((first, teacher.first, teacher.second), (second, teacher.second, teacher.first)):
            soft = torch.stack([3.0 * (said[i] * others[j]).sum() for j in columns]).softmax(0)
            target = [alpha * soft[n] + (1 - alpha) * (j in same) / len(same) for n, j in enumerate(columns)]
            log_share = torch.stack([scale * (own[i] * others[j]).sum() for j in columns]).log_softmax(0)
            losses.append(-sum(t * x for t, x in zip(target, log_share, strict=True)))
    ours, theirs = itc_loss(first, second, teacher, scale, alpha=alpha), sum(losses) / len(losses)
    torch.testing.assert_close(ours, theirs)
    for got, wanted in zip(
        torch.autograd.grad(ours, (first, second, scale)),
        torch.autograd.grad(theirs, (first, second, scale)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_without_teacher_and_queue_it_is_info_nce() -> None:
    first, second = unit(B, 0), unit(B, 1)
    ids, here = torch.tensor([0, 1, 1, 2, 3]), torch.ones(B, dtype=torch.bool)
    for rows in (None, ids):
        teacher = Keys(first, second, rows, here)
        torch.testing.assert_close(
            itc_loss(first, second, teacher, 3.0, alpha=0.0), info_nce(first, second, 3.0, ids=rows)
        )


def test_absent_rows_and_empty_places_leave_no_trace() -> None:
    present = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1]).bool()
    first, second, teacher = unit(B, 0), unit(B, 1), keys(present=present)
    expected = itc_loss(first, second, teacher, 3.0)
    broken = first.clone()
    broken[1] = math.nan
    teacher.first[~present] = math.nan
    teacher.second[~present] = math.inf
    broken.requires_grad_()
    ours = itc_loss(broken, second, teacher, 3.0)
    torch.testing.assert_close(ours, expected)
    gradient = torch.autograd.grad(ours, broken)[0]
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    nothing = itc_loss(broken, second, keys(present=torch.arange(K) >= B), 3.0)
    assert nothing.item() == 0.0
    assert torch.autograd.grad(nothing, broken)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    first, second, (k1, k2, _, here) = unit(B, 0).to(dtype), unit(B, 1).to(dtype), keys()
    ours = itc_loss(first, second, Keys(k1.to(dtype), k2.to(dtype), None, here), 30.0)
    wide = Keys(k1.to(dtype).float(), k2.to(dtype).float(), None, here)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, itc_loss(first.float(), second.float(), wide, 30.0))


def test_queue_keeps_the_last_pairs() -> None:
    queue = MomentumQueue(1, 7)
    seen = []
    for start, count in ((0, 3), (3, 3), (6, 2), (8, 17), (25, 1)):
        rows = torch.arange(start, start + count)
        queue.push(rows[:, None].float(), -rows[:, None].float(), rows, rows % 5 != 0)
        seen += rows.tolist()
        kept = seen[-7:]
        values = sorted(queue.first[queue.present].flatten().tolist())
        assert values == [float(x) for x in kept if x % 5 != 0]
        assert sorted(queue.ids[queue.present].tolist()) == values
        assert torch.equal(queue.second, -queue.first)
    again = MomentumQueue(1, 7)
    again.load_state_dict(queue.state_dict())
    assert again.place == queue.place
    assert MomentumQueue(1, 0).keys(torch.ones(2, 1), torch.ones(2, 1)).first.shape == (2, 1)
    MomentumQueue(1, 0).push(torch.ones(2, 1), torch.ones(2, 1))
    queue.push(torch.full((1, 1), math.nan), torch.zeros(1, 1), None, torch.tensor([False]))
    assert queue.first.isfinite().all()


def test_module_uses_the_queue_of_earlier_calls_and_fills_it_in_training_alone() -> None:
    loss = ITCLoss(E, queue_size=K, alpha=0.3).double()
    assert loss.scale().item() == pytest.approx(1 / 0.07)
    before = [unit(B, seed) for seed in (5, 6)]
    ids = torch.tensor([0, 1, 2, 3, 4])
    loss(before[0], before[1], before[0], before[1], ids)
    first, second, t1, t2 = (unit(B, seed) for seed in (0, 1, 2, 3))
    expected = itc_loss(
        first,
        second,
        Keys(torch.cat([t1, before[0]]), torch.cat([t2, before[1]]), ids.repeat(2), torch.ones(2 * B).bool()),
        1 / 0.07,
        alpha=0.1,
    )
    loss.eval()
    state = {name: x.clone() for name, x in loss.state_dict().items()}
    torch.testing.assert_close(loss(first, second, t1, t2, ids, alpha=0.1), expected)
    assert all(torch.equal(x, state[name]) for name, x in loss.state_dict().items())
    with torch.no_grad():
        loss.scale.theta.fill_(50.0)
    assert loss.scale().item() == pytest.approx(1000.0)  # temperature 0.001


def test_teacher_follows_slowly_and_has_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    teacher = MomentumTeacher(model, 0.9).train()
    start = {name: p.clone() for name, p in model.named_parameters()}
    assert not any(m.training for m in teacher.modules())
    x = torch.randn(5, 3, dtype=torch.float64)
    for _ in range(2):
        model(x)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        teacher.update(model)
    for name, p in teacher.model.named_parameters():  # 0 -> 0.1 * 1 -> 0.9 * 0.1 + 0.1 * 2
        torch.testing.assert_close(p, start[name] + 0.29)
        assert not p.requires_grad
    assert torch.equal(teacher.model[1].running_mean, model[1].running_mean)
    assert not teacher(x.requires_grad_()).requires_grad
    with pytest.raises(ValueError, match="bias"):
        teacher.update(nn.Sequential(nn.Linear(3, 3, bias=False)))


def test_refusals() -> None:
    here = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2"):
        itc_loss(unit(B, 0), unit(B, 1), keys(), 1.0, alpha=2)
    with pytest.raises(ValueError, match=r"\(5, 7\).*\(3, 7\)"):
        itc_loss(unit(B, 0), unit(B, 1), Keys(unit(3, 0), unit(3, 1), None, here), 1.0)
    with pytest.raises(ValueError, match="got -1"):
        ITCLoss(3, alpha=-1)
    with pytest.raises(ValueError, match="got -1"):
        MomentumQueue(3, -1)
    with pytest.raises(ValueError, match="got 7"):
        MomentumTeacher(nn.Linear(1, 1), 7)
