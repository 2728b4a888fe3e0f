"""EmbraceNetFusion: the law of its draws, and its expectation in eval."""

import pytest
import torch

from polyfuse.fusion import EmbraceNetFusion

NAMES = ("c", "a", "b")
CHANCES = {"a": 1.0, "b": 2.0, "c": 5.0}


def make(width: int) -> tuple[EmbraceNetFusion, dict[str, torch.Tensor]]:
    """Docking outputs are the constants a = 1, b = 2, c = 3, so that a fused feature shows where it came from."""
    fusion = EmbraceNetFusion(NAMES, 2, width, probabilities=CHANCES)
    for value, name in enumerate(sorted(NAMES), start=1):
        torch.nn.init.zeros_(fusion.docking[name].weight)
        torch.nn.init.constant_(fusion.docking[name].bias, value)
    return fusion, {name: torch.zeros(3, 2) for name in NAMES}


def test_draws_follow_the_probabilities_of_what_is_present() -> None:
    fusion, x = make(20011)
    present = torch.tensor([[True, True, True], [True, True, False], [False, False, True]])  # c, a, b
    torch.manual_seed(0)
    fused = fusion.train()(x, present).fused
    share = torch.stack([(fused == value).float().mean(dim=1) for value in (1, 2, 3)], dim=1)
    expected = torch.tensor([[1 / 8, 2 / 8, 5 / 8], [1 / 6, 0, 5 / 6], [0, 1, 0]])
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)  # 4 standard errors at 20011 draws
    assert torch.equal(share == 0, expected == 0)  # the absent one never, not merely rarely


def test_features_of_one_row_are_drawn_one_by_one() -> None:
    fusion, x = make(1009)
    torch.manual_seed(0)
    fused = fusion.train()(x).fused
    assert set(fused[0].tolist()) == {1.0, 2.0, 3.0}
    assert not torch.equal(fused[0], fused[1])


def test_eval_is_the_expectation() -> None:
    fusion, x = make(5)
    out = fusion.eval()(x, torch.tensor([[True, True, True], [True, True, False], [False, False, False]]))
    torch.testing.assert_close(out.fused[:, 0], torch.tensor([(1 + 4 + 15) / 8, (1 + 15) / 6, 0.0]))
    torch.testing.assert_close(out.weights[1], torch.tensor([5 / 6, 1 / 6, 0.0]))


def test_docking_is_rectified() -> None:
    fusion, x = make(5)
    torch.nn.init.constant_(fusion.docking["a"].bias, -4.0)
    assert not fusion.eval()(x, torch.tensor([[False, True, False]] * 3)).fused.any()


@pytest.mark.parametrize("chances", [{"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": float("nan")}])
def test_wrong_probabilities(chances: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive number for 'b'"):
        EmbraceNetFusion(("a", "b"), 3, probabilities=chances)
