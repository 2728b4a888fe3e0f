"""ViLBERT's heads, by task name, and how each one reads the encoder.

Shapes: B batch, L tokens, R regions, D width, C classes. Masks: True = present.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.models.bert_parts import TransformHead, init_bert, mlm_head

if TYPE_CHECKING:
    from polyfuse.models.vilbert import ViLBERT

#: Columns of ``pair_logits``: the text belongs to the image, or to another one. UNITER counts the other way round.
ALIGNED, NOT_ALIGNED = 0, 1
#: What is added to ``vision_logit_logits`` where a region is absent.
ABSENT_REGION = -10000.0
#: What a masked region is to predict: the detector's class distribution, its feature, or its feature among others.
REGION_MODES = ("kl", "mse", "nce")


class Classifier(nn.Module):
    """``W LayerNorm(gelu(V x))``.

    Args:
        dim: Width of the input.
        hidden_dim: Width between.
        num_classes: Width of the result C.
        eps: Of the norm.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(self, dim: int, hidden_dim: int, num_classes: int, *, eps: float = 1e-12, **factory: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, hidden_dim, **factory)
        self.norm = nn.LayerNorm(hidden_dim, eps=eps, **factory)
        self.out = nn.Linear(hidden_dim, num_classes, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, C)``."""
        return self.out(self.norm(F.gelu(self.dense(x))))


class WeightNormLinear(nn.Module):
    """A linear layer with the matrix ``g V / |V|``, one ``g`` for all of it (weight norm without a dimension).

    Source: https://arxiv.org/abs/1602.07868, equation 2, over the whole matrix.
    """

    def __init__(self, dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        plain = nn.Linear(dim, out_dim, **factory)
        self.direction = nn.Parameter(plain.weight.detach().clone())
        self.scale = nn.Parameter(plain.weight.detach().norm())
        self.bias = nn.Parameter(torch.zeros_like(plain.bias))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D_out)``."""
        return F.linear(x, self.direction * (self.scale / self.direction.norm()), self.bias)


class WeightNormClassifier(nn.Module):
    """The answer head of the first code base: two weight-normed layers, ReLU and dropout between."""

    def __init__(self, dim: int, hidden_dim: int, num_classes: int, *, dropout: float = 0.5, **factory: Any) -> None:
        super().__init__()
        self.dense = WeightNormLinear(dim, hidden_dim, **factory)
        self.out = WeightNormLinear(hidden_dim, num_classes, **factory)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, C)``."""
        return self.out(F.dropout(F.relu(self.dense(x)), self.dropout, self.training))


def paired_rows(x_BD: Tensor) -> Tensor:
    """Rows 0 and 1 side by side, rows 2 and 3, ...: ``(B // 2, 2 D)``; an odd last row is left out."""
    return torch.cat([x_BD[:-1:2], x_BD[1::2]], dim=1)


def answer(
    model: "ViLBERT", task: str, text: Tensor, regions: Tensor, pooled: Tensor, region_mask: Tensor | None
) -> Tensor:
    """The logits of one attached head from the encoder's results."""
    head = model.heads[task]
    if task == "mlm":
        return head(text, model.embeddings.words.weight)
    if task == "region":
        return head(regions)
    if task == "text_logit":
        return head(model.drop(text))
    if task == "vision_logit":
        logits = head(model.drop(regions))
        return logits if region_mask is None else logits + ABSENT_REGION * (~region_mask[..., None]).to(logits.dtype)
    pooled = model.drop(pooled)
    paired = task == "binary" or (task == "classifier" and model.head_config[task].get("pairs", False))
    return head(paired_rows(pooled) if paired else pooled)


def _factory(model: "ViLBERT") -> dict[str, Any]:
    weight = model.text_pooler.dense.weight
    return {"device": weight.device, "dtype": weight.dtype}


def _started(model: "ViLBERT", head: nn.Module) -> nn.Module:
    init_bert(head, model.config["initializer_range"])
    return head


def _mlm(model: "ViLBERT", *, tied: bool = True) -> nn.Module:
    words, config = model.embeddings.words.weight, model.config
    if tied:
        return _started(model, mlm_head(words, config["activation"], config["eps"]))
    return _started(
        model, TransformHead(words.shape[1], words.shape[0], activation=config["activation"], **_factory(model))
    )


def _region(model: "ViLBERT", *, mode: str = "kl", width: int | None = None) -> nn.Module:
    if mode not in REGION_MODES:
        raise ValueError(f"mode must be one of {', '.join(REGION_MODES)}, got {mode!r}")
    config = model.config
    usual = config["region_classes"] if mode == "kl" else config["feature_dim"]
    # The text's activation on purpose: that is what the original builds.
    return _started(
        model,
        TransformHead(
            config["region_dim"],
            usual if width is None else width,
            activation=config["activation"],
            eps=config["eps"],
            **_factory(model),
        ),
    )


def _vqa(model: "ViLBERT", *, num_answers: int = 3129, weight_norm: bool = False) -> nn.Module:
    width = model.config["co_dim"]
    if weight_norm:
        return WeightNormClassifier(width, 2 * width, num_answers, **_factory(model))
    return _started(model, Classifier(width, 2 * width, num_answers, **_factory(model)))


def _gqa(model: "ViLBERT", *, num_answers: int = 1533) -> nn.Module:
    return _vqa(model, num_answers=num_answers)


def _binary(model: "ViLBERT") -> nn.Module:
    width = 2 * model.config["co_dim"]
    return _started(model, Classifier(width, width, 2, **_factory(model)))


def _classifier(model: "ViLBERT", *, num_classes: int, pairs: bool = False) -> nn.Module:
    config = model.config
    width = config["co_dim"] * (2 if pairs else 1)
    return _started(model, TransformHead(width, num_classes, activation=config["activation"], **_factory(model)))


def _linear(source: str, width: int) -> Callable[..., nn.Module]:
    def build(model: "ViLBERT") -> nn.Module:
        return _started(model, nn.Linear(model.config[source], width, **_factory(model)))

    return build


HEADS: dict[str, Callable[..., nn.Module]] = {
    "mlm": _mlm,
    "region": _region,
    "pair": _linear("co_dim", 2),
    "vqa": _vqa,
    "gqa": _gqa,
    "binary": _binary,
    "tri": _linear("co_dim", 3),
    "logit": _linear("co_dim", 1),
    "vision_logit": _linear("region_dim", 1),
    "text_logit": _linear("dim", 1),
    "classifier": _classifier,
}
