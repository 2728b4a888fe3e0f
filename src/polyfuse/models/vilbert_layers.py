"""What ViLBERT has beside BERT's layers: embeddings of regions and tasks, connections, regions gated by the text.

Shapes: B batch, L tokens, R regions, D width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention import attend, split_qkv
from polyfuse.layers.transformer import CoAttentionLayer, FeedForward, TransformerLayer
from polyfuse.models.bert_parts import BertEmbeddings
from polyfuse.models.vilbert_regions import BOX_SIZE


class TextEmbeddings(BertEmbeddings):
    """BERT's embeddings; a task token, where there are any, follows the first token and has no position of its own.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        task_tokens: How many tasks have a token; 0 = no task token at all.
        kwargs: For ``BertEmbeddings``.
    """

    def __init__(self, vocab_size: int, dim: int, *, task_tokens: int = 0, **kwargs: Any) -> None:
        super().__init__(vocab_size, dim, **kwargs)
        weight = self.words.weight
        self.tasks = nn.Embedding(task_tokens, dim, device=weight.device, dtype=weight.dtype) if task_tokens else None

    def forward(self, ids_BL: Tensor, type_ids_BL: Tensor | None = None, task_ids: Tensor | None = None) -> Tensor:
        """``(B, L)`` ids, types and ``(B,)`` or ``(B, 1)`` tasks to ``(B, L, D)``, ``(B, L + 1, D)`` with task tokens.

        Raises:
            ValueError: If there are more tokens than positions, or tasks where none are known, or none where they are.
        """
        x_BLD = super().forward(ids_BL, type_ids_BL)
        if self.tasks is None:
            if task_ids is not None:
                raise ValueError("task_ids needs a model with task tokens; build it with task_tokens=20")
            return x_BLD
        if task_ids is None:
            raise ValueError(f"a model with {self.tasks.num_embeddings} task tokens needs task_ids (B,), got None")
        task_B1D = self.norm(self.tasks(task_ids.reshape(ids_BL.shape[0], 1)))
        task_B1D = F.dropout(task_B1D, self.dropout, self.training)
        return torch.cat([x_BLD[:, :1], task_B1D, x_BLD[:, 1:]], dim=1)


class RegionEmbeddings(nn.Module):
    """``LayerNorm(W f + V box)`` of every region, then dropout: a region has a place, but no position in a row.

    Args:
        feature_dim: Width of a region's features.
        dim: Width D.
        eps: Of the norm.
        dropout: On the result.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        *,
        eps: float = 1e-12,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.features = nn.Linear(feature_dim, dim, **factory)
        self.boxes = nn.Linear(BOX_SIZE, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.dropout = dropout

    def forward(self, features_BRF: Tensor, boxes_BR5: Tensor) -> Tensor:
        """``(B, R, F)`` and ``(B, R, 5)`` to ``(B, R, D)``."""
        return F.dropout(self.norm(self.features(features_BRF) + self.boxes(boxes_BR5)), self.dropout, self.training)


class GatedRegionLayer(TransformerLayer):
    """A post-norm layer whose queries and keys are scaled by the text: ``1 + sigmoid(W t)`` (``dynamic_attention``).

    Args:
        dim: Width D of the regions.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward part.
        text_dim: Width of the text.
        kwargs: For ``TransformerLayer``.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, text_dim: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, hidden_dim, norm_first=False, **kwargs)
        self.gate = nn.Linear(text_dim, 2 * dim, device=kwargs.get("device"), dtype=kwargs.get("dtype"))

    def forward(self, x_BRD: Tensor, mask: Tensor | None, summary_BD: Tensor) -> Tensor:  # type: ignore[override]
        """``(B, R, D)`` with its mask ``(B, R)`` and the mean of the text ``(B, text_dim)``."""
        own = self.attention
        if own is None:
            raise ValueError("a gated layer needs self-attention")
        query, key, value = split_qkv(own.qkv(x_BRD), 3, own.num_heads)
        gates = (1 + torch.sigmoid(self.gate(summary_BD))).unflatten(-1, (2, own.num_heads, -1))
        query, key = query * gates[:, 0, :, None], key * gates[:, 1, :, None]
        dropout = own.dropout if self.training else 0.0
        read = own.out(attend(own, query, key, value, mask_BK=mask, dropout=dropout))
        x_BRD = self.attention_norm(x_BRD + self._drop(read))
        return self.mlp_norm(x_BRD + self._drop(self.mlp(x_BRD)))


class ConnectionLayer(CoAttentionLayer):
    """Co-attention of regions (first) and text (second), a feed-forward part each, post-norm.

    Source: https://arxiv.org/abs/1908.02265, figure 2b. ``unused`` are two matrices that the original layer owns and
    never calls (``q_dense1``, ``q_dense2``): kept, so that checkpoints and counts agree, and frozen, so that every
    trainable parameter has a gradient.

    Args:
        dims: Widths of regions and text.
        num_heads: Heads of the co-attention.
        hidden_dims: Hidden widths of the feed-forward parts.
        inner_dim: Width of query, key and value.
        activations: Of the feed-forward parts.
        kwargs: For ``CoAttentionLayer``.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        num_heads: int,
        hidden_dims: tuple[int, int],
        *,
        inner_dim: int,
        activations: tuple[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(dims, num_heads, hidden_dims, inner_dim=inner_dim, activation=activations[1], **kwargs)
        factory: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.mlp[0] = FeedForward(dims[0], hidden_dims[0], activation=activations[0], **factory)
        self.unused = nn.ModuleList(nn.Linear(inner_dim, dim, **factory) for dim in dims).requires_grad_(False)


def schedule(
    text_layers: int, region_layers: int, text_connections: Sequence[int], region_connections: Sequence[int]
) -> list[tuple[str, int]]:
    """The order of the layers: a connection runs *before* the two layers that it names.

    A connection may also name the number of layers: it then runs behind the last one, as in several of the authors'
    configs (5 connections at 8..12 of 12 text layers).

    Raises:
        ValueError: If connections do not pair up, fall, or name a layer that there is not.

    Example:
        >>> schedule(3, 1, text_connections=[2], region_connections=[0])
        [('text', 0), ('text', 1), ('connection', 0), ('region', 0), ('text', 2)]
    """
    pairs = (("text", text_connections, text_layers), ("region", region_connections, region_layers))
    for name, places, layers in pairs:
        if list(places) != sorted(places) or any(not 0 <= place <= layers for place in places):
            raise ValueError(f"{name}_connections must rise within 0..{layers}, got {list(places)}")
    if len(text_connections) != len(region_connections):
        raise ValueError(
            "text_connections and region_connections must pair up, "
            f"got {len(text_connections)} and {len(region_connections)}"
        )
    steps: list[tuple[str, int]] = []
    text = region = 0
    for number, (text_end, region_end) in enumerate(zip(text_connections, region_connections, strict=True)):
        steps += [("text", index) for index in range(text, text_end)]
        steps += [("region", index) for index in range(region, region_end)]
        steps.append(("connection", number))
        text, region = text_end, region_end
    # Regions first: with gates they read the text as the last connection left it.
    steps += [("region", index) for index in range(region, region_layers)]
    return steps + [("text", index) for index in range(text, text_layers)]


def region_layer_list(config: Mapping[str, Any], factory: dict[str, Any]) -> nn.ModuleList:
    """The region layers of ``ViLBERT``'s arguments."""
    sizes = (config["region_dim"], config["region_heads"], config["region_hidden_dim"])
    options: dict[str, Any] = {
        "activation": config["region_activation"],
        "dropout": config["region_dropout"],
        "attention_dropout": config["region_attention_dropout"],
        "eps": config["eps"],
        **factory,
    }
    if config["dynamic_attention"]:
        layers = (GatedRegionLayer(*sizes, config["dim"], **options) for _ in range(config["region_layers"]))
        return nn.ModuleList(layers)
    return nn.ModuleList(TransformerLayer(*sizes, norm_first=False, **options) for _ in range(config["region_layers"]))


def connection_layer_list(config: Mapping[str, Any], factory: dict[str, Any]) -> nn.ModuleList:
    """The connections of ``ViLBERT``'s arguments."""
    return nn.ModuleList(
        ConnectionLayer(
            (config["region_dim"], config["dim"]),
            config["co_heads"],
            (config["region_hidden_dim"], config["hidden_dim"]),
            inner_dim=config["co_dim"],
            activations=(config["region_activation"], config["activation"]),
            dropout=(config["region_dropout"], config["dropout"]),
            # Weights over text have the text's dropout, and it is the regions that read the text.
            attention_dropout=(config["attention_dropout"], config["region_attention_dropout"]),
            eps=config["eps"],
            **factory,
        )
        for _ in config["text_connections"]
    )
