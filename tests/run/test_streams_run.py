"""A table of clips, point sets and stamped series with holes trains at the command line and predicts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyfuse import cli
from polyfuse.data.inspect import propose
from polyfuse.run import load

CONFIG = """
data:
  table: table.csv
  target: way
  id: id
  modalities:
    film: {type: video, column: film, size: 16, frames: 4}
    cloud: {type: points, column: cloud, count: 23}
    trace: {type: series, column: trace, times: stamps, max_gap: 0.3}
model: {embed_dim: 16, hidden: 16}
train: {steps: 60, batch_size: 32, threads: 1, evaluations: 3}
evaluate: {corruptions: false}
"""


def clip(way: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A bright bar that moves right or left: only the order of the frames tells which."""
    frames = []
    for k in range(6):
        frame = rng.integers(0, 40, (16, 16, 3)).astype(np.uint8)
        place = 2 * k + 2 if way else 12 - 2 * k
        frame[:, place : place + 3] = 240
        frames.append(frame)
    return frames


def lay_out(folder: Path, rows: int = 120) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(rows):
        way = i % 2
        frames = clip(way, rng)
        if i % 3:
            name = f"{i}.gif"
            pictures = [Image.fromarray(frame) for frame in frames]
            pictures[0].save(folder / name, save_all=True, append_images=pictures[1:], duration=100)
        else:
            name = f"{i}.npz"
            np.savez(folder / name, frames=np.stack(frames), times=np.arange(6) / 10)
        points = rng.normal(size=(int(rng.integers(9, 40)), 4)) * [1, 1, 1 + 3 * way, 1]
        points.astype("<f4").tofile(folder / f"{i}.bin")
        stamps = np.sort(rng.uniform(0, 2, 29))
        trace = np.sin(2 * np.pi * (1 + way) * stamps)
        line = {"id": f"r{i}", "film": name, "cloud": f"{i}.bin", "trace": json.dumps(trace.round(3).tolist())}
        line |= {"stamps": json.dumps(stamps.round(3).tolist()), "way": ["left", "right"][way]}
        for column in ("film", "cloud", "trace"):
            if rng.random() < 0.25:
                line[column] = ""
        lines.append(line)
    (folder / "cut.gif").write_bytes((folder / "1.gif").read_bytes()[:200])
    lines[7]["film"], lines[9]["stamps"], lines[9]["trace"] = "cut.gif", "", "[1, 2, 3]"
    with (folder / "table.csv").open("w", newline="") as stream:
        sheet = csv.DictWriter(stream, lines[0])
        sheet.writeheader()
        sheet.writerows(lines)
    (folder / "config.yaml").write_text(CONFIG)
    return folder / "table.csv"


def test_video_points_and_stamped_series_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = lay_out(tmp_path)
    out = tmp_path / "run"
    assert cli.run(["train", str(tmp_path / "config.yaml"), "--out", str(out)]) == 0
    problems = json.loads((out / "problems.json").read_text(encoding="utf-8"))
    assert problems["film"]["truncated"]["named"][0].startswith("row 8: 'cut.gif'")
    assert problems["trace"]["no time"]["count"] == 1
    assert cli.run(["predict", str(out), str(table), "-o", str(tmp_path / "answers.csv")]) == 0
    capsys.readouterr()
    with (tmp_path / "answers.csv").open(newline="") as stream:
        answers = list(csv.DictReader(stream))
    assert len(answers) == 120
    assert "film: truncated" in answers[7]["note"]
    assert "trace: no time" in answers[9]["note"]
    right = np.mean([a["prediction"] == ["left", "right"][i % 2] for i, a in enumerate(answers)])
    assert right > 0.8
    run = load(out)
    row = {"film": str(tmp_path / "1.gif"), "cloud": [[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, -9.0, 1.0]]}
    alone = run.predict([row, {"film": None}], folder=tmp_path)
    assert alone[0].present == ["film", "cloud"]
    assert alone[1].present == []


def test_inspect_knows_the_new_types(tmp_path: Path) -> None:
    lines = ["film,cloud,y"] + [f"{i}.mp4,{i}.pcd,{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = propose(tmp_path / "t.csv", "y")
    assert [m["type"] for m in found.modalities] == ["video", "points"]
