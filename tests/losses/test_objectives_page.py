"""The page of objectives: its numbers are what its code gives, and it names everything there is."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import polyfuse.losses as losses

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_numbers_are_current() -> None:
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)  # noqa: S102 - our own example
    rows = re.findall(r"^\| `(\w+)` \| (-?\d+\.\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for name, number in rows:
        assert names[name].item() == pytest.approx(float(number), abs=2e-6), name


def test_every_name_exists_and_every_objective_is_named() -> None:
    words = set(re.findall(r"`(\w+)`", PAGE))
    modules = {
        name
        for name in losses.__all__
        if re.search(r"(Loss|Masked\w+|Hinge|Alignment)$", name)
        and name not in ("TaskLoss", "MaskedRegions", "MaskedTokens")
    }
    assert modules <= words
    table = PAGE.split("## Numbers")[0]
    named = {w for w in re.findall(r"`(\w+)`", table) if re.match(r"[a-z]+_|[A-Z]\w+[a-z]$", w)}
    assert named - {"CosineEmbeddingLoss"} <= set(losses.__all__), named - set(losses.__all__)
