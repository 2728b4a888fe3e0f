"""Features of any transformers model in a local folder: sentence encoders, vision transformers, CLIP-like pairs.

Nothing is downloaded, no remote code runs, and only safetensors are read.
Shapes: N items, L tokens, D feature width.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.encoders.features import digest_of
from polyfuse.errors import UserError, require

_ROWS_AT_ONCE = 32
_LONGEST = 512
_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")
_SETTINGS = ("config.json", "preprocessor_config.json", "modules.json", "1_Pooling/config.json")


class TransformerFeatures:
    """A frozen model from ``config.json``, ``*.safetensors`` and, for texts, a tokenizer.

    Texts: the mean of the last hidden states over the tokens (the first token where ``1_Pooling/config.json`` of a
    sentence-transformers folder says so), scaled to length 1 where its ``modules.json`` does.
    Images: resized (bicubic), scaled and normalised as ``preprocessor_config.json`` says; the pooled output, or the
    mean over the tokens or the map. Models with ``get_text_features`` and ``get_image_features`` (CLIP) give those.

    Args:
        folder: The model's folder.
        name: Its name in messages and in the cache.

    Raises:
        UserError: If the folder holds no such model, or transformers is not installed.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} must be a folder with the config.json of a transformers model, found none")
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise UserError(f"{folder} must hold its weights as .safetensors (pickles are not read), found none")
        transformers = require("transformers", extra="hf")
        self.name = name or f"hf:{folder}"
        with _without_progress(transformers):
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model = model.eval()
        self.tokenizer: Any = None
        if any((folder / file).is_file() for file in _WORDS):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.paired = hasattr(self.model, "get_text_features") and hasattr(self.model, "get_image_features")
        self.width = _width(self.model.config, self.paired, self.name)
        self.picture = _read_json(folder / "preprocessor_config.json")
        self.side = _side(self.picture, self.model.config)
        self.size = self.side if self.tokenizer is None or self.paired else None
        self.first_token = bool(_read_json(folder / "1_Pooling" / "config.json").get("pooling_mode_cls_token", False))
        self.unit_length = "Normalize" in json.dumps(_read_json(folder / "modules.json"))
        self.weights_digest = digest_of(
            [*weights, *(folder / file for file in (*_SETTINGS, *_WORDS) if (folder / file).is_file())]
        )

    @torch.inference_mode()
    def compute(self, items: Sequence[Any]) -> np.ndarray:
        """``(N, width)`` float32 of strings or of images (uint8, height x width x 3).

        Raises:
            UserError: If the model takes no such items.
        """
        texts = isinstance(items[0], str)
        if texts and self.tokenizer is None:
            raise UserError(f"'{self.name}' has no tokenizer: it cannot encode texts")
        if not texts and self.size is None:
            raise UserError(f"'{self.name}' is a text model: it cannot encode images")
        # Texts of like length together: a batch is padded to its longest one.
        order = sorted(range(len(items)), key=lambda i: len(items[i])) if texts else list(range(len(items)))
        out = np.zeros((len(items), self.width), dtype=np.float32)
        for start in range(0, len(order), _ROWS_AT_ONCE):
            rows = order[start : start + _ROWS_AT_ONCE]
            part = [items[i] for i in rows]
            out[rows] = (self._texts(part) if texts else self._images(part)).float().numpy()
        return out

    def _texts(self, texts: list[str]) -> Tensor:
        config = getattr(self.model.config, "text_config", None) or self.model.config
        positions = int(getattr(config, "max_position_embeddings", None) or _LONGEST)
        longest = min(_LONGEST, self.tokenizer.model_max_length, positions)
        words = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        if self.paired:
            return _tensor(self.model.get_text_features(**words))
        states_NLD = self.model(**words).last_hidden_state
        mask_NL1 = words["attention_mask"][..., None].to(states_NLD.dtype)
        mean_ND = (states_NLD * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1).clamp(min=1)
        pooled_ND = states_NLD[:, 0] if self.first_token else mean_ND
        return torch.nn.functional.normalize(pooled_ND, dim=-1) if self.unit_length else pooled_ND

    def _images(self, images: list[np.ndarray]) -> Tensor:
        pixels = torch.cat([self._pixels(image) for image in images])
        if self.paired:
            return _tensor(self.model.get_image_features(pixel_values=pixels))
        found = self.model(pixel_values=pixels)
        pooled = getattr(found, "pooler_output", None)
        if pooled is None:
            states = found.last_hidden_state
            pooled = states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)
        return pooled.flatten(1)

    def _pixels(self, image: np.ndarray) -> Tensor:
        """``(1, 3, side, side)``: resized, in [0, 1], normalised."""
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        square = (self.side, self.side)
        if x.shape[2:] != square:
            x = torch.nn.functional.interpolate(x, square, mode="bicubic", antialias=True).clamp(0, 255).round()
        x = x * float(self.picture.get("rescale_factor", 1 / 255))
        if not self.picture.get("do_normalize", True):
            return x
        mean, std = (torch.tensor(self.picture.get(key, [0.5] * 3)) for key in ("image_mean", "image_std"))
        return (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


@contextmanager
def _without_progress(transformers: Any) -> Iterator[None]:
    """A bar for a load of half a second would only litter the log."""
    log = transformers.utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def _tensor(found: Any) -> Tensor:
    """Transformers 5 wraps what transformers 4 returned bare."""
    if isinstance(found, Tensor):
        return found
    pooled: Tensor = found.pooler_output
    return pooled


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _width(config: Any, paired: bool, name: str) -> int:
    """Feature width D."""
    sizes = getattr(config, "hidden_sizes", None)
    width = config.projection_dim if paired else getattr(config, "hidden_size", None) or (sizes[-1] if sizes else None)
    if width is None:
        raise UserError(f"'{name}' is a {config.model_type} model, which does not say how wide its features are")
    return int(width)


def _side(picture: dict[str, Any], config: Any) -> int:
    """Side of the square the model wants."""
    for wanted in (picture.get("crop_size"), picture.get("size")):
        if isinstance(wanted, dict):
            wanted = wanted.get("height") or wanted.get("shortest_edge")
        if wanted:
            return int(wanted)
    config = getattr(config, "vision_config", None) or config
    return int(getattr(config, "image_size", None) or 224)
