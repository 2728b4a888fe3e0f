"""The named models as ``ddp_models_worker.py`` runs them: small, in double precision, every parameter in use."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.models import MODELS

ROWS = 6  # per rank
Call = Callable[[nn.Module, slice], Any]


def _words(vocabulary: int, length: int, end: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, vocabulary - 1, (2 * ROWS, length), generator=generator)
    ids[:, 0], ids[:, -1] = 2, end
    mask = torch.rand(ids.shape, generator=generator) < 0.8
    mask[:, 0] = mask[:, -1] = True
    return ids, mask


def _random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _regions(name: str, width: int, boxes: int, heads: tuple[str, ...], **options: Any) -> tuple[nn.Module, Call]:
    ids, mask = _words(40, 6, 3)
    features, places = _random(2 * ROWS, 4, width), _random(2 * ROWS, 4, max(boxes, 1))
    there = torch.ones(2 * ROWS, 4, dtype=torch.bool)
    there[::3, 2:] = False
    given: dict[str, Any] = {"text_mask": mask, "region_features": features, "region_mask": there}
    if boxes:
        given["region_boxes"] = places
    if name == "uniter_tiny":
        given["region_masked"] = there & (_random(2 * ROWS, 4) < 0.3)
    model = MODELS[name](**options, dtype=torch.float64).attach(*heads)
    return model, lambda module, rows: module(ids[rows], **{key: value[rows] for key, value in given.items()})


def _pictures(name: str, side: int, vocabulary: int, end: int, heads: dict[str, Any]) -> tuple[nn.Module, Call]:
    ids, mask = _words(vocabulary, 7, end)
    images = _random(2 * ROWS, 3, side, side)
    model = MODELS[name](dtype=torch.float64)
    for head, options in heads.items():
        model.attach(head, **options)
    return model, lambda module, rows: module(images[rows], ids[rows], mask[rows])


def named() -> dict[str, Callable[[], tuple[nn.Module, Call]]]:
    """Builders by name."""
    three = {"num_classes": 3}
    return {
        "clip": lambda: _pictures("clip_tiny", 32, 64, 63, {"classification": three}),
        "mmbert": lambda: _pictures("mmbert_tiny", 64, 97, 3, {"mlm": {}, "vqa": three}),
        "mmbt": lambda: _pictures("mmbt_tiny", 64, 97, 3, {"classification": three, "mlm": {}, "alignment": {}}),
        "mobileclip": lambda: _pictures("mobileclip_tiny", 64, 100, 99, {"classification": three}),
        "uniter": lambda: _regions("uniter_tiny", 24, 7, ("mlm", "mrfr", "mrc", "itm", "vqa")),
        "vilbert": lambda: _regions("vilbert_tiny", 24, 5, ("mlm", "region", "pair", "vqa", "vision_logit", "tri")),
        "visual_bert": lambda: _regions("visual_bert_tiny", 12, 0, ("mlm", "vqa", "pair")),
    }


def outputs(output: Any) -> list[Tensor]:
    """What a loss can be made of: per-row results, and scalars such as CLIP's scale."""
    found = [value for value in output.info.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return [value for value in found if value.ndim == 0 or (value.requires_grad and value.shape[0] == ROWS)]


def loss(values: list[Tensor]) -> Tensor:
    """A mean over rows, different for every place of a row."""
    parts = []
    for value in values:
        flat = value.reshape(1, 1) if value.ndim == 0 else value.flatten(1)
        kept = torch.where(flat.isfinite(), flat, 0.0)
        ramp = torch.linspace(0.5, 1.0, flat.shape[1], dtype=flat.dtype)
        parts.append((kept * ramp).mean(dim=1).mean())
    return torch.stack(parts).sum()
