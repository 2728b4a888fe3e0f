"""The vision transformer of CLIP and its kin: patches, a class token, pre-norm layers.

Shapes: B batch, P patches, D width, E embedding width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.transformer import TransformerLayer
from polyfuse.models.text_transformer import init_layers


class PatchEmbedding(nn.Module):
    """Every patch through one matrix: a convolution whose stride is its kernel, without bias.

    Args:
        patch_size: Side of a patch in pixels.
        dim: Width D.
        channels: Of the image.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> PatchEmbedding(2, dim=5)(torch.zeros(3, 3, 4, 6)).shape
        torch.Size([3, 6, 5])
    """

    def __init__(
        self,
        patch_size: int,
        dim: int,
        *,
        channels: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(dim, channels, patch_size, patch_size, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=(channels * patch_size**2) ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, P, D)``, row by row; H and W are multiples of the patch size."""
        size = self.patch_size
        # As a matrix product: a convolution with kernel = stride goes through slower kernels.
        patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1))


class VisionTower(nn.Module):
    """An image to one vector, read at the class token.

    Source: ViT, https://arxiv.org/abs/2010.11929, with the norm before the layers that CLIP adds,
    https://arxiv.org/abs/2103.00020, section 2.4.

    Args:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts; None = 4 D.
        out_dim: Width E of the embedding; None = D, without a projection.
        activation: Entry of ``polyfuse.layers.transformer.ACTIVATIONS``.
        eps: Of the norms.
        pre_norm: Whether tokens are normalised before the first layer.
        class_position: Whether the class token has a position of its own.
        stem: Instead of ``PatchEmbedding``: a module from ``(B, 3, H, W)`` to ``(B, P, D)`` with as many tokens as
            there are patches.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If the patch size does not divide the image size.

    Example:
        >>> tower = VisionTower(image_size=6, patch_size=2, dim=8, num_layers=1, num_heads=2, out_dim=5)
        >>> tower(torch.zeros(3, 3, 6, 6)).shape, tower.sequence(torch.zeros(3, 3, 6, 6)).shape
        (torch.Size([3, 5]), torch.Size([3, 10, 8]))
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 32,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int | None = None,
        out_dim: int | None = 512,
        activation: str = "gelu",
        eps: float = 1e-5,
        pre_norm: bool = True,
        class_position: bool = True,
        stem: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size = {image_size}, got {patch_size}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        norm: dict[str, Any] = {"eps": eps, **factory}
        self.image_size, self.class_position = image_size, class_position
        self.grid = image_size // patch_size  # patches along one side
        self.stem = PatchEmbedding(patch_size, dim, **factory) if stem is None else stem
        self.class_token = nn.Parameter(torch.empty(dim, **factory))
        self.positions = nn.Parameter(torch.empty(self.grid**2 + class_position, dim, **factory))
        self.pre_norm = nn.LayerNorm(dim, **norm) if pre_norm else None
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads, hidden_dim, activation=activation, **norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, **norm)
        self.projection = None if out_dim is None else nn.Linear(dim, out_dim, bias=False, **factory)
        nn.init.normal_(self.class_token, std=dim**-0.5)
        nn.init.normal_(self.positions, std=dim**-0.5)
        init_layers(self.layers, dim)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def sequence(self, images: Tensor) -> Tensor:
        """States ``(B, 1 + P, D)`` of the class token and the patches, after the last norm.

        Raises:
            ValueError: If the images are not ``(B, 3, image_size, image_size)``.
        """
        return self.norm(self._states(images))

    def forward(self, images: Tensor) -> Tensor:
        """One vector per image, ``(B, E)``, not normalised.

        Raises:
            ValueError: If the images are not ``(B, 3, image_size, image_size)``.
        """
        pooled_BD = self.norm(self._states(images)[:, 0])
        return pooled_BD if self.projection is None else self.projection(pooled_BD)

    def _states(self, images: Tensor) -> Tensor:
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(f"images must be (B, 3, {side}, {side}), got {tuple(images.shape)}")
        patches_BPD = self.stem(images)
        token_BD = self.class_token.expand(images.shape[0], 1, -1)
        if self.class_position:
            x_BTD = torch.cat([token_BD, patches_BPD], dim=1) + self.positions
        else:
            x_BTD = torch.cat([token_BD, patches_BPD + self.positions], dim=1)
        if self.pre_norm is not None:
            x_BTD = self.pre_norm(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD
