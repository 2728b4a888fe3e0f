"""One `case` per registry entry: every test of this folder runs over every fusion, new ones included."""

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
from polyfuse.models import FusionModel

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
