"""Layers: attention between tokens, attention pooling over modalities, curriculum masking and the entropy gate."""

from polyfuse.layers.attention import Attention, CoAttention
from polyfuse.layers.attention_maps import capture_attention
from polyfuse.layers.attention_pool import (
    FusionPool,
    MultimodalAttentionPool,
    create_fusion_pool,
    multimodal_attention_pool,
)
from polyfuse.layers.cross_modal import CrossModalAttention
from polyfuse.layers.curriculum_masking import CurriculumMasking
from polyfuse.layers.entropy_gate import EntropyGate
from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.layers.positions import (
    BoxPositions,
    GridPositions,
    LearnedPositions,
    ModalityTypes,
    SinusoidalPositions,
    box_features,
)
from polyfuse.layers.transformer import CoAttentionLayer, FeedForward, TransformerLayer

__all__ = [
    "Attention",
    "BoxPositions",
    "CoAttention",
    "CoAttentionLayer",
    "CrossModalAttention",
    "CurriculumMasking",
    "EntropyGate",
    "FeedForward",
    "FusionPool",
    "GridPositions",
    "KeyValueCache",
    "LearnedPositions",
    "ModalityTypes",
    "MultimodalAttentionPool",
    "SinusoidalPositions",
    "TransformerLayer",
    "box_features",
    "capture_attention",
    "create_fusion_pool",
    "multimodal_attention_pool",
]
