"""One `case` per registry entry: tests of this folder run over every fusion; one `token_case` per token-level model."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.fusion import FUSIONS
from polyfuse.fusion.base import FusionOutput
from polyfuse.heads import ClassificationHead
from polyfuse.models import FusionModel, ModelOutput
from polyfuse.models.multimodal_transformer import STRATEGIES, MultimodalTransformer

# Neither sorted nor of one width: an index that mixes up order or width cannot fit by luck.
WIDTHS = {"text": 7, "audio": 3, "image": 5}
NAMES = tuple(WIDTHS)
OUT = 8  # divisible by the usual numbers of heads
CLASSES = 4


@dataclass(frozen=True)
class Case:
    """How to build one fusion, its inputs and a model around it."""

    name: str

    def build(
        self,
        modalities: Sequence[str] = NAMES,
        embed_dim: int | Mapping[str, int] | None = None,
        *,
        seed: int = 0,
        **kwargs: Any,
    ) -> nn.Module:
        torch.manual_seed(seed)
        return FUSIONS[self.name](modalities, WIDTHS if embed_dim is None else embed_dim, OUT, **kwargs)

    def model(self, seed: int = 0) -> FusionModel:
        """Linear encoders of input width 2, the fusion, a linear head (none for a decision-level fusion)."""
        fusion = self.build(seed=seed)
        encoders = {name: nn.Linear(2, width) for name, width in WIDTHS.items()}
        return FusionModel(encoders, fusion, None if fusion.decision_level else ClassificationHead(OUT, CLASSES))

    @staticmethod
    def masks(number: int = len(NAMES)) -> Tensor:
        """Every presence pattern, the empty one last: ``(2^M, M)``."""
        rows = sorted(itertools.product([True, False], repeat=number), reverse=True)
        return torch.tensor(rows)

    @staticmethod
    def embeddings(batch: int, dtype: torch.dtype = torch.float32, seed: int = 1, **widths: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = widths or WIDTHS
        return {n: torch.randn(batch, w, generator=generator, dtype=torch.float64).to(dtype) for n, w in sizes.items()}

    @staticmethod
    def run(fusion: nn.Module, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """One call from a fixed seed: what a fusion draws in training is then the same twice."""
        torch.manual_seed(5)
        return fusion(embeddings, present)


@pytest.fixture(params=sorted(FUSIONS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(params=["train", "eval"])
def mode(request: pytest.FixtureRequest) -> bool:
    """For ``module.train(mode)``."""
    return request.param == "train"


# Every strategy of MultimodalTransformer, and the options that change what it computes.
TOKEN_CASES: dict[str, dict[str, Any]] = {
    **{name: {"fusion": name} for name in STRATEGIES},
    "late-gated": {"fusion": "late", "combine": "gated"},
    "hybrid-attention_pool": {"fusion": "hybrid", "combine": "attention_pool", "norm_first": False},
    "pairwise-gated": {"fusion": "pairwise", "combine": "gated", "shared": True},
    "co-post_norm": {"fusion": "co", "shared": True, "norm_first": False},
    "cross-directed": {"fusion": "cross", "directions": [("text", "image"), ("audio", "image")], "norm_first": False},
    "adaptive-post_norm": {"fusion": "adaptive", "norm_first": False},
    "graph-modalities": {"fusion": "graph", "nodes": "modalities"},
    "graph-edges": {"fusion": "graph", "edges": [("text", "image"), ("audio", "audio")]},
}
LENGTHS = {"text": 5, "audio": 3, "image": 2}


@dataclass(frozen=True)
class TokenCase:
    """How to build one token-level model and its inputs."""

    name: str

    def build(self, modalities: Sequence[str] = NAMES, *, seed: int = 0, **kwargs: Any) -> MultimodalTransformer:
        torch.manual_seed(seed)
        widths = {name: WIDTHS.get(name, 4) for name in modalities}
        settings = {
            "dim": 8,
            "num_heads": 2,
            "num_layers": 4,
            "hidden_dim": 12,
            "num_classes": CLASSES,
            "max_length": 7,
        }
        return MultimodalTransformer(modalities, widths, **{**settings, **TOKEN_CASES[self.name], **kwargs})

    masks = staticmethod(Case.masks)

    @staticmethod
    def tokens(batch: int, dtype: torch.dtype = torch.float32, names: Sequence[str] = NAMES) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        sizes = [(batch, LENGTHS.get(name, 3), WIDTHS.get(name, 4)) for name in names]
        drawn = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
        return dict(zip(names, drawn, strict=True))

    @staticmethod
    def token_mask(batch: int, names: Sequence[str] = NAMES) -> dict[str, Tensor]:
        """Holes anywhere, but no sequence of holes alone."""
        generator = torch.Generator().manual_seed(2)
        masks = {name: torch.rand(batch, LENGTHS.get(name, 3), generator=generator) < 0.6 for name in names}
        for mask in masks.values():
            mask[:, 1] |= ~mask.any(dim=1)
        return masks

    @staticmethod
    def run(model: nn.Module, *args: Any, **kwargs: Any) -> ModelOutput:
        """One call from a fixed seed: dropout is then the same twice."""
        torch.manual_seed(5)
        return model(*args, **kwargs)


@pytest.fixture(params=sorted(TOKEN_CASES))
def token_case(request: pytest.FixtureRequest) -> TokenCase:
    return TokenCase(request.param)
