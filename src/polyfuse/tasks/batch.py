"""Rows of pictures and texts for pre-training and fine-tuning, in memory, and batches of them as tensors.

Shapes: N rows, P pictures, S pixels, R regions, F features, C detector classes, B rows of a batch, T tokens, A answers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.keyed import key_of
from polyfuse.tasks.words import WordTokenizer

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
MODALITIES = ("image", "text")


@dataclass(frozen=True)
class Regions:
    """What a detector found in every picture.

    Attributes:
        features: ``(P, R, F)`` float32.
        boxes: ``(P, R, 4)`` float32: x0, y0, x1, y1 as shares of width and height.
        mask: ``(P, R)`` bool, True = a region.
        classes: ``(P, R, C)`` float32, the detector's probabilities; None = it gave none.
    """

    features: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class TaskData:
    """Rows that pair a picture with a text, and what is asked about them.

    Attributes:
        name: Of the set.
        images: ``(P, S, S, 3)`` uint8; None = there are regions only, or texts only.
        image_of: ``(N,)`` int64, the picture of each row; -1 = none.
        texts: Caption, question or phrase; "" = none.
        part: ``(N,)`` int8: 0 train, 1 validation, 2 test, 3 and above further test parts, named in ``extra_parts``.
        ids: ``(N,)`` int64: rows of one number say the same and are not each other's negatives.
        answers: The right answer of each row.
        votes: Soft targets ``{answer: score}``, where several people answered.
        boxes: ``(N, 4)`` float32: what a phrase means.
        values: ``(N,)`` float32.
        references: Captions that count as right for the row's picture.
        regions: What a detector found.
        kinds: Kind of question or phrase, for tables.
        extra_parts: Names of parts 3, 4, ...
        notes: What one should know about it.
    """

    name: str
    images: np.ndarray | None
    image_of: np.ndarray
    texts: list[str]
    part: np.ndarray
    ids: np.ndarray
    answers: list[str] | None = None
    votes: list[dict[str, float]] | None = None
    boxes: np.ndarray | None = None
    values: np.ndarray | None = None
    references: list[tuple[str, ...]] | None = None
    regions: Regions | None = None
    kinds: list[str] | None = None
    extra_parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            per_row = item.name in _PER_ROW and value is not None
            if per_row and len(value) != len(self.texts):
                raise ValueError(f"{item.name} must have one entry per row ({len(self.texts)}), got {len(value)}")

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, part: int | str) -> np.ndarray:
        """Numbers of the rows of a part, given by number or name.

        Raises:
            ValueError: If there is no such part.
        """
        if isinstance(part, str):
            parts = {**PARTS, **{name: number for number, name in enumerate(self.extra_parts, start=3)}}
            if part not in parts:
                raise ValueError(f"part must be one of {', '.join(parts)}, got {part!r}")
            part = parts[part]
        return np.flatnonzero(self.part == part)

    def take(self, rows: np.ndarray) -> Self:
        """Some rows; pictures stay as they are."""
        picked: dict[str, Any] = {}
        for name in _PER_ROW:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                picked[name] = value[rows]
            elif value is not None:
                picked[name] = [value[row] for row in rows]
        return replace(self, **picked)


_PER_ROW = ("image_of", "texts", "part", "ids", "answers", "votes", "boxes", "values", "references", "kinds")


@dataclass(frozen=True)
class TaskBatch:
    """Tensors of B rows.

    Attributes:
        ids: ``(B,)`` int64, equal where rows say the same.
        keys: ``(B,)`` int64, the identity of each row, for keyed draws.
        text: ``(B, T)`` int64, 0 where absent.
        text_mask: ``(B, T)`` bool.
        image: ``(B, 3, S, S)`` float32 in [0, 1]; zeros where absent.
        regions: ``(B, R, F)``.
        region_boxes: ``(B, R, 4)``.
        region_mask: ``(B, R)`` bool.
        region_classes: ``(B, R, C)``.
        present: ``(B, 2)`` bool: image, text.
        target: ``answer (B, A)`` soft, ``box (B, 4)``, ``value (B,)``, ``caption (B, L)``.
    """

    ids: Tensor
    keys: Tensor
    text: Tensor
    text_mask: Tensor
    present: Tensor
    image: Tensor | None = None
    regions: Tensor | None = None
    region_boxes: Tensor | None = None
    region_mask: Tensor | None = None
    region_classes: Tensor | None = None
    target: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "TaskBatch":
        """On another device."""
        moved: dict[str, Any] = {
            item.name: value.to(device) if isinstance(value := getattr(self, item.name), Tensor) else value
            for item in fields(self)
        }
        moved["target"] = {name: value.to(device) for name, value in self.target.items()}
        return TaskBatch(**moved)

    def without(self, modality: str) -> "TaskBatch":
        """The same rows, one modality absent from all of them."""
        column = MODALITIES.index(modality)
        present = self.present.clone()
        present[:, column] = False
        if modality == "text":
            return replace(self, present=present, text_mask=torch.zeros_like(self.text_mask))
        hidden = None if self.region_mask is None else torch.zeros_like(self.region_mask)
        return replace(self, present=present, region_mask=hidden)


def answer_vocabulary(data: TaskData, *, most: int = 3129) -> tuple[str, ...]:
    """The most frequent answers of the training rows, most frequent first, ties in alphabetical order.

    Raises:
        ValueError: If the rows have no answers.
    """
    counts: Counter[str] = Counter()
    for row in data.rows(TRAIN):
        if data.votes is not None:
            counts.update(data.votes[row].keys())
        elif data.answers is not None:
            counts[data.answers[row]] += 1
    if not counts:
        raise ValueError(f"{data.name} has no answers in its training rows")
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most])


class Collator:
    """Rows of a ``TaskData`` to a ``TaskBatch``; texts are tokenised once, at the start.

    Args:
        data: The rows.
        words: The tokenizer.
        max_length: Most tokens of a text, marks included.
        answers: Answers by column of ``target["answer"]``; None = answers are not wanted.
        captions: Put ``[BOS] text [EOS]`` into ``target["caption"]``, and leave the text out of the inputs.
    """

    def __init__(
        self,
        data: TaskData,
        words: WordTokenizer,
        *,
        max_length: int = 32,
        answers: Sequence[str] | None = None,
        captions: bool = False,
    ) -> None:
        self.data, self.answers, self.captions = data, answers, captions
        self.text, self.text_mask = words.encode(data.texts, max_length, decoder=captions)
        self.keys = key_of([f"{data.name} {row}" for row in range(len(data))])
        self.ids = torch.from_numpy(data.ids.astype(np.int64))
        self._answer = None if answers is None else answer_targets(data, answers)

    def __call__(self, rows: np.ndarray | Tensor) -> TaskBatch:
        """The batch of some rows."""
        index = torch.as_tensor(rows)
        pictures = self.data.image_of[index.numpy()]
        has_image = torch.from_numpy(pictures >= 0)
        text, mask = self.text[index], self.text_mask[index]
        if not self.captions:  # as long as the longest of the batch
            longest = max(1, int(mask.sum(dim=1).max()))
            text, mask = text[:, :longest], mask[:, :longest]
        inputs: dict[str, Any] = {}
        where = np.where(pictures >= 0, pictures, 0)
        if self.data.images is not None:
            pixels = torch.from_numpy(self.data.images[where]).permute(0, 3, 1, 2).float().div_(255)
            inputs["image"] = pixels.masked_fill(~has_image[:, None, None, None], 0.0)
        if self.data.regions is not None:
            found = self.data.regions
            inputs["regions"] = torch.from_numpy(found.features[where]).float()
            inputs["region_boxes"] = torch.from_numpy(found.boxes[where]).float()
            inputs["region_mask"] = torch.from_numpy(found.mask[where]) & has_image[:, None]
            if found.classes is not None:
                inputs["region_classes"] = torch.from_numpy(found.classes[where]).float()
        target = self._target(index)
        if self.captions:
            target["caption"], mask = text, torch.zeros_like(mask[:, :1])
            text = torch.zeros_like(text[:, :1])
        present = torch.stack([has_image, mask.any(dim=1)], dim=1)
        return TaskBatch(self.ids[index], self.keys[index], text, mask, present, target=target, **inputs)

    def _target(self, index: Tensor) -> dict[str, Tensor]:
        target: dict[str, Tensor] = {}
        if self._answer is not None:
            target["answer"] = self._answer[index]
        if self.data.boxes is not None:
            target["box"] = torch.from_numpy(self.data.boxes[index.numpy()]).float()
        if self.data.values is not None:
            target["value"] = torch.from_numpy(self.data.values[index.numpy()]).float()
        return target


def answer_targets(data: TaskData, answers: Sequence[str]) -> Tensor:
    """``(N, A)`` scores: 1 at the right answer, or the votes; an answer outside the vocabulary leaves its row at 0."""
    column: Mapping[str, int] = {answer: number for number, answer in enumerate(answers)}
    target = torch.zeros(len(data), len(answers))
    for row in range(len(data)):
        given = {data.answers[row]: 1.0} if data.answers is not None else {}
        for answer, score in (given if data.votes is None else data.votes[row]).items():
            if answer in column:
                target[row, column[answer]] = score
    return target
