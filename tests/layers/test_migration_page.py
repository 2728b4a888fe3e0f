"""The code on docs/migrating-from-aecf.md runs, and its numbers are right."""

import re
from pathlib import Path

import pytest
import torch

from polyfuse.functional import expected_drop_rate

PAGE = (Path(__file__).parents[2] / "docs" / "migrating-from-aecf.md").read_text(encoding="utf-8")


def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, "migrating-from-aecf.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("tensor(0.")


@pytest.mark.parametrize(("size", "told"), [(3, ".458"), (2, ".375")])
def test_the_rates_on_the_page(size: int, told: str) -> None:
    rate = expected_drop_rate(torch.full((1, size), 0.5), torch.ones(1, size, dtype=torch.bool)).item()
    assert f"{rate:.3f}".lstrip("0") == told
    assert told in PAGE


def test_every_numbered_defect_has_a_check() -> None:
    checks = (Path(__file__).parent / "test_aecf_defects.py").read_text(encoding="utf-8")
    section = PAGE.split("## The defects, by number")[1].split("## Limits")[0]
    numbers = [int(n) for n in re.findall(r"(?:^|\s)(\d+)\. [A-Z`]", section)]
    assert numbers == list(range(1, 21))
    for number in numbers:
        assert re.search(rf"def d{number:02d}", checks)
