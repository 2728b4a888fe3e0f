"""Every encoder learns an easy task from a few hundred rows in a few seconds' worth of steps."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.data.batch import map_tensors
from polyfuse.data.spec import ModalitySpec
from polyfuse.encoders import build_encoder

N, TRAIN = 360, 240


def digits(g: torch.Generator) -> tuple[Any, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    images, target = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images).view(-1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    pick = torch.randperm(len(x), generator=g)[:N]
    return (x[pick] * 15.9).to(torch.uint8), torch.tensor(target)[pick]


def word_order(g: torch.Generator) -> tuple[Any, Tensor]:
    """Which of two words comes first, amid others: a bag of words cannot tell."""
    ids = torch.randint(4, 12, (N, 6), generator=g)
    target = torch.randint(0, 2, (N,), generator=g)
    first = torch.randint(0, 3, (N,), generator=g)
    rows = torch.arange(N)
    ids[rows, first], ids[rows, first + 3] = torch.where(target == 0, 2, 3), torch.where(target == 0, 3, 2)
    return {"ids": ids.int(), "mask": torch.ones(N, 6, dtype=torch.bool)}, target


def keyword(g: torch.Generator) -> tuple[Any, Tensor]:
    ids = torch.randint(5, 40, (N, 6), generator=g)
    target = torch.randint(0, 3, (N,), generator=g)
    ids[torch.arange(N), torch.randint(0, 6, (N,), generator=g)] = 2 + target
    return {"ids": ids.int(), "mask": torch.ones(N, 6, dtype=torch.bool)}, target


def pitch(g: torch.Generator) -> tuple[Any, Tensor]:
    """Tones in noise, of any loudness."""
    target = torch.randint(0, 3, (N,), generator=g)
    hertz = torch.tensor([300.0, 500.0, 800.0])[target] * (0.9 + 0.2 * torch.rand(N, generator=g))
    wave = torch.sin(2 * math.pi * hertz[:, None] * torch.arange(800) / 4000) + torch.randn(N, 800, generator=g)
    gain = 300 + 4000 * torch.rand(N, 1, generator=g)
    return {"wave": (wave * gain).to(torch.int16), "length": torch.full((N,), 800)}, target


def parity(g: torch.Generator) -> tuple[Any, Tensor]:
    """Sign of a number, turned round by a category; the other number is missing at random."""
    numeric = torch.randn(N, 2, generator=g)
    mask = torch.stack([torch.ones(N, dtype=torch.bool), torch.rand(N, generator=g) < 0.5], dim=1)
    category = torch.randint(1, 3, (N, 1), generator=g)
    target = ((numeric[:, 0] > 0) ^ (category[:, 0] == 1)).long()
    return {"numeric": numeric * mask, "numeric_mask": mask, "categorical": category}, target


def rhythm(g: torch.Generator) -> tuple[Any, Tensor]:
    target = torch.randint(0, 2, (N,), generator=g)
    phase = 6.3 * torch.rand(N, 1, 1, generator=g)
    steps = torch.arange(40)[None, :, None]
    values = torch.sin(phase + steps * torch.where(target == 0, 0.5, 0.9)[:, None, None])
    values = values.expand(-1, -1, 2) + 0.3 * torch.randn(N, 40, 2, generator=g)
    mask = torch.arange(40) < torch.randint(25, 41, (N, 1), generator=g)
    return {"values": values * mask[..., None], "mask": mask}, target


def ring(g: torch.Generator) -> tuple[Any, Tensor]:
    x = torch.randn(N, 3, generator=g)
    return x, (x[:, :2].norm(dim=1) > 1.18).long()


TASKS: dict[str, tuple[ModalitySpec, str | None, Callable[[torch.Generator], tuple[Any, Tensor]], int, float]] = {
    "digits": (ModalitySpec("x", "image", {"size": 16}), None, digits, 60, 0.85),
    "word order": (ModalitySpec("x", "text", {"vocab_size": 12, "max_length": 6}), None, word_order, 150, 0.9),
    "keyword": (ModalitySpec("x", "text", {"vocab_size": 40, "max_length": 6}), None, keyword, 60, 0.9),
    "bag": (ModalitySpec("x", "text", {"vocab_size": 40, "max_length": 6}), "text_bag", keyword, 60, 0.9),
    "pitch": (ModalitySpec("x", "audio", {"rate": 4000, "samples": 800}), None, pitch, 60, 0.9),
    "parity": (ModalitySpec("x", "tabular", {"numeric": 2, "cardinalities": [3]}), None, parity, 80, 0.9),
    "rhythm": (ModalitySpec("x", "series", {"channels": 2, "length": 40}), None, rhythm, 60, 0.9),
    "ring": (ModalitySpec("x", "vector", {"width": 3}), None, ring, 150, 0.88),
}


@pytest.mark.parametrize("task", TASKS)
def test_learns(task: str) -> None:
    spec, name, make, steps, wanted = TASKS[task]
    x, y = make(torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(build_encoder(spec, 16, name), nn.Linear(16, int(y.max()) + 1))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rows = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(0, TRAIN, (32,), generator=rows)
        loss = nn.functional.cross_entropy(model(map_tensors({"": x}, lambda t, b=batch: t[b])[""]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(map_tensors({"": x}, lambda t: t[TRAIN:])[""]).argmax(dim=1) == y[TRAIN:]
    assert float(right.float().mean()) >= wanted, float(right.float().mean())
