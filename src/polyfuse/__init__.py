"""polyfuse: multimodal models that keep working, and know how sure they are, when inputs go missing.

Names load on first use, so that ``import polyfuse`` is light and the command line answers without PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyfuse.fusion import FUSIONS, FusionOutput
    from polyfuse.layers.attention_pool import (
        FusionPool,
        MultimodalAttentionPool,
        create_fusion_pool,
        multimodal_attention_pool,
    )
    from polyfuse.layers.curriculum_masking import CurriculumMasking
    from polyfuse.layers.entropy_gate import EntropyGate
    from polyfuse.losses.entropy import EntropyRegularizer
    from polyfuse.models import MODELS
    from polyfuse.run import load

__version__ = "0.1.0"

_HOMES = {
    "CurriculumMasking": "polyfuse.layers.curriculum_masking",
    "MultimodalAttentionPool": "polyfuse.layers.attention_pool",
    "multimodal_attention_pool": "polyfuse.layers.attention_pool",
    "create_fusion_pool": "polyfuse.layers.attention_pool",
    "FusionPool": "polyfuse.layers.attention_pool",
    "EntropyGate": "polyfuse.layers.entropy_gate",
    "EntropyRegularizer": "polyfuse.losses.entropy",
    "FusionOutput": "polyfuse.fusion",
    "FUSIONS": "polyfuse.fusion",
    "MODELS": "polyfuse.models",
    "load": "polyfuse.run",
}

__all__ = [
    "FUSIONS",
    "MODELS",
    "CurriculumMasking",
    "EntropyGate",
    "EntropyRegularizer",
    "FusionOutput",
    "FusionPool",
    "MultimodalAttentionPool",
    "create_fusion_pool",
    "load",
    "multimodal_attention_pool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyfuse' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
