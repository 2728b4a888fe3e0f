"""Sets of raw pictures, words and recordings: rules of choice and splits on small files, the cache, the real sets."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from polyfuse.data.corrupt_raw import AUDIO_KINDS, IMAGE_KINDS
from polyfuse.data.fetch import path_of
from polyfuse.datasets import emoji, encoded, tabler, tuxpaint
from polyfuse.datasets.base import DataSet
from polyfuse.datasets.encoded import FeatureTable, fit_letters, mark_of, reduced, remember, render
from polyfuse.encoders.audio import LogMel
from polyfuse.errors import UserError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" {} stroke="black"><path d="M2 2L20 20"/></svg>'
SIZED = SVG.format('width="24" height="12" viewBox="0 0 24 12"')
SIZELESS = SVG.format('width="0" height="0"')


class Mean:
    """Stands for a frozen network: mean colours of a picture, places of letters in a text."""

    def __call__(self, items: Sequence[Any]) -> np.ndarray:
        if isinstance(items[0], str):
            places = [[sum(i for i, t in enumerate(text) if t == c) for c in "abcdefgnt"] for text in items]
            return np.array(places, dtype=np.float32)
        cells = [item.reshape(8, item.shape[0] // 8, 8, item.shape[1] // 8, 3).mean(axis=(1, 3, 4)) for item in items]
        return np.stack(cells).reshape(len(items), -1).astype(np.float32)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (emoji, tuxpaint, tabler):
        monkeypatch.setattr(module, "fetched_network", lambda name: Mean())


def check(data: DataSet) -> None:
    """What holds for every set: groups apart, standardised by training rows, broken inputs of the test's shape."""
    assert data.groups is not None
    groups = [set(data.groups[part]) for part in ("train", "validation", "test")]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for modality in data.train.modalities:
        train, test = data.train.inputs[modality], data.test.inputs[modality]
        assert isinstance(train, Tensor)
        assert isinstance(test, Tensor)
        assert train.dtype == torch.float32
        assert bool(torch.isfinite(test).all())
        torch.testing.assert_close(train.mean(0), torch.zeros(train.shape[1]), atol=1e-4, rtol=0)
        told = {title: value for (name, title), value in data.broken.items() if name == modality}
        assert told
        for value in told.values():
            assert isinstance(value, Tensor)
            assert value.shape == test.shape
            assert not torch.equal(value, test)


# -- what the sets share


def table(value: float) -> FeatureTable:
    part = np.array([0, 0, 1, 2, 2], dtype=np.int8)
    features = {"b": np.ones((5, 1), dtype=np.float32), "a": np.arange(10, dtype=np.float32).reshape(5, 2) * value}
    broken = {("a", "blur 1"): np.full((2, 2), 9, dtype=np.float32)}
    return FeatureTable(list("vwxyz"), list("ppqrr"), ["k", "l"], np.array([0, 1, 0, 1, 0]), part, features, broken)


def test_a_table_is_built_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path))
    first = remember("toy", "m", lambda: table(1))
    kept = remember("toy", "m", lambda: table(2))
    assert (kept.ids, kept.groups, kept.classes) == (first.ids, first.groups, first.classes)
    assert list(kept.features) == ["b", "a"]
    np.testing.assert_array_equal(kept.features["a"], first.features["a"])
    np.testing.assert_array_equal(kept.broken["a", "blur 1"], first.broken["a", "blur 1"])
    assert remember("toy", "n", lambda: table(2)).features["a"][4, 1] == 18
    (tmp_path / "datasets" / "toy-m.safetensors").write_bytes(b"torn")
    assert remember("toy", "m", lambda: table(3)).features["a"][4, 1] == 27
    assert not list((tmp_path / "datasets").glob("*.part"))


def test_the_mark_follows_code_pins_and_split(tmp_path: Path) -> None:
    code = tmp_path / "recipe.py"
    code.write_text("a = 1")
    mark = mark_of((str(code),), ("wordllama",), 0)
    assert mark == mark_of((str(code),), ("wordllama",), 0)
    assert mark != mark_of((str(code),), ("wordllama",), 1)
    assert mark != mark_of((str(code),), ("minilm",), 0)
    code.write_text("a = 2")
    assert mark != mark_of((str(code),), ("wordllama",), 0)


def test_broken_test_rows_are_scaled_like_the_others() -> None:
    data = table(1).data_set("toy", ("note",))
    x, broken = data.test.inputs["a"], data.broken["a", "blur 1"]
    assert isinstance(x, Tensor)
    assert isinstance(broken, Tensor)
    torch.testing.assert_close(x, torch.tensor([[5.0, 5.0], [7.0, 7.0]]))  # training rows 0, 2 and 1, 3
    torch.testing.assert_close(broken, torch.tensor([[8.0, 7.0], [8.0, 7.0]]))


def test_letters_and_directions_are_fitted_on_the_training_rows() -> None:
    train = ["red apple", "green apple", "red pear", "green pear", "blue plum"]
    encode = fit_letters(train, 3)
    assert encode(["redd appel", "zzz"]).shape == (2, 3)
    assert not encode(["zzz"]).any()
    near, far = encode(["red aple", "red apple", "blue plum"])[[0, 0]], encode(["red apple", "blue plum"])
    assert (near * far).sum(1)[0] > (near * far).sum(1)[1]
    rows = np.random.default_rng(0).normal(size=(50, 6)) * np.arange(1, 7)
    project = reduced(rows, 2)
    _, _, axes = np.linalg.svd(rows - rows.mean(0))
    np.testing.assert_allclose(np.abs(project(rows)), np.abs((rows - rows.mean(0)) @ axes[:2].T), atol=1e-3)


def test_render_lays_on_white_and_skips_what_has_no_size(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 20), (255, 0, 0, 128)).save(tmp_path / "a.png")
    picture = render(tmp_path / "a.png", 20)
    assert picture is not None
    assert picture.shape == (20, 20, 3)
    assert picture[10, 1].tolist() == [255, 255, 255]
    assert picture[10, 10].tolist() == [255, 127, 127]
    (tmp_path / "b.svg").write_text(SIZED)
    drawn = render(tmp_path / "b.svg", 24)
    assert drawn is not None
    assert drawn.min() < 60
    assert (drawn[:5] == 255).all()  # half as high as wide: padded
    (tmp_path / "c.svg").write_text(SIZELESS)
    assert render(tmp_path / "c.svg", 24) is None
    for name, content in (("d.svg", "no svg"), ("e.png", "no png")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=rf"{name}' cannot be read"):
            render(tmp_path / name, 24)


# -- the sets, on small files of the same formats


@pytest.fixture
def stamp_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("animals", "food"):
        (tmp_path / kind / "sub").mkdir(parents=True)
        for number in range(12):
            stem = tmp_path / kind / "sub" / f"thing{number:02d}"
            if number % 4 == 3:
                stem.with_suffix(".svg").write_text(SIZED)
            else:
                art = rng.integers(0, 255, (9 + number, 17, 4), dtype=np.uint8)
                Image.fromarray(art, "RGBA").save(stem.with_suffix(".png"))
            stem.with_suffix(".txt").write_text(f"A bad cafe {kind} {number // 2}.\nfr.utf8=Une chose\n", "utf-8")
            wave = np.sin(np.arange(4410 + 441 * number) * (0.02 + 0.01 * number)) * 0.5
            soundfile.write(stem.with_name(f"{stem.name}_desc_fr.ogg"), wave, 44100)
    (tmp_path / "animals" / "sizeless.svg").write_text(SIZELESS)
    for extra in ("animals/sizeless", "animals/silent", "space/moon", "animals/alphabets/a"):
        path = tmp_path / extra
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".txt").write_text("Something.\n")
        if "silent" not in extra:
            soundfile.write(path.with_name(f"{path.name}_desc_fr.ogg"), np.zeros(4410), 44100)
        if "sizeless" not in extra:
            Image.new("RGB", (8, 8)).save(path.with_suffix(".png"))
    return tmp_path


@pytest.mark.usefixtures("no_weights")
def test_tuxpaint_takes_captioned_spoken_stamps_and_splits_by_caption(stamp_folder: Path) -> None:
    found = tuxpaint.encode(stamp_folder, 0)
    assert len(found.ids) == 24
    assert found.ids[0] == "animals/sub/thing00.png"
    assert not {"sizeless", "silent", "moon", "a"} & {Path(row).stem for row in found.ids}
    assert found.labels.tolist() == [0] * 12 + [2] * 12
    assert found.groups[:3] == ["A bad cafe animals 0.", "A bad cafe animals 0.", "A bad cafe animals 1."]
    data = found.data_set("tuxpaint", ())
    check(data)
    titles = {title.rsplit(" ", 1)[0] for _, title in data.broken}
    assert titles == {*IMAGE_KINDS, *AUDIO_KINDS, "typos"}
    again = tuxpaint.encode(stamp_folder, 1)
    assert not np.array_equal(found.part, again.part)
    (stamp_folder / "food" / "sub" / "thing00.txt").write_text("")
    with pytest.raises(UserError, match=r"thing00.txt' cannot be read \(no English caption"):
        tuxpaint.encode(stamp_folder, 0)
    (stamp_folder / "animals" / "sub" / "thing00_desc_fr.ogg").write_bytes(b"OggS")
    with pytest.raises(UserError, match=r"thing00_desc_fr.ogg' cannot be read"):
        tuxpaint.encode(stamp_folder, 0)


def test_speech_features_are_statistics_of_the_clip_alone() -> None:
    wave = (torch.sin(torch.arange(9000) * 0.1) * 8000).to(torch.int16)
    alone = tuxpaint.speech_features(tuxpaint.pad([wave.numpy()]))
    padded = tuxpaint.speech_features(tuxpaint.pad([wave.numpy(), np.zeros(12000, np.int16)]))
    np.testing.assert_array_equal(alone[0], padded[0])
    logmel = LogMel(16_000)(wave[None].float() / 32768)[0].double().numpy()
    logmel = logmel - logmel.mean()
    np.testing.assert_allclose(alone[0, :40], logmel.mean(0), atol=1e-3)
    np.testing.assert_allclose(alone[0, 40:80], logmel.std(0), atol=1e-3)
    np.testing.assert_allclose(alone[0, 80:], (logmel[2:] - logmel[:-2]).std(0), atol=1e-3)
    assert np.isfinite(tuxpaint.speech_features(tuxpaint.pad([wave[:5].numpy()]))).all()


@pytest.fixture
def icon_folder(tmp_path: Path) -> Path:
    names = [f"{word}-{number}" for word in ("ant", "bee", "cat", "dog", "eel") for number in range(4)]
    rows = [(name, "Ages" if i % 2 else "Bags", ["a", "bad", name]) for i, name in enumerate(names)]
    rows += [(f"brand-{number}", "Brand", ["a"]) for number in range(9)] + [("lone", "", ["x"])]
    table = {n: {"name": n, "category": c, "tags": t, "styles": {"outline": {}}} for n, c, t in rows}
    (tmp_path / "icons" / "outline").mkdir(parents=True)
    for number, name in enumerate(table):
        drawing = SIZED.replace("M2 2", f"M{number % 9} {number % 7}")
        (tmp_path / "icons" / "outline" / f"{name}.svg").write_text(drawing)
    (tmp_path / "icons.json").write_text(json.dumps(table))
    return tmp_path


@pytest.mark.usefixtures("no_weights")
def test_tabler_leaves_out_categories_of_one_word_and_splits_by_word(icon_folder: Path) -> None:
    found = tabler.encode(icon_folder, 0)
    assert found.classes == ["Ages", "Bags"]
    assert len(found.ids) == 20
    assert found.groups[:5] == ["ant"] * 4 + ["bee"]
    check(found.data_set("tabler", ()))
    (icon_folder / "icons" / "outline" / "ant-0.svg").write_text(SIZELESS)
    with pytest.raises(UserError, match=r"ant-0.svg' cannot be read \(no size\)"):
        tabler.encode(icon_folder, 0)
    (icon_folder / "icons.json").write_text('{"a": {"name": "a"}}')
    with pytest.raises(UserError, match=r"icons.json' cannot be read \(KeyError"):
        tabler.encode(icon_folder, 0)


# -- the real sets, where they have been fetched and encoded

SIZES = {
    "emoji": (emoji, [2236, 532, 928], 9),
    "tuxpaint": (tuxpaint, None, 10),
    "tabler": (tabler, [2297, 733, 820], 26),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_real_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, sizes, classes = SIZES[name]

    def refuse(*_: Any) -> FeatureTable:
        pytest.skip(f"{name} has not been encoded here")

    monkeypatch.setattr(module, "_encode" if name == "emoji" else "encode", refuse)
    if any(path_of(needed) is None for needed in module.SOURCE.fetch):
        pytest.skip(f"{name} has not been fetched here")
    data = module.SOURCE.load(0)
    check(data)
    rows = [len(part) for part in (data.train, data.validation, data.test)]
    assert sizes is None or rows == sizes
    assert name != "tuxpaint" or sum(rows) == 748
    assert data.target.outputs == classes
    assert data.test.target is not None
    assert len(data.train.target.unique()) == classes  # type: ignore[union-attr]
    assert encoded.LEVELS == (1, 3)
