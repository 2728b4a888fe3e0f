"""Whole models. ``MODELS`` names them."""

from polyfuse.models.bert import Bert, bert_base, bert_tiny
from polyfuse.models.fusion_model import FusionModel
from polyfuse.models.output import ModelOutput
from polyfuse.models.uniter import UNITER, uniter_base, uniter_large, uniter_tiny
from polyfuse.models.visual_bert import (
    VisualBert,
    visual_bert_base,
    visual_bert_nlvr2,
    visual_bert_tiny,
    visual_bert_vcr,
)
from polyfuse.registry import Registry

MODELS = Registry(
    "model",
    {
        "fusion_model": FusionModel,
        "bert_base": bert_base,
        "bert_tiny": bert_tiny,
        "visual_bert_base": visual_bert_base,
        "visual_bert_nlvr2": visual_bert_nlvr2,
        "visual_bert_vcr": visual_bert_vcr,
        "visual_bert_tiny": visual_bert_tiny,
        "uniter_base": uniter_base,
        "uniter_large": uniter_large,
        "uniter_tiny": uniter_tiny,
    },
)

__all__ = ["MODELS", "UNITER", "Bert", "FusionModel", "ModelOutput", "VisualBert"]
