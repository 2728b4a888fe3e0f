"""UNITER: one stream of word tokens and image regions through a BERT encoder.

Shapes: B batch, L tokens, R regions, T = L + R, D width, F width of region features. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.layers.padding import run_layers
from polyfuse.models import uniter_original as original
from polyfuse.models.bert_parts import BertEmbeddings, BertPooler, bert_layers, first_present, init_bert, zero_empty
from polyfuse.models.convert import Rule, one_precision, tensors_of
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments
from polyfuse.models.uniter_heads import ALIASES, HEADS, NEEDS, States, run_head
from polyfuse.models.uniter_inputs import (
    RegionEmbeddings,
    box_features,
    check_inputs,
    compact,
    joint_mask,
)


class UNITER(PretrainedModel):
    """UNITER, with its authors' checkpoints in and out.

    Source: https://arxiv.org/abs/1909.11740, section 3; the authors' code where the paper is silent. The base size is
    the default; ``uniter_base``, ``uniter_large`` and ``uniter_tiny`` build the sizes by name.

    The stream is every text token, then every region, absent ones included and masked: ``(B, L + R, D)``. The authors
    instead move each row's regions up to its last real token (``gather_index``). Real tokens and regions have equal
    states either way, since regions carry no position index; ``compact`` gives the authors' layout.

    Heads, by task name, and what they add to ``info``:

    ====== ================================================ =========================================
    task   output                                           what it is
    ====== ================================================ =========================================
    mlm    ``mlm_logits (B, L, V)``                          masked words, tied to the word table
    mrfr   ``region_regression (B, R, F)``                   masked features, tied to the feature matrix
    mrc    ``region_logits (B, R, 1601)``                    detector classes (``mrc_kl`` is the same head)
    itm    ``match_logits (B, 2)``                           class 1 = the text belongs to the image
    wra    ``wra_cost (B, L, R)``                            1 - cosine, for optimal transport; no parameters
    rank   ``rank_logits (B, 1)``                            retrieval; starts as class 1 of ``itm`` (``itr``)
    vqa    ``vqa_logits (B, 3129)``                          answers (3 for visual entailment)
    vcr    ``vcr_logits (B, 2)``                             class 1 = the right answer
    re     ``re_logits (B, R)``                              which region is meant; absent ones -10000
    nlvr2  ``nlvr2_logits (B / 2, 2)``, (B, 2) for triplets  rows 2i and 2i + 1 are one example
    ====== ================================================ =========================================

    Args:
        vocab_size: Token ids (bert-base-cased).
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts.
        region_dim: Width F of region features.
        max_length: Text positions.
        type_vocab_size: Token types: 0 text, 1 region; NLVR2 has a third, VCR four.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On embeddings and on what every part adds.
        attention_dropout: On attention weights.
        eps: Of the norms.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If there is no token type for regions.

    Example:
        >>> model = uniter_tiny().attach("itm").eval()
        >>> boxes = box_features(torch.tensor([[[10.0, 20.0, 60.0, 80.0]]]), (100, 100))
        >>> words, regions = torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 1, 24)
        >>> output = model(words, region_features=regions, region_boxes=boxes)
        >>> output.sequence.shape, output.match_logits.shape
        (torch.Size([1, 6, 32]), torch.Size([1, 2]))
    """

    HEADS = HEADS
    LAYOUTS = ("uniter", "mmf")

    def __init__(
        self,
        *,
        vocab_size: int = 28996,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int = 3072,
        region_dim: int = 2048,
        max_length: int = 512,
        type_vocab_size: int = 2,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        if type_vocab_size < 2:
            raise ValueError(f"type_vocab_size must be at least 2 (text and regions), got {type_vocab_size}")
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = BertEmbeddings(
            vocab_size, dim, max_length=max_length, type_vocab_size=type_vocab_size, eps=eps, dropout=dropout, **factory
        )
        self.regions = RegionEmbeddings(region_dim, dim, eps=eps, dropout=dropout, **factory)
        self.layers = bert_layers(
            num_layers, dim, num_heads, hidden_dim, activation, dropout, attention_dropout, eps, **factory
        )
        self.pooler = BertPooler(dim, **factory)
        init_bert(self)

    def attach(self, *tasks: str, **kwargs: Any) -> Self:
        """Attach a new head per task; ``mrc_kl`` is ``mrc``, ``itr`` is ``rank``.

        Options: ``vqa``: ``num_answers``; ``mrc``: ``num_classes``; ``re``: ``num_layers`` (1 or 2); ``nlvr2``:
        ``variant`` (``paired``, ``triplet``, ``paired_attention``).
        """
        return super().attach(*(ALIASES.get(task, task) for task in tasks), **kwargs)

    def asked(self, tasks: Sequence[str] | None) -> list[str]:  # type: ignore[override]
        """The attached heads to run: ``tasks``, or all of them."""
        return super().asked(None if tasks is None else list(dict.fromkeys(ALIASES.get(task, task) for task in tasks)))

    def add_token_types(self, *like: int) -> Self:
        """Append token types that start as copies of others: ``add_token_types(1)`` for NLVR2, ``(0, 0)`` for VCR."""
        old = self.embeddings.types
        rows = torch.cat([old.weight.detach(), old.weight.detach()[list(like)]])
        self.embeddings.types = nn.Embedding.from_pretrained(rows, freeze=False)
        self.config["type_vocab_size"] = len(rows)
        return self

    def encode(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        *,
        region_masked: Tensor | None = None,
        region_type_ids: Tensor | None = None,
        skip_padding: bool = False,
    ) -> Tensor:
        """States ``(B, L + R, D)``: text, then regions. Arguments as for ``forward``."""
        check_inputs(
            input_ids,
            token_type_ids,
            text_mask,
            region_features,
            region_boxes,
            region_mask,
            region_masked,
            region_type_ids,
            region_dim=self.config["region_dim"],
        )
        parts = []
        if input_ids is not None:
            if text_mask is not None:  # an absent token may hold any id
                input_ids = input_ids.masked_fill(~text_mask, 0)
                token_type_ids = None if token_type_ids is None else token_type_ids.masked_fill(~text_mask, 0)
            parts.append(self.embeddings(input_ids, token_type_ids))
        if region_features is not None and region_boxes is not None:
            types = self.embeddings.types.weight[1]
            if region_type_ids is not None:
                here = region_type_ids if region_mask is None else region_type_ids.masked_fill(~region_mask, 1)
                types = self.embeddings.types(here)
            parts.append(self.regions(region_features, region_boxes, types, region_mask, region_masked))
        mask = joint_mask(input_ids, text_mask, region_features, region_mask)
        x_BTD = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        x_BTD = run_layers(self.layers, x_BTD, mask, skip_padding=skip_padding)
        return x_BTD if mask is None else zero_empty(x_BTD, mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        *,
        region_masked: Tensor | None = None,
        region_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
        skip_padding: bool = False,
    ) -> ModelOutput:
        """Run the stream and the heads.

        Args:
            input_ids: ``(B, L)`` from ``[CLS]`` on, padded at the end; None = no text. Training data parallel, give an
                all-False mask instead of None: a rank that skips a part lacks its gradients.
            token_type_ids: ``(B, L)``; None = 0.
            text_mask: ``(B, L)`` bool; None = all.
            region_features: ``(B, R, F)``; None = no image.
            region_boxes: ``(B, R, 7)`` from ``box_features``.
            region_mask: ``(B, R)`` bool; None = all.
            region_masked: ``(B, R)`` bool, regions whose features are hidden (their content is ignored); None = none.
            region_type_ids: ``(B, R)``; None = 1. NLVR2 gives its two images 1 and 2.
            tasks: Heads to run; None = all attached ones whose input is there.
            return_attention: Fill ``attentions`` with ``{layer: (B, H, T, T)}``.
            skip_padding: Compute present tokens and regions only: the same numbers, faster where much is padded; absent
                ones are zeros then. Ignored in a compiled model.

        Returns:
            ``sequence (B, L + R, D)``, text before regions, padding inside (see ``compact``); ``pooled (B, D)`` of the
            first token present; the outputs of the heads, named in the class's table.

        Raises:
            ValueError: If shapes disagree, nothing is given, or a task's input is missing.
        """
        if return_attention:
            with capture_attention(self) as maps:
                output = self.forward(
                    input_ids,
                    token_type_ids,
                    text_mask,
                    region_features,
                    region_boxes,
                    region_mask,
                    region_masked=region_masked,
                    region_type_ids=region_type_ids,
                    tasks=tasks,
                )
            return output._replace(attentions=dict(maps))
        asked = self._with_input(tasks, input_ids is not None, region_features is not None)
        sequence = self.encode(
            input_ids,
            token_type_ids,
            text_mask,
            region_features,
            region_boxes,
            region_mask,
            region_masked=region_masked,
            region_type_ids=region_type_ids,
            skip_padding=skip_padding,
        )
        length = 0 if input_ids is None else input_ids.shape[1]
        mask = joint_mask(input_ids, text_mask, region_features, region_mask)
        pooled = self.pooler(first_present(sequence, mask))
        states = States(sequence, pooled, sequence[:, :length], sequence[:, length:], mask)
        info = {"sequence": sequence, "pooled": pooled}
        for task in asked:
            name, value = run_head(self, task, states)
            info[name] = value
        return ModelOutput(None, None, info)

    def _with_input(self, tasks: Sequence[str] | None, text: bool, regions: bool) -> list[str]:
        """The heads to run; those that somebody named must find their input, the others may be left out."""
        there = {"text": text, "regions": regions}
        asked = self.asked(tasks)
        lacking = {task: [part for part in NEEDS.get(task, ()) if not there[part]] for task in asked}
        if tasks is not None and any(lacking.values()):
            shown = "; ".join(f"{task} needs {' and '.join(parts)}" for task, parts in lacking.items() if parts)
            raise ValueError(f"{shown}, got None")
        return [task for task in asked if not lacking[task]]

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """Build the model from its authors' checkpoint, heads included, in evaluation mode.

        ``gamma`` and ``beta``, ``module.`` and MMF's names of the trunk are understood; a bare ``UniterModel`` (names
        without ``uniter.``) too. Half precision becomes float32, as in the authors' own loader. ``config`` is the
        authors' ``uniter-base.json`` or ``uniter-large.json``; widths of features, detector classes, answers, the
        number of token types and words appended to the table (VCR's) come from the tensors.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit.
        """
        if layout is not None and layout not in cls.LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(cls.LAYOUTS)}, got {layout!r}")
        # Names are brought to the authors' own, whichever layout they came in.
        state = one_precision(original.plain_names(tensors_of(source)), least=torch.float32)
        return super().from_original(state, config, layout="uniter")

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From the authors' JSON keys, and shapes for what it does not say."""
        return original.config_of(state, config)

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """The heads whose tensors are there."""
        return original.heads_of(state)

    def original_rules(self, state: Mapping[str, Tensor] | None, layout: str | None) -> tuple[list[Rule], Any]:
        """Between our names and the authors', or MMF's (trunk only: its heads are other modules)."""
        if layout not in self.LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(self.LAYOUTS)}, got {layout!r}")
        rules = original.rules_of(self)
        if layout == "mmf":
            if self.heads:
                raise ValueError(f"the mmf layout has no place for these heads, got {list(self.heads)}")
            rules = original.mmf_rules(rules)
        return rules, lambda key: key.endswith("position_ids")


__all__ = ["UNITER", "box_features", "compact", "uniter_base", "uniter_large", "uniter_tiny"]

_LARGE = {"dim": 1024, "num_layers": 24, "num_heads": 16, "hidden_dim": 4096}
_TINY = {
    "vocab_size": 97,
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 48,
    "region_dim": 24,
    "max_length": 19,
}


def uniter_base(**kwargs: Any) -> UNITER:
    """UNITER base: 12 layers of width 768, 109,898,752 parameters without heads."""
    return UNITER(**kwargs)


def uniter_large(**kwargs: Any) -> UNITER:
    """UNITER large: 24 layers of width 1024, 335,695,872 parameters without heads."""
    return UNITER(**{**_LARGE, **kwargs})


def uniter_tiny(**kwargs: Any) -> UNITER:
    """A UNITER for tests and examples: 2 layers of width 32, region features of width 24."""
    return UNITER(**{**_TINY, **kwargs})
