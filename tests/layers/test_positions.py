"""Positions: the formulas one number at a time, masks, and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polyfuse.layers import (
    BoxPositions,
    GridPositions,
    LearnedPositions,
    ModalityTypes,
    SinusoidalPositions,
    box_features,
)
from polyfuse.layers.positions import sinusoidal_table

B, T, D = 3, 6, 8
MASK = torch.arange(T) < torch.tensor([6, 2, 0])[:, None]


def build(kind: str) -> tuple[torch.nn.Module, Callable[[Tensor, Tensor | None], Tensor]]:
    torch.manual_seed(0)
    if kind == "learned":
        learned = LearnedPositions(7, D)
        return learned, learned
    if kind == "sinusoidal":
        fixed = SinusoidalPositions(D)
        return fixed, fixed
    if kind.startswith("grid"):
        grid = GridPositions(D, (5, 7) if kind == "grid_learned" else None)
        return grid, lambda x, mask: grid(x, (2, 3), mask)
    if kind == "box":
        box = BoxPositions(D, D, norm=True)
        return box, box
    types = ModalityTypes(("text", "image"), D)
    return types, lambda x, mask: types({"image": x}, None if mask is None else {"image": mask})["image"]


KINDS = ("learned", "sinusoidal", "grid_learned", "grid_sinusoidal", "box", "types")


@pytest.mark.parametrize("kind", KINDS)
def test_absent_tokens_come_out_as_zeros_whatever_stood_there(kind: str) -> None:
    module, add = build(kind)
    x = torch.randn(B, T, D)
    broken = x.masked_fill(~MASK[..., None], math.nan).requires_grad_()
    out = add(broken, MASK)
    assert not out[~MASK].any()
    torch.testing.assert_close(out[MASK], add(x, None)[MASK])
    out.square().sum().backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()
    assert not broken.grad[~MASK].any()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(B, T\) = \(3, 6\), got torch.bool \(3, 5\)"):
        add(x, MASK[:, 1:])
    with pytest.raises(ValueError, match=r"\(3, 6\), got torch.float32 \(3, 6\)"):
        add(x, MASK.float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_stays(kind: str, dtype: torch.dtype) -> None:
    module, add = build(kind)
    module.to(dtype)
    assert add(torch.zeros(B, T, D, dtype=dtype), MASK).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole(kind: str) -> None:
    _, add = build(kind)
    x = torch.randn(B, T, D)
    torch.testing.assert_close(torch.compile(add, fullgraph=True, backend="aot_eager")(x, MASK), add(x, MASK))


def test_sinusoids() -> None:
    table = sinusoidal_table(11, D, first=2)
    for row in range(11):
        for i in range(D // 2):
            angle = (row + 2) / 10000 ** (2 * i / D)
            assert table[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    x = torch.randn(B, T, D)
    torch.testing.assert_close(SinusoidalPositions(D)(x, first=2), x + table[:T])
    for make in (lambda: sinusoidal_table(3, 7), lambda: SinusoidalPositions(7)):
        with pytest.raises(ValueError, match="even dim, got 7"):
            make()


def test_learned_positions_count_from_the_first() -> None:
    torch.manual_seed(0)
    layer, x = LearnedPositions(7, D), torch.randn(B, T, D)
    whole = layer(x)
    torch.testing.assert_close(whole - x, layer.table.weight[:T].expand(B, -1, -1))
    steps = [layer(x[:, t : t + 1], first=t) for t in range(T)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    with pytest.raises(ValueError, match="there are 7 positions, got tokens up to 8"):
        layer(x, first=2)


@pytest.mark.parametrize("size", [None, (5, 7)])
def test_grid_says_row_then_column(size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    layer = GridPositions(D, size)
    out = layer(torch.zeros(1, 6, D), (2, 3))[0]
    for row in range(2):
        for column in range(3):
            if layer.tables is None:
                down, across = sinusoidal_table(2, D // 2)[row], sinusoidal_table(3, D // 2)[column]
            else:
                down, across = layer.tables[0][row], layer.tables[1][column]
            torch.testing.assert_close(out[row * 3 + column], torch.cat((down, across)))
    assert out.unique(dim=0).shape[0] == 6  # no two places alike
    with pytest.raises(ValueError, match="a grid of 2 x 3 has 6 tokens, got 5"):
        layer(torch.zeros(1, 5, D), (2, 3))


def test_grid_refusals() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        GridPositions(6)
    with pytest.raises(ValueError, match="divisible by 2, got 7"):
        GridPositions(7, (2, 3))
    with pytest.raises(ValueError, match=r"5 x 7 places, got a grid of \(6, 1\)"):
        GridPositions(D, (5, 7))(torch.zeros(1, 6, D), (6, 1))


def test_box_features_are_the_originals() -> None:
    """ViLBERT's five and UNITER's seven numbers, and one image size per row."""
    boxes = torch.tensor([[[0.0, 0.0, 200.0, 100.0], [20.0, 10.0, 120.0, 35.0]]])
    five, seven = (box_features(boxes, (200, 100), kind=kind)[0] for kind in (5, 7))
    torch.testing.assert_close(five[0], torch.tensor([0.0, 0, 1, 1, 1]))
    torch.testing.assert_close(five[1], torch.tensor([0.1, 0.1, 0.6, 0.35, 0.5 * 0.25]))
    torch.testing.assert_close(seven[1], torch.tensor([0.1, 0.1, 0.6, 0.35, 0.5, 0.25, 0.5 * 0.25]))
    torch.testing.assert_close(box_features(boxes, (200, 100), kind=4)[0], five[:, :4])
    sizes = torch.tensor([[200.0, 100.0], [400.0, 50.0]])
    both = box_features(boxes.expand(2, -1, -1), sizes)
    torch.testing.assert_close(both[0], five)
    torch.testing.assert_close(both[1], box_features(boxes, (400, 50))[0])
    with pytest.raises(ValueError, match="kind must be 4, 5 or 7 coordinates, got 6"):
        box_features(boxes, (200, 100), kind=6)
    with pytest.raises(ValueError, match="must have 4 coordinates"):
        box_features(five, (200, 100))
    with pytest.raises(ValueError, match="a box must have 7 coordinates, got 5"):
        BoxPositions(7, D)(five[None])


def test_modality_types_go_by_name() -> None:
    torch.manual_seed(0)
    layer = ModalityTypes(("text", "image"), D)
    image, text = torch.randn(B, 5, D), torch.randn(B, 7, D)
    out = layer({"image": image, "text": text})
    torch.testing.assert_close(out["text"] - text, layer.table.weight[0].expand(B, 7, -1))
    torch.testing.assert_close(out["image"] - image, layer.table.weight[1].expand(B, 5, -1))
    with pytest.raises(ValueError, match=r"unknown modalities \['audio'\]; known: \['text', 'image'\]"):
        layer({"audio": text})
    with pytest.raises(ValueError, match=r"distinct, got \['text', 'text'\]"):
        ModalityTypes(("text", "text"), D)
