import json

from polyfuse.data.problems import BROKEN, NAMED, Problems


def filled(rows: range) -> Problems:
    problems = Problems()
    for row in rows:
        problems.add("photo", "truncated" if row % 3 else "missing file", row, f"'{row}.png'")
    problems.add("text", "empty cell", times=7)
    return problems


def test_adding_in_parts_equals_adding_at_once() -> None:
    whole, parts = filled(range(40)), Problems()
    for start in range(0, 40, 8):
        parts.update(filled(range(start, start + 8)))
    parts.counts["text", "empty cell"] = 7
    assert parts.to_dict() == whole.to_dict()
    assert Problems.from_dict(json.loads(json.dumps(whole.to_dict()))).to_dict() == whole.to_dict()


def test_the_first_ten_are_named_and_rows_count_from_one() -> None:
    problems = filled(range(40))
    line = next(line for line in problems.lines() if "missing file" in line)
    assert line.startswith("photo: 14 x missing file (row 1: '0.png'; row 4: '3.png'; ")
    assert line.endswith("; ...)")
    assert line.count("row ") == NAMED
    assert problems.lines()[-1] == "text: 7 x empty cell"
    assert bool(problems)
    assert not Problems()


def test_only_broken_files_count_as_broken() -> None:
    problems = filled(range(40))
    assert problems.broken("photo") == 40
    assert problems.broken("text") == 0
    assert "empty cell" not in BROKEN
    assert "bad UTF-8" not in BROKEN
