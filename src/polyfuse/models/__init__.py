"""Whole models. ``MODELS`` names them."""

from polyfuse.models.bert import Bert, bert_base, bert_tiny
from polyfuse.models.captioner import Captioner, captioner_base, captioner_tiny
from polyfuse.models.clip import CLIP, clip_tiny, clip_vit_b16, clip_vit_b32, clip_vit_l14
from polyfuse.models.fusion_model import FusionModel
from polyfuse.models.mmbert import MMBERT, mmbert_medical, mmbert_tiny
from polyfuse.models.mmbt import MMBT, mmbt_base, mmbt_tiny
from polyfuse.models.mobileclip import (
    MobileCLIP,
    mobileclip_b,
    mobileclip_s0,
    mobileclip_s1,
    mobileclip_s2,
    mobileclip_tiny,
)
from polyfuse.models.multimodal_transformer import (
    STRATEGIES,
    MultimodalTransformer,
    mmbert_chapter,
    multimodal_transformer_base,
    multimodal_transformer_tiny,
)
from polyfuse.models.output import ModelOutput
from polyfuse.models.uniter import UNITER, uniter_base, uniter_large, uniter_tiny
from polyfuse.models.vilbert import ViLBERT
from polyfuse.models.vilbert_sizes import (
    vilbert_base,
    vilbert_base_2,
    vilbert_base_4,
    vilbert_base_8,
    vilbert_large_2,
    vilbert_large_4,
    vilbert_large_6,
    vilbert_roberta,
    vilbert_tiny,
)
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
        "multimodal_transformer_base": multimodal_transformer_base,
        "multimodal_transformer_tiny": multimodal_transformer_tiny,
        "mmbert_chapter": mmbert_chapter,
        "bert_base": bert_base,
        "bert_tiny": bert_tiny,
        "vilbert_base": vilbert_base,
        "vilbert_base_2": vilbert_base_2,
        "vilbert_base_4": vilbert_base_4,
        "vilbert_base_8": vilbert_base_8,
        "vilbert_large_2": vilbert_large_2,
        "vilbert_large_4": vilbert_large_4,
        "vilbert_large_6": vilbert_large_6,
        "vilbert_roberta": vilbert_roberta,
        "vilbert_tiny": vilbert_tiny,
        "visual_bert_base": visual_bert_base,
        "visual_bert_nlvr2": visual_bert_nlvr2,
        "visual_bert_vcr": visual_bert_vcr,
        "visual_bert_tiny": visual_bert_tiny,
        "uniter_base": uniter_base,
        "uniter_large": uniter_large,
        "uniter_tiny": uniter_tiny,
        "clip_vit_b32": clip_vit_b32,
        "clip_vit_b16": clip_vit_b16,
        "clip_vit_l14": clip_vit_l14,
        "clip_tiny": clip_tiny,
        "mobileclip_s0": mobileclip_s0,
        "mobileclip_s1": mobileclip_s1,
        "mobileclip_s2": mobileclip_s2,
        "mobileclip_b": mobileclip_b,
        "mobileclip_tiny": mobileclip_tiny,
        "mmbert_medical": mmbert_medical,
        "mmbert_tiny": mmbert_tiny,
        "mmbt_base": mmbt_base,
        "mmbt_tiny": mmbt_tiny,
        "captioner_base": captioner_base,
        "captioner_tiny": captioner_tiny,
    },
)

__all__ = [
    "CLIP",
    "MMBERT",
    "MMBT",
    "MODELS",
    "STRATEGIES",
    "UNITER",
    "Bert",
    "Captioner",
    "FusionModel",
    "MobileCLIP",
    "ModelOutput",
    "MultimodalTransformer",
    "ViLBERT",
    "VisualBert",
]
