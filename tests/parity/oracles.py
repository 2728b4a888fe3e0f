"""The models that ours are compared with, from timm and open_clip: the second environment only (`make parity`)."""

from functools import partial
from typing import Any

import open_clip
import timm
import torch
from open_clip.transformer import TextTransformer
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn


class Pair(nn.Module):
    """A timm trunk and an open_clip text tower under the names that open_clip gives them."""

    def __init__(self, trunk: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.visual, self.text = nn.Module(), text
        self.visual.trunk = trunk
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        return nn.functional.normalize(self.visual.trunk(images), dim=-1)

    def encode_text(self, ids: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        return nn.functional.normalize(self.text(ids), dim=-1)


def tiny_text(causal: bool) -> nn.Module:
    return TextTransformer(
        context_length=13, vocab_size=100, width=64, heads=1, layers=2, output_dim=24, no_causal_mask=not causal
    )


def tiny_fastvit() -> Pair:
    """``polyfuse.models.mobileclip_tiny`` without its RepMixer text blocks."""
    trunk = FastVit(
        layers=(1, 1, 2, 1),
        embed_dims=(8, 16, 32, 64),
        mlp_ratios=(3, 3, 3, 3),
        se_downsamples=(False, False, True, True),
        pos_embs=(None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        lkc_use_act=True,
        num_classes=24,
    )
    return Pair(trunk, tiny_text(causal=False))


def tiny_vit(definition: str) -> Pair:
    """A ViT of two layers behind MobileCLIP-B's stem."""
    stem = ConvStem(
        channels=(32, 32, 128), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, in_chans=3, act_layer=nn.GELU
    )
    embed: Any = partial(HybridEmbed, backbone=stem, proj=False)
    trunk = VisionTransformer(
        img_size=64, patch_size=1, embed_layer=embed, embed_dim=128, depth=2, num_heads=2, no_embed_class=True,
        num_classes=24,
    )  # fmt: skip
    return Pair(define(trunk, definition), tiny_text(causal=True))


def define(trunk: nn.Module, definition: str) -> nn.Module:
    """Apple's own stem and norms in timm's ViT: padding 1, eps 1e-5 (``mobileclip/models/vit.py``)."""
    if definition == "apple":
        trunk.patch_embed.backbone[0].conv.padding = (1, 1)
        for module in trunk.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
    return trunk


def full(name: str) -> nn.Module:
    """A published size of open_clip."""
    return open_clip.create_model(name)


def s0_image() -> nn.Module:
    """S0's image tower."""
    return timm.create_model("fastvit_mci0", num_classes=512)
