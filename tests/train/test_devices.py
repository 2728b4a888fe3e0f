import pytest
import torch
from torch import nn

from polyfuse.config import TrainConfig
from polyfuse.errors import UserError
from polyfuse.train.devices import PlainDevice, freeze_modes, make_fabric


def test_a_plain_process_needs_no_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert make_fabric(TrainConfig(device="cpu")) is None
    assert make_fabric(TrainConfig(device="cpu", precision="bf16-mixed")) is None


def test_what_this_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"train\.device is cuda, but PyTorch finds no GPU"):
        make_fabric(TrainConfig(device="cuda"))
    with pytest.raises(UserError, match=r"must be 32-true or bf16-mixed, got 16-mixed"):
        make_fabric(TrainConfig(precision="16-mixed"))
    with pytest.raises(UserError, match=r"must be 32-true or bf16-mixed, got 16-mixed"):
        PlainDevice("16-mixed")


def test_clipping_equals_torch() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(3, 5), nn.Linear(3, 5)
    b.load_state_dict(a.state_dict())
    x = torch.randn(7, 3)
    for layer in (a, b):
        layer(x).square().sum().backward()
    PlainDevice().clip(a, torch.optim.SGD(a.parameters(), lr=1.0), 0.1)
    nn.utils.clip_grad_norm_(b.parameters(), 0.1, foreach=False)
    assert torch.cat([p.grad.flatten() for p in a.parameters()]).norm() == pytest.approx(0.1)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_frozen_modules_stay_in_eval_mode() -> None:
    model = nn.ModuleDict(
        {"live": nn.Sequential(nn.Linear(2, 2), nn.Dropout()), "frozen": nn.Sequential(nn.Linear(2, 2), nn.Dropout())}
    )
    model["frozen"].requires_grad_(False)
    freeze_modes(model)
    assert [m.training for m in model["live"]] == [True, True]
    assert not model["frozen"].training
    assert [m.training for m in model["frozen"]] == [False, False]
