"""The emoji set that ships with the package: picture, English name, Spanish name; nine classes; split by concept.

1,848 emoji drawn in two styles make 3,696 rows. Concepts (``emoji_build`` says what one is) never cross splits, so no
emoji is seen in training in one style and in the test in the other, nor as "man judge" here and "woman judge" there.

Cells are missing completely at random, by this rule: cell (row, modality) of the training and validation rows is absent
if ``uniform(seed, "emoji holes", 0, key of the row, 3)[modality] < rate``; a row that would lose all three keeps the
cell with the largest draw. Test rows are complete, so that every subset of the inputs can be judged on every row.

A name is read as its words and their pieces of 3 to 5 letters, so that an unseen name shares something with seen ones.

Shapes: N rows, M = 3 modalities.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.data.emoji_build import SIZE, STYLES, read_art, read_rows
from polyfuse.data.keyed import key_of, uniform
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.errors import UserError, require

MODALITIES = ("picture", "name", "name_es")
SPLITS = ("train", "validation", "test")
CLASSES = (
    "activities", "animals-nature", "flags", "food-drink", "objects", "people-body", "smileys-emotion", "symbols",
    "travel-places",
)  # fmt: skip
MISSING_RATE = 0.2
PIECES = (3, 4, 5)
MAX_LENGTH = 80


@dataclass(frozen=True)
class EmojiTables:
    """The emoji set, encoded.

    Attributes:
        train: 60 % of the concepts, with holes.
        validation: 15 %, with holes.
        test: 25 %, complete.
        specs: One spec per modality, for the encoders.
        target: Nine classes.
        groups: By split, the concept of every row as a number, int64 ``(N,)``: the cluster of a bootstrap.
        rows: By split, the raw rows (``hexcode, concept, class, split, name, name_es, style``).
    """

    train: Batch
    validation: Batch
    test: Batch
    specs: dict[str, ModalitySpec]
    target: TargetSpec
    groups: dict[str, Tensor]
    rows: dict[str, list[dict[str, str]]]


def load_emoji(*, missing_rate: float = MISSING_RATE, seed: int = 0) -> EmojiTables:
    """Load the shipped set (needs Pillow, extra ``workbench``; no download).

    Args:
        missing_rate: Share of the cells of training and validation rows that is absent.
        seed: Of the holes only; splits are fixed.

    Raises:
        UserError: If ``missing_rate`` is not in [0, 1), or Pillow is missing.
    """
    if not 0.0 <= missing_rate < 1.0:
        raise UserError(f"missing_rate must be in [0, 1), got {missing_rate}")
    table = _styled_rows()
    pictures = _pictures()
    rows = {split: [row for row in table if row["split"] == split] for split in SPLITS}
    vocabularies = {name: fit_vocabulary(row[name] for row in rows["train"]) for name in MODALITIES[1:]}
    concepts = {concept: number for number, concept in enumerate(dict.fromkeys(row["concept"] for row in table))}
    batches = {}
    for split in SPLITS:
        keys = key_of([_id(row) for row in rows[split]])
        rate = 0.0 if split == "test" else missing_rate
        batches[split] = _encode(rows[split], pictures, vocabularies, keys, holes(keys, rate, seed=seed))
    specs = {"picture": ModalitySpec("picture", "image", {"size": SIZE})}
    for name, vocabulary in vocabularies.items():
        specs[name] = ModalitySpec(name, "text", {"vocab_size": len(vocabulary) + 2, "max_length": MAX_LENGTH})
    groups = {split: torch.tensor([concepts[row["concept"]] for row in rows[split]]) for split in SPLITS}
    target = TargetSpec("classification", CLASSES)
    return EmojiTables(**batches, specs=specs, target=target, groups=groups, rows=rows)


def holes(keys: Tensor, rate: float, *, seed: int = 0) -> Tensor:
    """Which cells are present, ``(N, 3)`` bool, by the rule in this module's head.

    Example:
        >>> present = holes(torch.arange(1000), 0.2)
        >>> round(present.float().mean().item(), 1), bool(present.any(dim=1).all())
        (0.8, True)
    """
    draws = uniform(seed, "emoji holes", 0, keys, len(MODALITIES))
    return (draws >= rate) | (draws == draws.max(dim=1, keepdim=True).values)


def write_table(folder: Path, *, rows: int = 1200, missing_rate: float = 0.3, seed: int = 0) -> Path:
    """Lay part of the set out as a user's own data: ``emoji.csv``, ``pictures/*.png``, cells missing at random.

    Columns: ``id, picture`` (path), ``name, name_es, style, code_points, words, category, concept``. ``style``,
    ``code_points`` and ``words`` make a small tabular input; ``category`` is the target; ``concept`` is the group to
    split by. Missing cells are empty; ``style`` and the numbers are missing together.

    Args:
        folder: Created; files of the same names are overwritten.
        rows: How many, at most 3,696, spread over the classes as in the whole set.
        missing_rate: Share of the cells that is left empty.
        seed: Of the choice of rows and of the holes.

    Returns:
        The path of the CSV.

    Raises:
        UserError: If ``rows`` or ``missing_rate`` is out of range, or Pillow is missing.
    """
    table = _styled_rows()
    if not 0 < rows <= len(table):
        raise UserError(f"rows must be in 1..{len(table)}, got {rows}")
    if not 0.0 <= missing_rate < 1.0:
        raise UserError(f"missing_rate must be in [0, 1), got {missing_rate}")
    image = require("PIL.Image", extra="workbench")
    keys = key_of([_id(row) for row in table])
    chosen = sorted(uniform(seed, "emoji rows", 0, keys, 1)[:, 0].argsort()[:rows].tolist())
    draws = uniform(seed, "emoji table", 0, keys, 4)
    present = (draws >= missing_rate) | (draws == draws.max(dim=1, keepdim=True).values)
    pictures = _pictures()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    path = folder / "emoji.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "picture", "name", "name_es", "style", "code_points", "words", "category", "concept"])
        for number in chosen:
            row = table[number]
            has_picture, has_name, has_spanish, has_facts = present[number].tolist()
            file = f"pictures/{row['hexcode']}-{row['style']}.png"
            if has_picture:
                art = pictures[row["style"]][int(row["number"])]
                image.fromarray(art).save(folder / file, optimize=False)
            facts = [row["style"], row["hexcode"].count("-") + 1, row["name"].count(" ") + 1]
            writer.writerow(
                [
                    _id(row),
                    file if has_picture else "",
                    row["name"] if has_name else "",
                    row["name_es"] if has_spanish else "",
                    *(facts if has_facts else ["", "", ""]),
                    row["class"],
                    row["concept"],
                ]
            )
    return path


def _styled_rows() -> list[dict[str, str]]:
    """Every emoji once per style, with its place in the atlas as ``number``."""
    return [
        {**row, "style": style, "number": str(number)} for number, row in enumerate(read_rows()) for style in STYLES
    ]


def _id(row: Mapping[str, str]) -> str:
    return f"{row['hexcode']}/{row['style']}"


def _pictures() -> dict[str, np.ndarray]:
    count = len(read_rows())
    return {style: read_art(style, count) for style in STYLES}


def pieces_of(name: str) -> list[str]:
    """A name's words and their pieces of 3 to 5 letters, word borders included, each once.

    Example:
        >>> pieces_of("red ant")
        [' red ', ' re', 'red', 'ed ', ' red', 'red ', ' ant ', ' an', 'ant', 'nt ', ' ant', 'ant ']
    """
    pieces: dict[str, None] = {}
    for word in name.split():
        bordered = f" {word} "
        pieces[bordered] = None
        for length in PIECES:
            pieces.update(dict.fromkeys(bordered[i : i + length] for i in range(len(bordered) - length + 1)))
    return list(pieces)


def fit_vocabulary(names: Iterable[str]) -> dict[str, int]:
    """An id for every piece of the given names; 0 is padding, 1 unknown.

    Example:
        >>> fit_vocabulary(["ox"])
        {' ox': 2, ' ox ': 3, 'ox ': 4}
    """
    pieces = {piece for name in names for piece in pieces_of(name)}
    return {piece: number for number, piece in enumerate(sorted(pieces), start=2)}


def _tokens(names: Sequence[str], vocabulary: Mapping[str, int]) -> dict[str, Tensor]:
    ids = torch.zeros(len(names), MAX_LENGTH, dtype=torch.int32)
    for row, name in enumerate(names):
        known = [vocabulary[piece] for piece in pieces_of(name) if piece in vocabulary] or [1]
        ids[row, : len(known)] = torch.tensor(known[:MAX_LENGTH], dtype=torch.int32)
    return {"ids": ids, "mask": ids > 0}


def _encode(
    rows: Sequence[Mapping[str, str]],
    pictures: Mapping[str, np.ndarray],
    vocabularies: Mapping[str, Mapping[str, int]],
    keys: Tensor,
    present: Tensor,
) -> Batch:
    art = np.stack([pictures[row["style"]][int(row["number"])] for row in rows])
    picture = torch.from_numpy(art).permute(0, 3, 1, 2).contiguous()
    inputs: dict[str, Tensor | dict[str, Tensor]] = {"picture": picture * present[:, 0, None, None, None]}
    for column, name in ((1, "name"), (2, "name_es")):
        tokens = _tokens([row[name] for row in rows], vocabularies[name])
        inputs[name] = {part: value * present[:, column, None] for part, value in tokens.items()}
    target = torch.tensor([CLASSES.index(row["class"]) for row in rows])
    return Batch(MODALITIES, inputs, present, target, keys, [_id(row) for row in rows])
