"""Cross-modal attention of two modalities, as one sum: ``Z = A(Q_t, K_i, V_i) + A(Q_i, K_t, V_t)``.

Shapes: B batch, T text tokens, I image tokens, D width. Masks: True = present.
"""

from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.layers.attention import attend, check_heads, split_heads, split_qkv


class CrossModalAttention(nn.Module):
    """Equation (8.1): ``Z = softmax(Q_t K_i' / sqrt(d)) V_i + softmax(Q_i K_t' / sqrt(d)) V_t``.

    The first summand, A_TI, has the text's length, the second, A_IT, the image's: the sum is only defined where the two
    agree, or after each has been averaged over its tokens. ``pool`` chooses; nothing is broadcast or cut.
    As in the equation there is no output projection, no residual and no norm.

    Args:
        text_dim: Width of the text tokens.
        image_dim: Width of the image tokens; None = ``text_dim``.
        dim: Width D of query, key, value and Z; None = ``text_dim``.
        num_heads: Heads; the equation has 1, with ``d = D / num_heads``.
        pool: False = Z is ``(B, T, D)`` and T must equal I; True = the sum of the two means over present tokens, Z is
            ``(B, D)``.
        bias: Whether projections have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If heads do not divide ``dim``.

    Example:
        >>> layer = CrossModalAttention(8, pool=True)
        >>> layer(torch.zeros(3, 5, 8), torch.zeros(3, 7, 8)).shape
        torch.Size([3, 8])
        >>> layer.text_over_image(torch.zeros(3, 5, 8), torch.zeros(3, 7, 8)).shape
        torch.Size([3, 5, 8])
        >>> CrossModalAttention(8)(torch.zeros(3, 5, 8), torch.zeros(3, 7, 8))
        Traceback (most recent call last):
        ValueError: equation (8.1) adds tensors of 5 text and 7 image tokens; use equal lengths, or pool=True
    """

    def __init__(
        self,
        text_dim: int,
        image_dim: int | None = None,
        dim: int | None = None,
        *,
        num_heads: int = 1,
        pool: bool = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim = check_heads(text_dim if dim is None else dim, num_heads)
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.num_heads, self.pool = num_heads, pool
        image_dim = text_dim if image_dim is None else image_dim
        self.text_query = nn.Linear(text_dim, dim, **factory)
        self.text_key_value = nn.Linear(text_dim, 2 * dim, **factory)
        self.image_query = nn.Linear(image_dim, dim, **factory)
        self.image_key_value = nn.Linear(image_dim, 2 * dim, **factory)

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> Tensor:
        """Z of ``(B, T, text_dim)`` and ``(B, I, image_dim)`` with ``(B, T)`` and ``(B, I)`` masks.

        An absent token asks nothing: its summand is zero. The maps are named ``text`` (T over I) and ``image``.

        Raises:
            ValueError: If lengths differ and nothing is pooled.
        """
        if not self.pool and text.shape[1] != image.shape[1]:
            lengths = f"{text.shape[1]} text and {image.shape[1]} image tokens"
            raise ValueError(f"equation (8.1) adds tensors of {lengths}; use equal lengths, or pool=True")
        a_ti = self.text_over_image(text, image, text_mask, image_mask)
        a_it = self._read(self.image_query, image, image_mask, self.text_key_value, text, text_mask, "image")
        return _mean(a_ti, text_mask) + _mean(a_it, image_mask) if self.pool else a_ti + a_it

    def text_over_image(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> Tensor:
        """A_TI alone, ``(B, T, D)``: what each text token reads from the image, at any two lengths."""
        return self._read(self.text_query, text, text_mask, self.image_key_value, image, image_mask, "text")

    def _read(
        self,
        ask: nn.Module,
        x_BQD: Tensor,
        x_mask: Tensor | None,
        answer: nn.Module,
        context_BKD: Tensor,
        context_mask: Tensor | None,
        part: str,
    ) -> Tensor:
        query = split_heads(ask(_zero_absent(x_BQD, x_mask)), self.num_heads)
        key, value = split_qkv(answer(_zero_absent(context_BKD, context_mask)), 2, self.num_heads)
        return _zero_absent(attend(self, query, key, value, mask_BK=context_mask, part=part), x_mask)


def _zero_absent(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    return x_BTD if mask_BT is None else x_BTD.masked_fill(~mask_BT[..., None], 0.0)


def _mean(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Over present tokens (absent ones are zero already); zeros where there are none."""
    if mask_BT is None:
        return x_BTD.mean(dim=1)
    return x_BTD.sum(dim=1) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
