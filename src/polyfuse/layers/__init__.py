"""Layers: attention pooling over modalities, curriculum masking and the entropy gate."""

from polyfuse.layers.attention_pool import (
    FusionPool,
    MultimodalAttentionPool,
    create_fusion_pool,
    multimodal_attention_pool,
)
from polyfuse.layers.curriculum_masking import CurriculumMasking
from polyfuse.layers.entropy_gate import EntropyGate

__all__ = [
    "CurriculumMasking",
    "EntropyGate",
    "FusionPool",
    "MultimodalAttentionPool",
    "create_fusion_pool",
    "multimodal_attention_pool",
]
