"""Models that put pictures and texts into one space, whatever they are made of, behind four members."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from polyfuse.encoders.matching import MATCHER_SETTINGS, ink, text_features, word_ids, word_list
from polyfuse.errors import UserError
from polyfuse.models.dual_encoder import DualEncoder

ASSETS = Path(__file__).parents[1] / "models" / "assets"
SHIPPED = ("clipart", "glyphs")


class Matcher(Protocol):
    """What `match` asks of a model.

    Attributes:
        name: For the user.
        scale: What cosines are multiplied by before the softmax.
    """

    name: str
    scale: float

    def read(self, path: Path) -> Any:
        """A picture as the model wants it.

        Raises:
            Broken: If it cannot be decoded whole.
        """
        ...

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        """``(I, E)`` float32, length 1, of what ``read`` gave."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """``(C, E)`` float32, length 1; a text never depends on its neighbours."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """Words that the model cannot read; none where it cuts words into pieces."""
        ...


def load_matcher(model: str | None) -> Matcher:
    """A matcher from a folder, or one that ships by name; None = ``clipart``.

    Raises:
        UserError: If there is no such model, or its folder holds nothing known.
    """
    if model is None or model in SHIPPED:
        return DualMatcher(ASSETS / (model or SHIPPED[0]))
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"--model must be a folder of weights, or one of {', '.join(SHIPPED)}; got '{model}'")
    if (folder / MATCHER_SETTINGS).is_file():
        return DualMatcher(folder)
    from polyfuse.run.clip_matcher import ClipMatcher

    return ClipMatcher(folder)


class DualMatcher:
    """A `DualEncoder` with the networks or the vocabulary that its ``matcher.json`` names.

    Args:
        folder: Holds ``config.json``, ``model.safetensors`` and ``matcher.json``.

    Raises:
        UserError: If a file is missing or unfit, or the weights of a frozen network have not been fetched.
    """

    def __init__(self, folder: Path) -> None:
        try:
            settings = json.loads((folder / MATCHER_SETTINGS).read_text(encoding="utf-8"))
            self.model = DualEncoder.from_pretrained(folder).float()
            self.side = int(settings["side"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} does not hold a matcher: {error}") from None
        self.name = str(settings.get("name", folder.name))
        self.scale = float(self.model.scale().item())
        self.vocabulary = {word: row + 1 for row, word in enumerate(settings.get("vocabulary", []))}
        self.picture = _network(settings["image"]) if "image" in settings else None
        self.words = {name: _network(name) for name in settings.get("text", [])}

    def read(self, path: Path) -> np.ndarray:
        """``(S, S, 3)`` uint8, padded to a square on white."""
        from polyfuse.data.codecs_image import decode_image

        return decode_image(str(path), self.side, "pad")

    @torch.inference_mode()
    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of the frozen network, or ink, through the image tower."""
        x = ink(np.stack(images)) if self.picture is None else torch.from_numpy(self.picture(list(images)))
        return self.model.encode_image(x).numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Features of the frozen networks, or words and pairs of words, through the text tower."""
        known = torch.from_numpy(text_features(self.words, texts)) if self.words else word_ids(texts, self.vocabulary)
        return self.model.encode_text(known).numpy()

    def unknown_words(self, text: str) -> list[str]:
        """Those outside the vocabulary, where there is one."""
        return [] if self.words else [w for w in word_list(text) if w not in self.vocabulary]


def _network(name: str) -> Any:
    from polyfuse.encoders.pretrained import load_pretrained

    return load_pretrained(name)
