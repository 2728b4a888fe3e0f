"""CLIP or MobileCLIP from a folder, in any published layout, as a matcher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.errors import UserError
from polyfuse.models.clip_folder import load_clip_folder

_TEXTS_AT_ONCE = 64


class ClipMatcher:
    """Preprocessing, activation, scale and padding are the checkpoint's.

    Args:
        folder: OpenAI's, open_clip's, Hugging Face's or Apple's layout, or one that `save_pretrained` wrote.

    Raises:
        UserError: If the folder holds no such model, or its files do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        try:
            found = load_clip_folder(folder)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None
        model: Any = found.model
        self.model = model.eval()
        self.settings, self.tokenize = found.images, found.texts
        self.name = f"{type(found.model).__name__} in {folder} ({found.layout} layout)"
        self.scale = float(model.scale().item())

    def read(self, path: Path) -> Tensor:
        """``(3, S, S)`` float32."""
        return self.settings.pixels(path)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Tensor]) -> np.ndarray:
        """The image tower, at length 1."""
        embedded: Tensor = self.model.encode_image(torch.stack(list(images)))
        return embedded.float().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The text tower, at length 1; every text is padded to the full context."""
        ids = self.tokenize(list(texts))
        parts: list[Tensor] = [self.model.encode_text(block) for block in ids.split(_TEXTS_AT_ONCE)]
        return torch.cat(parts).float().numpy()

    def unknown_words(self, text: str) -> list[str]:
        """None: words are cut into pieces down to bytes."""
        return []
