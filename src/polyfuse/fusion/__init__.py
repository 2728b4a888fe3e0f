"""Embedding-level fusion: ``{name: (B, D)}`` and ``present (B, M)`` in, one ``FusionOutput`` out.

``FUSIONS`` names them all; ``tests/contract/`` runs every promise of the contract over every entry.
"""

from polyfuse.fusion.aecf import AECFFusion
from polyfuse.fusion.attention_pool import AttentionPoolFusion
from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.concat import ConcatFusion
from polyfuse.fusion.embracenet import EmbraceNetFusion
from polyfuse.fusion.gated import GatedFusion
from polyfuse.fusion.hybrid import HybridFusion
from polyfuse.fusion.late import LateFusion
from polyfuse.fusion.low_rank import LowRankFusion
from polyfuse.fusion.sum import SumFusion
from polyfuse.registry import Registry

FUSIONS = Registry(
    "fusion",
    {
        "concat": ConcatFusion,
        "late": LateFusion,
        "hybrid": HybridFusion,
        "gated": GatedFusion,
        "attention_pool": AttentionPoolFusion,
        "aecf": AECFFusion,
        "embracenet": EmbraceNetFusion,
        "low_rank": LowRankFusion,
        "sum": SumFusion,
    },
)

__all__ = [
    "FUSIONS",
    "AECFFusion",
    "AttentionPoolFusion",
    "ConcatFusion",
    "EmbraceNetFusion",
    "FusionOutput",
    "GatedFusion",
    "HybridFusion",
    "LateFusion",
    "LowRankFusion",
    "SumFusion",
]
