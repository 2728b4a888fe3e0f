"""The heads of UNITER: what each reads, and what it is called.

Shapes: B batch, L tokens, R regions, T = L + R, D width. Masks: True = present.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention import Attention, attend, split_heads, split_qkv
from polyfuse.layers.transformer import ACTIVATIONS, activation_named
from polyfuse.models.bert_parts import TransformHead, init_bert, mlm_head

#: Other names of a head.
ALIASES = {"mrc_kl": "mrc", "mrckl": "mrc", "itr": "rank"}
#: What a head reads beyond the pooled vector.
NEEDS = {"mlm": ("text",), "mrfr": ("regions",), "mrc": ("regions",), "re": ("regions",), "wra": ("text", "regions")}
OUTPUTS = {"mrfr": "region_regression", "mrc": "region_logits", "itm": "match_logits", "wra": "wra_cost"}
NLVR2_VARIANTS = ("paired", "triplet", "paired_attention")
#: Score of a region that is absent, as in the authors' code: low enough, and finite in half precision.
ABSENT_SCORE = -1e4


class States(NamedTuple):
    """What heads may read.

    Attributes:
        sequence: ``(B, T, D)``.
        pooled: ``(B, D)``.
        text: ``(B, L, D)``.
        regions: ``(B, R, D)``.
        mask: ``(B, T)`` bool; None = everything is there.
    """

    sequence: Tensor
    pooled: Tensor
    text: Tensor
    regions: Tensor
    mask: Tensor | None

    def text_mask(self) -> Tensor | None:
        """``(B, L)``."""
        return None if self.mask is None else self.mask[:, : self.text.shape[1]]

    def region_mask(self) -> Tensor | None:
        """``(B, R)``."""
        return None if self.mask is None else self.mask[:, self.text.shape[1] :]


class AnswerHead(nn.Module):
    """``W_2 LN(act(W_1 x))`` with a hidden layer twice as wide.

    Args:
        dim: Width D.
        num_answers: Width of the result.
        activation: Entry of ``ACTIVATIONS``.
        eps: Of the norm.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_answers: int,
        *,
        activation: str = "gelu",
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        activation_named(activation)
        self.activation = activation
        self.dense = nn.Linear(dim, 2 * dim, **factory)
        self.norm = nn.LayerNorm(2 * dim, eps=eps, **factory)
        self.decoder = nn.Linear(2 * dim, num_answers, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., num_answers)``."""
        return self.decoder(self.norm(ACTIVATIONS[self.activation](self.dense(x))))


class WordRegionCost(nn.Module):
    """``1 - cos`` of every word and every region, the cost of word-region alignment; 0 where one is absent.

    Source: https://arxiv.org/abs/1909.11740, section 3.2 (WRA); in float32, as the authors do.

    Args:
        eps: Smallest length of a state.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, states: States) -> Tensor:
        """``(B, L, R)``."""
        text, regions = states.text, states.regions
        if text.dtype in (torch.float16, torch.bfloat16):
            text, regions = text.float(), regions.float()
        cost = 1 - F.normalize(text, dim=-1, eps=self.eps) @ F.normalize(regions, dim=-1, eps=self.eps).mT
        words, boxes = states.text_mask(), states.region_mask()
        return cost if words is None or boxes is None else cost * (words[:, :, None] & boxes[:, None])


class PairedAttention(nn.Module):
    """NLVR2 with attention between the two images' streams, pooled by attention.

    Each stream reads the other, ``relu(W [read, own])`` is pooled with the weights ``softmax(relu(w x))``, and both
    pooled vectors are classified. Row 2i of the batch is the left image's stream, row 2i + 1 the right one's.

    Source: the authors' code (``UniterForNlvr2PairedAttn``); https://arxiv.org/abs/1909.11740, section 4.3.

    Args:
        dim: Width D.
        num_heads: Heads.
        dropout: On the mixed states.
        attention_dropout: On both kinds of weights.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dropout, self.attention_dropout = dropout, attention_dropout
        # Queries come from one stream, keys and values from the other: the fused matrix is the authors' in_proj.
        self.attention = nn.ModuleList(Attention(dim, num_heads, **factory) for _ in range(2))
        self.mix = nn.Linear(2 * dim, dim, **factory)
        self.score = nn.Linear(dim, 1, **factory)
        self.decoder = nn.Linear(2 * dim, 2, **factory)

    def _read(self, index: int, own: Tensor, other: Tensor, other_mask: Tensor | None) -> Tensor:
        layer = self.attention[index]
        assert isinstance(layer, Attention)  # noqa: S101 (for the type checker)
        width = own.shape[-1]
        weight, bias = layer.qkv.weight, layer.qkv.bias
        query = split_heads(F.linear(own, weight[:width], bias[:width]), layer.num_heads)
        key, value = split_qkv(F.linear(other, weight[width:], bias[width:]), 2, layer.num_heads)
        dropout = self.attention_dropout if self.training else 0.0
        read = layer.out(attend(layer, query, key, value, mask_BK=other_mask, dropout=dropout))
        return F.dropout(F.relu(self.mix(torch.cat([read, own], dim=-1))), self.dropout, self.training)

    def _pool(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        scores = F.relu(self.score(x_BTD)).squeeze(-1)
        if mask_BT is not None:
            scores = scores.masked_fill(~mask_BT, ABSENT_SCORE)
        weights = F.dropout(scores.softmax(dim=1), self.attention_dropout, self.training)
        return (weights.unsqueeze(1) @ x_BTD).squeeze(1)

    def forward(self, states: States) -> Tensor:
        """``(B / 2, 2)``."""
        left, right = states.sequence[0::2], states.sequence[1::2]
        masks = (None, None) if states.mask is None else (states.mask[0::2], states.mask[1::2])
        pooled = [
            self._pool(self._read(0, left, right, masks[1]), masks[0]),
            self._pool(self._read(1, right, left, masks[0]), masks[1]),
        ]
        return self.decoder(torch.cat(pooled, dim=-1))


def run_head(model: Any, task: str, states: States) -> tuple[str, Tensor]:
    """Name and value of one head's output."""
    head, name = model.heads[task], OUTPUTS.get(task, f"{task}_logits")
    if task == "mlm":
        return name, head(states.text, model.embeddings.words.weight)
    if task == "mrfr":
        return name, head(states.regions, model.regions.feature.weight.t())
    if task == "mrc":
        return name, head(states.regions)
    if task == "re":
        scores, mask = head(states.regions).squeeze(-1), states.region_mask()
        return name, scores if mask is None else scores.masked_fill(~mask, ABSENT_SCORE)
    if task == "wra":
        return name, head(states)
    if task == "nlvr2" and model.head_config["nlvr2"].get("variant", "paired") != "triplet":
        batch = states.pooled.shape[0]
        if batch % 2:
            raise ValueError(f"paired NLVR2 needs an even batch (rows 2i and 2i + 1 are one example), got {batch}")
        return name, head(states if isinstance(head, PairedAttention) else states.pooled.view(batch // 2, -1))
    return name, head(states.pooled)


def _options(model: Any) -> dict[str, Any]:
    words = model.embeddings.words.weight
    return {"device": words.device, "dtype": words.dtype}


def _begun(head: nn.Module) -> nn.Module:
    init_bert(head)
    return head


def _mlm(model: Any) -> nn.Module:
    return mlm_head(model.embeddings.words.weight, model.config["activation"], model.config["eps"])


def _mrfr(model: Any) -> nn.Module:
    config = model.config
    # The authors use GELU here and below whatever the encoder's activation is.
    return _begun(
        TransformHead(config["dim"], config["region_dim"], tied=True, eps=config["eps"], **_options(model)),
    )


def _mrc(model: Any, num_classes: int = 1601) -> nn.Module:
    return _begun(TransformHead(model.config["dim"], num_classes, eps=model.config["eps"], **_options(model)))


def _itm(model: Any) -> nn.Module:
    return _begun(nn.Linear(model.config["dim"], 2, **_options(model)))


def _rank(model: Any) -> nn.Module:
    head = nn.Linear(model.config["dim"], 1, **_options(model))
    init_bert(head)
    if "itm" in model.heads:
        with torch.no_grad():
            head.weight.copy_(model.heads["itm"].weight[1:])
            head.bias.copy_(model.heads["itm"].bias[1:])
    return head


def _vqa(model: Any, num_answers: int = 3129) -> nn.Module:
    return _begun(AnswerHead(model.config["dim"], num_answers, eps=model.config["eps"], **_options(model)))


def _vcr(model: Any) -> nn.Module:
    return _begun(AnswerHead(model.config["dim"], 2, activation="relu", eps=model.config["eps"], **_options(model)))


def _re(model: Any, num_layers: int = 1) -> nn.Module:
    if num_layers not in (1, 2):
        raise ValueError(f"num_layers of the re head must be 1 or 2, got {num_layers}")
    if num_layers == 1:
        return _begun(nn.Linear(model.config["dim"], 1, **_options(model)))
    return _begun(TransformHead(model.config["dim"], 1, eps=model.config["eps"], **_options(model)))


def _nlvr2(model: Any, variant: str = "paired") -> nn.Module:
    if variant not in NLVR2_VARIANTS:
        raise ValueError(f"variant of the nlvr2 head must be one of {', '.join(NLVR2_VARIANTS)}, got {variant!r}")
    config = model.config
    if variant == "paired_attention":
        dropouts = {key: config[key] for key in ("dropout", "attention_dropout")}
        return _begun(PairedAttention(config["dim"], config["num_heads"], **dropouts, **_options(model)))
    return _begun(nn.Linear(config["dim"] * (2 if variant == "paired" else 1), 2, **_options(model)))


def _wra(model: Any) -> nn.Module:
    return WordRegionCost()


HEADS: Mapping[str, Callable[..., nn.Module]] = {
    "mlm": _mlm,
    "mrfr": _mrfr,
    "mrc": _mrc,
    "itm": _itm,
    "wra": _wra,
    "rank": _rank,
    "vqa": _vqa,
    "vcr": _vcr,
    "re": _re,
    "nlvr2": _nlvr2,
}
