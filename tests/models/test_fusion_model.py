"""FusionModel: zeroes absent inputs before the encoders, encodes once, fuses every subset."""

import math

import pytest
import torch
from torch import Tensor, nn

from polyfuse.fusion import FUSIONS, ConcatFusion, LateFusion
from polyfuse.heads import ClassificationHead
from polyfuse.models import MODELS, FusionModel, ModelOutput

NAMES = ("text", "image", "audio")
B = 5


class Recorder(nn.Module):
    """Keeps what it was given; embeds ids or pixels as their sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.seen: object = None
        self.calls = 0

    def forward(self, value: Tensor | dict[str, Tensor]) -> Tensor:
        self.seen, self.calls = value, self.calls + 1
        x = value["ids"] * value["mask"] if isinstance(value, dict) else value
        return x.flatten(1).float().mean(dim=1, keepdim=True) * self.scale


def make(fusion: str = "concat") -> FusionModel:
    torch.manual_seed(0)
    layer = FUSIONS[fusion](NAMES, {"text": 3, "image": 5, "audio": 7}, 8)
    encoders = {"text": Recorder(3), "image": Recorder(5), "audio": nn.Identity()}
    return FusionModel(encoders, layer, None if layer.decision_level else ClassificationHead(8, 2)).eval()


def inputs() -> dict[str, Tensor | dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {
        "audio": torch.randn(B, 7, generator=generator),
        "image": torch.randint(1, 255, (B, 3, 2, 2), generator=generator, dtype=torch.uint8),
        "text": {
            "ids": torch.randint(1, 9, (B, 4), generator=generator, dtype=torch.int32),
            "mask": torch.ones(B, 4, dtype=torch.bool),
        },
    }


def test_absent_inputs_are_zero_before_the_encoder_whatever_their_type() -> None:
    model, present = make(), torch.tensor([[True, False, True]] * 2 + [[False, True, False]] * 3)
    model(inputs(), present)
    text, image = model.encoders["text"].seen, model.encoders["image"].seen
    assert text["ids"].dtype == torch.int32
    assert text["mask"].dtype == torch.bool
    assert not text["ids"][2:].any()
    assert not text["mask"][2:].any()
    assert text["mask"][:2].all()
    assert image.dtype == torch.uint8
    assert not image[:2].any()
    assert torch.equal(image[2:], inputs()["image"][2:])


def test_every_encoder_runs_even_when_its_modality_is_absent_everywhere() -> None:
    model = make()
    model(inputs(), torch.tensor([[False, True, True]] * B))
    assert model.encoders["text"].calls == 1


def test_nan_in_an_absent_input_reaches_no_encoder_gradient() -> None:
    model, data = make(), inputs()
    present = torch.tensor([[True, True, False]] * B)
    clean = model(data, present).logits
    data["audio"] = torch.full((B, 7), math.nan)
    broken = model(data, present)
    assert torch.equal(broken.logits, clean)
    broken.logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_embeddings_computed_once_serve_every_subset(fusion: str) -> None:
    model, data = make(fusion), inputs()
    present = torch.tensor([[True, True, True]] * 3 + [[True, False, True], [False, True, True]])
    embeddings = model.encode(data, present)
    for subset in torch.cartesian_prod(*[torch.tensor([True, False])] * 3):
        here = present & subset
        torch.testing.assert_close(model.fuse(embeddings, here).logits, model(data, here).logits)
    calls = model.encoders["image"].calls
    model.fuse(embeddings, present)
    assert model.encoders["image"].calls == calls


def test_output_and_registry() -> None:
    out = make()(inputs())
    assert isinstance(out, ModelOutput)
    assert out.logits.shape == (B, 2)
    assert MODELS["fusion_model"] is FusionModel


def test_decision_level_fusion_is_its_own_head() -> None:
    model = make("late")
    embeddings = model.encode(inputs())
    assert torch.equal(model.fuse(embeddings).logits, model.fusion(embeddings).fused)
    FusionModel({"a": nn.Identity()}, LateFusion(("a",), 3, 2), nn.Identity())


def test_what_does_not_go_together_is_refused() -> None:
    concat, late = ConcatFusion(("a", "b"), 3), LateFusion(("a", "b"), 3, 2)
    encoders = {"a": nn.Identity(), "b": nn.Identity()}
    with pytest.raises(ValueError, match="ConcatFusion needs a head, got NoneType"):
        FusionModel(encoders, concat)
    with pytest.raises(ValueError, match=r"LateFusion must not have a head: .* got ClassificationHead"):
        FusionModel(encoders, late, ClassificationHead(2, 2))
    with pytest.raises(ValueError, match=r"\['a', 'b'\], got \['a'\]"):
        FusionModel({"a": nn.Identity()}, late)
    model = FusionModel(encoders, late)
    with pytest.raises(ValueError, match=r"inputs lack 'b', got \['a'\]"):
        model({"a": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"torch.float32 \(2, 2\)"):
        model({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"torch.bool \(2, 3\)"):
        model({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="input of 'a' has 3 rows, but present has 1"):
        model({"a": torch.zeros(3, 3), "b": torch.zeros(3, 3)}, torch.ones(1, 2, dtype=torch.bool))


def test_encoders_are_reached_by_name() -> None:
    """A model is plain modules: an encoder can be frozen, replaced or read by name."""
    model = make()
    model.encoders["text"].requires_grad_(False)
    model(inputs()).logits.sum().backward()
    assert model.encoders["text"].scale.grad is None
    assert model.encoders["image"].scale.grad is not None
