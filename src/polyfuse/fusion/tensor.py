"""Tensor fusion: the outer product of all modalities, every interaction of every order in one flat vector.

Shapes: B batch, M modalities, D embedding width, Z factor width, K = (1 + Z)^M products, H output width. Masks: True =
present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, linear_by_name

DEFAULT_PRODUCTS = 1024  # K is at most this unless a width is asked for
PRODUCT_LIMIT = 65_536  # K above this is refused: a row of float32 products is then a quarter of a megabyte


class TensorFusion(NamedFusion):
    """Tensor Fusion Network (TFN); an absent modality is ``[1; 0]``, the neutral factor of the product.

    Source: TFN, https://arxiv.org/abs/1707.07250, section 4.2: ``z = [z_1; 1] x [z_2; 1] x ... x [z_M; 1]`` (outer
    product), which holds the unimodal, bimodal, ..., M-modal interactions side by side; then an MLP over z.
    Differs: the 1 comes first; ``z_m = tanh(W_m x_m)`` is narrow and bounded, so that K stays small and a product of
    many modalities cannot explode; one hidden layer. With an absent modality the products that hold it vanish and what
    is left is exactly the outer product of the others.

    .. note::
        K grows as ``(1 + width)^M``. The default width is the largest with ``K <= 1024``: 31 for two modalities, 9 for
        three, 1 for ten. ``low_rank`` has no such limit.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        width: Width Z of every factor; None = the largest that keeps K at 1024 or below, at most ``out_dim``.
        hidden: Width of the hidden layer over the products; None = ``out_dim``.
        dropout: Dropout on the products and on the hidden layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``width`` is not positive, the product would have more than 65536 entries, or names or widths are
            refused.

    Example:
        >>> fusion = TensorFusion(("image", "text"), embed_dim=4, width=3)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)}).fused.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        width: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        number = len(self.modalities)
        if width is None:
            width = max(1, min(self.out_dim, _largest_width(number)))
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")
        products = (1 + width) ** number
        if products > PRODUCT_LIMIT:
            raise ValueError(
                f"the outer product of {number} modalities of width {width} has (1 + {width})^{number} = {products} "
                f"entries, the limit is {PRODUCT_LIMIT}; give a smaller width or use low_rank"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = self.out_dim if hidden is None else hidden
        self.width = width
        self.factor = linear_by_name(self.widths, width, **factory)
        self.mlp = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(products, hidden, **factory),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, self.out_dim, **factory),
        )

    def products(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The flat outer product ``(B, K)``, names sorted, the last one running fastest, and ``empty (B,)``."""
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        product_BK: Tensor | None = None
        for m, (name, x_BD) in enumerate(zip(self.canonical, inputs, strict=True)):
            z_BZ = self.factor[name](x_BD).tanh().masked_fill(~present_BM[:, m, None], 0.0)
            factor_BZ = torch.cat([torch.ones_like(z_BZ[:, :1]), z_BZ], dim=1)
            if product_BK is None:
                product_BK = factor_BZ
            else:
                product_BK = (product_BK[:, :, None] * factor_BZ[:, None, :]).flatten(1)
        assert product_BK is not None  # noqa: S101 - for the type checker: there is at least one modality
        return product_BK, empty_B

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        product_BK, empty_B = self.products(embeddings, present)
        return FusionOutput(self.mlp(product_BK), None, {"empty": empty_B})


def _largest_width(number: int) -> int:
    """The largest Z with ``(1 + Z)^number <= DEFAULT_PRODUCTS``."""
    width = 0
    while (2 + width) ** number <= DEFAULT_PRODUCTS:
        width += 1
    return width
