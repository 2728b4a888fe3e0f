"""Frozen networks: parity where there is something to compare with, sanity on real inputs where the weights are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from polyfuse.data.fetch import path_of
from polyfuse.encoders.efficientnet_lite import EfficientNetLite0, same_padding
from polyfuse.encoders.pretrained import PRETRAINED, EfficientNetCells, extract_features, load_pretrained
from polyfuse.encoders.wordllama import WordLlama
from polyfuse.errors import UserError
from polyfuse.tasks.sources_pairs import cell_regions


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(path_of(name) is None, reason=f"polyfuse weights fetch {name}")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("polyfuse.encoders.features.cache_dir", lambda: tmp_path)


@pytest.mark.parametrize("side", [7, 8, 15, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (5, 1)])
def test_same_padding(side: int, kernel: int, stride: int) -> None:
    x = torch.randn(1, 1, side, side + 3)
    padded = same_padding(x, kernel, stride)
    out = torch.nn.functional.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride)
    assert out.shape[2:] == (-(-side // stride), -(-(side + 3) // stride))
    added = padded.shape[2] - side
    torch.testing.assert_close(
        padded[:, :, added // 2 : added // 2 + side], torch.nn.functional.pad(x, _columns(x, padded))
    )


def _columns(x: torch.Tensor, padded: torch.Tensor) -> tuple[int, int]:
    added = padded.shape[3] - x.shape[3]
    return added // 2, added - added // 2


def test_efficientnet_has_the_published_size_and_stays_in_inference() -> None:
    network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert len(network.state_dict()) == 296
    network.train()
    assert not any(m.training for m in network.modules())


def test_efficientnet_loads_by_position_and_refuses_what_does_not_fit() -> None:
    torch.manual_seed(0)
    source, network = EfficientNetLite0(), EfficientNetLite0()
    state = {f"other.{i}": value for i, value in enumerate(source.state_dict().values())}
    network.load_original(state)
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(x), source(x))
    with pytest.raises(ValueError, match="296 tensors, got 295"):
        network.load_original(dict(list(state.items())[1:]))
    swapped = list(state.items())
    swapped[0], swapped[1] = swapped[1], swapped[0]
    with pytest.raises(ValueError, match=r"'stem\.conv\.weight' must be \(32, 3, 3, 3\), got 'other\.1' of \(32,\)"):
        network.load_original(dict(swapped))


def test_efficientnet_cells_are_places_of_the_maps_of_stride_8_and_16() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0()
    maps: dict[int, torch.Tensor] = {}
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: maps.__setitem__(out.shape[1], out))
    pixels = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        network.features(pixels)
        fine, coarse = maps[40], maps[112]
        found = network.grid(pixels)
    assert found.shape == (2, network.grid_width, 3, 4)
    assert fine.shape[2:] == (6, 8)
    torch.testing.assert_close(found[:, 160:], coarse)
    wanted = torch.stack([fine[:, :, 4:6, 2:4].flatten(2)[:, channel] for channel in range(40)], dim=1)
    torch.testing.assert_close(found[:, :160, 2, 1], wanted.flatten(1))
    with pytest.raises(ValueError, match="sides must be multiples of 16 pixels, got 40 x 64"):
        network.grid(pixels[:, :, :40])


def test_cells_of_pictures_become_regions_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "random.pth")
    monkeypatch.setattr("polyfuse.data.fetch.fetch", lambda name: tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = cell_regions(images)
    assert found.features.shape == (3, 4, 272)
    assert found.mask.all()
    assert found.boxes[2].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    with torch.no_grad():
        wanted = EfficientNetCells(tmp_path, 32).network.grid(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(torch.from_numpy(found.features[:, 2]), wanted[:, :, 1, 0])
    with pytest.raises(UserError, match="side must be a multiple of 16 for features of cells, got 40"):
        cell_regions(np.zeros((1, 40, 40, 3), dtype=np.uint8))


@pytest.mark.weights
@needs("efficientnet_lite0")
def test_efficientnet_equals_the_original_network() -> None:
    """Golden: logits 0, 250, 500, 750 of the original package's network; make_golden_efficientnet.py made them."""
    golden = json.loads((Path(__file__).parent / "golden_efficientnet.json").read_text())
    features = load_pretrained("efficientnet_lite0", cache=False)
    assert features.weights_digest == golden["weights_digest"]
    x = (np.arange(2 * 3 * 96 * 96).reshape(2, 3, 96, 96) * 2654435761 % 4294967296 // 16777216).astype(np.uint8)
    with torch.no_grad():
        logits = features.network.network(torch.from_numpy(x))
    torch.testing.assert_close(logits[:, ::250], torch.tensor(golden["logits"]), atol=2e-4, rtol=1e-4)


@pytest.mark.weights
@needs("efficientnet_lite0")
def test_efficientnet_knows_a_daisy_from_a_palace() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    squares = []
    for name in ("china.jpg", "flower.jpg"):
        image = torch.from_numpy(np.array(datasets.load_sample_image(name))).permute(2, 0, 1)[None].float()
        image = torch.nn.functional.interpolate(image[..., 106:533], (224, 224), mode="bicubic", antialias=True)
        squares.append(image.clamp(0, 255).round()[0].permute(1, 2, 0).numpy().astype(np.uint8))
    network = load_pretrained("efficientnet_lite0")
    found = network(squares)
    assert found.shape == (2, 1280)
    palace, flower = network.network.network.classifier(torch.from_numpy(found)).softmax(dim=-1)
    assert int(flower.argmax()) == 985  # daisy
    assert {698, 442} <= set(palace.topk(3).indices.tolist())  # palace, bell cote
    mixed = network([squares[0], squares[1][:128, :128], squares[1]])  # sizes may differ
    np.testing.assert_allclose(mixed[[0, 2]], found, atol=1e-4)


def tiny_wordllama(folder: Path) -> np.ndarray:
    table = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    save_file({"embedding.weight": table}, folder / "table.safetensors")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "dog": 2, "cat": 3, "big": 4}, unk_token="[UNK]"))  # noqa: S106 (a token of a text)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return table.astype(np.float32)


def test_wordllama_is_the_mean_of_the_token_vectors(tmp_path: Path) -> None:
    table = tiny_wordllama(tmp_path)
    found = WordLlama(tmp_path).compute(["red dog", "cat", "", "cat owl"])
    expected = np.stack([(table[1] + table[2]) / 2, table[3], np.zeros(3), (table[3] + table[0]) / 2])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    (tmp_path / "table.safetensors").unlink()
    with pytest.raises(UserError, match=r"one file '\*\.safetensors', got \[\]"):
        WordLlama(tmp_path)


def similarity(found: np.ndarray) -> np.ndarray:
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return found @ found.T


@pytest.mark.weights
@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in ("wordllama", "minilm")])
def test_sentences_about_one_thing_are_near(name: str) -> None:
    if name == "minilm":
        pytest.importorskip("transformers")
    sentences = ["a dog runs in the park", "a puppy plays outside", "the stock price fell", "the market lost value"]
    near = similarity(extract_features(name, sentences))
    assert min(near[0, 1], near[2, 3]) > 0.3
    assert near[:2, 2:].max() < 0.15
    assert load_pretrained(name).width == {"wordllama": 256, "minilm": 384}[name]


def test_unknown_names_and_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'minilm'.* or hf:<folder>"):
        load_pretrained("minilml")
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "empty"))
    for name in PRETRAINED:
        with pytest.raises(UserError, match=f"polyfuse weights fetch {name}"):
            load_pretrained(name)
    with pytest.raises(UserError, match=r"must hold one \.pth file, got \[\]"):
        load_pretrained("efficientnet_lite0", folder=tmp_path)
    with pytest.raises(UserError, match=r"config\.json"):
        load_pretrained(f"hf:{tmp_path}")
