"""What an encoded table looks like: a spec per modality, one for the target. Plain, JSON-able, saved with a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Option = int | float | str | list[Any]

#: Options every type must carry.
OPTIONS: dict[str, tuple[str, ...]] = {
    "image": ("size",),
    "text": ("vocab_size", "max_length"),
    "audio": ("rate", "samples"),
    "tabular": ("numeric", "cardinalities"),
    "series": ("channels", "length"),
    "vector": ("width",),
    "video": ("frames", "size"),
    "points": ("count", "channels"),
}
TASKS = ("classification", "multilabel", "regression")


@dataclass(frozen=True)
class ModalitySpec:
    """The shape of one encoded modality; an encoder is built from it.

    Attributes:
        name: The modality's name.
        type: ``image | text | audio | tabular | series | vector | video | points``.
        options: Sizes by name: image ``size``; text ``vocab_size, max_length``; audio ``rate, samples``; tabular
            ``numeric`` (a count), ``cardinalities`` (one int per categorical column, its 0 included); series
            ``channels, length``; vector ``width``; video ``frames, size``; points ``count, channels`` (3 coordinates
            and further values). Further entries are allowed; audio with ``offset`` may begin after the row's clock.

    Raises:
        ValueError: For an unknown type or a missing option.

    Example:
        >>> ModalitySpec("photo", "image", {"size": 64}).to_dict()
        {'name': 'photo', 'type': 'image', 'options': {'size': 64}}
    """

    name: str
    type: str
    options: dict[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in OPTIONS:
            raise ValueError(f"type of modality '{self.name}' must be one of {', '.join(OPTIONS)}, got '{self.type}'")
        missing = [key for key in OPTIONS[self.type] if key not in self.options]
        if missing:
            raise ValueError(f"spec of {self.type} modality '{self.name}' lacks {missing}, got {sorted(self.options)}")

    def size(self, option: str) -> int:
        """An option that is a whole number."""
        value = self.options[option]
        if not isinstance(value, int):
            raise TypeError(f"option '{option}' of modality '{self.name}' must be an int, got {value!r}")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"name": self.name, "type": self.type, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ModalitySpec":
        """The inverse of ``to_dict``."""
        return cls(value["name"], value["type"], dict(value["options"]))


@dataclass(frozen=True)
class TargetSpec:
    """What is predicted.

    Attributes:
        task: ``classification | multilabel | regression``.
        classes: Class or label names as written in the table, in column order of the logits; empty for regression.
        mean: Regression: mean of the training targets; ``Batch.target`` holds ``(y - mean) / std``.
        std: Regression: standard deviation of the training targets.

    Raises:
        ValueError: For an unknown task.

    Example:
        >>> TargetSpec("classification", ("cat", "dog")).outputs
        2
    """

    task: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got '{self.task}'")

    @property
    def outputs(self) -> int:
        """Classes or labels to score; 1 for regression."""
        return 1 if self.task == "regression" else len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"task": self.task, "classes": list(self.classes), "mean": self.mean, "std": self.std}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "TargetSpec":
        """The inverse of ``to_dict``."""
        return cls(value["task"], tuple(value["classes"]), float(value["mean"]), float(value["std"]))


def input_layout(spec: ModalitySpec) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape per row and dtype of every tensor of a modality's input; the key is ``""`` where it is one bare tensor.

    Example:
        >>> input_layout(ModalitySpec("clip", "audio", {"rate": 16000, "samples": 8000}))
        {'wave': ((8000,), torch.int16), 'length': ((), torch.int64)}
    """
    if spec.type == "image":
        return {"": ((3, spec.size("size"), spec.size("size")), torch.uint8)}
    if spec.type == "text":
        return {"ids": ((spec.size("max_length"),), torch.int32), "mask": ((spec.size("max_length"),), torch.bool)}
    if spec.type == "audio":
        layout: dict[str, tuple[tuple[int, ...], torch.dtype]]
        layout = {"wave": ((spec.size("samples"),), torch.int16), "length": ((), torch.int64)}
        return layout | ({"start": ((), torch.int64)} if spec.options.get("offset") else {})
    if spec.type == "series":
        length = spec.size("length")
        return {"values": ((length, spec.size("channels")), torch.float32), "mask": ((length,), torch.bool)}
    if spec.type == "vector":
        return {"": ((spec.size("width"),), torch.float32)}
    if spec.type == "video":
        frames, size = spec.size("frames"), spec.size("size")
        return {
            "frames": ((frames, 3, size, size), torch.uint8),
            "times": ((frames,), torch.float32),
            "mask": ((frames,), torch.bool),
        }
    if spec.type == "points":
        count = spec.size("count")
        return {"points": ((count, spec.size("channels")), torch.float32), "mask": ((count,), torch.bool)}
    numeric, cardinalities = spec.size("numeric"), spec.options["cardinalities"]
    if not isinstance(cardinalities, list):
        raise TypeError(f"option 'cardinalities' of modality '{spec.name}' must be a list, got {cardinalities!r}")
    return {
        "numeric": ((numeric,), torch.float32),
        "numeric_mask": ((numeric,), torch.bool),
        "categorical": ((len(cardinalities),), torch.int64),
    }


def empty_input(spec: ModalitySpec, rows: int) -> Tensor | dict[str, Tensor]:
    """The input of ``rows`` rows in which the modality is absent: zeros of the right shapes.

    Example:
        >>> empty_input(ModalitySpec("v", "vector", {"width": 3}), rows=2).shape
        torch.Size([2, 3])
    """
    parts = {key: torch.zeros(rows, *shape, dtype=dtype) for key, (shape, dtype) in input_layout(spec).items()}
    return parts[""] if "" in parts else parts
