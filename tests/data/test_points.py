"""Point files of every format give the same points; broken ones a reason; scaling is of the training rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from polyfuse.data.codecs import Reading, codec_from_dict
from polyfuse.data.codecs_points import PointsCodec
from polyfuse.data.points import subsample
from polyfuse.data.schema import ModalityConfig
from polyfuse.encoders.points import PointNet

N = 13


def cloud(seed: int = 0, count: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 4)) * [1, 2, 3, 0.5] + [10, 0, 0, 5]).astype(np.float32)


def text(points: np.ndarray, sign: str = " ") -> str:
    return "\n".join(sign.join(repr(float(x)) for x in row) for row in points) + "\n"


PCD = (
    "# .PCD\nVERSION .7\nFIELDS intensity x y z\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
    "WIDTH {n}\nHEIGHT 1\nPOINTS {n}\nDATA {kind}\n"
)
PLY = (
    "ply\nformat {kind} 1.0\ncomment made here\nelement vertex {n}\nproperty float x\nproperty float y\n"
    "property float z\nproperty float i\nelement face 0\nproperty list uchar int v\nend_header\n"
)


def write_all(folder: Path, points: np.ndarray) -> list[str]:
    turned = points[:, [3, 0, 1, 2]]
    np.save(folder / "a.npy", points)
    np.savez(folder / "a.npz", points=points)
    (folder / "a.csv").write_text("x,y,z,i\n" + text(points, ","))
    (folder / "b.csv").write_text(text(points, ";"))
    (folder / "a.bin").write_bytes(points.astype("<f4").tobytes())
    (folder / "a.pcd").write_text(PCD.format(n=len(points), kind="ascii") + text(turned))
    (folder / "b.pcd").write_bytes(PCD.format(n=len(points), kind="binary").encode() + turned.astype("<f4").tobytes())
    (folder / "a.ply").write_text(PLY.format(n=len(points), kind="ascii") + text(points))
    return ["a.npy", "a.npz", "a.csv", "b.csv", "a.bin", "a.pcd", "b.pcd", "a.ply"]


def fit(cells: list[Any], folder: Path | None = None, **options: Any) -> Any:
    config = ModalityConfig(type="points", column="c", **options)
    codec = PointsCodec.fit("m", config, lambda: iter([[cells]]), Reading(folder))
    assert codec is not None
    assert codec_from_dict(codec.to_dict()) == codec
    return codec, codec.encode([cells], Reading(folder))


def test_every_format_gives_the_same_points(tmp_path: Path) -> None:
    names = write_all(tmp_path, cloud())
    cells = [*names, cloud().tolist(), cloud()]
    codec, out = fit(cells, tmp_path, count=17)
    assert out.present.all()
    assert out.problems == []
    for row in range(len(cells)):
        assert_allclose(out.parts["points"][row], out.parts["points"][0], atol=1e-5)
    assert out.parts["mask"].tolist() == [[True] * N + [False] * 4] * len(cells)
    back = out.parts["points"][0, :N] * np.array(codec.scale) + np.array(codec.mean)
    assert_allclose(back, cloud(), atol=1e-4)


def test_scaling_is_one_radius_for_three_axes_of_the_training_rows() -> None:
    train = [cloud(seed).tolist() for seed in range(5)]
    codec, out = fit(train)
    every = np.concatenate([cloud(seed) for seed in range(5)])
    centre = every[:, :3].mean(axis=0)
    radius = np.sqrt(((every[:, :3] - centre) ** 2).sum(axis=1).mean())
    assert_allclose(codec.mean[:3], centre, rtol=1e-5)
    assert_allclose(codec.scale, [radius] * 3 + [every[:, 3].std()], rtol=1e-4)
    far = codec.encode([[(cloud(9) + np.float32(1e6)).tolist()]], Reading())
    assert far.parts["points"].max() == 10.0  # cut, not measured anew
    assert abs(np.square(out.parts["points"][..., :3]).sum(axis=2)[out.parts["mask"]].mean() - 1) < 1e-4


def test_subsampling_is_bounded_and_the_same_each_time() -> None:
    many = np.arange(3000.0).reshape(1000, 3)
    few = subsample(many, 31)
    assert_array_equal(few, subsample(many.copy(), 31))
    assert len(np.unique(few[:, 0])) == 31
    assert (np.diff(few[:, 0]) > 0).all()
    assert few[:, 0].max() > 2500
    assert few[:, 0].min() < 500  # from everywhere
    _, out = fit([many, many[:5]], count=31)
    assert out.parts["mask"].sum(axis=1).tolist() == [31, 5]


def test_broken_files_are_absent_and_named(tmp_path: Path) -> None:
    write_all(tmp_path, cloud())
    holes: dict[str, tuple[bytes | str, str]] = {
        "cut.bin": (cloud().tobytes()[:-3], "truncated"),
        "cut.pcd": ((tmp_path / "b.pcd").read_bytes()[:-3], "truncated"),
        "cut_a.pcd": ((tmp_path / "a.pcd").read_text().rsplit("\n", 4)[0], "truncated"),
        "cut.ply": ((tmp_path / "a.ply").read_text()[:-200], "truncated"),
        "zip.pcd": (PCD.format(n=N, kind="binary_compressed"), "wrong type"),
        "bin.ply": (PLY.format(n=N, kind="binary_little_endian"), "wrong type"),
        "lie.pcd": (PCD.format(n=1 << 60, kind="binary"), "undecodable"),
        "word.csv": ("1,2,3\n4,five,6\n", "undecodable"),
        "ragged.csv": ("1,2,3\n4,5\n", "wrong shape"),
        "flat.csv": ("1,2\n4,5\n", "wrong shape"),
        "inf.csv": ("1,2,inf\n4,5,6\n", "not finite"),
        "no_z.ply": ("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "wrong shape"),
        "a.las": (b"LASF", "wrong type"),
        "other.npz": (b"PK not", "truncated"),
    }
    for name, (content, _) in holes.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    cells = ["a.npy", *holes, "a.bin", "a.ply", [[1.0, 2.0, 3.0]], "none.pcd"]
    codec, out = fit(cells, tmp_path)
    assert len(codec.mean) == 4
    assert out.present.tolist() == [True] + [False] * len(holes) + [True, True, False, False]
    kinds = [kind for _, kind, _ in out.problems]
    assert kinds == [kind for _, kind in holes.values()] + ["wrong shape", "missing file"]
    assert not out.parts["points"][~out.present].any()


def test_points_without_a_place_are_no_points() -> None:
    points = cloud()
    points[2, 0] = np.nan
    points[5, 3] = np.nan
    _, out = fit([points, cloud(1)])
    assert out.parts["mask"].sum(axis=1).tolist() == [N - 1, N]
    assert np.isfinite(out.parts["points"]).all()


def test_the_order_of_points_is_nothing() -> None:
    torch.manual_seed(0)
    encoder = PointNet(5, count=N, channels=4).double().eval()
    points = torch.randn(3, N, 4, dtype=torch.float64)
    mask = torch.arange(N) < torch.tensor([[N], [4], [0]])
    order = torch.stack([torch.randperm(N) for _ in range(3)])
    rows = torch.arange(3)[:, None]
    out = encoder({"points": points, "mask": mask})
    turned = encoder({"points": points[rows, order], "mask": mask[rows, order]})
    torch.testing.assert_close(turned, out)
    by_hand = encoder({"points": points[1:2, :4], "mask": torch.ones(1, 4, dtype=torch.bool)})
    torch.testing.assert_close(by_hand, out[1:2])
    moved = encoder({"points": points + 0.1, "mask": mask})
    assert not torch.allclose(moved[0], out[0])


def test_no_usable_set_leaves_the_modality_out() -> None:
    config = ModalityConfig(type="points", column="c")
    assert PointsCodec.fit("m", config, lambda: iter([[[None, "[]", "[[NaN, 1, 2]]"]]]), Reading()) is None
    with pytest.raises(ValueError, match="'size' is not an option of type points; its options: count"):
        ModalityConfig(type="points", column="c", size=32)
