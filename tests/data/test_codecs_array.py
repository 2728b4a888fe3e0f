import json
from pathlib import Path

import numpy as np
import pytest

from polyfuse.data.codecs import Codec, Reading, codec_from_dict, restartable
from polyfuse.data.codecs_array import SeriesCodec, VectorCodec
from polyfuse.data.codecs_tabular import CLIP
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.table_csv import BadText

NPY = b"\x93NUMPY\x01\0\x20\0" + b"{" * 32  # numpy's own parser lets a TokenError out


def fit(kind: str, cells: list[object], folder: Path | None = None, **options: object) -> Codec | None:
    config = ModalityConfig.model_validate({"type": kind, "column": "c", **options})
    cls = SeriesCodec if kind == "series" else VectorCodec
    return cls.fit("m", config, restartable([[cells[:3]], [cells[3:]]]), Reading(folder))


def kinds(codec: Codec, cells: list[object], folder: Path | None = None) -> list[str]:
    out = codec.encode([cells], Reading(folder))
    names = {i: kind for i, kind, _ in out.problems}
    assert not any(out.present[i] for i in names)
    return [names.get(i, "ok" if out.present[i] else "empty") for i in range(len(cells))]


def test_vectors_are_standardised_over_training_rows() -> None:
    codec = fit("vector", ["[1, 2]", "[3, 2]", [5.0, 2.0], np.array([7, 2])])
    assert codec is not None
    out = codec.encode([["[4, 2]", "[null, 3]", None, ["6", "2"], "[NaN, null]", "[9e99, 2]"]], Reading())
    std = np.std([1, 3, 5, 7])
    np.testing.assert_allclose(out.parts[""][:4], [[0, 0], [0, 1], [0, 0], [2 / std, 0]], rtol=1e-6)
    assert out.parts[""][5, 0] == CLIP
    assert out.present.tolist() == [True, True, False, True, False, True]
    assert not out.problems


def test_vector_widths_follow_the_majority() -> None:
    codec = fit("vector", ["[1]", "[1, 2]", "[3, 4]", "[[5, 6]]"])
    assert codec is not None
    assert codec.spec.options == {"width": 2}
    cells = [
        "[1, 2]",
        "[1]",
        "[[1], [2]]",
        "[[1, 2], [3, 4]]",
        "[]",
        "5",
        "[1, [2]]",
        '["a", 1]',
        "{}",
        "[1, 2",
        "[Infinity, 1]",
    ]
    assert kinds(codec, cells) == [
        "ok", "wrong shape", "ok", "wrong shape", "empty", "wrong type", "wrong shape", "undecodable", "wrong type",
        "undecodable", "not finite",
    ]  # fmt: skip


def test_series_are_cut_padded_and_masked() -> None:
    codec = fit("series", ["[1, 2, 3]", "[[1], [2], [3], [4]]", [5], None], length=3)
    assert codec is not None
    assert codec.spec.options == {"channels": 1, "length": 3}
    assert codec.notes == ["m: series longer than 3 steps are cut there; see length"]
    out = codec.encode([["[1, null, 3]", "[1, 2, 3, 4, 5]", None, "[2]"]], Reading())
    assert out.parts["mask"].tolist() == [[True, False, True], [True] * 3, [False] * 3, [True, False, False]]
    values = np.array([1, 2, 3, 1, 2, 3, 5.0])
    np.testing.assert_allclose(out.parts["values"][1, :, 0], ([1, 2, 3] - values.mean()) / values.std(), rtol=1e-6)
    assert not out.parts["values"][~out.parts["mask"]].any()
    assert kinds(codec, ["[[1, 2]]", "[[[1]]]", "3", "[[1, 2], [3]]"]) == [
        "wrong shape", "wrong shape", "wrong type", "wrong shape",
    ]  # fmt: skip


def test_series_default_length_is_the_longest() -> None:
    codec = fit("series", [list(range(n)) for n in (2, 11, 5)])
    assert codec is not None
    assert codec.spec.options["length"] == 11
    assert codec.notes == []
    two = fit("series", [[[1, 2]], [[3, None]], [[5, 6], [7, 8]], [[1, 2, 3]]])
    assert two is not None
    assert two.spec.options == {"channels": 2, "length": 2}
    out = two.encode([[[[None, 4], [None, None]]]], Reading())
    assert out.parts["mask"].tolist() == [[True, False]]  # a step with one value is a step
    assert out.parts["values"][0, 0, 0] == 0
    assert out.parts["values"][0, 0, 1] != 0


def test_npy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0], np.float16))
    np.save(tmp_path / "b.npy", np.array([3, 4]))
    np.save(tmp_path / "o.npy", np.array([{"a": 1}, None]), allow_pickle=True)
    np.save(tmp_path / "s.npy", np.array(["a", "b"]))
    np.save(tmp_path / "c.npy", np.array([1j, 2]))
    np.savez(tmp_path / "z.npz", a=np.zeros(2))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    (tmp_path / "head.npy").write_bytes(whole[:40])
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "a.txt").write_text("1 2")
    codec = fit("vector", ["a.npy", "b.npy", whole], tmp_path)
    assert codec is not None
    cells = [
        "a.npy",
        "o.npy",
        "s.npy",
        "c.npy",
        "z.npy",
        "cut.npy",
        "head.npy",
        "text.npy",
        "a.txt",
        "no.npy",
        "../a.npy",
    ]
    assert kinds(codec, cells, tmp_path) == [
        "ok", "undecodable", "wrong type", "wrong type", "wrong type", "truncated", "truncated", "undecodable",
        "wrong type", "missing file", "outside the folder",
    ]  # fmt: skip
    series = fit("series", [str(n) + ".npy" for n in "ab"], tmp_path)
    assert series is not None
    assert kinds(series, cells[:4], tmp_path) == ["ok", "undecodable", "wrong type", "wrong type"]


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(__import__("pickle").dumps(Evil()))
    assert fit("vector", ["evil.npy", "raw.npy"], tmp_path) is None
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "cell", ["[" * 100_000, "[1" + "0" * 400 + "]", BadText("[1]"), {"path": "x"}, b"\x93NUMPY", 5, NPY]
)
def test_hostile_cells_are_only_broken(cell: object) -> None:
    for kind in ("vector", "series"):
        codec = fit(kind, ["[1]", "[2]"])
        assert codec is not None
        assert kinds(codec, [cell, "[1]"])[0] not in ("ok", "empty")


def test_saved_form_and_no_training_rows() -> None:
    assert fit("vector", [None, "[]", "[NaN]", "[1, [2]]"]) is None
    assert fit("series", [None, "[]", "[NaN]", "x"]) is None
    for kind in ("vector", "series"):
        codec = fit(kind, ["[1, 2]", "[3, 5]"])
        assert codec is not None
        again = codec_from_dict(json.loads(json.dumps(codec.to_dict())))
        first = codec.encode([["[4, 4]"]], Reading())
        for key, array in again.encode([["[4, 4]"]], Reading()).parts.items():
            np.testing.assert_array_equal(array, first.parts[key])
