"""Sets of the user's own files: small files of the published formats, and what is said when one is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from polyfuse.datasets import av_mnist, coco_clip
from polyfuse.datasets.base import DataSet
from polyfuse.errors import UserError

TRAIN, TEST = 36, 11


@pytest.fixture
def av_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path))
    folder = tmp_path / "own" / "av_mnist"
    rng = np.random.default_rng(0)
    for kind in ("image", "audio"):
        (folder / kind).mkdir(parents=True)
    for part, rows in (("train", TRAIN), ("test", TEST)):
        np.save(folder / "image" / f"{part}_data.npy", rng.uniform(0, 255, (rows, 784)))
        np.save(folder / "audio" / f"{part}_data.npy", rng.integers(0, 255, (rows, 112, 112), dtype=np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(rows) % 10)
    return folder


def coco_arrays(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(2, 3, (rows, 7)).astype(np.float32),
        "caption": rng.normal(-1, 0.5, (rows, 5)).astype(np.float16),
        "labels": (rng.uniform(size=(rows, 80)) < 0.1).astype(np.uint8),
    }


@pytest.fixture
def coco_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path))
    folder = tmp_path / "own" / "coco_clip"
    folder.mkdir(parents=True)
    save_file(coco_arrays(23, 0), folder / "train.safetensors")
    for part, rows in (("validation", 5), ("test", 7)):
        for name, array in coco_arrays(rows, rows).items():
            np.save(folder / f"{part}_{name}.npy", array)
    return folder


def tensor(data: DataSet, part: str, modality: str) -> torch.Tensor:
    value = getattr(data, part).inputs[modality]
    assert isinstance(value, torch.Tensor)
    return value


def check_standardised(data: DataSet) -> None:
    for modality in data.train.modalities:
        x = tensor(data, "train", modality)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(x.shape[1]), atol=1e-3, rtol=0)


def test_av_mnist_takes_the_published_split_and_averages_blocks(av_folder: Path) -> None:
    data = av_mnist.load()
    assert [len(b) for b in (data.train, data.validation, data.test)] == [33, 3, TEST]
    assert {m: s.options["width"] for m, s in data.specs.items()} == {"image": 784, "audio": 784}
    check_standardised(data)
    assert data.validation.target is not None
    assert data.validation.target.tolist() == [3, 4, 5]
    audio = np.load(av_folder / "audio" / "train_data.npy").astype(np.float64)[:33]
    cell = audio[:, 4:8, 8:12].mean(axis=(1, 2))
    expected = (cell - cell.mean()) / cell.std()
    np.testing.assert_allclose(tensor(data, "train", "audio")[:, 28 + 2].numpy(), expected, atol=1e-4)
    keys = torch.cat([data.train.keys, data.validation.keys, data.test.keys])
    assert len(keys.unique()) == TRAIN + TEST


def test_av_mnist_as_its_archive_unpacks(av_folder: Path) -> None:
    expected = av_mnist.load()
    np.save(av_folder / "train_labels.npy", (np.arange(TRAIN) % 10).astype(np.float64))  # MultiBench casts them too
    av_folder.rename(av_folder.parent / "avmnist")
    av_folder.mkdir()
    (av_folder.parent / "avmnist").rename(av_folder / "avmnist")
    data = av_mnist.load()
    for modality in ("image", "audio"):
        torch.testing.assert_close(tensor(data, "train", modality), tensor(expected, "train", modality))
    torch.testing.assert_close(data.train.target, expected.train.target)


def test_av_mnist_says_what_is_missing_or_wrong(
    av_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(av_folder / "test_labels.npy", np.full(TEST, 12))
    with pytest.raises(UserError, match=r"'test_labels.npy' must hold digits 0 to 9, got up to 12"):
        av_mnist.load()
    np.save(av_folder / "image" / "train_data.npy", np.zeros((TRAIN, 28, 28)))
    with pytest.raises(UserError, match=r"train_data.npy' must have shape \(36, 784\), got \(36, 28, 28\)"):
        av_mnist.load()
    np.save(av_folder / "train_labels.npy", np.array([object()] * TRAIN), allow_pickle=True)
    with pytest.raises(UserError, match=r"must be an .npy array without pickles"):
        av_mnist.load()
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"'image/train_data.npy' in '.*own/av_mnist', found none; get avmnist.tar.gz"):
        av_mnist.load()


def test_coco_reads_both_layouts(coco_folder: Path) -> None:
    data = coco_clip.load()
    assert [len(b) for b in (data.train, data.validation, data.test)] == [23, 5, 7]
    assert (data.target.task, data.target.outputs) == ("multilabel", 80)
    check_standardised(data)
    assert data.test.target is not None
    assert torch.equal(data.test.target, torch.from_numpy(coco_arrays(7, 7)["labels"]).float())
    train, test = coco_arrays(23, 0)["caption"].astype(np.float64), coco_arrays(7, 7)["caption"].astype(np.float64)
    expected = (test - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(tensor(data, "test", "caption").numpy(), expected, atol=1e-4)


def broken_coco(folder: Path, part: str, **arrays: Any) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{part}_{name}.npy", array)


def test_coco_says_what_is_missing_or_wrong(coco_folder: Path) -> None:
    good = coco_arrays(7, 7)
    broken_coco(coco_folder, "test", image=np.zeros((7, 9)))
    with pytest.raises(UserError, match=r"'image of test' must have shape \(7, 7\), got \(7, 9\)"):
        coco_clip.load()
    broken_coco(coco_folder, "test", image=np.full((7, 7), np.nan))
    with pytest.raises(UserError, match="test inputs of 'image' must be finite"):
        coco_clip.load()
    broken_coco(coco_folder, "test", image=good["image"], labels=good["labels"] * 2)
    with pytest.raises(UserError, match="labels of test must be 0 or 1"):
        coco_clip.load()
    broken_coco(coco_folder, "test", labels=np.array(["a"] * 7))
    with pytest.raises(UserError, match=r"test_labels.npy' must hold numbers, got <U1"):
        coco_clip.load()
    (coco_folder / "test_labels.npy").unlink()
    with pytest.raises(UserError, match=r"'test_labels.npy' in '.*own/coco_clip', found none; encode images"):
        coco_clip.load()
    save_file({"image": good["image"]}, coco_folder / "validation.safetensors")
    with pytest.raises(UserError, match=r"must hold the tensors image, caption, labels, got \['image'\]"):
        coco_clip.load()
    (coco_folder / "train.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="must be a safetensors file"):
        coco_clip.load()
