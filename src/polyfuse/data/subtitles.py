"""Subtitles: SubRip (.srt) and WebVTT (.vtt) to cues with times; what cannot be read is counted and named.

Sources: https://www.w3.org/TR/webvtt1/; SubRip has no standard, its times have a comma where WebVTT has a point.
"""

import html
import os
import re
from typing import NamedTuple

from polyfuse.data.problems import Broken

_TIME = r"(?:(\d{1,4}):)?([0-5]?\d):([0-5]?\d)[.,](\d{1,3})"
_LINE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_TAG = re.compile(r"<[^<>\n]{0,200}>|\{\\[^{}\n]{0,200}\}")
_SKIPPED = ("WEBVTT", "NOTE", "STYLE", "REGION")
_MOST_BYTES = 1 << 24


class Cue(NamedTuple):
    """Text that is shown for a while.

    Attributes:
        start: Seconds.
        end: Seconds, after ``start``.
        text: Without markup; lines joined by a space.
    """

    start: float
    end: float
    text: str


class Subtitles(NamedTuple):
    """A file's cues in the order of time, and what was wrong: ``(line number from 1, reason)``."""

    cues: list[Cue]
    problems: list[tuple[int, str]]

    @property
    def text(self) -> str:
        """All that is said, in order."""
        return " ".join(cue.text for cue in self.cues)

    def lines(self, most: int = 10) -> list[str]:
        """The problems in words, the first few named."""
        if not self.problems:
            return []
        named = "; ".join(f"line {line}: {why}" for line, why in self.problems[:most])
        return [f"{len(self.problems)} bad cues ({named}{'; ...' if len(self.problems) > most else ''})"]


def parse_subtitles(source: bytes | str) -> Subtitles:
    r"""Cues of a SubRip or WebVTT file. A cue without a readable time, with no length or no text is left out and named.

    Raises:
        ValueError: If the file is larger than 16 MB.

    Example:
        >>> found = parse_subtitles("1\n00:00:01,500 --> 00:00:03,000\n<i>Hello</i>\nyou\n\n2\n00:xx --> 1\nlost\n")
        >>> found.cues, found.problems
        ([Cue(start=1.5, end=3.0, text='Hello you')], [(7, 'no time')])
    """
    if len(source) > _MOST_BYTES:
        raise ValueError(f"subtitles may have at most {_MOST_BYTES} bytes, got {len(source)}")
    text = source.decode("utf-8", errors="replace") if isinstance(source, bytes) else source
    lines = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    cues: list[Cue] = []
    problems: list[tuple[int, str]] = []
    start = 0
    for end in (i for i in range(len(lines) + 1) if i == len(lines) or not lines[i].strip()):
        if any(line.strip() for line in lines[start:end]):
            _block(lines[start:end], start + 1, cues, problems)
        start = end + 1
    return Subtitles(sorted(cues, key=lambda cue: (cue.start, cue.end)), problems)


def read_subtitles(source: str | bytes) -> Subtitles:
    """``parse_subtitles`` of a path, or of what a file holds.

    Raises:
        Broken: ``too large``.
    """
    if isinstance(source, str):
        if os.path.getsize(source) > _MOST_BYTES:
            raise Broken("too large", f"subtitles of more than {_MOST_BYTES} bytes")
        with open(source, "rb") as file:
            source = file.read()
    if len(source) > _MOST_BYTES:
        raise Broken("too large", f"subtitles of more than {_MOST_BYTES} bytes")
    return parse_subtitles(source)


def _block(block: list[str], first: int, cues: list[Cue], problems: list[tuple[int, str]]) -> None:
    """One paragraph: an optional name or number, a line of times, text."""
    if block[0].split(maxsplit=1)[0].rstrip(":") in _SKIPPED and not any("-->" in line for line in block):
        return
    place = next((i for i, line in enumerate(block[:2]) if "-->" in line), None)
    times = None if place is None else _LINE.fullmatch(block[place])
    if place is None or times is None:
        problems.append((first + (place if place is not None else 0), "no time"))
        return
    start, end = _seconds(times.groups()[:4]), _seconds(times.groups()[4:])
    words = " ".join(html.unescape(_TAG.sub("", " ".join(block[place + 1 :]))).split())
    if end <= start:
        problems.append((first + place, "ends before it starts"))
    elif not words:
        problems.append((first + place, "no text"))
    else:
        cues.append(Cue(start, end, words))


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return (
        int(hours or 0) * 3600
        + int(minutes or 0) * 60
        + int(seconds or 0)
        + int((fraction or "0").ljust(3, "0")) / 1000
    )
