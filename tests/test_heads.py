"""Heads: shapes, and bounds of the Gaussian."""

import pytest
import torch

from polyfuse.heads import ClassificationHead, MultilabelHead, RegressionHead, gaussian_parameters


@pytest.mark.parametrize("hidden", [None, 11])
def test_shapes_and_width(hidden: int | None) -> None:
    fused = torch.randn(5, 7)
    assert ClassificationHead(7, 3, hidden=hidden)(fused).shape == (5, 3)
    assert MultilabelHead(7, 2, hidden=hidden)(fused).shape == (5, 2)
    assert RegressionHead(7, hidden=hidden)(fused).shape == (5, 2)
    layers = [m for m in ClassificationHead(7, 3, hidden=hidden).modules() if isinstance(m, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == (
        [(7, 3)] if hidden is None else [(7, 11), (11, 3)]
    )


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    head, fused = ClassificationHead(7, 3, dropout=0.5), torch.randn(5, 7)
    assert not torch.equal(head(fused), head(fused))
    head.eval()
    assert torch.equal(head(fused), head(fused))


def test_log_variance_is_bounded_and_its_exponential_finite() -> None:
    head = RegressionHead(1)
    torch.nn.init.constant_(head.layers[-1].weight, 1e4)
    out = head(torch.tensor([[1.0], [-1.0]]))
    assert out[:, 1].tolist() == [7.0, -7.0]
    assert out[0, 0] > 9e3  # the mean is free
    assert torch.equal(torch.stack(gaussian_parameters(out), dim=-1), out)  # a second clamp changes nothing


def test_wrong_regression_output() -> None:
    with pytest.raises(ValueError, match=r"got \(5, 3\)"):
        gaussian_parameters(torch.zeros(5, 3))
