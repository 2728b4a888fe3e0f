"""The overview in docs/models.md says what is: every builder that is not a twin for tests, with its exact count."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfuse.models import MODELS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {
    name: int(count.replace(",", "")) for name, count in re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", PAGE, re.MULTILINE)
}
FAMILIES = ("vilbert", "uniter", "visual_bert", "mmbert_medical", "mmbt", "clip", "mobileclip", "bert")


@pytest.mark.parametrize("name", sorted(set(ROWS) & set(MODELS)))
def test_counts(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MODELS[name]().parameters()) == ROWS[name]


def test_every_size_is_there() -> None:
    named = {name for name in MODELS if name.startswith(FAMILIES) and not name.endswith("_tiny")}
    assert named <= set(ROWS), f"add a row to docs/models.md for {sorted(named - set(ROWS))}"


def test_layouts() -> None:
    models: dict[str, Any] = {}
    with torch.device("meta"):
        for name, build in MODELS.items():
            if name.endswith("_tiny"):
                model = build()
                models[type(model).__name__] = model
    rows = re.findall(r"^\| \[?`(\w+)`[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert len(rows) == 8
    for family, _, layouts in rows:
        if family in models:
            assert tuple(re.findall(r"`(\w[\w-]*)`", layouts)) == models[family].LAYOUTS, family


def test_the_example_runs() -> None:
    names: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], names)  # noqa: S102 (our own page)
    assert names["number"] == ROWS["uniter_large"]
