"""What the strategies of ``MultimodalTransformer`` share: checked inputs, towers, layers of one shape, masked means.

Shapes: B batch, M modalities, T tokens of one modality, S tokens of all together, D width. Masks: True = present.
Everything inside runs in the order of the sorted names, so that no order given by the caller changes a bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.fusion import FUSIONS
from polyfuse.fusion.named import NamedModules, present_mean
from polyfuse.layers.transformer import CoAttentionLayer, TransformerLayer


class Streams(NamedTuple):
    """One sequence of tokens per modality, in the order of the sorted names.

    Attributes:
        states: ``(B, T_m, D)`` each, finite everywhere.
        masks: ``(B, T_m)`` each; False wherever the modality is absent.
        present: ``(B, M)``: the modality has at least one token.
    """

    states: list[Tensor]
    masks: list[Tensor]
    present: Tensor


class Mixed(NamedTuple):
    """What a strategy makes of the streams.

    Attributes:
        states: ``(B, T_m, D)`` each, in the order of the sorted names, zero at masked tokens.
        pooled: ``(B, D)``.
        weights: ``(B, M)`` in the order of ``modalities``; None where the strategy has none.
        info: Further tensors by name.
    """

    states: list[Tensor]
    pooled: Tensor
    weights: Tensor | None
    info: dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """Makes layers and norms of one shape."""

    dim: int
    num_heads: int
    hidden_dim: int
    norm_first: bool
    activation: str
    dropout: float
    attention_dropout: float
    eps: float
    factory: dict[str, Any] = field(default_factory=dict)

    def layer(self, *, context: bool = False) -> TransformerLayer:
        """Self-attention and feed-forward; with ``context`` the stream reads another one instead of itself."""
        return TransformerLayer(
            self.dim,
            context_dim=self.dim if context else None,
            self_attention=not context,
            **self._shape(),
        )

    def co_layer(self, *, shared: bool) -> CoAttentionLayer:
        """Two streams read each other."""
        shape = self._shape()
        shape["hidden_dims"] = (shape["hidden_dim"], shape.pop("hidden_dim"))
        return CoAttentionLayer((self.dim, self.dim), shared=shared, **shape)

    def norm(self) -> nn.LayerNorm:
        """One norm."""
        return nn.LayerNorm(self.dim, eps=self.eps, **self.factory)

    def end_norm(self) -> nn.Module:
        """The norm behind the last pre-norm layer; post-norm layers need none."""
        return self.norm() if self.norm_first else nn.Identity()

    def by_name(self, names: Sequence[str], number: int) -> NamedModules:
        """``number`` self-attention layers for each name."""
        return NamedModules({name: nn.ModuleList(self.layer() for _ in range(number)) for name in names})

    def _shape(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "norm_first": self.norm_first,
            "activation": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "eps": self.eps,
            **self.factory,
        }


class Strategy(nn.Module):
    """Base of the strategies: names, norms at the end, and the readout.

    Args:
        modalities: Names, in the column order of the caller's ``present``.
        parts: Makes the layers.
        num_layers: Layers of the strategy, after the towers.
    """

    #: Arguments of ``MultimodalTransformer`` that the strategy reads.
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    LEAST_LAYERS: ClassVar[int] = 1
    LEAST_MODALITIES: ClassVar[int] = 1

    def __init__(self, modalities: Sequence[str], parts: Parts, num_layers: int) -> None:
        super().__init__()
        self.modalities, self.names = tuple(modalities), tuple(sorted(modalities))
        self.num_layers, self.dropout, self.norm_first = num_layers, parts.dropout, parts.norm_first
        self.end = NamedModules({name: parts.end_norm() for name in self.names})

    def forward(self, streams: Streams) -> Mixed:
        """Mix the streams and pool them."""
        raise NotImplementedError

    def finish(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """The last norms, and zeros at masked tokens."""
        named = zip(self.names, states, masks, strict=True)
        return [self.end[name](x).masked_fill(~mask[..., None], 0.0) for name, x, mask in named]

    def read_out(self, states: Sequence[Tensor], streams: Streams) -> Mixed:
        """Finish, then the mean over present modalities of the mean over their tokens."""
        states = self.finish(states, streams.masks)
        pooled = present_mean(torch.stack(token_means(states, streams.masks), dim=1), streams.present)
        return Mixed(states, pooled, None, {})

    def user_order(self, x_BM: Tensor) -> Tensor:
        """Columns sorted by name, in the order of ``modalities``."""
        return x_BM if self.names == self.modalities else x_BM[:, [self.names.index(name) for name in self.modalities]]

    def combined(self, fusion: nn.Module, means: Sequence[Tensor], streams: Streams) -> tuple[Tensor, Any, dict]:
        """Pool one vector per modality with a fusion of ``FUSIONS``: ``fused``, ``weights`` and ``info``."""
        fused, weights, info = fusion(dict(zip(self.names, means, strict=True)), self.user_order(streams.present))
        return fused, weights, info

    def drop(self, x: Tensor) -> Tensor:
        """Dropout on what a part adds."""
        return F.dropout(x, self.dropout, self.training) if self.dropout and self.training else x


class Towers(nn.Module):
    """Layers that every modality runs alone.

    Args:
        names: Sorted names.
        parts: Makes the layers.
        depth: Layers per modality.
    """

    def __init__(self, names: Sequence[str], parts: Parts, depth: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.layers = parts.by_name(names, depth)

    def forward(self, streams: Streams) -> Streams:
        """Every stream through its own layers."""
        states = []
        for name, x_BTD, mask_BT in zip(self.names, streams.states, streams.masks, strict=True):
            for layer in self.layers[name].children():
                x_BTD = layer(x_BTD, mask_BT)
            states.append(x_BTD)
        return streams._replace(states=states)


class TokenEmbedding(nn.Module):
    """``LayerNorm(W_m x + b_m + p_t)`` per modality, then dropout; b_m tells the modalities apart.

    Args:
        widths: Width of the tokens of every modality.
        dim: Width D.
        max_length: Learned positions per modality; a name that is missing has none.
        eps: Of the norms.
        dropout: On the result.
        factory: Device and dtype.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        dim: int,
        max_length: Mapping[str, int],
        eps: float,
        dropout: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.names, self.dropout = tuple(sorted(widths)), dropout
        self.project = NamedModules({name: nn.Linear(width, dim, **factory) for name, width in widths.items()})
        self.norm = NamedModules({name: nn.LayerNorm(dim, eps=eps, **factory) for name in widths})
        self.positions = NamedModules({name: nn.Embedding(most, dim, **factory) for name, most in max_length.items()})
        for table in self.positions.values():
            nn.init.normal_(table.get_parameter("weight"), std=0.02)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``(B, T_m, D_m)`` each to ``(B, T_m, D)``, sorted by name.

        Raises:
            ValueError: If a modality has more tokens than positions.
        """
        states = []
        for name, x in zip(self.names, inputs, strict=True):
            x_BTD = self.project[name](x)
            if name in self.positions:
                table = self.positions[name].get_parameter("weight")
                if x.shape[1] > table.shape[0]:
                    raise ValueError(f"'{name}' may have at most {table.shape[0]} tokens, got {x.shape[1]}")
                x_BTD = x_BTD + table[: x.shape[1]]
            states.append(F.dropout(self.norm[name](x_BTD), self.dropout, self.training))
        return states


def read_tokens(
    tokens: Mapping[str, Tensor],
    token_mask: Mapping[str, Tensor] | None,
    present: Tensor | None,
    modalities: Sequence[str],
    widths: Mapping[str, int],
) -> Streams:
    """Checked inputs sorted by name, zero wherever a modality or a token is absent.

    Raises:
        ValueError: If a modality is missing, or a tensor has a wrong shape or type.
    """
    token_mask = {} if token_mask is None else token_mask
    for name in modalities:
        if name not in tokens:
            raise ValueError(f"tokens lack '{name}', got {sorted(tokens)}, expected {list(modalities)}")
    unknown = [name for name in token_mask if name not in tokens]
    if unknown:
        raise ValueError(f"token_mask names {unknown}, which are not among the tokens {sorted(tokens)}")
    first = tokens[modalities[0]]
    batch = first.shape[0]
    if present is None:
        present = torch.ones(batch, len(modalities), dtype=torch.bool, device=first.device)
    if present.dtype != torch.bool:
        raise ValueError(f"present must be bool (True = here), got {present.dtype}")
    if present.shape != (batch, len(modalities)):
        raise ValueError(f"present must have shape (B, M) = ({batch}, {len(modalities)}), got {tuple(present.shape)}")
    inputs, masks = [], []
    for name in sorted(modalities):
        x, mask = tokens[name], token_mask.get(name)
        if x.ndim != 3 or x.shape[0] != batch or x.shape[1] == 0 or x.shape[2] != widths[name]:
            expected = f"(B, T, D) = ({batch}, 1 or more, {widths[name]})"
            raise ValueError(f"tokens of '{name}' must be {expected}, got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            expected, got = f"bool of shape {tuple(x.shape[:2])}", f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"token_mask of '{name}' must be {expected}, got {got}")
        here_B1 = present[:, modalities.index(name), None]
        mask = here_B1.expand(x.shape[:2]) if mask is None else mask & here_B1
        masks.append(mask)
        inputs.append(x.masked_fill(~mask[..., None], 0.0))  # a product with zero would let NaN through
    return Streams(inputs, masks, torch.stack([mask.any(dim=1) for mask in masks], dim=1))


def build_combine(name: str, modalities: Sequence[str], parts: Parts, options: Mapping[str, Any] | None) -> nn.Module:
    """A fusion of ``FUSIONS`` over vectors of width D."""
    return FUSIONS[name](modalities, parts.dim, parts.dim, **(options or {}), **parts.factory)


def token_means(states: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Mean over present tokens, ``(B, D)`` each; zeros where there are none. ``states`` are zero at masked tokens."""
    return [
        x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1).to(x.dtype)
        for x, mask in zip(states, masks, strict=True)
    ]


def mean_where(candidates: Sequence[Tensor], here: Sequence[Tensor], otherwise: Tensor) -> Tensor:
    """Mean of the candidates ``(B, T, D)`` whose flag ``(B,)`` is set, and ``otherwise`` in rows where none is.

    Example:
        >>> one, two = torch.ones(2, 1, 1), torch.full((2, 1, 1), 3.0)
        >>> here = torch.tensor([True, False]), torch.tensor([True, False])
        >>> mean_where([one, two], here, torch.zeros(2, 1, 1)).flatten()
        tensor([2., 0.])
    """
    here_BN = torch.stack(list(here), dim=1)
    x_BNTD = torch.stack(list(candidates), dim=1).masked_fill(~here_BN[..., None, None], 0.0)
    count_B = here_BN.sum(dim=1).clamp(min=1).to(x_BNTD.dtype)
    return torch.where(here_BN.any(dim=1)[:, None, None], x_BNTD.sum(dim=1) / count_B[:, None, None], otherwise)


def check_pairs(
    pairs: Sequence[Sequence[str]], names: Sequence[str], what: str, *, ordered: bool = True, loops: bool = False
) -> list[tuple[str, str]]:
    """Pairs of known names, each once, sorted; pairs that are not ``ordered`` count once in either order.

    Raises:
        ValueError: If a pair is not one of two known names, joins a name to itself without ``loops``, or comes twice.
    """
    found = []
    for pair in pairs:
        known = len(pair) == 2 and not isinstance(pair, str) and all(name in names for name in pair)
        if not known or (pair[0] == pair[1] and not loops):
            rule = "pairs" if loops else "pairs of different names"
            shown = pair if isinstance(pair, str) else tuple(pair)
            raise ValueError(f"{what} must be {rule} out of {list(names)}, got {shown!r}")
        found.append((pair[0], pair[1]) if ordered else (min(pair), max(pair)))
    if len(set(found)) != len(found) or not found:
        raise ValueError(f"{what} must name at least one pair and each once, got {[tuple(pair) for pair in pairs]}")
    return sorted(found)
