"""Encoders: one modality's input to one embedding ``(B, embed_dim)``.

Every encoder takes its input form (``data/spec.py``), gives finite values and gradients for an absent row (all zeros,
masks False, length 0), has no batch norm, and takes ``device=`` and ``dtype=``.
"""

from typing import Any, Protocol

from torch import nn

from polyfuse.encoders.audio import AudioCNN
from polyfuse.encoders.image import ImageCNN
from polyfuse.encoders.points import PointNet
from polyfuse.encoders.series import SeriesCNN
from polyfuse.encoders.tabular import TabularMLP
from polyfuse.encoders.text import TextTransformer
from polyfuse.encoders.text_bag import TextBag
from polyfuse.encoders.vector import VectorMLP
from polyfuse.encoders.video import VideoFrames
from polyfuse.registry import Registry

ENCODERS = Registry(
    "encoder",
    {
        "image_cnn": ImageCNN,
        "text_transformer": TextTransformer,
        "text_bag": TextBag,
        "audio_cnn": AudioCNN,
        "tabular_mlp": TabularMLP,
        "series_cnn": SeriesCNN,
        "vector_mlp": VectorMLP,
        "video_frames": VideoFrames,
        "pointnet": PointNet,
    },
)

DEFAULTS = {
    "image": "image_cnn",
    "text": "text_transformer",
    "audio": "audio_cnn",
    "tabular": "tabular_mlp",
    "series": "series_cnn",
    "vector": "vector_mlp",
    "video": "video_frames",
    "points": "pointnet",
}

_OPTIONS = {
    "image": ("size",),
    "text": ("vocab_size", "max_length"),
    "audio": ("rate", "samples"),
    "tabular": ("numeric", "cardinalities"),
    "series": ("channels", "length"),
    "vector": ("width",),
    "video": ("frames", "size"),
    "points": ("count", "channels"),
}


class SpecLike(Protocol):
    """What ``build_encoder`` reads of a modality's spec."""

    @property
    def name(self) -> str:
        """The modality's name."""

    @property
    def type(self) -> str:
        """One of the input forms."""

    @property
    def options(self) -> Any:
        """Sizes by name."""


def build_encoder(spec: SpecLike, embed_dim: int, name: str | None = None, **kwargs: Any) -> nn.Module:
    """The encoder of one modality.

    Args:
        spec: The modality's type and sizes (``ModalitySpec``).
        embed_dim: Width of the embedding.
        name: Entry of ``ENCODERS``; None = the type's usual one.
        **kwargs: Further arguments of the encoder.

    Raises:
        KeyError: If the type or ``name`` is unknown.
        ValueError: If ``name`` encodes another type.

    Example:
        >>> from polyfuse.data.spec import ModalitySpec
        >>> type(build_encoder(ModalitySpec("photo", "image", {"size": 32}), 64)).__name__
        'ImageCNN'
    """
    chosen = Registry("modality type", DEFAULTS)[spec.type] if name is None else name
    encoder = ENCODERS[chosen]
    if encoder.modality_type != spec.type:
        raise ValueError(
            f"encoder '{chosen}' takes {encoder.modality_type} inputs, but modality '{spec.name}' is {spec.type}; "
            f"leave it out or use '{DEFAULTS[spec.type]}'"
        )
    options = {key: spec.options[key] for key in _OPTIONS[spec.type]}
    return encoder(embed_dim, **(options | kwargs))
