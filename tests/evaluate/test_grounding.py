"""Overlap of boxes against counting cells, the table by kind, the pointing game."""

import math

import numpy as np
import pytest

from polyfuse.evaluate.grounding import grounding_table, iou, pointing_game

N = 53


def made() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (2, N, 2))
    sizes = rng.integers(1, 9, (2, N, 2))
    a, b = np.concatenate([corners, corners + sizes], axis=-1)
    return a, b


def test_overlap_equals_counting_cells() -> None:
    a, b = made()

    def cells(box: np.ndarray) -> set[tuple[int, int]]:
        x0, y0, x1, y1 = box.tolist()
        return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

    want = [len(cells(p) & cells(q)) / len(cells(p) | cells(q)) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(iou(a, b), want)
    np.testing.assert_allclose(iou(b / 20, a / 20), want)
    np.testing.assert_allclose(iou(a, a), 1.0)
    assert iou(a[:, None], b).shape == (N, N)


def test_empty_turned_and_broken_boxes_overlap_nothing() -> None:
    whole = [0.0, 0.0, 1.0, 1.0]
    for box in ([0.5, 0, 0.5, 1], [0.8, 0.8, 0.2, 0.2], [math.nan] * 4, [0, 0, math.nan, 1], [1, 0, 2, 1]):
        assert iou(box, whole) == 0.0
        assert iou(whole, box) == 0.0
    assert iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0.0


def test_table() -> None:
    target = np.tile([0.0, 0.0, 1.0, 1.0], (4, 1))
    predicted = np.array([[0, 0, 1, 0.5], [0, 0, 1, 0.49], [0, 0, 1, 1], [math.nan] * 4])
    lines = grounding_table(predicted, target, ["near", "near", "left", "left"])
    assert lines[0] == {"kind": "all", "rows": 4, "accuracy": 0.5, "mean_iou": pytest.approx(1.99 / 4)}
    assert lines[1] == {"kind": "left", "rows": 2, "accuracy": 0.5, "mean_iou": 0.5}
    assert grounding_table(predicted, target, threshold=0.4)[0]["accuracy"] == 0.75
    with pytest.raises(ValueError, match=r"both be \(N, 4\), got \(4, 4\) and \(3, 4\)"):
        grounding_table(predicted, target[:3])
    with pytest.raises(ValueError, match=r"first must have shape \(..., 4\), got \(3,\)"):
        iou([0, 0, 1], [0, 0, 1, 1])


def test_pointing_game() -> None:
    rng = np.random.default_rng(1)
    maps = rng.random((N, 5, 7))
    a, _ = made()
    boxes = a / 20
    want = []
    for heat, (x0, y0, x1, y1) in zip(maps, boxes, strict=True):
        row, column = divmod(int(heat.argmax()), 7)
        x, y = (column + 0.5) / 7, (row + 0.5) / 5
        want.append(float(x0 <= x <= x1 and y0 <= y <= y1))
    np.testing.assert_array_equal(pointing_game(maps, boxes), want)
    assert 0 < np.mean(want) < 1


def test_pointing_game_with_ties_masks_and_nothing() -> None:
    half = [[0.0, 0.0, 0.5, 1.0]]
    assert pointing_game(np.ones((1, 4, 4)), half).tolist() == [0.5]  # flat: chance
    heat = np.zeros((1, 4, 4))
    heat[0, 0, 0], heat[0, 0, 3] = 1.0, 2.0
    assert pointing_game(heat, half).tolist() == [0.0]
    mask = np.ones((1, 4, 4), bool)
    mask[0, 0, 3] = False
    assert pointing_game(heat, half, mask).tolist() == [1.0]
    heat[0, 0, 3] = math.nan
    assert pointing_game(heat, half).tolist() == [1.0]
    assert pointing_game(heat, half, np.zeros((1, 4, 4), bool)).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"got \(1, 4, 4\) and \(1, 3\)"):
        pointing_game(heat, [[0, 0, 1]])
