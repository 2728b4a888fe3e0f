"""ViLBERT: one stream of words, one of image regions, and connections in which they read each other.

Shapes: B batch, L tokens, R regions, D width. Masks: True = present.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.models import vilbert_original as original
from polyfuse.models.bert_parts import BertPooler, bert_layers, init_bert
from polyfuse.models.convert import Rule, one_precision, tensors_of, write_original
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments
from polyfuse.models.vilbert_heads import HEADS, answer
from polyfuse.models.vilbert_layers import (
    RegionEmbeddings,
    TextEmbeddings,
    connection_layer_list,
    region_layer_list,
    schedule,
)
from polyfuse.models.vilbert_regions import check_regions, checked_mask, without_absent

FUSION_METHODS = ("mul", "sum")


class ViLBERT(PretrainedModel):
    """Two streams with co-attention.

    Heads: ``mlm, region, pair, vqa, gqa, binary, tri, logit, vision_logit, text_logit`` and MMF's ``classifier``.

    Source: https://arxiv.org/abs/1908.02265 and https://arxiv.org/abs/1912.02315, checked against the authors' two code
    bases (vilbert_beta, vilbert-multi-task); MMF's checkpoints load too. The defaults are the 6-connection base model.

    Differs: what stands at absent tokens and regions is replaced by zeros, as the original's data code leaves it; a row
    without any region has the box of the whole image; a row without any key reads nothing (the original, which adds
    -10000 to every key, then reads all of them); an odd last row has no ``binary`` answer. Where a row has a present
    key the two masks give the same numbers.

    Args:
        vocab_size: Token ids.
        dim: Width of the text.
        num_layers: Text layers.
        num_heads: Heads of the text layers.
        hidden_dim: Hidden width of the text's feed-forward parts.
        max_length: Positions.
        type_vocab_size: Token types.
        activation: Of the text, and of the region head.
        dropout: Of the text, and of both embeddings.
        attention_dropout: On weights over text.
        feature_dim: Width of a region's features.
        region_dim: Width of the regions.
        region_layers: Region layers.
        region_heads: Heads of the region layers.
        region_hidden_dim: Hidden width of the regions' feed-forward parts.
        region_activation: Of the regions.
        region_dropout: Of the regions.
        region_attention_dropout: On weights over regions.
        region_classes: Classes of the detector, for the region head.
        co_dim: Width of the co-attention, and of both poolers.
        co_heads: Heads of the co-attention.
        text_connections: Text layers before which a connection runs, rising; ``num_layers`` = behind the last.
        region_connections: Region layers likewise.
        co_attention: False = connections are kept, frozen, and skipped.
        fusion: How ``pooled`` is made of both poolers: ``mul`` or ``sum``.
        task_tokens: How many tasks have a token of their own (20 in the multi-task code); 0 = no task token.
        fixed_text_layers: The first text layers, with everything below, take no gradient.
        fixed_region_layers: The first region layers likewise.
        dynamic_attention: Region layers scale queries and keys by the text.
        first_position: Where positions start.
        eps: Of the norms.
        head_dropout: On what the heads read.
        initializer_range: Of the initial values.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If the numbers do not fit together.

    Example:
        >>> from polyfuse.models.vilbert_sizes import vilbert_tiny
        >>> model = vilbert_tiny().attach("pair").eval()
        >>> ids, features, boxes = torch.ones(2, 5, dtype=torch.long), torch.rand(2, 3, 24), torch.rand(2, 3, 5)
        >>> output = model(ids, region_features=features, region_boxes=boxes)
        >>> output.text.shape, output.regions.shape, output.pair_logits.shape
        (torch.Size([2, 5, 32]), torch.Size([2, 3, 40]), torch.Size([2, 2]))
    """

    HEADS = HEADS
    LAYOUTS = original.LAYOUTS

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int = 3072,
        max_length: int = 512,
        type_vocab_size: int = 2,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        feature_dim: int = 2048,
        region_dim: int = 1024,
        region_layers: int = 6,
        region_heads: int = 8,
        region_hidden_dim: int = 1024,
        region_activation: str = "gelu",
        region_dropout: float = 0.1,
        region_attention_dropout: float = 0.1,
        region_classes: int = 1601,
        co_dim: int = 1024,
        co_heads: int = 8,
        text_connections: Sequence[int] = (6, 7, 8, 9, 10, 11),
        region_connections: Sequence[int] = (0, 1, 2, 3, 4, 5),
        co_attention: bool = True,
        fusion: str = "mul",
        task_tokens: int = 0,
        fixed_text_layers: int = 0,
        fixed_region_layers: int = 0,
        dynamic_attention: bool = False,
        first_position: int = 0,
        eps: float = 1e-12,
        head_dropout: float = 0.1,
        initializer_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        if fusion not in FUSION_METHODS:
            raise ValueError(f"fusion must be one of {', '.join(FUSION_METHODS)}, got {fusion!r}")
        self.config = config
        self.schedule = schedule(num_layers, region_layers, text_connections, region_connections)
        self.co_attention, self.fusion, self.head_dropout = co_attention, fusion, head_dropout
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = TextEmbeddings(
            vocab_size,
            dim,
            task_tokens=task_tokens,
            max_length=max_length,
            type_vocab_size=type_vocab_size,
            first_position=first_position,
            eps=eps,
            dropout=dropout,
            **factory,
        )
        self.region_embeddings = RegionEmbeddings(feature_dim, region_dim, eps=eps, dropout=dropout, **factory)
        self.text_layers = bert_layers(
            num_layers, dim, num_heads, hidden_dim, activation, dropout, attention_dropout, eps, **factory
        )
        self.region_layers = region_layer_list(config, factory)
        self.connections = connection_layer_list(config, factory)
        self.text_pooler = BertPooler(dim, co_dim, activation="relu", **factory)
        self.region_pooler = BertPooler(region_dim, co_dim, activation="relu", **factory)
        init_bert(self, initializer_range)
        self._fix(fixed_text_layers, fixed_region_layers)

    def _fix(self, text: int, regions: int) -> None:
        """Freeze the lower layers and what only they use, as the original does by running them without a graph."""
        for name, number in (("text", text), ("region", regions)):
            most = min(self.config[f"{name}_connections"], default=0)
            if not 0 <= number <= most:
                raise ValueError(f"fixed_{name}_layers must be within 0..{most}, the first connection, got {number}")
        self.fixed = {"text": text, "region": regions}
        frozen: list[nn.Module] = [*self.text_layers[:text], *self.region_layers[:regions]]
        frozen += [self.embeddings] * bool(text) + [self.region_embeddings] * bool(regions)
        frozen += [] if self.co_attention else [self.connections]
        for part in frozen:
            part.requires_grad_(False)

    def attach(self, *tasks: str, **kwargs: Any) -> Self:
        """Attach a head per task.

        ``mlm(tied=True)``, ``region(mode="kl" | "mse" | "nce", width=None)``, ``vqa(num_answers=3129,
        weight_norm=False)``, ``gqa(num_answers=1533)``, ``classifier(num_classes, pairs=False)`` (MMF's), and without
        arguments ``pair, binary, tri, logit, vision_logit, text_logit``.

        Raises:
            ValueError: If the model knows no such task.
        """
        super().attach(*tasks, **kwargs)
        if self.fixed["text"] and "mlm" in self.heads:
            # A tied head still teaches the words, below frozen layers too.
            self.embeddings.words.weight.requires_grad_(self.head_config["mlm"].get("tied", True))
        return self

    def drop(self, x: Tensor) -> Tensor:
        """The heads' dropout."""
        return F.dropout(x, self.head_dropout, self.training)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        region_features: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None = None,
        task_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States of the text ``(B, L, dim)`` and of the regions ``(B, R, region_dim)``; arguments as in ``forward``."""
        text_mask = checked_mask("text_mask", text_mask, input_ids.shape)
        region_mask = checked_mask("region_mask", region_mask, region_features.shape[:2])
        check_regions(region_features, region_boxes, self.config["feature_dim"])
        if text_mask is not None:
            input_ids = input_ids.masked_fill(~text_mask, 0)
            token_type_ids = None if token_type_ids is None else token_type_ids.masked_fill(~text_mask, 0)
        if region_mask is not None:
            region_features, region_boxes = without_absent(region_features, region_boxes, region_mask)
        text = self.embeddings(input_ids, token_type_ids, task_ids)
        regions = self.region_embeddings(region_features, region_boxes)
        if self.embeddings.tasks is not None and text_mask is not None:
            text_mask = torch.cat([text_mask[:, :1], torch.ones_like(text_mask[:, :1]), text_mask[:, 1:]], dim=1)
        return self._run(text, regions, text_mask, region_mask)

    def _run(
        self, text: Tensor, regions: Tensor, text_mask: Tensor | None, region_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Every layer in the order of ``schedule``."""
        for kind, index in self.schedule:
            if kind == "connection":
                if text.shape[0] != regions.shape[0]:  # one text against many images, read once up to here
                    text = text.expand(regions.shape[0], -1, -1)
                    text_mask = None if text_mask is None else text_mask.expand(regions.shape[0], -1)
                if self.co_attention:
                    regions, text = self.connections[index](regions, text, region_mask, text_mask)
                continue
            with torch.no_grad() if index < self.fixed[kind] else nullcontext():
                if kind == "text":
                    text = self.text_layers[index](text, text_mask)
                elif self.config["dynamic_attention"]:
                    regions = self.region_layers[index](regions, region_mask, _mean(text, text_mask))
                else:
                    regions = self.region_layers[index](regions, region_mask)
        return text, regions

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        *,
        task_ids: Tensor | None = None,
        tasks: Iterable[str] | None = None,
        return_attention: bool = False,
    ) -> ModelOutput:
        """Encode, pool, and run the heads.

        Args:
            input_ids: ``(B, L)``; ``(1, L)`` = one text against B images (``fast_mode``).
            token_type_ids: ``(B, L)``; None = 0.
            text_mask: ``(B, L)`` bool, True = a token; None = all.
            region_features: ``(B, R, feature_dim)``, required; region 0 is the whole image (``with_whole_image``).
            region_boxes: ``(B, R, 5)``, required: x1, y1, x2, y2 and the area, as shares of the image (``box_shares``).
            region_mask: ``(B, R)`` bool, True = a region; None = all.
            task_ids: ``(B,)`` or ``(B, 1)``, where the model has task tokens: the text is then one token longer, the
                task standing second.
            tasks: Heads to run; None = all attached.
            return_attention: Fill ``attentions``: ``text_layers.N.attention``, ``region_layers.N.attention``,
                ``connections.N.co_attention.first`` (regions over text) and ``.second`` (text over regions).

        Returns:
            ``text (B, L, dim)``, ``regions (B, R, region_dim)``, ``pooled_text``, ``pooled_image`` and ``pooled``
            ``(B, co_dim)``, and ``<task>_logits``: ``mlm (B, L, V)``, ``region (B, R, width)`` for all regions (the
            original leaves region 0 out in its loss, not here), ``pair (B, 2)`` with label 0 = aligned,
            ``vqa``/``gqa (B, answers)``, ``binary (B // 2, 2)`` of rows 0 and 1, 2 and 3, ..., ``tri (B, 3)``,
            ``logit (B, 1)``, ``vision_logit (B, R, 1)`` (-10000 added where absent), ``text_logit (B, L, 1)``.

        Raises:
            ValueError: If inputs do not fit, a task is not attached, or ``binary`` is asked of an odd number of rows.
        """
        if region_features is None or region_boxes is None:
            name = "region_features" if region_features is None else "region_boxes"
            raise ValueError(f"{name} is required, got None; mask the regions of a row without an image")
        if return_attention:
            with capture_attention(self) as maps:
                output = self(
                    input_ids,
                    token_type_ids,
                    text_mask,
                    region_features,
                    region_boxes,
                    region_mask,
                    task_ids=task_ids,
                    tasks=tasks,
                )
            return output._replace(attentions=dict(maps))
        names = self.asked(tasks)
        if tasks is not None and "binary" in names and region_features.shape[0] % 2:
            raise ValueError(f"binary reads pairs of rows, got {region_features.shape[0]} rows")
        text, regions = self.encode(
            input_ids,
            token_type_ids,
            text_mask,
            region_features=region_features,
            region_boxes=region_boxes,
            region_mask=region_mask,
            task_ids=task_ids,
        )
        pooled_text, pooled_image = self.text_pooler(text), self.region_pooler(regions)
        pooled = pooled_text * pooled_image if self.fusion == "mul" else pooled_text + pooled_image
        info = {
            "text": text,
            "regions": regions,
            "pooled_text": pooled_text,
            "pooled_image": pooled_image,
            "pooled": pooled,
        }
        here = checked_mask("region_mask", region_mask, region_features.shape[:2])
        for task in names:
            info[f"{task}_logits"] = answer(self, task, text, regions, pooled, here)
        return ModelOutput(None, None, info)

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """Build the model from its authors' checkpoint, or MMF's, heads included, in evaluation mode.

        Reads ``BertModel`` with and without ``bert.``, ``BertForMultiModalPreTraining``, ``VILBertForVLTasks`` of both
        code bases, MMF's ``model.`` (and older ``bert.bert``) names; ``module.``, ``gamma``, ``beta`` are understood.
        Heads, task tokens and dynamic attention are told from the names. Half precision becomes float32, as in the
        authors' own loader.

        Args:
            source: Tensors by their original names, a training script's dictionary of them, or a file of either.
            config: The original config, as a mapping or its JSON file; what it lacks has the default of the original
                ``BertConfig``.
            layout: One of ``LAYOUTS``; None = told from the names.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit; or if the config asks for
                something that is not supported.
        """
        state = one_precision(original.plain_names(tensors_of(source)), least=torch.float32)
        return super().from_original(state, config, layout=layout)

    def to_original(self, layout: str | None = None) -> dict[str, Tensor]:
        """The weights under their original names: the exact inverse of ``from_original``.

        Args:
            layout: One of ``LAYOUTS``; None = the one that the heads belong to (``bare`` without heads).

        Raises:
            ValueError: If a head has no place in the layout.
        """
        rules, _ = self.original_rules(None, layout)
        return write_original(self.state_dict(), rules)

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From the original ``BertConfig``, with its defaults, and the names."""
        return original.config_arguments(state, config)

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """The heads whose names are there."""
        return original.heads_of(state, config or {})

    def original_rules(
        self, state: Mapping[str, Tensor] | None, layout: str | None
    ) -> tuple[list[Rule], Callable[[str], bool]]:
        """Rules for a layout, told from the names or, when writing, from the heads."""
        return original.rules(self, state, layout)


def _mean(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean of the present tokens ``(B, D)``; zeros where there are none."""
    if mask_BT is None:
        return x_BTD.mean(dim=1)
    here = mask_BT[..., None].to(x_BTD.dtype)
    return (x_BTD * here).sum(dim=1) / here.sum(dim=1).clamp(min=1)
