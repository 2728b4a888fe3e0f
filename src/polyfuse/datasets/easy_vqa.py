"""easy-VQA: one drawn shape per picture, 48,248 questions about shape and colour, 13 answers.

Source: the PyPI package easy-vqa 1.0 (MIT), https://github.com/vzhou842/easy-VQA, read as files and never imported. The
package's own test pictures are the test part; validation pictures are drawn from its training pictures.

Shapes: P pictures, S pixels, Q questions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.keyed import permutation
from polyfuse.errors import UserError

SIDE = 64
YES_NO = frozenset({"yes", "no"})
SHAPES = frozenset({"circle", "rectangle", "triangle"})
COLOURS = frozenset({"green", "red", "gray", "teal", "black", "yellow", "brown", "blue"})
VALIDATION = 500  # pictures


@dataclass(frozen=True)
class EasyVQA:
    """Pictures and questions.

    Attributes:
        images: ``(P, S, S, 3)`` uint8.
        image_of: ``(Q,)`` int64, the picture of each question.
        questions: Q.
        answers: Q.
        kinds: "shape", "colour" or "yes/no", by the answer.
        part: ``(Q,)`` int8: 0 train, 1 validation, 2 test.
    """

    images: np.ndarray
    image_of: np.ndarray
    questions: list[str]
    answers: list[str]
    kinds: list[str]
    part: np.ndarray


def load_easy_vqa(*, side: int = SIDE, validation: int = VALIDATION, seed: int = 0) -> EasyVQA:
    """4,000 and 1,000 pictures of 64 pixels, fetched on the first call.

    Args:
        side: Pixels S; other than 64 the pictures are resized.
        validation: Training pictures held out with their questions.
        seed: Which.

    Raises:
        UserError: If the package cannot be fetched, or its files are not what they should be.
    """
    from polyfuse.data.fetch import fetch

    return read_easy_vqa(fetch("easy_vqa"), side=side, validation=validation, seed=seed)


def read_easy_vqa(folder: Path, *, side: int = SIDE, validation: int = VALIDATION, seed: int = 0) -> EasyVQA:
    """The same from a folder with ``{train,test}/questions.json`` and ``{train,test}/images/N.png``.

    Raises:
        UserError: If a file is missing or broken.
    """
    images: list[np.ndarray] = []
    places: list[int] = []
    questions: list[str] = []
    answers: list[str] = []
    part: list[int] = []
    for name, number in (("train", 0), ("test", 2)):
        rows = _rows(folder / name / "questions.json")
        seen = sorted({picture for *_, picture in rows})
        if number == 0 and not 0 <= validation < len(seen):
            raise UserError(
                f"validation must be 0 to {len(seen) - 1} of easy-VQA's training pictures, got {validation}"
            )
        order = permutation(seed, "easy_vqa/validation", 0, len(seen)).tolist()
        held = {seen[place] for place in order[:validation]} if number == 0 else set()
        at = {picture: len(images) + place for place, picture in enumerate(seen)}
        images += [_picture(folder / name / "images" / f"{picture}.png", side) for picture in seen]
        for question, answer, picture in rows:
            questions.append(question)
            answers.append(answer)
            places.append(at[picture])
            part.append(1 if picture in held else number)
    return EasyVQA(
        np.stack(images), np.array(places), questions, answers, list(map(kind_of, answers)), np.array(part, np.int8)
    )


def kind_of(answer: str) -> str:
    """What a question asks for, by its answer.

    Example:
        >>> kind_of("teal"), kind_of("no"), kind_of("circle")
        ('colour', 'yes/no', 'shape')
    """
    return "yes/no" if answer in YES_NO else "shape" if answer in SHAPES else "colour" if answer in COLOURS else "other"


def _rows(path: Path) -> list[tuple[str, str, int]]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = [(question, answer, picture) for question, answer, picture in found]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{path}' must hold [question, answer, picture] rows, got an error: {error}") from None
    fits = all(
        isinstance(q, str) and isinstance(a, str) and isinstance(p, int) and not isinstance(p, bool) for q, a, p in rows
    )
    if not rows or not fits:
        raise UserError(f"'{path}' must hold [question, answer, number of the picture] rows")
    return rows


def _picture(path: Path, side: int) -> np.ndarray:
    from polyfuse.data.codecs_image import decode_image, strict_pil
    from polyfuse.data.problems import Broken

    try:
        with strict_pil():
            return decode_image(str(path), side)
    except (Broken, OSError) as error:
        raise UserError(f"easy-VQA's picture '{path}' cannot be read: {error}") from None
