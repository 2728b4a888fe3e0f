"""Embedding-level fusion: ``{name: (B, D)}`` and ``present (B, M)`` in, one ``FusionOutput`` out.

``FUSIONS`` names them all; ``tests/contract/`` runs every promise of the contract over every entry.
"""

from polyfuse.fusion.aecf import AECFFusion
from polyfuse.fusion.attention_pool import AttentionPoolFusion
from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.bottleneck import BottleneckFusion
from polyfuse.fusion.concat import ConcatFusion
from polyfuse.fusion.embracenet import EmbraceNetFusion
from polyfuse.fusion.gated import GatedFusion
from polyfuse.fusion.hybrid import HybridFusion
from polyfuse.fusion.late import LateFusion
from polyfuse.fusion.low_rank import LowRankFusion
from polyfuse.fusion.mixture_of_experts import MixtureOfExpertsFusion
from polyfuse.fusion.product_of_experts import ProductOfExpertsFusion
from polyfuse.fusion.proxy import ProxyFusion
from polyfuse.fusion.slots import SlotsFusion
from polyfuse.fusion.sum import SumFusion
from polyfuse.fusion.tensor import TensorFusion
from polyfuse.fusion.transformer import TransformerFusion
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
        "slots": SlotsFusion,
        "tensor": TensorFusion,
        "bottleneck": BottleneckFusion,
        "transformer": TransformerFusion,
        "product_of_experts": ProductOfExpertsFusion,
        "proxy": ProxyFusion,
        "mixture_of_experts": MixtureOfExpertsFusion,
    },
)

__all__ = [
    "FUSIONS",
    "AECFFusion",
    "AttentionPoolFusion",
    "BottleneckFusion",
    "ConcatFusion",
    "EmbraceNetFusion",
    "FusionOutput",
    "GatedFusion",
    "HybridFusion",
    "LateFusion",
    "LowRankFusion",
    "MixtureOfExpertsFusion",
    "ProductOfExpertsFusion",
    "ProxyFusion",
    "SlotsFusion",
    "SumFusion",
    "TensorFusion",
    "TransformerFusion",
]
