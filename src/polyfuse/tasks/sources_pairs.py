"""Real pictures with names as task data, and questions with fixed answers about drawn ones.

Shapes: P pictures, S pixels, N rows.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from polyfuse.cache import cache_dir
from polyfuse.datasets.pairs import PAIRS, ImageTextPairs, same_words
from polyfuse.errors import UserError, require
from polyfuse.tasks.batch import Regions, TaskData
from polyfuse.tasks.stem import cell_boxes


def emoji(*, side: int = 64, split: int = 0, style: str = "fluent") -> TaskData:
    """Emoji with their English names, split by concept; 1,615 pictures.

    Args:
        side: Pixels S.
        split: Number of the split.
        style: ``fluent`` or ``twemoji``.

    Raises:
        UserError: If the files cannot be fetched or a library is missing.
    """
    return _from_pairs("emoji", side, split, style=style)


def openclipart(*, side: int = 64, split: int = 0) -> TaskData:
    """Drawings in the public domain with title and tags, split by title; about 2,500 pictures.

    Args:
        side: Pixels S.
        split: Number of the split.

    Raises:
        UserError: If the files cannot be fetched or a library is missing.
    """
    return _from_pairs("openclipart", side, split)


def glyphs(*, side: int = 32, split: int = 0) -> TaskData:
    """Characters in six faces with their Unicode names, split by character; about 23,000 pictures.

    Args:
        side: Pixels S.
        split: Number of the split.

    Raises:
        UserError: If a library is missing.
    """
    return _from_pairs("glyphs", side, split)


def _from_pairs(name: str, side: int, split: int, **options: str) -> TaskData:
    require("PIL", extra="workbench")
    if side < 8:
        raise UserError(f"source '{name}': side must be 8 pixels or more, got {side}")
    pairs = _remembered(name, side, split, options)
    images = pairs.images
    if images.ndim == 3:  # grey
        images = np.repeat(images[..., None], 3, axis=3)
    return TaskData(
        name=name,
        images=images,
        image_of=np.arange(len(pairs.texts), dtype=np.int64),
        texts=[text.lower() for text in pairs.texts],
        part=pairs.part.astype(np.int8),
        ids=same_words(pairs.texts).astype(np.int64),
        references=[(text.lower(),) for text in pairs.texts],
        notes=pairs.notes,
    )


def _remembered(name: str, side: int, split: int, options: dict[str, str]) -> ImageTextPairs:
    """The pairs, drawn once and kept in the cache folder: rendering takes half a minute.

    The mark of the file holds the code that makes them and the pins of what was fetched; a damaged file is made anew.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    from polyfuse.data import emoji_build
    from polyfuse.data.packages import FETCHABLE
    from polyfuse.datasets import encoded, openclipart, pairs

    if name not in FETCHABLE:  # made of what is installed, quickly
        return PAIRS[name](side=side, split=split, **options)
    code = [Path(module.__file__ or "").read_bytes() for module in (pairs, encoded, emoji_build, openclipart)]
    mark = hashlib.sha256(b"\0".join([*code, repr((FETCHABLE[name].packages, side, split, options)).encode()]))
    path = cache_dir() / "datasets" / f"pairs-{name}-{mark.hexdigest()[:16]}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            told = json.loads(file.metadata()["pairs"])
            told["wordings"] = [tuple(words) for words in told["wordings"]]
            told["notes"] = tuple(told["notes"])
            return ImageTextPairs(images=file.get_tensor("images"), part=file.get_tensor("part"), **told)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    made: ImageTextPairs = PAIRS[name](side=side, split=split, **options)
    told = {key: value for key, value in vars(made).items() if key not in ("images", "part")}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.part")
    save_file({"images": made.images, "part": made.part}, scratch, metadata={"pairs": json.dumps(told)})
    scratch.replace(path)
    return made


#: Questions about a character that its Unicode name answers: (kind, question, words that are answers).
_ASKED = (
    ("case", "is the letter small or capital ?", ("small", "capital")),
    ("script", "which script is the letter of ?", ("latin", "greek", "cyrillic", "armenian", "georgian", "arabic")),
    (
        "mark",
        "which mark does the letter have ?",
        (
            "acute", "grave", "circumflex", "diaeresis", "tilde", "macron", "breve", "caron", "ogonek", "cedilla",
            "stroke", "hook", "horn",
        ),
    ),
)  # fmt: skip


def glyph_questions(*, side: int = 32, split: int = 0) -> TaskData:
    """Questions about real drawings of letters: small or capital, which script, which mark; answers by the name.

    A question is asked where exactly one of its answers is a word of the character's name and the name is a letter's;
    "which mark" also has the answer "none", where the name ends after the letter. Parts are those of ``glyphs``: a test
    character was never seen in any face.

    Args:
        side: Pixels S.
        split: Number of the split.

    Raises:
        UserError: If a library is missing.
    """
    from dataclasses import replace

    data = glyphs(side=side, split=split)
    rows, questions, answers, kinds = [], [], [], []
    for row, name in enumerate(data.texts):
        for kind, question, answer in asked_of(name):
            rows.append(row)
            questions.append(question)
            answers.append(answer)
            kinds.append(kind)
    picked = data.take(np.array(rows, dtype=np.int64))
    return replace(picked, name="glyph_questions", texts=questions, answers=answers, kinds=kinds, references=None)


def asked_of(name: str) -> list[tuple[str, str, str]]:
    """Kind, question and answer of what a character's name answers.

    Example:
        >>> [answer for _, _, answer in asked_of("latin small letter e with macron")]
        ['small', 'latin', 'macron']
        >>> asked_of("black heart suit")
        []
    """
    words = name.split()
    if "letter" not in words:
        return []
    found = []
    for kind, question, answers in _ASKED:
        fitting = [word for word in answers if word in words]
        if kind == "mark" and not fitting and "with" not in words and words.index("letter") == len(words) - 2:
            fitting = ["none"]
        if len(fitting) == 1 and not (kind == "mark" and "and" in words):
            found.append((kind, question, fitting[0]))
    return found


def easy_vqa(*, side: int = 64, validation: int = 500, seed: int = 0, regions: bool = False) -> TaskData:
    """easy-VQA: 5,000 drawn shapes with 48,248 questions; kinds are shape, colour and yes/no.

    Args:
        side: Pixels S; the pictures have 64.
        validation: Training pictures held out; the test part is the package's own.
        seed: Which are held out.
        regions: Whether models read features of cells of 16 pixels, by a frozen EfficientNet-Lite0, in place of pixels.

    Raises:
        UserError: If the package, or the network of ``regions``, cannot be fetched, or S does not suit it.
    """
    from polyfuse.datasets.easy_vqa import load_easy_vqa

    found = load_easy_vqa(side=side, validation=validation, seed=seed)
    return TaskData(
        name="easy_vqa",
        images=found.images,
        image_of=found.image_of.astype(np.int64),
        texts=found.questions,
        part=found.part,
        ids=found.image_of.astype(np.int64),
        answers=found.answers,
        kinds=found.kinds,
        regions=cell_regions(found.images) if regions else None,
    )


def cell_regions(images: np.ndarray) -> Regions:
    """Cells of 16 pixels as regions: what a frozen EfficientNet-Lite0 sees there, kept on disk.

    Source: grid features, https://arxiv.org/abs/2001.03615.

    Args:
        images: ``(P, S, S, 3)`` uint8, S a multiple of 16.

    Returns:
        ``(P, (S/16)^2, 272)`` features, no classes.

    Raises:
        UserError: If the weights cannot be fetched, or S does not suit.
    """
    from polyfuse.data.fetch import fetch
    from polyfuse.encoders.efficientnet_lite import CELL
    from polyfuse.encoders.features import FrozenFeatures
    from polyfuse.encoders.pretrained import EfficientNetCells

    network = EfficientNetCells(fetch("efficientnet_lite0"), images.shape[1])
    grid = images.shape[1] // CELL
    features = FrozenFeatures(network)(list(images)).reshape(len(images), grid**2, -1)
    boxes = np.broadcast_to(cell_boxes(grid, torch.device("cpu")).numpy(), (len(images), grid**2, 4))
    return Regions(features, boxes, np.ones(features.shape[:2], dtype=bool))
