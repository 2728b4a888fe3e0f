"""MobileCLIP: small and fast image and text towers with one embedding space.

Shapes: B images, C texts, L tokens, E embedding width. Masks: True = present.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.models.convert import Rule, strip_prefix, tensors_of
from polyfuse.models.fastvit import FastViT
from polyfuse.models.mobileclip_original import (
    SIZES,
    arguments_from_config,
    arguments_from_shapes,
    head_bias,
    layout_of,
    mobileclip_rules,
    size_named,
)
from polyfuse.models.mobileclip_text import mct_layers
from polyfuse.models.paired_towers import PairedTowers
from polyfuse.models.pretrained import arguments
from polyfuse.models.reparameterized import ConvNorm, Reparameterizable, reparameterize
from polyfuse.models.text_transformer import TextTower
from polyfuse.models.vision_transformer import VisionTower

#: ``{name: (padding of the stem's first convolution, eps of the norms)}`` of the ViT tower.
VIT_DEFINITIONS = {"apple": (1, 1e-5), "timm": (0, 1e-6)}
MAX_SCALE = 100.0


class ConvStem(nn.Module):
    """Patches of 16 pixels through three convolutions of strides 4, 2, 2.

    Source: https://arxiv.org/abs/2106.14881, as Apple's ``vit_b16`` has it.

    Args:
        dim: Width D of a patch.
        padding: Of the first convolution: 1 (Apple) or 0 (timm).
        factory: ``device`` and ``dtype``.
    """

    def __init__(self, dim: int, padding: int, **factory: Any) -> None:
        super().__init__()
        hidden = max(32, dim // 4)
        self.first = ConvNorm(3, hidden, (4, 4), stride=4, padding=(padding, padding), **factory)
        self.second = ConvNorm(hidden, hidden, (2, 2), stride=2, padding=(0, 0), **factory)
        self.third = nn.Conv2d(hidden, dim, 2, stride=2, **factory)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, P, D)``, row by row."""
        return self.third(F.gelu(self.second(F.gelu(self.first(images))))).flatten(2).transpose(1, 2)


class FastViTTower(nn.Module):
    """FastViT, the mean over its last pixels, one matrix: an image to one vector."""

    def __init__(self, trunk: FastViT, out_dim: int, *, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Linear(trunk.out_dim, out_dim, bias=bias, **factory)
        nn.init.normal_(self.projection.weight, std=trunk.out_dim**-0.5)
        if bias:
            nn.init.zeros_(self.projection.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, E)``, not normalised."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        return self.projection(self.trunk(images).mean((2, 3)))


class MobileCLIP(PairedTowers):
    """Image and text towers whose embeddings meet, as Apple defined them.

    Source: MobileCLIP, https://arxiv.org/abs/2311.17049; widths and depths are those of Apple's ``ml-mobileclip``.
    The defaults are S1. Images are in [0, 1], not normalised further; texts are padded with 0 to ``context_length``
    unless the text tower is causal, because it attends to the padding: an embedding never depends on its batch.
    ``classification`` is a head for images, linear on the embedding.

    Args:
        image_tower: ``fastvit`` or ``vit`` (patches of 16 pixels through a convolutional stem).
        image_size: Side of the images; a ViT takes no other.
        image_depths: Blocks per stage; a ViT has one number.
        image_dims: Widths per stage.
        image_mlp_ratio: Hidden width of FastViT's feed-forward parts over their width.
        image_heads: Heads of the ViT; None = 64 channels each.
        image_bias: Whether the image projection has a bias (open_clip's trainable models do; Apple's do not).
        vit_definition: ``apple`` (stem padded by 1, eps 1e-5), or ``timm`` (0, 1e-6) for weights that timm or open_clip
            trained. Apple's weights need ``apple``, in whichever layout they come.
        vocab_size: Token ids.
        context_length: Tokens of a text.
        text_dim: Width of the text tower.
        text_layers: Its attention layers.
        text_heads: Its heads.
        text_repmixer: Whether a RepMixer block stands before and behind them (S0).
        causal: Whether no token sees a later one (B).
        embed_dim: Width E.
        reparameterized: Build the form that ``reparameterize`` makes.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a name is unknown or sizes do not fit together.

    Example:
        >>> model = mobileclip_tiny().eval()
        >>> output = model(torch.rand(2, 3, 64, 64), torch.tensor([[98, 5, 99], [98, 7, 99], [98, 99, 0]]))
        >>> output.logits_per_image.shape
        torch.Size([2, 3])
    """

    LAYOUTS = ("apple", "open_clip")

    def __init__(
        self,
        *,
        image_tower: str = "fastvit",
        image_size: int = 256,
        image_depths: Sequence[int] = (4, 12, 20, 4),
        image_dims: Sequence[int] = (64, 128, 256, 512),
        image_mlp_ratio: float = 3.0,
        image_heads: int | None = None,
        image_bias: bool = False,
        vit_definition: str = "apple",
        vocab_size: int = 49408,
        context_length: int = 77,
        text_dim: int = 512,
        text_layers: int = 12,
        text_heads: int = 8,
        text_repmixer: bool = False,
        causal: bool = False,
        embed_dim: int = 512,
        reparameterized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if image_tower == "fastvit":
            trunk = FastViT(image_depths, image_dims, mlp_ratio=image_mlp_ratio, **factory)
            self.image: nn.Module = FastViTTower(trunk, embed_dim, bias=image_bias, **factory)
        elif image_tower == "vit":
            self.image = _vit_tower(config, **factory)
        else:
            raise ValueError(f"image_tower must be 'fastvit' or 'vit', got {image_tower!r}")
        self.text = TextTower(
            vocab_size=vocab_size,
            dim=text_dim,
            num_layers=text_layers,
            num_heads=text_heads,
            context_length=context_length,
            out_dim=embed_dim,
            causal=causal,
            layers=mct_layers(text_dim, text_layers, text_heads, **factory) if text_repmixer else None,
            **factory,
        )
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07), **factory))
        if reparameterized:
            reparameterize(self)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings ``(B, E)`` of length 1, of ``(B, 3, H, W)`` images in [0, 1]."""
        return F.normalize(self.image(images), dim=-1)

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Embeddings ``(C, E)`` of length 1.

        Args:
            input_ids: ``(C, L)``, L up to ``context_length``; what is missing is padded with 0 where the tower is not
                causal. A text is read at its highest id, its end.
            text_mask: ``(C, L)`` bool; ids under a False are read as padding, 0, whatever they are.

        Raises:
            ValueError: If a text is longer than ``context_length``, or the mask is not of the ids' shape.
        """
        if text_mask is not None:
            if text_mask.shape != input_ids.shape or text_mask.dtype != torch.bool:
                got = f"{tuple(text_mask.shape)} {text_mask.dtype}"
                raise ValueError(
                    f"text_mask must be bool (True = present) of shape {tuple(input_ids.shape)}, got {got}"
                )
            input_ids = input_ids.masked_fill(~text_mask, 0)
        missing = self.config["context_length"] - input_ids.shape[-1]
        if missing > 0 and not self.config["causal"]:
            input_ids = F.pad(input_ids, (0, missing))
        return F.normalize(self.text(input_ids), dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied by: ``exp(logit_scale)``, at most 100."""
        return self.logit_scale.exp().clamp(max=MAX_SCALE)

    def reparameterize(self) -> Self:
        """Fold the parallel branches into single convolutions, in place, and return the model.

        Outputs in evaluation stay the same (about 1e-6). The second call does nothing. Folded parameters are new ones:
        build an optimizer afterwards. ``copy.deepcopy`` the model first to keep the form that trains best.
        """
        if any(isinstance(module, Reparameterizable) for module in self.modules()):
            reparameterize(self)
            self.config["reparameterized"] = True
        return self

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
        vit_definition: str = "apple",
    ) -> Self:
        """Build the model from Apple's checkpoint or open_clip's, reparameterised or not, in evaluation mode.

        Args:
            source: Tensors by their original names, or a file of them.
            config: Apple's or open_clip's config, as a mapping or its JSON file, or a size by name
                (``mobileclip_s0``); None = told from names and shapes.
            layout: ``apple`` or ``open_clip``; None = told from the names.
            vit_definition: Of the ViT tower; see the class.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit.
        """
        state = tensors_of(source)
        state = strip_prefix(state, "module.", "_orig_mod.")
        if isinstance(config, str) and size_named(config) is not None:
            config = {"size": config}
        elif isinstance(config, (str, Path)) and not Path(config).is_file():
            raise ValueError(f"config must be a JSON file or one of {', '.join(SIZES)}, got {str(config)!r}")
        model = super().from_original(state, config, layout=layout or layout_of(state))
        return model if vit_definition == "apple" else model.defined_by(vit_definition)

    def defined_by(self, vit_definition: str) -> Self:
        """Let the ViT tower follow another definition (an entry of ``VIT_DEFINITIONS``), in place.

        Raises:
            ValueError: If it is unknown, or the image tower is not a ViT.
        """
        padding, eps = _vit_definition(vit_definition)
        stem = getattr(self.image, "stem", None)
        if not isinstance(stem, ConvStem):
            raise ValueError(f"only a ViT tower has two definitions, got vit_definition {vit_definition!r} for FastViT")
        stem.first.padding = stem.first.conv.padding = (padding, padding)
        for module in self.image.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps
        self.config["vit_definition"] = vit_definition
        return self

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From the config where there is one, otherwise from names and shapes."""
        if config is None:
            kwargs = arguments_from_shapes(state, layout_of(state))
        else:
            named = size_named(str(config["size"])) if "size" in config else None
            kwargs = arguments_from_config(config) if named is None else dict(named)
        bias = state.get(head_bias(kwargs.get("image_tower", "fastvit")))
        kwargs["image_bias"] = bias is not None and not bias.is_meta and bool(bias.any())
        kwargs["reparameterized"] = any(key.endswith("reparam_conv.weight") for key in state)
        return kwargs

    def original_rules(self, state: Mapping[str, Tensor] | None, layout: str | None) -> tuple[list[Rule], Any]:
        """Apple's names, or open_clip's; there a bias or shift that is zero carries nothing."""
        if layout not in self.LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(self.LAYOUTS)}, got {layout!r}")
        empty = {"logit_bias", head_bias(self.config["image_tower"])} if layout == "open_clip" else set()
        return mobileclip_rules(self, layout), lambda key: key in empty and not bool((state or {})[key].any())

    def to_original(self, layout: str | None = None) -> dict[str, Tensor]:
        """The weights under Apple's names or open_clip's, where a bias of zeros stands on the image projection.

        Raises:
            ValueError: If the layout cannot hold the model: open_clip has no S0 text tower, Apple no projection bias.
        """
        theirs = super().to_original(layout)
        if (layout or self.read_layout) == "open_clip" and not self.config["image_bias"]:
            zeros = self.logit_scale.detach().new_zeros(self.config["embed_dim"])
            theirs[head_bias(self.config["image_tower"])] = zeros
        return theirs


def _classification(model: MobileCLIP, num_classes: int) -> nn.Module:
    like = model.logit_scale
    return nn.Linear(model.config["embed_dim"], num_classes, device=like.device, dtype=like.dtype)


MobileCLIP.HEADS = {"classification": _classification}


def _vit_definition(name: str) -> tuple[int, float]:
    if name not in VIT_DEFINITIONS:
        raise ValueError(f"vit_definition must be one of {', '.join(VIT_DEFINITIONS)}, got {name!r}")
    return VIT_DEFINITIONS[name]


def _vit_tower(config: Mapping[str, Any], **factory: Any) -> VisionTower:
    padding, eps = _vit_definition(config["vit_definition"])
    depths, dims, heads = config["image_depths"], config["image_dims"], config["image_heads"]
    if len(depths) != 1 or len(dims) != 1:
        raise ValueError(f"a ViT has one depth and one width, got {depths} and {dims}")
    tower = VisionTower(
        image_size=config["image_size"],
        patch_size=16,
        dim=dims[0],
        num_layers=depths[0],
        num_heads=max(1, dims[0] // 64) if heads is None else heads,
        out_dim=config["embed_dim"],
        eps=eps,
        pre_norm=False,
        class_position=False,
        stem=ConvStem(dims[0], padding, **factory),
        **factory,
    )
    if config["image_bias"]:
        tower.projection = nn.Linear(dims[0], config["embed_dim"], **factory)
    return tower


def mobileclip_s0(**kwargs: Any) -> MobileCLIP:
    """MobileCLIP-S0: 53.8 million parameters."""
    return MobileCLIP(**{**SIZES["mobileclip_s0"], **kwargs})


def mobileclip_s1(**kwargs: Any) -> MobileCLIP:
    """MobileCLIP-S1: 85.0 million parameters."""
    return MobileCLIP(**{**SIZES["mobileclip_s1"], **kwargs})


def mobileclip_s2(**kwargs: Any) -> MobileCLIP:
    """MobileCLIP-S2: 99.2 million parameters."""
    return MobileCLIP(**{**SIZES["mobileclip_s2"], **kwargs})


def mobileclip_b(**kwargs: Any) -> MobileCLIP:
    """MobileCLIP-B: 149.8 million parameters, a ViT and a causal text tower."""
    return MobileCLIP(**{**SIZES["mobileclip_b"], **kwargs})


def mobileclip_tiny(**kwargs: Any) -> MobileCLIP:
    """All parts of S0, small: for tests and first steps."""
    small = {
        "image_depths": (1, 1, 2, 1),
        "image_dims": (8, 16, 32, 64),
        "image_size": 64,
        "vocab_size": 100,
        "context_length": 13,
        "text_dim": 64,
        "text_layers": 2,
        "text_heads": 1,
        "text_repmixer": True,
        "embed_dim": 24,
    }
    return MobileCLIP(**{**small, **kwargs})
