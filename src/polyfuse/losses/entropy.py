"""Reward fusion weights for being spread, with a coefficient that may follow a schedule or each row's disagreement.

Shapes: B batch, M modalities, C classes. Masks: True = present.
"""

import torch
from torch import Tensor, nn

from polyfuse import functional as PF

MODES = ("constant", "schedule", "instance")


def entropy_bonus(entropy: Tensor, present: Tensor, coefficient: Tensor | float) -> Tensor:
    """``-mean(coefficient * H / ln n)``: adding it to a loss pushes the weights apart from a single modality.

    The sign is minus: maximising entropy prevents collapse. Rows with at most one modality present add 0.

    Shape:
        - entropy: ``(B,)`` or ``(B, T)``; present: ``(B, M)`` bool; coefficient: scalar or ``(B,)``; returns a scalar.
    """
    most = PF.max_entropy(present.sum(dim=-1)).to(entropy.dtype)
    scale = torch.where(most > 0, coefficient / torch.where(most > 0, most, 1.0), 0.0)
    if entropy.ndim == 2:
        scale = scale[:, None]
    return -(entropy * scale).mean()


def unimodal_disagreement(probabilities: Tensor, present: Tensor) -> Tensor:
    """How far the unimodal predictions of a row disagree: their Jensen-Shannon divergence over ``ln n``, in [0, 1].

    Zero for one modality or for equal predictions, 1 for n certain and distinct ones. Carries no gradient.

    Shape:
        - probabilities: ``(B, M, C)``, one distribution per modality; present: ``(B, M)`` bool; returns ``(B,)``.

    Example:
        >>> certain = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> unimodal_disagreement(certain, torch.tensor([[True, True]]))
        tensor([1.])
    """
    probabilities = PF.at_least_float32(probabilities.detach()).masked_fill(~present[..., None], 0.0)
    count = present.sum(dim=-1)
    inverse = 1.0 / count.clamp(min=1).to(probabilities.dtype)
    mixture = probabilities.sum(dim=1) * inverse[:, None]
    divergence = PF.entropy(mixture) - PF.entropy(probabilities).sum(dim=1) * inverse
    return (divergence / count.clamp(min=2).to(probabilities.dtype).log()).clamp(0.0, 1.0)


class EntropyRegularizer(nn.Module):
    """``entropy_bonus`` with a coefficient that is constant, ramped from outside, or set per row.

    ``constant``: ``coefficient``. ``schedule``: from ``min_coefficient`` to ``coefficient``, linear in the progress set
    by ``set_progress``. ``instance``: from ``min_coefficient`` to ``coefficient``, linear in a row's ``disagreement``.

    Source: the instance coefficient of arXiv 2505.15417. Differs: disagreement of unimodal predictions instead of the
    variance over K stochastic passes, and no softplus, whose floor of ln 2 would leave the signal no room.

    Args:
        coefficient: Largest weight of the bonus.
        mode: ``constant``, ``schedule`` or ``instance``.
        min_coefficient: Smallest weight, used by ``schedule`` and ``instance``.

    Raises:
        ValueError: If a coefficient is negative, the two are in the wrong order, or ``mode`` is unknown.

    Example:
        >>> regularizer = EntropyRegularizer(0.1)
        >>> entropy, present = torch.tensor([2.0]).log(), torch.tensor([[True, True, False]])
        >>> regularizer(entropy, present)
        tensor(-0.1000)
    """

    _progress: Tensor

    def __init__(self, coefficient: float = 0.01, *, mode: str = "constant", min_coefficient: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= min_coefficient <= coefficient:
            raise ValueError(f"need 0 <= min_coefficient <= coefficient, got {min_coefficient} and {coefficient}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.coefficient = coefficient
        self.min_coefficient = min_coefficient
        self.mode = mode
        self.register_buffer("_progress", torch.zeros(()), persistent=False)

    def set_progress(self, progress: float) -> None:
        """Set how far the schedule is, ``min(1, progress)``.

        Raises:
            ValueError: If ``progress`` is negative or NaN.
        """
        if not progress >= 0.0:
            raise ValueError(f"progress must be >= 0, got {progress}")
        self._progress.fill_(min(1.0, progress))

    def forward(self, entropy: Tensor, present: Tensor, disagreement: Tensor | None = None) -> Tensor:
        """The term to add to a loss, a scalar.

        Shape:
            - entropy: ``(B,)`` or ``(B, T)``, attached, as in ``info["entropy"]``; present: ``(B, M)`` bool;
              disagreement: ``(B,)`` in [0, 1], as ``unimodal_disagreement`` gives it.

        Raises:
            ValueError: If ``mode="instance"`` and there is no ``disagreement``.
        """
        span = self.coefficient - self.min_coefficient
        if self.mode == "constant":
            return entropy_bonus(entropy, present, self.coefficient)
        if self.mode == "schedule":
            return entropy_bonus(entropy, present, self.min_coefficient + span * self._progress)
        if disagreement is None:
            raise ValueError("mode='instance' needs disagreement, e.g. from unimodal_disagreement(), got None")
        return entropy_bonus(entropy, present, self.min_coefficient + span * disagreement.detach().clamp(0.0, 1.0))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"coefficient={self.coefficient}, mode={self.mode}, min_coefficient={self.min_coefficient}"
