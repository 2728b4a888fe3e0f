"""What to hide for masked modelling: words, regions of a picture, patches of a picture.

Every function takes the random draws, so that they may be keyed by row (``data.keyed.uniform(seed, "mlm", epoch, keys,
T)``) and do not depend on the batch; a ``torch.Generator`` does too. A row with anything to hide hides at least one
place. Conditional masking (UNITER) is the caller's: hide in one modality, leave the other whole.

Shapes: B rows, T words, R regions, F features, N patches. Masks: True = present; ``chosen``: True = to be predicted.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from polyfuse.losses.reduce import check_mask, uniform_draws

KEPT_FROM = 0.9  # of the chosen words: [0, 0.8) become the mask, [0.8, 0.9) a random word, the rest stay
RANDOM_FROM = 0.8


class MaskedTokens(NamedTuple):
    """Words to read and words to predict.

    Attributes:
        tokens: ``(B, T)`` int64, what the model reads.
        target: ``(B, T)`` int64, what stood there.
        chosen: ``(B, T)`` bool, where the loss looks.
    """

    tokens: Tensor
    target: Tensor
    chosen: Tensor


class MaskedRegions(NamedTuple):
    """Regions to read and regions to predict.

    Attributes:
        features: ``(B, R, F)``, zero where chosen or absent.
        target: ``(B, R, F)``, what stood there.
        chosen: ``(B, R)`` bool, where the loss looks.
    """

    features: Tensor
    target: Tensor
    chosen: Tensor


def choose(here: Tensor, draws: Tensor | torch.Generator, rate: float = 0.15) -> Tensor:
    """Which places to predict: each with probability ``rate``, and the one of the smallest draw where none was hit.

    Shape:
        here ``(B, T)`` bool: places that may be chosen; draws ``(B, T)`` in [0, 1); returns ``(B, T)`` bool, with at
        least one True in every row that has a place.

    Raises:
        ValueError: If the rate is not in (0, 1], or a shape is wrong.

    Example:
        >>> choose(torch.tensor([[True, True, False]]), torch.tensor([[0.9, 0.5, 0.0]]))
        tensor([[False,  True, False]])
    """
    return _choose(here, uniform_draws(draws, tuple(here.shape), here), rate)


def _choose(here: Tensor, draws: Tensor, rate: float) -> Tensor:
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], got {rate}")
    check_mask(here, tuple(draws.shape), "here")
    if not here.shape[1]:
        return here
    hit = here & (draws < rate)
    first = torch.zeros_like(here).scatter_(1, draws.masked_fill(~here, 2.0).argmin(dim=1, keepdim=True), True)
    return hit | (first & here & ~hit.any(dim=1, keepdim=True))


def mask_tokens(
    tokens: Tensor,
    mask: Tensor,
    draws: Tensor | torch.Generator,
    *,
    mask_id: int,
    vocabulary: int,
    specials: Collection[int] = (),
    rate: float = 0.15,
) -> MaskedTokens:
    """BERT's rule: 15 % of the words are predicted; of these 80 % become the mask, 10 % a random word, 10 % stay.

    One draw per word decides all: below ``rate`` it is chosen, and where in [0, rate) it lies says what becomes of it
    and, within the random tenth, which word. Source: BERT, https://arxiv.org/abs/1810.04805, section 3.1; UNITER,
    https://arxiv.org/abs/1909.11740 (at least one word of a text). Differs: where no word is hit, the one of the
    smallest draw is masked (UNITER's code takes the first word of the text); a random word is never a special one.

    Args:
        tokens: ``(B, T)`` int64.
        mask: ``(B, T)`` bool, True = a word is there.
        draws: ``(B, T)`` in [0, 1), or a generator.
        mask_id: The id that stands for a hidden word; never chosen itself.
        vocabulary: Number of ids.
        specials: Ids that are never chosen and never put in: start, end, padding, unknown.
        rate: Share of the words to predict.

    Raises:
        ValueError: If the rate is not in (0, 1], shapes differ, or every id is special.

    Example:
        >>> words = torch.tensor([[1, 7, 8, 9]])
        >>> draws = torch.tensor([[0.0, 0.01, 0.149, 0.5]])
        >>> here = torch.ones(1, 4, dtype=torch.bool)
        >>> mask_tokens(words, here, draws, mask_id=3, vocabulary=11, specials=(0, 1)).tokens
        tensor([[1, 3, 8, 9]])
    """
    check_mask(mask, tuple(tokens.shape), "mask")
    draws = uniform_draws(draws, tuple(tokens.shape), tokens)
    never = {mask_id, *specials}
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in never], device=tokens.device)
    if not len(ordinary):
        raise ValueError(f"each of the {vocabulary} ids is special: no word is left to choose")
    here = mask & ~torch.isin(tokens, torch.tensor(sorted(never), device=tokens.device))
    chosen = _choose(here, draws, rate)
    part = draws / rate  # uniform in [0, 1) where a draw hit; above 1 where a row had no hit: masked
    place = ((part - RANDOM_FROM) / (KEPT_FROM - RANDOM_FROM)).clamp(0.0, 1.0) * len(ordinary)
    word = ordinary[place.long().clamp(max=len(ordinary) - 1)]
    hidden = chosen & ((part < RANDOM_FROM) | (part >= 1.0))
    swapped = chosen & (part >= RANDOM_FROM) & (part < KEPT_FROM)
    return MaskedTokens(torch.where(swapped, word, tokens.masked_fill(hidden, mask_id)), tokens, chosen)


def mask_regions(
    features: Tensor, mask: Tensor, draws: Tensor | torch.Generator, *, rate: float = 0.15
) -> MaskedRegions:
    """Hide regions of a picture: 15 % of them, at least one, have their features set to zero.

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.2.

    Shape:
        features ``(B, R, F)``; mask ``(B, R)`` bool; draws ``(B, R)`` in [0, 1), or a generator.

    Example:
        >>> here = torch.tensor([[True, True]])
        >>> mask_regions(torch.ones(1, 2, 1), here, torch.tensor([[0.1, 0.9]])).features
        tensor([[[0.],
                 [1.]]])
    """
    check_mask(mask, tuple(features.shape[:2]), "mask")
    chosen = choose(mask, draws, rate)
    target = features.masked_fill(~mask[..., None], 0.0)
    return MaskedRegions(target.masked_fill(chosen[..., None], 0.0), target, chosen)


def choose_patches(here: Tensor, draws: Tensor | torch.Generator, rate: float = 0.75) -> Tensor:
    """Which patches to hide: exactly the share ``rate`` of those there, rounded up, those of the smallest draws.

    Source: MAE, https://arxiv.org/abs/2111.06377 (75 %, the same number in every picture of a size).

    Shape:
        here ``(B, N)`` bool; draws ``(B, N)`` in [0, 1), or a generator; returns ``(B, N)`` bool.

    Raises:
        ValueError: If the rate is not in (0, 1].

    Example:
        >>> choose_patches(torch.ones(1, 4, dtype=torch.bool), torch.tensor([[0.3, 0.1, 0.9, 0.5]]), 0.5)
        tensor([[ True,  True, False, False]])
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], got {rate}")
    draws = uniform_draws(draws, tuple(here.shape), here).masked_fill(~here, 2.0)
    rank = draws.argsort(dim=1, stable=True).argsort(dim=1)
    return here & (rank < (here.sum(dim=1, keepdim=True) * rate).ceil())


def patches(images: Tensor, size: int) -> Tensor:
    """Cut pictures into square patches, row by row.

    Shape:
        ``(B, C, H, W)`` to ``(B, H/size * W/size, size * size * C)``, in a patch: row, column, colour.

    Raises:
        ValueError: If the sides are no multiples of ``size``.

    Example:
        >>> patches(torch.arange(4.0).view(1, 1, 2, 2), 1).flatten()
        tensor([0., 1., 2., 3.])
    """
    batch, colours, height, width = images.shape
    if height % size or width % size:
        raise ValueError(f"the sides of a picture must be multiples of the patch size {size}, got {height} x {width}")
    rows, columns = height // size, width // size
    cut = images.reshape(batch, colours, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(batch, rows * columns, math.prod((size, size, colours)))
