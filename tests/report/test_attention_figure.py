"""Attention figures: what is drawn is what was given; wrong input is refused."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from polyfuse.report.attention_figure import attention_matrix, attention_over_image, grey, on_shade

IMAGE = np.random.default_rng(0).random((13, 17, 3))


def shares(queries: int, keys: int) -> torch.Tensor:
    return torch.rand(queries, keys, generator=torch.Generator().manual_seed(1)).softmax(-1)


def test_panels_show_the_patches_in_place() -> None:
    weights = shares(5, 6) * 0.5
    figure = attention_over_image(weights, IMAGE, (2, 3), list("abcde"), title="Map", columns=3)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [panel.get_title().split("\n")[0] for panel in panels] == list("abcde")
    assert all(panel.get_title().endswith("50 % of its attention") for panel in panels)
    for panel, line in zip(panels, weights, strict=True):
        picture, tint = panel.get_images()
        np.testing.assert_allclose(picture.get_array(), grey(IMAGE))
        np.testing.assert_allclose(tint.get_array(), line.reshape(2, 3))
        assert tint.get_extent() == [-0.5, 16.5, 12.5, -0.5]  # over the whole image, not turned over
        assert tint.get_clim() == (0.0, pytest.approx(float(weights.max())))  # one scale for all
    assert figure.get_suptitle() == "Map"
    assert "attention weight (%)" in [axes.get_ylabel() for axes in figure.axes]


def test_matrix_says_its_numbers_and_crosses_out_hidden_keys() -> None:
    weights = torch.cat([shares(2, 3), torch.zeros(2, 1)], 1)
    figure = attention_matrix(weights, ["one", "two"], ["a", "b", "c", "pad"], limit=1.0)
    axes = figure.axes[0]
    said = np.array([text.get_text() for text in axes.texts]).reshape(2, 4)
    assert said[:, :3].tolist() == [[f"{100 * float(v):.0f}" for v in line[:3]] for line in weights]
    assert said[:, 3].tolist() == ["×", "×"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "pad"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    np.testing.assert_allclose(axes.get_images()[0].get_array(), weights)
    assert axes.get_images()[0].get_clim() == (0.0, 1.0)


def test_heads_are_averaged() -> None:
    weights = torch.stack([shares(2, 3), shares(2, 3).flip(0)])
    drawn = attention_matrix(weights, ["x", "y"], ["a", "b", "c"]).axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(drawn, weights.mean(0), rtol=1e-6)


def test_files_come_out_the_same_and_odd_words_do_no_harm() -> None:
    words = ["$x_1$", "<é>", "a" * 200]
    first, second = io.BytesIO(), io.BytesIO()
    for out in (first, second):
        attention_over_image(shares(3, 4), IMAGE, (2, 2), words).savefig(out, format="png", dpi=40)
    assert first.getvalue() == second.getvalue()
    assert first.getvalue().startswith(b"\x89PNG")


def test_pictures_are_taken_too() -> None:
    pil = pytest.importorskip("PIL.Image")
    pixels = (IMAGE * 255).astype(np.uint8)
    np.testing.assert_allclose(grey(pil.fromarray(pixels)), grey(pixels))
    assert grey(np.full((1, 1, 3), 255, np.uint8)) == pytest.approx(1.0)


def test_numbers_can_be_read_on_their_shade() -> None:
    assert on_shade(0.0) == "white"
    assert on_shade(1.0) == "black"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.zeros(2, 5), r"\(2, 2 x 2\), got \(2, 5\)"),
        (torch.full((2, 4), math.nan), "got nan to nan"),
        (torch.full((2, 4), -0.5), "got -0.5"),
        (torch.full((2, 4), 2.0), "to 2.0"),
        (torch.zeros(4), r"got \(4,\)"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attention_over_image(weights, IMAGE, (2, 2), ["a", "b"])


def test_wrong_labels_images_and_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(queries, keys\) = \(1, 4\), got \(2, 4\)"):
        attention_matrix(shares(2, 4), ["a"], list("wxyz"))
    with pytest.raises(ValueError, match=r"got \(13, 17\)"):
        attention_over_image(shares(1, 4), IMAGE[..., 0], (2, 2), ["a"])
    with pytest.raises(ValueError, match="to 25"):
        attention_over_image(shares(1, 4), IMAGE * 0 + 25.0, (2, 2), ["a"])
    with pytest.raises(ValueError, match="got 0"):
        attention_matrix(shares(1, 2), ["a"], ["b", "c"], limit=0)
