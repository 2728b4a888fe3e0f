"""One small real run, trained once for all tests of the pipeline."""

from pathlib import Path

import pytest

from polyfuse.data.emoji import write_table
from polyfuse.run import load, train_run
from polyfuse.run.folder import Run

CONFIG = """
data:
  table: {table}
  target: category
  id: id
  modalities:
    picture: {{type: image, column: picture, size: 16}}
    name: {{type: text, column: name, vocab_size: 300}}
    facts: {{type: tabular, columns: [style, code_points, words]}}
  split: {{group: concept}}
model: {{embed_dim: 16, hidden: 16}}
train: {{steps: 30, batch_size: 32, threads: 1, evaluations: 3}}
evaluate: {{corruptions: false}}
"""


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("emoji"), rows=260, missing_rate=0.3)


@pytest.fixture(scope="session")
def config(table: Path) -> Path:
    path = table.parent / "config.yaml"
    path.write_text(CONFIG.format(table=table.name), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "first"
    trained = train_run(config, out=out, progress=False)
    assert trained is not None
    return load(out)
