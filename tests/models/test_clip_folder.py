"""Folders of CLIP and MobileCLIP, in every layout they come in: model, preprocessing and tokenizer together."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from polyfuse.data.clip_image import ImageSettings
from polyfuse.data.clip_text import tokenizer_from_merges
from polyfuse.errors import UserError
from polyfuse.models.clip import CLIP, clip_tiny
from polyfuse.models.clip_folder import ClipFolder, load_clip_folder, save_clip_folder
from polyfuse.models.mobileclip import MobileCLIP, mobileclip_tiny

VOCABULARY = 516  # 512 bytes, two merges, start and end
OPEN_CLIP = {
    "embed_dim": 20,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": VOCABULARY, "width": 24, "heads": 3, "layers": 2},
}
PREPROCESS = {"size": 32, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
TEXTS = ["a cat", "two dogs, and a much longer text"]


@pytest.fixture(autouse=True)
def _nothing_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))


def add_tokenizer(folder: Path) -> None:
    merges = folder / "merges"
    merges.write_text("#version\nc a\nca t</w>\n")
    tokenizer_from_merges(merges, vocab_size=514).save(folder / "tokenizer.json")
    merges.unlink()


def tiny(**kwargs: object) -> CLIP:
    torch.manual_seed(0)
    return clip_tiny(vocab_size=VOCABULARY, **kwargs).eval()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 53, 3), dtype=np.uint8))


def logits(found: ClipFolder) -> torch.Tensor:
    with torch.no_grad():
        return found.model(found.images([picture()]), found.texts(TEXTS)).logits_per_image


def folder_of_open_clip(folder: Path, model: CLIP, name: str = "open_clip_model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    add_tokenizer(folder)
    state = model.to_original()
    if name.endswith("safetensors"):
        save_file(state, folder / name)
    else:
        torch.save({"state_dict": state}, folder / name)
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "mine.pt"])
def test_open_clip(name: str, tmp_path: Path) -> None:
    model = tiny(activation="gelu")
    found = load_clip_folder(folder_of_open_clip(tmp_path / "model", model, name))
    assert (found.layout, found.weights.name) == ("openai", name)
    assert found.model.config["activation"] == "gelu"
    assert found.images == ImageSettings(32, None, "bilinear", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert found.texts(TEXTS).shape == (2, 16)
    expected = model(found.images([picture()]), found.texts(TEXTS)).logits_per_image
    assert torch.equal(logits(found), expected.detach())


def test_hugging_face_folder_written_by_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 29, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 3, "max_position_embeddings": 16, "eos_token_id": 515, "hidden_act": "gelu"}
    image = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    image |= {"image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=20)
    peer = transformers.CLIPModel(config).eval()
    peer.save_pretrained(tmp_path)
    processing = {"size": {"shortest_edge": 35}, "crop_size": {"height": 32, "width": 32}, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processing, "image_mean": [0.5] * 3}))
    add_tokenizer(tmp_path)
    found = load_clip_folder(tmp_path)
    assert found.layout == "hf"
    assert (found.images.resize, found.images.interpolation, found.images.mean) == (35, "bilinear", (0.5, 0.5, 0.5))
    assert (found.model.config["activation"], found.model.config["text_activation"]) == ("quick_gelu", "gelu")
    with torch.no_grad():
        expected = peer(found.texts(TEXTS), found.images([picture()])).logits_per_image
    torch.testing.assert_close(logits(found), expected, atol=1e-5, rtol=1e-5)


def test_bare_weights_take_what_openai_used_and_say_so(tmp_path: Path) -> None:
    model = tiny(image_dim=64, image_heads=1, text_dim=64, text_heads=1)
    torch.save(model.to_original(), tmp_path / "ViT.pt")
    add_tokenizer(tmp_path)
    with pytest.warns(UserWarning, match="quick_gelu"):
        found = load_clip_folder(tmp_path)
    assert (found.images, found.layout) == (ImageSettings(size=32), "openai")
    assert torch.equal(logits(found), model(found.images([picture()]), found.texts(TEXTS)).logits_per_image.detach())


@pytest.mark.parametrize("layout", ["apple", "open_clip"])
def test_mobileclip(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mobileclip_tiny(vocab_size=VOCABULARY, text_repmixer=layout == "apple").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(model.to_original(layout), tmp_path / "mobileclip.pt")
        add_tokenizer(tmp_path)
        found = load_clip_folder(tmp_path)
    assert isinstance(found.model, MobileCLIP)
    assert found.layout == layout
    settings = found.images
    assert (settings.size, settings.interpolation) == (256, "bilinear")  # shapes do not tell FastViT's size
    assert (settings.mean, settings.std) == ((0, 0, 0), (1, 1, 1))
    assert found.texts(TEXTS).shape == (2, 13)
    images = settings([picture()])
    assert 0 <= images.min() < images.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(logits(found), model(images, found.texts(TEXTS)).logits_per_image)


def test_saved_as_ours_and_read_again(tmp_path: Path) -> None:
    found = load_clip_folder(folder_of_open_clip(tmp_path / "theirs", tiny()))
    again = load_clip_folder(save_clip_folder(found, tmp_path / "ours"))
    assert (again.layout, again.images) == ("polyfuse", found.images)
    assert torch.equal(again.texts(TEXTS), found.texts(TEXTS))
    assert torch.equal(logits(again), logits(found))


def test_a_repository_with_both_layouts_uses_the_matching_config(tmp_path: Path) -> None:
    """Hub repositories hold config.json and open_clip_config.json side by side."""
    folder = folder_of_open_clip(tmp_path / "model", tiny(activation="gelu"), "open_clip_pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": {}, "vision_config": {}}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 99, "crop_size": 99}))
    assert load_clip_folder(folder).images.interpolation == "bilinear"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder with weights is needed, got '.*absent'"):
        load_clip_folder(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no weights"):
        load_clip_folder(tmp_path)
    (tmp_path / "a.pt").touch()
    (tmp_path / "b.pt").touch()
    with pytest.raises(UserError, match=r"got a.pt, b.pt; rename yours to model.safetensors"):
        load_clip_folder(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="no names of CLIP's"):
        load_clip_folder(tmp_path)
    folder = folder_of_open_clip(tmp_path / "model", tiny())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="polyfuse weights fetch clip_vocab"):
        load_clip_folder(folder)
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {"size": 40}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="40 pixels wide, the model takes 32"):
        load_clip_folder(folder)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match=r"open_clip_config.json' cannot be read as JSON"):
        load_clip_folder(folder)
    small = folder_of_open_clip(tmp_path / "small", clip_tiny(vocab_size=90))
    text = {**OPEN_CLIP["text_cfg"], "vocab_size": 90}  # type: ignore[dict-item]
    (small / "open_clip_config.json").write_text(json.dumps({**OPEN_CLIP, "text_cfg": text}))
    with pytest.raises(UserError, match="has 516 ids, the model 90"):
        load_clip_folder(small)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").touch()
    with pytest.raises(UserError, match="several parts"):
        load_clip_folder(tmp_path / "parts")
