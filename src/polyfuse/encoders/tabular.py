"""Table cells to one vector: numbers with a mask of the missing ones, categories as embeddings, then an MLP.

Shapes: B batch, F numeric columns, C categorical columns, D embedding width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TabularMLP(nn.Module):
    """Residual MLP over numeric and categorical cells, any of which may be missing.

    A missing number is a zero (the training mean) plus an indicator of its own; a missing or unknown category is id 0,
    which has an embedding like any other. Numbers are clipped smoothly at three standard deviations,
    x / sqrt(1 + (x/3)^2) (RealMLP, https://arxiv.org/abs/2407.04491, section 3), so that one wild cell cannot swamp
    a row.

    Args:
        embed_dim: Width D of the output.
        numeric: Number of numeric columns F.
        cardinalities: Ids of each categorical column, id 0 included.
        hidden_dim: Width of the MLP.
        num_layers: Residual blocks.
        category_dim: Width of a category's embedding.
        dropout: In every block.

    Raises:
        ValueError: If there is no column at all.

    Example:
        >>> encoder = TabularMLP(8, numeric=2, cardinalities=[3])
        >>> cells = {"numeric": torch.zeros(4, 2), "numeric_mask": torch.zeros(4, 2, dtype=torch.bool)}
        >>> encoder(cells | {"categorical": torch.zeros(4, 1, dtype=torch.int64)}).shape
        torch.Size([4, 8])
    """

    modality_type = "tabular"

    def __init__(
        self,
        embed_dim: int,
        *,
        numeric: int = 0,
        cardinalities: Sequence[int] = (),
        hidden_dim: int = 128,
        num_layers: int = 2,
        category_dim: int = 8,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not numeric and not cardinalities:
            raise ValueError("a tabular encoder needs a numeric or a categorical column, got none of either")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.cardinalities = tuple(cardinalities)
        self.offsets = [sum(self.cardinalities[:c]) for c in range(len(self.cardinalities))]
        # One table for all columns: one look-up a batch instead of one per column.
        self.categories = nn.Embedding(sum(self.cardinalities), category_dim, **factory) if cardinalities else None
        self.stem = nn.Linear(2 * numeric + category_dim * len(self.cardinalities), hidden_dim, **factory)
        self.blocks = nn.ModuleList(_Block(hidden_dim, dropout, **factory) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim, **factory)
        self.project = nn.Linear(hidden_dim, embed_dim, **factory)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch.

        Shape:
            - inputs: ``numeric (B, F)`` float, ``numeric_mask (B, F)`` bool, ``categorical (B, C)`` int64.
            - returns ``(B, D)``.
        """
        mask = inputs["numeric_mask"]
        numeric = inputs["numeric"].to(self.stem.weight.dtype).masked_fill(~mask, 0.0)
        parts = [numeric * (1.0 + (numeric / 3.0).square()).rsqrt(), (~mask).to(numeric.dtype)]
        if self.categories is not None:
            ids = inputs["categorical"]
            known = ids.new_tensor(self.cardinalities)
            ids = torch.where((ids >= 0) & (ids < known), ids, 0) + ids.new_tensor(self.offsets)
            parts.append(self.categories(ids).flatten(1).to(numeric.dtype))
        x = self.stem(torch.cat(parts, dim=-1))
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x))


class _Block(nn.Module):
    """x + dropout(linear(gelu(linear(norm(x)))))."""

    def __init__(self, width: int, dropout: float, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, **factory)
        self.inner = nn.Linear(width, width, **factory)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.outer(nn.functional.gelu(self.inner(self.norm(x)))))
