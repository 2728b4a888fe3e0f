"""Curriculum masking: drop modalities in training, at a rate that may follow the entropy of their weights.

Shapes: B rows, M modalities. Masks: True = present; ``drop`` is True = dropped.
"""

import operator
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse import functional as PF


class CurriculumMasking(nn.Module):
    r"""Drop modalities at random in training, and report the entropy of the weights they were given.

    Takes the place of ``aecf.CurriculumMasking`` 0.1.0 (see ``docs/migrating-from-aecf.md``). One mask per row and
    modality, shared by heads and query positions, over present modalities only; survivors are drawn at random.
    On its own it masks the weights it is called with; inside ``MultimodalAttentionPool`` it masks the weights that make
    the output.

    Source: PyTorch RFC 0042 and the PyPI package ``aecf`` 0.1.0, after arXiv 2505.15417, whose own masking formula we
    could not find; ``policy`` offers the RFC's, the package's and two plain ones.

    .. note::
        The default ``policy="inverse_entropy"`` hardly drops anything while attention is near uniform, as it is at
        initialisation: p = base_mask_prob * (1 - H / ln n) is then close to zero. To really drop, give ``target_rate``
        or ``policy="uniform"``; uniform rates of .3 to .5 were as good as any entropy-driven rate in our comparisons.

    Args:
        base_mask_prob: Scale of the drop probability, in (0, 1]; unused when ``target_rate`` is given.
        entropy_target: Target entropy as a fraction of ln(number of present modalities), in (0, 1].
        min_active: How many present modalities every row keeps at least (all, if it has fewer).
        policy: ``inverse_entropy`` (the RFC's text, default), ``entropy`` (aecf 0.1.0), ``uniform`` or ``dominance``;
            formulas in ``polyfuse.functional.policy_score``.
        target_rate: If given, probabilities are rescaled so that their mean over the batch is this rate. The mean runs
            over the present entries of the rows that can lose one; probabilities stop at 1; the scale is shared by the
            batch (of this process). The survivor rule then gives back, with ``min_active=1``, the mean of
            ``prod_m p_m / n`` over entries: three modalities at a uniform .5 really lose .458 of their entries.
            ``polyfuse.functional.expected_drop_rate`` computes it; ``info["mask_rate"]`` is what happened.
        apply_mask: False = statistics only: nothing is ever dropped and no random number is drawn.

    Shape:
        - weights: ``(M,)``, ``(B, M)``, or ``(B, ..., M)``: the axes in between share the row's mask.
        - returns: weights of the same shape and type, and a dict of tensors.

    The dict holds ``entropy`` (attached), ``target_entropy`` and ``mask_rate`` (share of the present modalities
    dropped), each ``(B, ...)`` in at least float32; ``drop`` and, in training, ``mask_prob``, each ``(B, M)``; and
    ``nonfinite`` ``(B,)`` bool. Weights that are NaN or infinite count as zero, in training and in evaluation alike,
    and ``nonfinite`` marks their rows.

    Raises:
        ValueError: If an argument is out of range, or ``present`` or ``drop`` has the wrong shape or type.
        TypeError: If ``min_active`` is not an integer.

    Example:
        >>> masking = CurriculumMasking(policy="uniform", target_rate=0.5)
        >>> weights, info = masking(torch.tensor([[0.5, 0.25, 0.25]]), drop=torch.tensor([[True, False, False]]))
        >>> weights, info["mask_rate"]
        (tensor([[0.0000, 0.5000, 0.5000]]), tensor([0.3333]))
    """

    _progress: Tensor

    def __init__(
        self,
        base_mask_prob: float = 0.15,
        entropy_target: float = 0.7,
        min_active: int = 1,
        *,
        policy: str = "inverse_entropy",
        target_rate: float | None = None,
        apply_mask: bool = True,
    ) -> None:
        super().__init__()
        if not 0.0 < base_mask_prob <= 1.0:
            raise ValueError(f"base_mask_prob must be in (0, 1], got {base_mask_prob}")
        if not 0.0 < entropy_target <= 1.0:
            raise ValueError(f"entropy_target must be in (0, 1], got {entropy_target}")
        if min_active < 1:
            raise ValueError(f"min_active must be >= 1, got {min_active}")
        if policy not in PF.POLICIES:
            raise ValueError(f"policy must be one of {', '.join(PF.POLICIES)}, got {policy!r}")
        if target_rate is not None and not 0.0 <= target_rate <= 1.0:
            raise ValueError(f"target_rate must be in [0, 1] or None, got {target_rate}")
        try:
            self.min_active = operator.index(min_active)
        except TypeError:
            raise TypeError(f"min_active must be an integer, got {min_active!r}") from None
        self.base_mask_prob = float(base_mask_prob)
        self.entropy_target = float(entropy_target)
        self.policy = policy
        self.target_rate = None if target_rate is None else float(target_rate)
        self.apply_mask = apply_mask
        # A tensor, so that a compiled step follows the ramp without recompiling; not in the state dict.
        self.register_buffer("_progress", torch.ones(()), persistent=False)

    @property
    def _eps(self) -> Tensor:
        """A constant that aecf 0.1.0 kept as a buffer; nothing here uses it."""
        return torch.tensor(1e-8, device=self._progress.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "_eps", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_progress(self, progress: float) -> None:
        """Scale every drop probability by ``min(1, progress)``, e.g. ``step / ramp_steps``; nothing counts in forward.

        Raises:
            ValueError: If ``progress`` is negative or NaN.
        """
        if not progress >= 0.0:
            raise ValueError(f"progress must be >= 0, got {progress}")
        self._progress.fill_(min(1.0, progress))

    @property
    def active(self) -> bool:
        """Whether a call drops anything: in training, with ``apply_mask`` and a rate that is not zero."""
        return self.training and self.apply_mask and self.target_rate != 0.0

    @property
    def follows_weights(self) -> bool:
        """Whether the drop probability depends on the weights at all."""
        return self.policy != "uniform"

    def drop_probability(self, weights: Tensor, present: Tensor) -> Tensor:
        """Probability that each entry is asked to be dropped: ``(B, M)`` from ``(B, M)`` weights and presence."""
        probability = PF.drop_probability(
            weights,
            present,
            policy=self.policy,
            base=self.base_mask_prob,
            target_rate=self.target_rate,
            min_active=self.min_active,
        )
        return probability * self._progress.to(probability.dtype)

    def sample_drop(
        self, weights: Tensor, present: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sample a mask to pass as ``drop``, whatever the mode of the module: ``(B, M)`` bool, True = dropped.

        Shape:
            - weights: ``(B, M)``; present: ``(B, M)`` bool, None = all present.
        """
        present = torch.ones_like(weights, dtype=torch.bool) if present is None else present
        if not self.apply_mask or self.target_rate == 0.0 or weights.shape[-1] <= self.min_active:
            return torch.zeros_like(present)
        return PF.sample_drop(self.drop_probability(weights, present), present, self.min_active, generator)

    def target_entropy(self, present: Tensor) -> Tensor:
        """``entropy_target * ln n`` for each row's n present modalities: ``(B,)`` from ``(B, M)``."""
        return self.entropy_target * PF.max_entropy(present.sum(dim=-1))

    def compute_entropy(self, weights: Tensor) -> Tensor:
        """Entropy over the last axis, see ``polyfuse.functional.entropy``: ``(...)`` from ``(..., M)``."""
        return PF.entropy(weights)

    def compute_entropy_fused(self, weights: Tensor) -> Tensor:
        """The same as ``compute_entropy``; the name exists in aecf 0.1.0."""
        return PF.entropy(weights)

    def forward(
        self,
        weights: Tensor,
        *,
        present: Tensor | None = None,
        drop: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mask ``weights`` (in training) and describe them.

        Args:
            weights: ``(M,)``, ``(B, M)`` or ``(B, ..., M)``, non-negative; normalised in training.
            present: ``(B, M)`` bool, honoured in training and evaluation; None = all present.
            drop: ``(B, M)`` bool to apply instead of sampling; a row it would empty loses nothing.
            generator: Source of randomness when sampling; None = the global one.
        """
        rows = weights.reshape(1, 1, -1) if weights.ndim == 1 else weights.unsqueeze(1).flatten(1, -2)  # (B, T, M)
        finite = torch.isfinite(rows)
        rows = torch.where(finite, rows, 0.0)
        shape = (rows.shape[0], rows.shape[-1])
        given = present is not None
        if present is None:
            present = torch.ones(shape, dtype=torch.bool, device=rows.device)
        elif present.dtype != torch.bool or present.numel() != shape[0] * shape[1]:
            raise ValueError(
                f"present must be bool of shape (B, M) = {shape}, got {present.dtype} {tuple(present.shape)}"
            )
        present = present.reshape(shape)
        shares = PF.renormalise(PF.at_least_float32(rows), present[:, None]) if self.training or given else rows
        average = shares.mean(dim=1)
        if drop is not None:
            check = drop.reshape(shape) if drop.numel() == shape[0] * shape[1] else drop
            PF.check_drop(check, shape)
            drop = present & check
        elif self.active:
            drop = self.sample_drop(average, present, generator)
        kept = present if drop is None else PF.surviving(present, drop)
        changes = drop is not None or given or (self.training and self.apply_mask)
        output = PF.renormalise(rows, kept[:, None]) if changes else rows
        info = self.describe(shares, present, present & ~kept)
        info = {name: value.reshape(weights.shape[:-1]) for name, value in info.items()}
        lead = weights.shape[:1] if weights.ndim > 1 else ()
        if self.training:
            info["mask_prob"] = self.drop_probability(average, present).reshape(*lead, -1)
        info["drop"] = (present & ~kept).reshape(*lead, -1)
        info["nonfinite"] = (~finite).flatten(1).any(dim=1).reshape(lead)
        return output.reshape(weights.shape), info

    def describe(self, weights: Tensor, present: Tensor, drop: Tensor) -> dict[str, Tensor]:
        """Statistics of weights before masking, each ``(B, T)``.

        Shape:
            - weights: ``(B, T, M)``; present, drop: ``(B, M)`` bool, ``drop`` within ``present``.
        """
        entropy = PF.entropy(weights)
        rate = drop.sum(dim=-1) / present.sum(dim=-1).clamp(min=1)
        return {
            "entropy": entropy,
            "mask_rate": rate[:, None].expand_as(entropy),
            "target_entropy": self.target_entropy(present).to(entropy.dtype)[:, None].expand_as(entropy),
        }

    def entropy_loss(self, entropy: Tensor, target: Tensor | float | None = None, *, mode: str = "one_sided") -> Tensor:
        """Penalty on entropies below the target: ``mean(relu(target - H)**2)``, a scalar, always finite.

        It keeps no state: pass ``info["target_entropy"]`` as ``target``. Without it the target is that of two
        modalities, ``entropy_target * ln 2``. NaN entropies count as 0, infinite ones as 1 (or 0 if negative) and carry
        no gradient; an empty tensor gives 0.

        Args:
            entropy: Any shape, as in ``info["entropy"]``.
            target: Broadcastable to it, None = two modalities.
            mode: ``one_sided``, or ``mse`` for the two-sided square of aecf 0.1.0, which also penalises rows that weigh
                their modalities more evenly than the target.

        Raises:
            ValueError: If ``mode`` is neither.
        """
        if mode not in ("one_sided", "mse"):
            raise ValueError(f"mode must be 'one_sided' or 'mse', got {mode!r}")
        if target is None:
            target = self.entropy_target * PF.LN_2
        entropy = torch.nan_to_num(PF.at_least_float32(entropy), nan=0.0, posinf=1.0, neginf=0.0)
        short = target - entropy
        if mode == "one_sided":
            short = short.clamp(min=0.0)
        return short.square().sum() / max(short.numel(), 1)

    def extra_repr(self) -> str:
        """The arguments, and a warning where the policy will hardly drop anything."""
        text = (
            f"base_mask_prob={self.base_mask_prob}, entropy_target={self.entropy_target}, min_active={self.min_active}"
        )
        text += f", policy={self.policy}, target_rate={self.target_rate}, apply_mask={self.apply_mask}"
        if self.policy == "inverse_entropy" and self.target_rate is None and self.apply_mask:
            text += " (inverse_entropy hardly drops anything while attention is near uniform)"
        return text
