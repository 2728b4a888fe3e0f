"""One transformer over any named token sequences; how they meet is an argument.

Shapes: B batch, M modalities, T tokens of one modality, D width, C classes. Masks: True = present.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import check_modalities, embedding_widths
from polyfuse.heads import ClassificationHead, MultilabelHead, RegressionHead
from polyfuse.layers.attention_maps import capture_attention
from polyfuse.models.multimodal_joint import AdaptiveStrategy, EarlyStrategy, GraphStrategy, HybridStrategy
from polyfuse.models.multimodal_pairs import CoStrategy, CrossStrategy, PairwiseStrategy
from polyfuse.models.multimodal_streams import Mixed, Parts, Strategy, TokenEmbedding, Towers, read_tokens
from polyfuse.models.multimodal_towers import BottleneckStrategy, LateStrategy
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments
from polyfuse.registry import Registry

STRATEGIES = Registry(
    "fusion strategy",
    {
        "early": EarlyStrategy,
        "late": LateStrategy,
        "hybrid": HybridStrategy,
        "cross": CrossStrategy,
        "co": CoStrategy,
        "pairwise": PairwiseStrategy,
        "adaptive": AdaptiveStrategy,
        "bottleneck": BottleneckStrategy,
        "graph": GraphStrategy,
    },
)


class MultimodalTransformer(PretrainedModel):
    """Any number of named token sequences, nine ways to fuse them, one form of input and of output.

    Tokens of every modality are projected to one width and go through ``fusion_depth`` layers alone; the remaining
    ``num_layers - fusion_depth`` belong to the strategy. "early" has no layers alone and "late" no others, so that all
    strategies are about equally deep. The readout ``pooled`` is the mean over present modalities of the mean over their
    tokens, except where the strategy is a fusion of pooled vectors ("late", "pairwise", part of "hybrid"). The formula
    and the source of every strategy stand in its class, see ``STRATEGIES``.

    A modality that is absent and one whose tokens are all masked are the same thing. What stands there, even NaN,
    reaches neither output nor gradient. The order of ``modalities`` decides the columns of ``present`` and ``weights``
    and nothing else; a state dict made for another order is refused.

    Args:
        modalities: Names, in the column order of ``present`` and ``weights``.
        input_dim: Width of every modality's tokens, or one width per name.
        fusion: Entry of ``STRATEGIES``.
        dim: Width D of the model.
        num_layers: Layers of every token's path, towers included ("cross" adds one).
        fusion_depth: Layers before the strategy's; None = half of them, or fewer where the strategy needs more. "early"
            and "late" do not read it.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts; None = 4 D.
        max_length: Learned positions, or a number per name (names left out get none); None = tokens come with their
            positions, or have none.
        num_classes: Attach a "classification" head with as many classes; None = no head.
        combine: Entry of ``FUSIONS`` for pooled vectors, of "late", "hybrid" and "pairwise".
        combine_options: Further arguments of that fusion.
        directions: Pairs ``(source, target)`` of "cross"; None = every ordered pair.
        shared: "co" and "pairwise" use one set of co-attention weights for both directions of a pair.
        bottlenecks: Shared tokens of "bottleneck".
        edges: Pairs of modalities that "graph" joins; None = every two different ones.
        nodes: Nodes of "graph": "tokens" or "modalities".
        norm_first: Pre-norm or post-norm layers.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On embeddings and on what every part adds.
        attention_dropout: On attention weights; None = ``dropout``.
        eps: Of the norms.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        KeyError: If ``fusion`` or ``combine`` is unknown.
        ValueError: If names, widths, depths or pairs are refused, or the strategy needs more modalities or layers.

    Example:
        >>> model = MultimodalTransformer(("image", "text"), {"image": 6, "text": 5}, fusion="co", dim=8, num_heads=2)
        >>> tokens = {"image": torch.zeros(3, 4, 6), "text": torch.zeros(3, 7, 5)}
        >>> output = model(tokens, present=torch.tensor([[True, True], [True, False], [False, False]]))
        >>> output.pooled.shape, output.text_tokens.shape, output.empty
        (torch.Size([3, 8]), torch.Size([3, 7, 8]), tensor([False, False,  True]))
    """

    HEADS: ClassVar[Mapping[str, Callable[..., nn.Module]]] = {
        "classification": lambda model, **kwargs: _head(ClassificationHead, model, kwargs),
        "multilabel": lambda model, **kwargs: _head(MultilabelHead, model, kwargs),
        "regression": lambda model, **kwargs: _head(RegressionHead, model, kwargs),
    }

    def __init__(
        self,
        modalities: Sequence[str],
        input_dim: int | Mapping[str, int],
        *,
        fusion: str = "early",
        dim: int = 256,
        num_layers: int = 4,
        fusion_depth: int | None = None,
        num_heads: int = 4,
        hidden_dim: int | None = None,
        max_length: int | Mapping[str, int] | None = None,
        num_classes: int | None = None,
        combine: str = "concat",
        combine_options: Mapping[str, Any] | None = None,
        directions: Sequence[Sequence[str]] | None = None,
        shared: bool = False,
        bottlenecks: int = 4,
        edges: Sequence[Sequence[str]] | None = None,
        nodes: str = "tokens",
        norm_first: bool = True,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        self.modalities, self.dim, self.fusion = check_modalities(modalities), dim, fusion
        self.names = tuple(sorted(self.modalities))
        self.input_dims = embedding_widths(self.modalities, input_dim)
        strategy: type[Strategy] = STRATEGIES[fusion]
        depth = tower_depth(fusion, strategy, num_layers, fusion_depth)
        if len(self.modalities) < strategy.LEAST_MODALITIES:
            raise ValueError(
                f"fusion='{fusion}' is made of pairs and needs at least {strategy.LEAST_MODALITIES} modalities, "
                f"got {self.modalities}"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        parts = Parts(
            dim,
            num_heads,
            4 * dim if hidden_dim is None else hidden_dim,
            norm_first,
            activation,
            dropout,
            dropout if attention_dropout is None else attention_dropout,
            eps,
            factory,
        )
        lengths = _lengths(max_length, self.modalities)
        self.embedding = TokenEmbedding(self.input_dims, dim, lengths, eps, dropout, **factory)
        self.towers = Towers(self.names, parts, depth)
        options = {name: config[name] for name in strategy.OPTIONS}
        self.strategy = strategy(self.modalities, parts, num_layers - depth, **options)
        if num_classes is not None:
            self.attach("classification", num_classes=num_classes)

    def encode(
        self,
        tokens: Mapping[str, Tensor],
        token_mask: Mapping[str, Tensor] | None = None,
        present: Tensor | None = None,
    ) -> ModelOutput:
        """Everything but the heads.

        Shape:
            - tokens: ``{name: (B, T_m, D_m)}``; token_mask: ``{name: (B, T_m)}`` bool, a name left out = all tokens are
              there; present: ``(B, M)`` bool, None = all.
            - info: ``pooled (B, D)``, ``empty (B,)``, ``<name>_tokens (B, T_m, D)``, zero where absent, and what the
              strategy adds.
            - weights: ``(B, M)``, zero where absent, rows sum to 1, or to 0 where nothing is present; or None.

        A row in which nothing is present has zeros in ``pooled``, or what the fusion of pooled vectors makes of it.

        Raises:
            ValueError: If a modality is missing, or a tensor has a wrong shape or type.
        """
        streams = read_tokens(tokens, token_mask, present, self.modalities, self.input_dims)
        streams = streams._replace(states=self.embedding(streams.states))
        mixed: Mixed = self.strategy(self.towers(streams))
        info = {**mixed.info, "pooled": mixed.pooled, "empty": ~streams.present.any(dim=1)}
        info |= {f"{name}_tokens": x for name, x in zip(self.names, mixed.states, strict=True)}
        return ModelOutput(None, mixed.weights, info)

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        token_mask: Mapping[str, Tensor] | None = None,
        present: Tensor | None = None,
        *,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
    ) -> ModelOutput:
        """``encode``, then the heads: ``<task>_logits`` in ``info``, and ``logits`` where one head ran.

        Args:
            tokens: As in ``encode``.
            token_mask: As in ``encode``.
            present: As in ``encode``.
            tasks: Attached heads to run; None = all.
            return_attention: Fill ``attentions`` with ``{layer name: (B, H, Q, K)}``.

        Raises:
            ValueError: As ``encode``, and if a task is not attached.
        """
        if return_attention:
            with capture_attention(self) as maps:
                output = self.forward(tokens, token_mask, present, tasks=tasks)
            return output._replace(attentions=dict(maps))
        output = self.encode(tokens, token_mask, present)
        logits = {f"{task}_logits": self.heads[task](output.info["pooled"]) for task in self.asked(tasks)}
        only = next(iter(logits.values())) if len(logits) == 1 else None
        return ModelOutput(only, output.weights, {**output.info, **logits})

    def get_extra_state(self) -> Tensor:
        """The order of the modalities as UTF-8 JSON bytes, a tensor so that safetensors stores it."""
        return torch.tensor(list(json.dumps(self.modalities).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Refuse a checkpoint written for other modalities or another order.

        Raises:
            ValueError: If the names or their order differ.
        """
        stored = tuple(json.loads(bytes(state.cpu().tolist()).decode()))
        if stored != self.modalities:
            raise ValueError(
                f"the checkpoint was written for modalities {stored}, this {type(self).__name__} has "
                f"{self.modalities}; build it with the names in the checkpoint's order"
            )


def tower_depth(fusion: str, strategy: type[Strategy], num_layers: int, fusion_depth: int | None) -> int:
    """Layers that modalities run alone.

    Raises:
        ValueError: If a depth is out of range, or leaves the strategy too few layers.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be positive, got {num_layers}")
    if fusion in ("early", "late"):
        return 0 if fusion == "early" else num_layers
    least = strategy.LEAST_LAYERS
    depth = min(num_layers // 2, num_layers - least) if fusion_depth is None else fusion_depth
    if not 0 <= depth <= num_layers - least:
        raise ValueError(
            f"fusion='{fusion}' needs {least} or more layers after fusion_depth, got fusion_depth = {depth} of "
            f"num_layers = {num_layers}"
        )
    return depth


def _lengths(max_length: int | Mapping[str, int] | None, modalities: Sequence[str]) -> dict[str, int]:
    """Positions per name."""
    if max_length is None:
        return {}
    if isinstance(max_length, int):
        return dict.fromkeys(modalities, max_length)
    unknown = [name for name in max_length if name not in modalities]
    if unknown:
        raise ValueError(f"max_length names {unknown}, which are not among {list(modalities)}")
    return dict(max_length)


def _head(kind: Callable[..., nn.Module], model: Any, kwargs: Mapping[str, Any]) -> nn.Module:
    """A head beside the model's parameters."""
    like = next(model.embedding.parameters())
    return kind(model.dim, **kwargs, device=like.device, dtype=like.dtype)


def _built(kwargs: Mapping[str, Any], **defaults: Any) -> MultimodalTransformer:
    return MultimodalTransformer(**{**defaults, **kwargs})


def multimodal_transformer_tiny(**kwargs: Any) -> MultimodalTransformer:
    """Image and text tokens of width 16; 4 layers of width 32. Any argument of the class replaces its default."""
    return _built(kwargs, modalities=("image", "text"), input_dim=16, dim=32, num_layers=4, num_heads=4, hidden_dim=64)


def multimodal_transformer_base(**kwargs: Any) -> MultimodalTransformer:
    """Image tokens of width 2048 and text tokens of width 768; 12 layers of width 768, as in BERT-base."""
    return _built(
        kwargs,
        modalities=("image", "text"),
        input_dim={"image": 2048, "text": 768},
        dim=768,
        num_layers=12,
        num_heads=12,
    )


def mmbert_chapter(**kwargs: Any) -> MultimodalTransformer:
    """MMBERT in the chapter's words: parallel encoders of image and text that interact through cross-attention.

    Co-attention on top of two BERT-like towers: post-norm, 6 layers each alone, then 6 of co-attention, width 768;
    features of a CNN (2048) and word embeddings (768) with 512 positions come in. Not the medical MMBERT of its
    authors, which is one stream (``polyfuse.models.mmbert``).
    """
    return _built(
        kwargs,
        modalities=("image", "text"),
        input_dim={"image": 2048, "text": 768},
        fusion="co",
        dim=768,
        num_layers=12,
        num_heads=12,
        max_length={"text": 512},
        norm_first=False,
        eps=1e-12,
    )
