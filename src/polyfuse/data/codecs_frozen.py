"""Images and texts to the features of a frozen pretrained network, cached on disk: a vector from then on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, show, source_of
from polyfuse.data.codecs_image import decode_image, strict_pil
from polyfuse.data.codecs_tabular import CLIP, Moments
from polyfuse.data.codecs_text import readable
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.table_csv import BadText
from polyfuse.errors import UserError


class Frozen(Protocol):
    """What a pretrained network offers (``polyfuse.encoders.pretrained``)."""

    name: str
    width: int
    weights_digest: str

    def __call__(self, items: Sequence[Any]) -> np.ndarray:
        """``(N, width)`` float32 of decoded images (uint8, height x width x 3) or strings."""


def load_frozen(name: str) -> Frozen:
    """The network of that name, its weights from the cache.

    Raises:
        UserError: If the name is unknown or its weights are not there.
    """
    network: Frozen = import_module("polyfuse.encoders.pretrained").load_pretrained(name)
    return network


@dataclass
class FrozenCodec(Codec):
    """Cells to standardised features ``(B, width)``.

    Attributes:
        kind: ``image`` or ``text``, what the cells hold.
        pretrained: The network's name.
        digest: Of the weights it was fitted with; other weights are refused.
        size: Image side in pixels.
        fit_mode: How an image fills the square.
        mean: Of each feature over the training rows.
        std: Likewise.
    """

    kind: str = "image"
    pretrained: str = ""
    digest: str = ""
    size: int = 224
    fit_mode: str = "crop"
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    type: ClassVar[str] = "frozen"

    def __post_init__(self) -> None:
        self._network: Frozen | None = None

    @property
    def network(self) -> Frozen:
        """The network, loaded at first use.

        Raises:
            UserError: If its weights are not those of the fit.
        """
        if self._network is None:
            network = load_frozen(self.pretrained)
            if self.digest and network.weights_digest != self.digest:
                raise UserError(
                    f"modality '{self.name}': the weights of '{self.pretrained}' are {network.weights_digest[:12]}, "
                    f"but the run was trained with {self.digest[:12]}; fetch those, or train again"
                )
            self._network = network
        return self._network

    @property
    def spec(self) -> ModalitySpec:
        """A vector as wide as the network's output."""
        return ModalitySpec(self.name, "vector", {"width": len(self.mean), "pretrained": self.pretrained})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "FrozenCodec | None":
        """Moments of the features of the training rows."""
        codec = cls(name, config.all_columns, kind=config.type, pretrained=str(config.pretrained), fit_mode=config.fit)
        if "size" in config.model_fields_set:
            codec.size = config.size
        else:
            codec.size = int(getattr(codec.network, "size", None) or codec.size)
        codec.digest = codec.network.weights_digest
        moments = Moments(codec.network.width)
        for cells in train():
            items, _ = codec._items(cells, reading)
            full = [item for item in items if item is not None]
            if full:
                moments.add(np.asarray(codec.network(full), dtype=np.float64))
        if not moments.count.any():
            return None
        codec.mean, codec.std = moments.mean.tolist(), moments.std.tolist()
        return codec

    def _items(self, cells: Cells, reading: Reading) -> tuple[list[Any], list[tuple[int, str, str]]]:
        """What the network takes, None where there is nothing."""
        if self.kind == "text":
            texts = [readable(cell) for cell in cells[0]]
            problems = [
                (i, "bad UTF-8" if isinstance(cell, BadText | bytes) else "not a text", show(cell))
                for i, (cell, text) in enumerate(zip(cells[0], texts, strict=True))
                if text is None and cell is not None
            ]
            return texts, problems

        def decode(cell: Any) -> np.ndarray:
            return decode_image(source_of(cell, reading), self.size, self.fit_mode, reading.max_pixels)

        with strict_pil():
            return decode_cells(cells[0], decode, reading.pool)

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Features, standardised."""
        items, problems = self._items(cells, reading)
        present = np.array([item is not None for item in items], dtype=bool)
        out = self.zeros(len(items))
        if present.any():
            features = np.asarray(self.network([item for item in items if item is not None]), dtype=np.float64)
            out[""][present] = ((features - np.array(self.mean)) / np.array(self.std)).clip(-CLIP, CLIP)
        return Encoding(out, present, problems)

    def state(self) -> dict[str, Any]:
        """Network and moments."""
        keys = ("kind", "pretrained", "digest", "size", "fit_mode", "mean", "std")
        return {key: getattr(self, key) for key in keys}
