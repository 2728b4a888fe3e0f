"""Losses of masked modelling: hidden words, hidden regions (features, class, class distribution), hidden patches.

``masking`` says what is hidden. Each loss reads the chosen places alone: what stands elsewhere, NaN too, reaches
neither the value nor the gradient; with nothing chosen it is 0 with a zero gradient. Half precision is computed in
float32.

Shapes: B rows, T words, V vocabulary, R regions, F features, C classes, N patches, P pixels of a patch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.reduce import check_mask, reduce


def masked_language_loss(logits: Tensor, target: Tensor, chosen: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the hidden words, in nats.

    Source: BERT, https://arxiv.org/abs/1810.04805, section 3.1.

    Args:
        logits: ``(B, T, V)``.
        target: ``(B, T)`` int64, the words that stood there; read where chosen.
        chosen: ``(B, T)`` bool.
        reduction: "mean" over the chosen words, "sum", or "none": one value per chosen word.

    Raises:
        ValueError: If a shape is wrong, or the reduction is unknown.

    Example:
        >>> masked_language_loss(torch.zeros(1, 3, 5), torch.zeros(1, 3).long(), torch.zeros(1, 3).bool())
        tensor(0.)
    """
    logits, target = _chosen(logits, target, chosen, 2)
    return reduce(F.cross_entropy(at_least_float32(logits), target, reduction="none"), reduction)


def masked_region_regression(prediction: Tensor, target: Tensor, chosen: Tensor, *, reduction: str = "mean") -> Tensor:
    """Mean squared error of the features of hidden regions (MRFR).

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.2. Differs: the mean over a region's features, as the
    authors' code computes it; their equation has the sum.

    Args:
        prediction: ``(B, R, F)``.
        target: ``(B, R, F)``, the features before they were hidden; no gradient reaches them.
        chosen: ``(B, R)`` bool.
        reduction: "mean" over the chosen regions, "sum", or "none": one value per chosen region.

    Example:
        >>> masked_region_regression(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([[True, False]]))
        tensor(1.)
    """
    prediction, target = _chosen(prediction, target.detach(), chosen, 3)
    error = at_least_float32(prediction) - at_least_float32(target)
    return reduce(error.square().mean(dim=-1), reduction)


def masked_region_class(
    logits: Tensor, classes: Tensor, chosen: Tensor, *, background: int | None = None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy against the detector's likeliest class of each hidden region (MRC).

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.2.

    Args:
        logits: ``(B, R, C)``.
        classes: ``(B, R, C)``, what the detector thought, probabilities or scores.
        chosen: ``(B, R)`` bool.
        background: The class that stands for "nothing" and is never a target (0 in UNITER's files); None = there is
            none.
        reduction: As above.

    Example:
        >>> masked_region_class(torch.zeros(1, 1, 4), torch.eye(4)[None, 2:3], torch.ones(1, 1).bool())
        tensor(1.3863)
    """
    logits, classes = _chosen(logits, classes, chosen, 3)
    if background is not None:
        # Out of place: the detector's answers belong to the caller.
        classes = classes.index_fill(-1, torch.tensor([background], device=classes.device), -torch.inf)
    return reduce(F.cross_entropy(at_least_float32(logits), classes.argmax(dim=-1), reduction="none"), reduction)


def masked_region_kl(logits: Tensor, classes: Tensor, chosen: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL(detector || prediction) of each hidden region, in nats (MRC-kl).

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.2. Differs: the sum over classes, which a divergence
    is; the authors' code averages over classes and so divides by C.

    Args:
        logits: ``(B, R, C)``.
        classes: ``(B, R, C)``, the detector's probabilities; no gradient reaches them.
        chosen: ``(B, R)`` bool.
        reduction: As above.

    Example:
        >>> masked_region_kl(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1).bool())
        tensor(0.6931)
    """
    logits, classes = _chosen(logits, classes.detach(), chosen, 3)
    log_share = at_least_float32(logits).log_softmax(dim=-1)
    return reduce(F.kl_div(log_share, at_least_float32(classes), reduction="none").sum(dim=-1), reduction)


def masked_patches(
    prediction: Tensor, target: Tensor, chosen: Tensor, *, normalise: bool = False, reduction: str = "mean"
) -> Tensor:
    """Mean squared error of the pixels of hidden patches.

    Source: MAE, https://arxiv.org/abs/2111.06377, section 3 (``normalise``: each patch of the target has mean 0 and
    variance 1, which served its features better).

    Args:
        prediction: ``(B, N, P)``.
        target: ``(B, N, P)``, as ``masking.patches`` cuts them.
        chosen: ``(B, N)`` bool.
        normalise: Standardise each patch of the target, with the unbiased variance and 1e-6 beside it.
        reduction: "mean" over the chosen patches, "sum", or "none": one value per chosen patch.

    Example:
        >>> masked_patches(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([[True, True]]), normalise=True)
        tensor(0.)
    """
    prediction, target = _chosen(prediction, target.detach(), chosen, 3)
    target = at_least_float32(target)
    if normalise:
        target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return reduce((at_least_float32(prediction) - target).square().mean(dim=-1), reduction)


def _chosen(values: Tensor, target: Tensor, chosen: Tensor, target_axes: int) -> tuple[Tensor, Tensor]:
    """The chosen places of both, in one order: ``(n, ...)``."""
    check_mask(chosen, tuple(values.shape[:2]), "chosen")
    expected = tuple(values.shape[:target_axes])
    if target.shape != expected:
        raise ValueError(f"target must have shape {expected}, got {tuple(target.shape)}")
    return values[chosen], target[chosen]


class _OverChosen(nn.Module):
    """A loss of places that were chosen, with its reduction."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        reduce(torch.zeros(0), reduction)
        self.reduction = reduction


class MaskedLanguageLoss(_OverChosen):
    """``masked_language_loss`` as a module."""

    def forward(self, logits: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
        """Cross-entropy of ``(B, T, V)`` logits at the chosen of ``(B, T)`` words."""
        return masked_language_loss(logits, target, chosen, reduction=self.reduction)


class MaskedRegionRegression(_OverChosen):
    """``masked_region_regression`` as a module."""

    def forward(self, prediction: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
        """Squared error of ``(B, R, F)`` features at the chosen of ``(B, R)`` regions."""
        return masked_region_regression(prediction, target, chosen, reduction=self.reduction)


class MaskedRegionClass(_OverChosen):
    """``masked_region_class`` as a module.

    Args:
        background: The class that is never a target; None = there is none.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, background: int | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.background = background

    def forward(self, logits: Tensor, classes: Tensor, chosen: Tensor) -> Tensor:
        """Cross-entropy of ``(B, R, C)`` logits at the chosen of ``(B, R)`` regions."""
        return masked_region_class(logits, classes, chosen, background=self.background, reduction=self.reduction)


class MaskedRegionKL(_OverChosen):
    """``masked_region_kl`` as a module."""

    def forward(self, logits: Tensor, classes: Tensor, chosen: Tensor) -> Tensor:
        """Divergence of ``(B, R, C)`` logits from the detector at the chosen of ``(B, R)`` regions."""
        return masked_region_kl(logits, classes, chosen, reduction=self.reduction)


class MaskedPatches(_OverChosen):
    """``masked_patches`` as a module.

    Args:
        normalise: Standardise each patch of the target.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, normalise: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.normalise = normalise

    def forward(self, prediction: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
        """Squared error of ``(B, N, P)`` pixels at the chosen of ``(B, N)`` patches."""
        return masked_patches(prediction, target, chosen, normalise=self.normalise, reduction=self.reduction)
