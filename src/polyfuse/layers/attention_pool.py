"""Attention pooling over modalities whose masks act on the weights that make the output.

Shapes: B batch, T queries, M modalities, D width, H heads. Masks: True = present, except PyTorch's ``key_padding_mask``
and ``attn_mask``, where True = ignore, and ``drop``, where True = dropped.
"""

import numbers
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyfuse import functional as PF
from polyfuse.layers import pooling
from polyfuse.layers.curriculum_masking import CurriculumMasking
from polyfuse.layers.masks import is_shared, read_masks
from polyfuse.layers.pooling import multimodal_attention_pool

__all__ = ["FusionPool", "MultimodalAttentionPool", "create_fusion_pool", "multimodal_attention_pool"]

ON_EMPTY = ("zero", "raise")


class MultimodalAttentionPool(nn.Module):
    """Multi-head attention pooling over modalities, with presence, real masking and a fast path for a shared query.

    Takes the place of ``aecf.MultimodalAttentionPool`` 0.1.0 (see ``docs/migrating-from-aecf.md``) and, without
    masking, computes what ``torch.nn.MultiheadAttention`` computes with the same parameters. When one query serves all
    rows and the values are the keys it does so at a fraction of the cost.

    Masks act on the weights that make the output. Statistics come from the head-mean weights before anything is
    dropped; the mean over heads hides how peaked single heads are, ``head_entropy`` shows it. ``curriculum_masking``
    drops while *it* is in training mode, one mask per row and modality.

    Args:
        embed_dim: Width D of query, key and value.
        num_heads: Heads; must divide ``embed_dim``.
        dropout: Dropout on the attention weights in training, applied last; a row never loses all of its weights
            (``polyfuse.functional.attention_dropout``).
        bias: Whether the projections have biases.
        curriculum_masking: A ``CurriculumMasking``, or None. May be shared between pools: it keeps no state of a call.
        batch_first: True = ``(B, T, D)``, False = ``(T, B, D)``.
        device: Where the parameters live.
        dtype: Their type.
        on_empty: What a row with nothing present gives: ``zero`` = an empty sum, that is zero weights and the output
            projection's bias; ``raise`` = ValueError (eager only: it must look at the data).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> pool = MultimodalAttentionPool(embed_dim=8, num_heads=2)
        >>> query, features = torch.zeros(1, 1, 8), torch.ones(3, 2, 8)
        >>> present = torch.tensor([[True, True], [True, False], [False, False]])
        >>> output, info = pool(query, features, present=present, return_info=True)
        >>> output.shape, info["attention_weights"][:, 0]
        (torch.Size([3, 1, 8]), tensor([[0.5000, 0.5000],
                [1.0000, 0.0000],
                [0.0000, 0.0000]], grad_fn=<SelectBackward0>))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        bias: bool = True,
        curriculum_masking: CurriculumMasking | None = None,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        on_empty: str = "zero",
    ) -> None:
        super().__init__()
        if embed_dim <= 0:
            raise ValueError(f"embed_dim must be positive, got {embed_dim}")
        if num_heads <= 0:
            raise ValueError(f"num_heads must be positive, got {num_heads}")
        if embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        if on_empty not in ON_EMPTY:
            raise ValueError(f"on_empty must be 'zero' or 'raise' ('learned' is FusionPool's), got {on_empty!r}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.on_empty = on_empty
        self.curriculum_masking = curriculum_masking
        self.attention = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=dropout, bias=bias, batch_first=batch_first, device=device, dtype=dtype
        )

    def _weights(self) -> pooling.PoolWeights:
        attention = self.attention
        out = attention.out_proj
        return pooling.PoolWeights(attention.in_proj_weight, attention.in_proj_bias, out.weight, out.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_info: bool = False,
        use_checkpoint: bool = False,
        *,
        present: Tensor | None = None,
        drop: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Pool ``value`` by the attention of ``query`` to ``key``.

        Args:
            query: ``(B, T, D)``, or ``(1, T, D)`` to serve all rows.
            key: ``(B, M, D)``.
            value: ``(B, M, D)``; None = ``key``.
            key_padding_mask: ``(B, M)``, PyTorch's sense: True = ignore, or float, added (-inf = ignore).
            attn_mask: ``(T, M)`` or ``(B * num_heads, T, M)``, bool (True = ignore) or float.
            return_info: Also return the dict below.
            use_checkpoint: Recompute in backward, in training. Pointless below some 16 modalities.
            present: ``(B, M)`` bool, True = here; instead of ``key_padding_mask``.
            drop: ``(B, M)`` bool, True = drop, instead of a sampled one; a row it would empty loses nothing.
            generator: Source of randomness for the drop; eager only. Under compile, checkpointing or DDP sample a
                ``drop`` with ``sample_drop`` and pass it.

        Returns:
            The output, shaped as ``query`` with B rows; with ``return_info`` also a dict of tensors:
            ``attention_weights`` (B, T, M), the head mean before dropping, and ``masked_attention_weights``, after it
            (detached, before attention dropout); ``drop`` (B, M) and ``empty`` (B,) bool; and, with curriculum
            masking, ``entropy`` (attached), ``head_entropy``, ``target_entropy`` and ``mask_rate``, each (B, T).

        Raises:
            TypeError: If query, key or value is not a tensor.
            ValueError: If a tensor, a mask or a combination of arguments does not fit, or a row is empty under
                ``on_empty="raise"``.
            RuntimeError: If the shapes of query, key and value disagree.
        """
        self._check_tensors(query, key, value)
        if value is key:
            value = None
        if not self.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
            value = None if value is None else value.transpose(0, 1)
        self._check_shapes(query, key, value)
        masks = read_masks(key, self.num_heads, key_padding_mask, attn_mask, present)
        self._check_empty(masks.present)
        masking = self.curriculum_masking
        sampling = masking is not None and masking.active and drop is None
        if drop is not None:
            PF.check_drop(drop, key.shape[:2])
        if generator is not None and sampling and (use_checkpoint or torch.compiler.is_compiling()):
            raise ValueError("generator is eager only; under compile or checkpointing pass drop=pool.sample_drop(...)")

        # The annotations are strings: PyTorch 2.6 cannot compile a union or a generic type made inside forward.
        def run(query: Tensor, key: Tensor, value: "Tensor | None") -> "tuple[Tensor, dict[str, Tensor]]":
            return pooling.attend(
                query,
                key,
                value,
                self._weights(),
                self.num_heads,
                masks,
                shared=is_shared(query, value, attn_mask),
                masking=masking,
                sampling=sampling,
                drop=drop,
                dropout=self.attention.dropout if self.training else 0.0,
                generator=generator,
                need_info=return_info,
            )

        if use_checkpoint and self.training:
            output, info = checkpoint(run, query, key, value, use_reentrant=False, preserve_rng_state=True)
        else:
            output, info = run(query, key, value)
        output = output if self.batch_first else output.transpose(0, 1)
        return (output, info) if return_info else output

    @torch.no_grad()
    def sample_drop(
        self,
        query: Tensor,
        key: Tensor,
        *,
        present: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample the ``drop`` that a training step would, to be passed to ``forward``: ``(B, M)`` bool, batch first.

        Raises:
            ValueError: If the pool has no curriculum masking, or a shape does not fit.
        """
        if self.curriculum_masking is None:
            raise ValueError("sample_drop needs curriculum_masking, got None")
        if not self.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        self._check_shapes(query, key, None)
        masks = read_masks(key, self.num_heads, None, None, present)
        here = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device) if present is None else present
        key = pooling.zero_absent(key, here)
        if is_shared(query, None, None):
            projected = pooling.fold_query(query[:1], key, self._weights(), self.num_heads)
        else:
            projected = pooling.project(query, key, None, self._weights(), self.num_heads)
        weights = PF.masked_softmax(pooling.scores_of(projected), masks.valid(here)).mean(dim=(1, 2))
        return self.curriculum_masking.sample_drop(weights, here, generator)

    def _check_tensors(self, query: Any, key: Any, value: Any) -> None:
        if not isinstance(query, Tensor):
            raise TypeError(f"Expected query to be torch.Tensor, got {type(query)}")
        if not isinstance(key, Tensor):
            raise TypeError(f"Expected key to be torch.Tensor, got {type(key)}")
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"Expected value to be torch.Tensor or None, got {type(value)}")
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x is not None and x.ndim != 3:
                raise ValueError(f"Expected 3D {name} tensor with batch_first={self.batch_first}, got {x.ndim}D")

    def _check_shapes(self, query: Tensor, key: Tensor, value: Tensor | None) -> None:
        """Checks on batch-first tensors; messages show the shapes as the caller gave them."""
        if key.shape[1] == 0:
            raise ValueError("Key sequence length cannot be zero")
        if (query.shape[0] != 1 and key.shape[0] != query.shape[0]) or key.shape[2] != query.shape[2]:
            if not self.batch_first:
                raise RuntimeError(f"Shape mismatch: query {self._shown(query)}, key {self._shown(key)}")
            raise RuntimeError(f"Key shape {key.shape} incompatible with query shape {query.shape}")
        if value is not None and value.shape != key.shape:
            raise RuntimeError(f"Value shape {self._shown(value)} incompatible with key shape {self._shown(key)}")
        if key.shape[2] != self.embed_dim:
            raise ValueError(f"query, key and value must have width embed_dim = {self.embed_dim}, got {key.shape[2]}")

    def _shown(self, x: Tensor) -> torch.Size:
        return x.shape if self.batch_first else x.transpose(0, 1).shape

    def _check_empty(self, present: Tensor | None) -> None:
        if self.on_empty != "raise" or present is None:
            return
        if torch.compiler.is_compiling():
            raise ValueError("on_empty='raise' is eager only; compile and export need on_empty='zero'")
        empty = (~present.any(dim=-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"every row must have a present modality, got none in rows {empty[:10]}")

    def extra_repr(self) -> str:
        """The arguments, as aecf 0.1.0 shows them, and ``on_empty``."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}, "
            f"curriculum_masking={self.curriculum_masking is not None}, on_empty={self.on_empty}"
        )


class FusionPool(nn.Module):
    """Fuse one embedding per modality with a learned query: ``MultimodalAttentionPool`` plus what it needs.

    The query serves all rows, so the fast path always applies.

    Args:
        embed_dim: Width D of every embedding.
        num_modalities: M.
        num_heads: Heads; must divide ``embed_dim``.
        dropout: Dropout on the attention weights in training.
        bias: Whether the projections have biases.
        curriculum_masking: Drops modalities in training; None = no masking.
        on_empty: What a row with nothing present gives: ``learned`` = a learned null token; ``zero`` = the output
            projection's bias; ``raise`` = ValueError (eager only).
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> fuse = FusionPool(embed_dim=8, num_modalities=2, num_heads=2)
        >>> fuse(torch.zeros(5, 2, 8), present=torch.tensor([[True, False]] * 5)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_modalities: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        bias: bool = True,
        curriculum_masking: CurriculumMasking | None = None,
        *,
        on_empty: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim = _positive_integer(embed_dim, "embed_dim")
        self.num_modalities = _positive_integer(num_modalities, "num_modalities")
        if on_empty not in ("learned", "zero", "raise"):
            raise ValueError(f"on_empty must be 'learned', 'zero' or 'raise', got {on_empty!r}")
        self.on_empty = on_empty
        self.query = new_query(embed_dim, device, dtype)
        self.null: nn.Parameter | None = None
        if on_empty == "learned":
            self.null = nn.Parameter(torch.zeros(embed_dim, device=device, dtype=dtype))
        self.pool = MultimodalAttentionPool(
            embed_dim,
            num_heads,
            dropout,
            bias,
            curriculum_masking,
            device=device,
            dtype=dtype,
            on_empty="raise" if on_empty == "raise" else "zero",
        )

    def forward(
        self,
        features: Tensor,
        present: Tensor | None = None,
        *,
        drop: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_info: bool = False,
        use_checkpoint: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Fuse.

        Args:
            features: ``(B, M, D)``.
            present: ``(B, M)`` bool, None = all present.
            drop: ``(B, M)`` bool to apply instead of sampling.
            generator: Source of randomness for the drop; eager only.
            return_info: Also return the pool's dict, the query axis removed: ``attention_weights`` is ``(B, M)``.
            use_checkpoint: Recompute in backward, in training.

        Returns:
            ``(B, D)``, with ``return_info`` also the dict.

        Raises:
            ValueError: If a shape does not fit, or a row is empty under ``on_empty="raise"``.
        """
        self._check(features)
        result = self.pool(
            self.query,
            features,
            present=present,
            drop=drop,
            generator=generator,
            return_info=return_info,
            use_checkpoint=use_checkpoint,
        )
        pooled, info = result if return_info else (result, {})
        fused = pooling.replace_empty(pooled.squeeze(1), present, self.null)
        if not return_info:
            return fused
        per_row = ("drop", "empty")
        return fused, {name: x if name in per_row else x.squeeze(1) for name, x in info.items()}

    def sample_drop(
        self, features: Tensor, present: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sample the ``drop`` that a training step would, see ``MultimodalAttentionPool.sample_drop``: ``(B, M)``."""
        self._check(features)
        return self.pool.sample_drop(self.query, features, present=present, generator=generator)

    def _check(self, features: Tensor) -> None:
        if features.ndim != 3 or features.shape[1] != self.num_modalities:
            got = tuple(features.shape)
            raise ValueError(f"features must be (B, M, D) with M = {self.num_modalities}, got {got}")

    def extra_repr(self) -> str:
        """What the submodules do not show."""
        return f"num_modalities={self.num_modalities}, on_empty={self.on_empty}"


def _positive_integer(value: Any, name: str) -> int:
    """``value`` as an int; accepts numpy integers, refuses bool."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value}")
    return number


def create_fusion_pool(
    embed_dim: int, num_modalities: int, mask_prob: float = 0.15, **kwargs: Any
) -> tuple[nn.Parameter, MultimodalAttentionPool]:
    """A learnable query and a pool with curriculum masking, as in aecf 0.1.0; ``FusionPool`` owns both in one module.

    Args:
        embed_dim: Width D.
        num_modalities: Checked, otherwise unused: a pool takes any number.
        mask_prob: ``base_mask_prob`` of the masking, in (0, 1].
        kwargs: For ``MultimodalAttentionPool``. ``curriculum_masking`` replaces the default one, None switches masking
            off; ``device`` and ``dtype`` also place the query.

    Returns:
        The query ``(1, 1, D)``, drawn from N(0, 2 / D), and the pool. Register the query in your module.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> query, pool = create_fusion_pool(embed_dim=8, num_modalities=2, num_heads=2)
        >>> pool(query.expand(5, -1, -1), torch.zeros(5, 2, 8)).shape
        torch.Size([5, 1, 8])
    """
    embed_dim = _positive_integer(embed_dim, "embed_dim")
    _positive_integer(num_modalities, "num_modalities")
    if isinstance(mask_prob, bool) or not isinstance(mask_prob, numbers.Real) or not 0.0 < mask_prob <= 1.0:
        raise ValueError(f"mask_prob must be in (0, 1], got {mask_prob}")
    masking = kwargs.pop("curriculum_masking", CurriculumMasking(base_mask_prob=float(mask_prob)))
    pool = MultimodalAttentionPool(embed_dim, curriculum_masking=masking, **kwargs)
    return new_query(embed_dim, kwargs.get("device"), kwargs.get("dtype")), pool


def new_query(embed_dim: int, device: Any = None, dtype: torch.dtype | None = None) -> nn.Parameter:
    """A query parameter ``(1, 1, D)`` drawn from N(0, 2 / D)."""
    query = nn.Parameter(torch.empty(1, 1, embed_dim, device=device, dtype=dtype))
    nn.init.normal_(query, 0.0, (2.0 / embed_dim) ** 0.5)
    return query
