"""Skipping padding exactly: the tokens of a batch in one row, without those that are not there.

Shapes: B batch, L tokens, D width, N tokens present in the whole batch. Masks: True = present.

Tokens are sorted by the length of their row, so that rows of one length lie side by side: linear layers and norms run
on all N tokens at once, attention on each group of equal length as a plain view, without a mask and without a copy.
(Running the whole encoder on buckets of like length still pays for the padding inside them and makes small products:
half the gain of this at 32 captions padded to 64.)
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyfuse.layers.attention_maps import recorder


class Packing(NamedTuple):
    """Where packed tokens come from; layers take it in place of a mask.

    Attributes:
        places: ``(N,)``, indices into the flattened ``(B * L)``, rows of equal length side by side.
        groups: ``(rows, length)`` of each group, in that order.
        shape: ``(B, L)``.
    """

    places: Tensor
    groups: tuple[tuple[int, int], ...]
    shape: tuple[int, int]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [rows * length for rows, length in self.groups]


def pack(x_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Packing]:
    """The present tokens as one row ``(1, N, D)``, and where they come from.

    Masks may have holes: without positions inside, an encoder does not see where a token stands.

    Raises:
        ValueError: If the mask is not a bool of shape ``(B, L)``.

    Example:
        >>> x = torch.arange(6.0).view(2, 3, 1)
        >>> tokens, packing = pack(x, torch.tensor([[True, True, True], [True, False, False]]))
        >>> tokens.flatten(), packing.groups
        (tensor([3., 0., 1., 2.]), ((1, 1), (1, 3)))
        >>> unpack(tokens, packing).squeeze(-1)
        tensor([[0., 1., 2.],
                [3., 0., 0.]])
    """
    if mask_BL.dtype != torch.bool or mask_BL.shape != x_BLD.shape[:2]:
        got = f"{mask_BL.dtype} {tuple(mask_BL.shape)}"
        raise ValueError(f"a mask to pack by must be bool of shape (B, L) = {tuple(x_BLD.shape[:2])}, got {got}")
    lengths, order = mask_BL.sum(dim=1).sort()
    row, column = mask_BL[order].nonzero(as_tuple=True)
    places = order[row] * mask_BL.shape[1] + column
    length, rows = (found.tolist() for found in lengths.unique_consecutive(return_counts=True))
    groups = tuple((many, long) for many, long in zip(rows, length, strict=True) if long)
    packing = Packing(places, groups, (mask_BL.shape[0], mask_BL.shape[1]))
    return x_BLD.flatten(0, 1).index_select(0, places)[None], packing


def unpack(x_1ND: Tensor, packing: Packing) -> Tensor:
    """``(B, L, D)``, zeros where no token is."""
    batch, length = packing.shape
    empty = x_1ND.new_zeros(batch * length, x_1ND.shape[-1])
    return empty.index_copy(0, packing.places, x_1ND[0]).unflatten(0, (batch, length))


def run_layers(
    layers: Iterable[nn.Module], x_BLD: Tensor, mask_BL: Tensor | None, *, skip_padding: bool = False
) -> Tensor:
    """A stack of self-attention layers over padded tokens: ``(B, L, D)`` to ``(B, L, D)``.

    With ``skip_padding`` the layers see present tokens only: what they make of these is the same, to rounding, and
    absent tokens come out as zeros (padded, they come out as something that nobody should read). Ignored where the
    number of tokens may not shape the computation (a compiled or exported model), where ``capture_attention`` wants
    whole maps, and where nothing is padded. Dropout draws other random numbers than in the padded run.

    Args:
        layers: Each called as ``layer(x, mask)``, as ``TransformerLayer`` is.
        x_BLD: Token states.
        mask_BL: ``(B, L)`` bool, None = all present.
        skip_padding: Whether absent tokens are left out.
    """
    packing: Packing | None = None
    if skip_padding and mask_BL is not None and not torch.compiler.is_compiling() and recorder() is None:
        if not bool(mask_BL.all()) and bool(mask_BL.any()):
            x_BLD, packing = pack(x_BLD, mask_BL)
    for layer in layers:
        x_BLD = layer(x_BLD, mask_BL if packing is None else packing)
    return x_BLD if packing is None else unpack(x_BLD, packing)
