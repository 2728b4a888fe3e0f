"""MobileCLIP gives the numbers that timm and open_clip gave (make_mobileclip_golden.py), weights hashed from names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfuse.models.mobileclip import MobileCLIP, mobileclip_s1, mobileclip_s2, mobileclip_tiny

from . import hashed

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("mobileclip_golden.json").read_text(encoding="utf-8"))
TINY_VIT = {"image_tower": "vit", "image_size": 64, "image_depths": (2,), "image_dims": (128,), "causal": True}
BIAS = "visual.trunk.head.fc.bias"


def hashed_state(model: MobileCLIP, golden: dict[str, Any], zero: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Weights by the names that the oracle has: the digest says that ours are the same."""
    names = model.to_original("open_clip")
    assert hashed.keys_digest(names) == golden["keys"]
    return hashed.weights(names, zero)


def built(golden: dict[str, Any], zero: tuple[str, ...] = (), definition: str = "apple", **kwargs: Any) -> MobileCLIP:
    with torch.device("meta"):
        model = mobileclip_tiny(text_repmixer=False, **kwargs)
    return MobileCLIP.from_original(hashed_state(model, golden, zero), vit_definition=definition)


def check(model: MobileCLIP, golden: dict[str, Any], side: int, context: int, vocab: int, lengths: Any) -> None:
    with torch.no_grad():
        for name, embeds in (
            ("image", model.encode_image(hashed.images(2, side))),
            ("text", model.encode_text(hashed.texts(lengths, context, vocab))),
        ):
            expected = torch.tensor(golden[name])
            assert expected.std(0).max() > 1e-4  # rows differ, so that a constant would not do
            torch.testing.assert_close(embeds[:, : expected.shape[1]], expected, rtol=0, atol=1e-5, msg=lambda m: m)


def test_tiny_fastvit_equals_timm() -> None:
    check(built(GOLDEN["tiny_fastvit"]), GOLDEN["tiny_fastvit"], 64, 13, 100, (4, 7, 13))


def test_reparameterized_tiny_fastvit_equals_timm() -> None:
    check(built(GOLDEN["tiny_fastvit"]).reparameterize(), GOLDEN["tiny_fastvit"], 64, 13, 100, (4, 7, 13))


@pytest.mark.parametrize("definition", ["apple", "timm"])
def test_tiny_vit_equals_timm_under_both_definitions(definition: str) -> None:
    golden = GOLDEN[f"tiny_vit {definition}"]
    check(built(golden, definition=definition, **TINY_VIT), golden, 64, 13, 100, (4, 7, 13))


def test_the_two_definitions_of_the_vit_differ() -> None:
    one, two = (torch.tensor(GOLDEN[f"tiny_vit {name}"]["image"]) for name in ("apple", "timm"))
    assert (one - two).abs().max() > 1e-3


def test_training_step_equals_timm() -> None:
    golden = GOLDEN["tiny_fastvit training"]
    model = built(GOLDEN["tiny_fastvit"]).train()
    out = model.image(hashed.images(3, 64))
    (out * hashed.hashed("gradient", out.shape)).sum().backward()
    torch.testing.assert_close(out[:, :24].detach(), torch.tensor(golden["image"]), rtol=1e-5, atol=1e-5)
    theirs = model.to_original("open_clip")
    for name, number in golden["statistics"].items():
        assert hashed.probe(name, theirs[f"visual.trunk.{name}"]) == pytest.approx(number, rel=1e-5, abs=1e-5), name
    with torch.no_grad():  # gradients in the place of the weights, under the oracle's names
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    gradients = model.to_original("open_clip")
    assert len(golden["gradients"]) > 100
    for name, number in golden["gradients"].items():
        assert hashed.probe(name, gradients[f"visual.trunk.{name}"]) == pytest.approx(number, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize(
    ("name", "builder", "zero"),
    [("MobileCLIP-S1", mobileclip_s1, (BIAS,)), ("MobileCLIP-S2", mobileclip_s2, ())],
)
def test_published_size_equals_open_clip(name: str, builder: Any, zero: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = builder()
    loaded = MobileCLIP.from_original(hashed_state(model, GOLDEN[name], zero), name)
    assert loaded.config["image_bias"] == (not zero)
    check(loaded, GOLDEN[name], 256, 77, 49408, (5, 9, 77))
