"""What the chapter's toy listings come to, assembled from torch.nn: their counts, and shapes that the prose promises.

Only listings whose layers follow from their stated sizes and count stand here; none of them is a model of this package.
"""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import Attention, CoAttention, CrossModalAttention

B, T, K = 3, 5, 7


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Early(nn.Module):
    """One linear layer over both inputs side by side."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.joint = nn.Linear(2 * dim, hidden_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.joint(torch.cat((text, image), dim=-1))


class Late(nn.Module):
    """A linear layer per input, and one over both results."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(dim, hidden_dim), nn.Linear(dim, hidden_dim)
        self.joint = nn.Linear(2 * hidden_dim, hidden_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.joint(torch.cat((self.text(text), self.image(image)), dim=-1))


class Hybrid(nn.Module):
    """Linear layers over ``(early(cat), text + image)``: the reading of the formula that has the stated count."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.early = Early(dim, hidden_dim)
        self.joint, self.out = nn.Linear(hidden_dim + dim, dim), nn.Linear(dim, hidden_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.out(self.joint(torch.cat((self.early(text, image), text + image), dim=-1)))


class Uniter(nn.Module):
    """Two projections, layers of Linear and ReLU over their sum, two classes."""

    def __init__(self, dim: int, hidden_dim: int, layers: int) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(dim, hidden_dim), nn.Linear(dim, hidden_dim)
        self.encoder = nn.Sequential(*(nn.Linear(hidden_dim, hidden_dim) for _ in range(layers)))
        self.match = nn.Linear(hidden_dim, 2)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        x = self.text(text) + self.image(image)
        for layer in self.encoder:
            x = layer(x).relu()
        return self.match(x)


@pytest.mark.parametrize(
    ("module", "dim", "out_dim", "parameters"),
    [
        (Early(128, 64), 128, 64, 16_448),
        (Late(128, 64), 128, 64, 24_768),
        (Hybrid(128, 64), 128, 64, 49_408),
        (Uniter(768, 512, 4), 768, 2, 1_839_106),
        (Late(512, 256), 512, 256, 393_984),  # the toy of masked words and matching: the same three layers
    ],
)
def test_counts_and_shapes_of_the_listings(module: nn.Module, dim: int, out_dim: int, parameters: int) -> None:
    assert count(module) == parameters
    assert module(torch.zeros(B, dim), torch.zeros(B, dim)).shape == (B, out_dim)


def test_hybrid_adds_the_late_path() -> None:
    """Linear in both: a change that early and late see apart shows as the sum of its parts."""
    torch.manual_seed(0)
    hybrid = Hybrid(11, 7).double()
    text, image, change = (torch.randn(B, 11, dtype=torch.float64) for _ in range(3))
    moved = hybrid(text + change, image - change)  # the sum of the two stays
    early = hybrid.early(text + change, image - change) - hybrid.early(text, image)
    shift = early @ hybrid.joint.weight[:, :7].T @ hybrid.out.weight.T
    torch.testing.assert_close(moved, hybrid(text, image) + shift)


def test_cross_attention_has_the_length_of_the_text() -> None:
    text, image = torch.randn(B, T, 12), torch.randn(B, K, 10)
    assert CrossModalAttention(12, 10).text_over_image(text, image).shape == (B, T, 12)
    assert Attention(12, 2, context_dim=10)(text, image).shape == (B, T, 12)


def test_co_attention_keeps_both_lengths() -> None:
    text, image = torch.randn(B, T, 12), torch.randn(B, K, 10)
    first, second = CoAttention((12, 10), 2)(text, image)
    assert (first.shape, second.shape) == (text.shape, image.shape)


@pytest.mark.parametrize("modalities", [2, 3, 4, 5])
def test_combine_has_a_cross_attention_per_pair(modalities: int) -> None:
    torch.manual_seed(0)
    tokens = [torch.randn(B, n, 12) for n in (3, 5, 7, 11, 13)[:modalities]]
    pairs = list(combinations(range(modalities), 2))
    assert len(pairs) == modalities * (modalities - 1) // 2
    layers = nn.ModuleList(CrossModalAttention(12, pool=True) for _ in pairs)
    combined = sum(layer(tokens[i], tokens[j]) for layer, (i, j) in zip(layers, pairs, strict=True))
    assert isinstance(combined, Tensor)
    assert combined.shape == (B, 12)
