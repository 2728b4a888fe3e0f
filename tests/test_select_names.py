"""Choosing among names: globs, parts, regular expressions, and what is said when nothing fits."""

import pytest

from polyfuse.errors import UserError
from polyfuse.registry import select_names

NAMES = ["image.layers.0.qkv.weight", "image.layers.1.qkv.weight", "image.norm.bias", "images", "text.words.weight"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["image"], NAMES[:3]),  # a part, not every name that begins alike
        (["image*"], NAMES[:4]),
        (["*.qkv.weight"], NAMES[:2]),
        (["image.layers.1"], NAMES[1:2]),
        (["image.layers.[1-9]*"], NAMES[1:2]),
        ([r"re:.*\.(bias|weight)"], [*NAMES[:3], NAMES[4]]),
        (["text", "image.norm.bias", "text"], [NAMES[2], NAMES[4]]),
        ([], []),
    ],
)
def test_choices(patterns: list[str], expected: list[str]) -> None:
    assert select_names(patterns, NAMES) == expected


def test_nothing_matches() -> None:
    with pytest.raises(UserError, match=r"no parameter matches 'image.layer'; nearest: image.layers"):
        select_names(["text", "image.layer"], NAMES)
    with pytest.raises(UserError, match="no parameter matches 're:words'"):  # the whole name must match
        select_names(["re:words"], NAMES)
    with pytest.raises(UserError, match=r"no layer matches 'zzzz'; the first is image.layers.0"):
        select_names(["zzzz"], NAMES, "layer")
    with pytest.raises(UserError, match="there is none"):
        select_names(["*"], [])
    with pytest.raises(UserError, match=r"'re:\(' is not a regular expression"):
        select_names(["re:("], NAMES)
