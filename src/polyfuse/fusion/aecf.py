"""AECF fusion: an entropy-aware pool whose modalities are really dropped in training.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence

import torch

from polyfuse.fusion.attention_pool import AttentionPoolFusion
from polyfuse.layers.attention_pool import FusionPool
from polyfuse.layers.curriculum_masking import CurriculumMasking
from polyfuse.layers.entropy_gate import EntropyGate


class AECFFusion(AttentionPoolFusion):
    """``AttentionPoolFusion`` with curriculum masking in training: adaptive entropy-gated fusion, made to work.

    Source: arXiv 2505.15417, PyTorch RFC 0042 and the PyPI package ``aecf`` 0.1.0 (whose masks never reach the output).
    ``info`` adds ``entropy`` (attached; feed it to ``EntropyRegularizer``), ``target_entropy`` and ``mask_rate``, each
    ``(B,)``, and ``drop`` ``(B, M)``.

    .. note::
        The default ``policy="inverse_entropy"`` hardly drops anything while attention is near uniform. Give
        ``target_rate`` to drop at a known mean rate whatever the policy; its exact meaning is told by
        ``CurriculumMasking``. Random uniform dropping is the baseline that a policy has to beat.

    Args:
        modalities: Names, in the column order of ``present`` and ``weights``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        num_heads: Heads of the attention gate; must divide ``out_dim``.
        dropout: Dropout on the attention weights in training.
        base_mask_prob: Scale of the drop probability when ``target_rate`` is None.
        entropy_target: Target entropy as a fraction of ln(number of present modalities).
        min_active: How many present modalities every row keeps at least.
        policy: ``inverse_entropy``, ``entropy``, ``uniform`` or ``dominance``.
        target_rate: Mean drop probability over the batch, None = ``base_mask_prob`` decides.
        apply_mask: False = statistics only.
        gate: ``attention`` (as in the package) or ``mlp`` (the paper's two-layer gate, ``EntropyGate``).
        project: One linear layer per modality before the pool.
        norm: LayerNorm per modality before the pool.
        on_empty: What a row with nothing present gives: ``learned``, ``zero`` or, with the attention gate, ``raise``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or ``num_heads`` or ``dropout`` is set for the ``mlp`` gate.

    Example:
        >>> fusion = AECFFusion(("image", "text", "audio"), embed_dim=4, policy="uniform", target_rate=0.5)
        >>> out = fusion({name: torch.ones(2, 4) for name in ("image", "text", "audio")})
        >>> out.fused.shape, out.info["entropy"].shape, out.info["drop"].dtype
        (torch.Size([2, 4]), torch.Size([2]), torch.bool)
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        num_heads: int = 1,
        dropout: float = 0.0,
        base_mask_prob: float = 0.15,
        entropy_target: float = 0.7,
        min_active: int = 1,
        policy: str = "inverse_entropy",
        target_rate: float | None = None,
        apply_mask: bool = True,
        gate: str = "attention",
        project: bool = True,
        norm: bool = True,
        on_empty: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            modalities,
            embed_dim,
            out_dim,
            num_heads=num_heads,
            dropout=dropout,
            project=project,
            norm=norm,
            on_empty=on_empty,
            device=device,
            dtype=dtype,
        )
        masking = CurriculumMasking(
            base_mask_prob, entropy_target, min_active, policy=policy, target_rate=target_rate, apply_mask=apply_mask
        ).to(device=device)
        if gate == "attention":
            assert isinstance(self.pool, FusionPool)  # noqa: S101 - for the type checker
            self.pool.pool.curriculum_masking = masking
        elif gate == "mlp":
            if num_heads != 1 or dropout != 0.0:
                got = f"num_heads = {num_heads}, dropout = {dropout}"
                raise ValueError(f"gate='mlp' has no heads and no attention dropout, got {got}")
            self.pool = EntropyGate(
                self.out_dim,
                len(self.modalities),
                curriculum_masking=masking,
                on_empty=on_empty,
                device=device,
                dtype=dtype,
            )
        else:
            raise ValueError(f"gate must be 'attention' or 'mlp', got {gate!r}")

    @property
    def masking(self) -> CurriculumMasking:
        """The curriculum masking inside the pool or gate."""
        owner = self.pool.pool if isinstance(self.pool, FusionPool) else self.pool
        masking = owner.curriculum_masking
        assert isinstance(masking, CurriculumMasking)  # noqa: S101 - for the type checker
        return masking

    def set_progress(self, progress: float) -> None:
        """Ramp the drop probabilities, see ``CurriculumMasking.set_progress``."""
        self.masking.set_progress(progress)
