"""The small matcher: shapes, unit length, a folder round trip, every parameter trains."""

from pathlib import Path

import pytest
import torch

from polyfuse.losses import info_nce
from polyfuse.models.dual_encoder import DualEncoder


def on_features() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(image_dim=7, text_dim=5, embed_dim=3, hidden_dim=11)


def on_pixels() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(image_size=13, channels=(2, 3), vocab_size=17, embed_dim=5)


INPUTS = {
    on_features: lambda: (torch.randn(4, 7), torch.randn(6, 5)),
    on_pixels: lambda: (torch.rand(4, 1, 13, 13), torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]])),
}


@pytest.mark.parametrize("build", INPUTS)
def test_unit_vectors_and_logits(build) -> None:  # type: ignore[no-untyped-def]
    model, (images, texts) = build().eval(), INPUTS[build]()
    out = model(images, texts)
    assert out.logits_per_image.shape == (len(images), len(texts))
    for part in (out.image_embedding, out.text_embedding):
        torch.testing.assert_close(part.norm(dim=-1), torch.ones(len(part)))
    torch.testing.assert_close(
        out.logits_per_image, model.scale() * out.image_embedding @ out.text_embedding.t(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("build", INPUTS)
def test_folder_round_trip(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, (images, texts) = build().eval(), INPUTS[build]()
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(model(images, texts).logits_per_image, again(images, texts).logits_per_image)


@pytest.mark.parametrize("build", INPUTS)
def test_every_parameter_trains(build) -> None:  # type: ignore[no-untyped-def]
    model, (images, texts) = build(), INPUTS[build]()
    for part in (model.image, model.text):
        if hasattr(part, "down"):  # starts at zero, which would hide what stands before it
            torch.nn.init.normal_(part.down.weight)
    embedded = model.encode(images[:3], texts[:3])
    info_nce(*embedded, model.scale()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_padding_says_nothing() -> None:
    model = on_pixels().eval()
    short, padded = torch.tensor([[4, 9]]), torch.tensor([[4, 9, 0, 0, 0]])
    assert torch.equal(model.encode_text(short), model.encode_text(padded))


def test_standardise_takes_mean_and_spread() -> None:
    model = on_features()
    rows = torch.randn(50, 7) * 3 + 2
    model.image.standardise(rows)
    torch.testing.assert_close(model.image.mean, rows.mean(dim=0))
    torch.testing.assert_close(model.image.spread, rows.std(dim=0))


def test_scale_stops_at_100() -> None:
    model = on_features()
    model.logit_scale.data.fill_(9.0)
    assert model.scale().item() == 100.0


def test_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size of at least 2 is needed, got None and 0"):
        DualEncoder(image_dim=3)
