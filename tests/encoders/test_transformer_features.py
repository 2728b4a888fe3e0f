"""Any transformers model in a folder, against the library's own calls on tiny random models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyfuse.encoders.pretrained import load_pretrained
from polyfuse.encoders.transformer_features import TransformerFeatures
from polyfuse.errors import UserError

transformers = pytest.importorskip("transformers")

TEXTS = ["red dog", "a big red dog and a cat", "cat"]
SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_words(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "dog", "cat", "a", "big", "and"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=16, **SMALL)
    transformers.BertModel(config).save_pretrained(folder)
    save_words(folder)
    return folder


def by_hand(folder: Path, text: str, first: bool = False) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return states[0] if first else states.mean(dim=0)


def test_texts_are_the_mean_over_their_own_tokens(bert: Path) -> None:
    found = load_pretrained(f"hf:{bert}", cache=False)
    assert (found.width, found.size) == (8, None)
    expected = torch.stack([by_hand(bert, text) for text in TEXTS])
    np.testing.assert_allclose(found(TEXTS), expected.numpy(), atol=1e-5)
    assert found(["dog " * 100]).shape == (1, 8)  # cut at the model's 16 positions
    with pytest.raises(UserError, match="is a text model"):
        found([np.zeros((8, 8, 3), dtype=np.uint8)])


def test_a_sentence_transformers_folder_says_how_to_pool(bert: Path) -> None:
    plain = TransformerFeatures(bert).weights_digest
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (bert / "modules.json").write_text('[{"type": "sentence_transformers.models.Normalize"}]')
    found = TransformerFeatures(bert)
    expected = torch.nn.functional.normalize(torch.stack([by_hand(bert, text, first=True) for text in TEXTS]), dim=-1)
    np.testing.assert_allclose(found.compute(TEXTS), expected.numpy(), atol=1e-5)
    assert found.weights_digest != plain  # other pooling, other features, another cache


def test_images_through_a_vision_transformer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=8, **SMALL)
    model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}'
    )
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image.flags.writeable = False  # as pillow hands them out
    found = load_pretrained(f"hf:{tmp_path}", cache=False)
    assert (found.width, found.size) == (8, 16)
    scaled = (image / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    with torch.no_grad():
        expected = model(pixel_values=torch.tensor(scaled, dtype=torch.float32).permute(2, 0, 1)[None]).pooler_output
    np.testing.assert_allclose(found([image]), expected.numpy(), atol=1e-5)
    assert np.isfinite(found([image, np.zeros((40, 24, 3), dtype=np.uint8)])).all()
    with pytest.raises(UserError, match="has no tokenizer"):
        found(["a text"])


def test_a_pair_of_towers_takes_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"vocab_size": 11, "max_position_embeddings": 16, "eos_token_id": 3, **SMALL}
    vision = {"image_size": 16, "patch_size": 8, **SMALL}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=5)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    save_words(tmp_path)
    found = load_pretrained(f"hf:{tmp_path}", cache=False)
    assert (found.width, found.size) == (5, 16)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        tower = model.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        expected = model.text_projection(tower.pooler_output)
    np.testing.assert_allclose(found(TEXTS)[:1], expected.numpy(), atol=1e-5)
    assert found([np.zeros((16, 16, 3), dtype=np.uint8)]).shape == (1, 5)


def test_pickled_weights_are_not_read(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles are not read"):
        load_pretrained(f"hf:{tmp_path}")
