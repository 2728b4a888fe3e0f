"""Frozen parts compute once: what a frozen stem, or a frozen stem and backbone, make of a row is kept and read again.

The numbers are those of the same model without a cache, up to rounding: a frozen part runs in evaluation mode, and
what it makes of a row depends on that row alone.

Shapes: B rows, P visual tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyfuse.tasks.batch import Regions, TaskBatch, TaskData
from polyfuse.tasks.model import Encoded, TaskModel
from polyfuse.tasks.stem import RegionStem, States, VisualTokens

_AT_ONCE = 128
MOST_BYTES = 2 << 30
Say = Callable[[str], None]


def is_frozen(part: nn.Module) -> bool:
    """No parameter of it trains."""
    return not any(parameter.requires_grad for parameter in part.parameters())


@contextmanager
def frozen_features(
    model: TaskModel, data: TaskData, *, most_bytes: int = MOST_BYTES, say: Say = lambda _: None
) -> Iterator[TaskData]:
    """Within the block, what is frozen computes once per row or picture; use the rows it yields.

    With stem and backbone frozen, states are kept per row when they are first needed. With the stem alone, its tokens
    of all pictures are computed at once and stand in the rows' ``regions``. Otherwise, or where it would take more
    memory, nothing changes. Rows must not be altered (augmented) inside the block, and must not thaw.

    Args:
        model: Frozen as it will stay.
        data: The rows.
        most_bytes: Memory that may be used.
        say: Told what is kept.
    """
    if not is_frozen(model.stem):
        yield data
        return
    pictures = 0 if data.images is None and data.regions is None else int(data.image_of.max(initial=-1)) + 1
    tokens = _tokens(model, data)
    if is_frozen(model.backbone):
        wide = "box" in model.heads or "caption" in model.heads
        size = 4 * len(data) * model.dim * ((tokens if wide else 0) + 1)
        if size <= most_bytes:
            say(f"stem and backbone are frozen: their states are computed once per row (up to {size / 1e6:.0f} MB)")
            keep = FrozenEncoder(model, wide=wide)
            model.encode, model.embed_text = keep.encode, keep.embed_text  # type: ignore[method-assign]
            try:
                yield data
            finally:
                del model.encode, model.embed_text
            return
    size = 4 * pictures * tokens * model.dim
    if not pictures or size > most_bytes:
        yield data
        return
    say(f"the stem is frozen: its tokens of {pictures:,} pictures are computed once ({size / 1e6:.0f} MB)")
    stem = model.stem
    seen = replace(data, images=None, regions=_stem_tokens(model, data, pictures))
    model.stem = _Ready()  # type: ignore[assignment]  # reads what the stem made
    try:
        yield seen
    finally:
        model.stem = stem


def _tokens(model: TaskModel, data: TaskData) -> int:
    if isinstance(model.stem, RegionStem):
        return 0 if data.regions is None else data.regions.mask.shape[1]
    return model.stem.grid**2 + getattr(model.stem, "whole", 0)


class _Ready(nn.Module):
    """Stands in for a stem whose tokens the batch holds as regions."""

    def forward(self, batch: TaskBatch, hide: Tensor | None = None) -> VisualTokens:
        """The tokens, zero where the row has no picture."""
        if hide is not None:
            raise ValueError("tokens that were computed before cannot hide patches: train without cached features")
        if batch.regions is None or batch.region_boxes is None or batch.region_mask is None:
            raise ValueError("this batch was not made of the rows that frozen_features yields")
        mask = batch.region_mask & batch.present[:, :1]
        return VisualTokens(batch.regions.masked_fill(~mask[..., None], 0.0), batch.region_boxes, mask)


@torch.no_grad()
def _stem_tokens(model: TaskModel, data: TaskData, pictures: int) -> Regions:
    """The stem's tokens of every picture."""
    device = next(model.parameters()).device
    training = model.stem.training
    model.stem.eval()
    parts = []
    for start in range(0, pictures, _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, pictures))
        parts.append([part.cpu().numpy() for part in model.stem(_pictures(data, rows).to(device))])
    model.stem.train(training)
    states, boxes, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Regions(states.astype(np.float32), boxes.astype(np.float32), mask)


def _pictures(data: TaskData, rows: np.ndarray) -> TaskBatch:
    """A batch of pictures without texts."""
    count = len(rows)
    nothing = torch.zeros(count, 1, dtype=torch.int64)
    present = torch.tensor([[True, False]]).expand(count, 2)
    inputs: dict[str, Any] = {}
    if data.images is not None:
        inputs["image"] = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float().div_(255)
    if data.regions is not None:
        inputs["regions"] = torch.from_numpy(data.regions.features[rows]).float()
        inputs["region_boxes"] = torch.from_numpy(data.regions.boxes[rows]).float()
        inputs["region_mask"] = torch.from_numpy(data.regions.mask[rows])
    return TaskBatch(nothing[:, 0], nothing[:, 0], nothing, nothing.bool(), present, **inputs)


class FrozenEncoder:
    """``TaskModel.encode`` and ``embed_text`` that compute every row once for every set of modalities it has.

    ``states.text`` comes as zeros, and without ``wide`` so does ``states.image``: no head of a task reads them.

    Args:
        model: Its stem and backbone are frozen.
        wide: Keep the states of the visual tokens too, which box and caption heads read.
    """

    def __init__(self, model: TaskModel, *, wide: bool) -> None:
        self.model, self.wide = model, wide
        self._encode, self._pool = type(model).encode, type(model).embed_text
        self._rows: dict[tuple[int, bool, bool], tuple[Tensor, ...]] = {}
        self._texts: dict[int, Tensor] = {}
        self.computed = 0

    def encode(self, batch: TaskBatch, *, text: Tensor | None = None, hide: Tensor | None = None) -> Encoded:
        """As ``TaskModel.encode``; other words or hidden tokens are computed anew."""
        if text is not None or hide is not None:
            return self._encode(self.model, batch, text=text, hide=hide)
        marks = [(int(key), bool(i), bool(t)) for key, (i, t) in zip(batch.keys, batch.present, strict=True)]
        new = [place for place, mark in enumerate(marks) if mark not in self._rows]
        if new:
            with torch.no_grad():
                found = self._encode(self.model, _some(batch, new))
            self.computed += len(new)
            states, visual = found.states, found.visual
            kept = [states.pooled, visual.boxes, visual.mask, *([states.image] if self.wide else [])]
            for row, place in enumerate(new):
                self._rows[marks[place]] = tuple(part[row].clone() for part in kept)
        pooled, boxes, mask, *image = (
            torch.stack(part) for part in zip(*(self._rows[mark] for mark in marks), strict=True)
        )
        nothing = pooled.new_zeros(1, 1, 1)
        states_image = image[0] if image else nothing.expand(*mask.shape, pooled.shape[1])
        states_text = nothing.expand(*batch.text.shape, pooled.shape[1])
        text_mask = batch.text_mask & batch.present[:, 1:]
        visual = VisualTokens(nothing.expand(*mask.shape, pooled.shape[1]), boxes, mask)
        return Encoded(States(states_text, states_image, pooled), visual, text_mask)

    def embed_text(self, batch: TaskBatch) -> Tensor:
        """As ``TaskModel.embed_text``: the projection trains, what it projects is kept."""
        keys = [int(key) if there else -1 for key, there in zip(batch.keys, batch.present[:, 1], strict=True)]
        new = [place for place, key in enumerate(keys) if key not in self._texts]
        if new:
            some = _some(batch, new)
            with torch.no_grad():
                mask = some.text_mask & some.present[:, 1:]
                nothing = self.model.nothing(len(some), some.text.device)
                pooled = self.model.backbone(nothing, some.text, mask).pooled
            for row, place in enumerate(new):
                self._texts[keys[place]] = pooled[row].clone()
        return self.model.contrast(torch.stack([self._texts[key] for key in keys]), "text")


def _some(batch: TaskBatch, places: list[int]) -> TaskBatch:
    """Some rows of a batch, without their targets."""
    index = torch.tensor(places, device=batch.ids.device)
    picked: dict[str, Any] = {
        item.name: value[index] if isinstance(value := getattr(batch, item.name), Tensor) else value
        for item in fields(batch)
        if item.name != "target"
    }
    return TaskBatch(**picked)
