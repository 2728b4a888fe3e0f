"""Where a token stands: in a row, on a grid, in a box; and which modality it belongs to.

Shapes: B batch, T tokens, D width, R regions. Masks: True = present; absent tokens come out as zeros, whatever (NaN
included) stood there, and their gradient is zero.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def _present(x_BTD: Tensor, token_mask: Tensor | None) -> Tensor:
    """Zeros at absent tokens."""
    if token_mask is None:
        return x_BTD
    if token_mask.dtype != torch.bool or token_mask.shape != x_BTD.shape[:2]:
        got = f"{token_mask.dtype} {tuple(token_mask.shape)}"
        raise ValueError(f"token_mask must be bool of shape (B, T) = {tuple(x_BTD.shape[:2])}, got {got}")
    return x_BTD.masked_fill(~token_mask[..., None], 0.0)


def sinusoidal_table(
    length: int, dim: int, *, base: float = 10000.0, first: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """``(length, dim)``: column 2i is ``sin(position / base^(2i / dim))``, column 2i + 1 its cosine.

    Source: https://arxiv.org/abs/1706.03762, section 3.5.

    Raises:
        ValueError: If ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"a sinusoidal table needs an even dim, got {dim}")
    position = torch.arange(first, first + length, dtype=torch.float32, device=device)[:, None]
    rate = base ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    return torch.stack(((position * rate).sin(), (position * rate).cos()), dim=-1).flatten(1)


class LearnedPositions(nn.Module):
    """Add a learned vector per place in the row.

    Args:
        max_length: Places.
        dim: Width D.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> LearnedPositions(16, 4)(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        max_length: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, dim, device=device, dtype=dtype)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x_BTD: Tensor, token_mask: Tensor | None = None, *, first: int = 0) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``; the first token stands at ``first`` (a decoder that runs token by token).

        Raises:
            ValueError: If there are more tokens than places, or the mask does not fit.
        """
        end, most = first + x_BTD.shape[1], self.table.num_embeddings
        if end > most:
            raise ValueError(f"there are {most} positions, got tokens up to {end}")
        return _present(x_BTD + self.table.weight[first:end], token_mask)


class SinusoidalPositions(nn.Module):
    """Add ``sinusoidal_table``: no parameters, any length.

    Args:
        dim: Width D, even.
        base: Of the wavelengths.

    Raises:
        ValueError: If ``dim`` is odd.
    """

    def __init__(self, dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"a sinusoidal table needs an even dim, got {dim}")
        self.dim, self.base = dim, base

    def forward(self, x_BTD: Tensor, token_mask: Tensor | None = None, *, first: int = 0) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``; the first token stands at ``first``.

        Raises:
            ValueError: If the mask does not fit.
        """
        table = sinusoidal_table(x_BTD.shape[1], self.dim, base=self.base, first=first, device=x_BTD.device)
        return _present(x_BTD + table.to(x_BTD.dtype), token_mask)


class GridPositions(nn.Module):
    """Add the place on a grid: half of the width says the row, half the column.

    Source: learned, https://arxiv.org/abs/2005.12872, appendix A.4 (DETR); sinusoidal, the same with
    ``sinusoidal_table`` per axis. Rows come first here.

    Args:
        dim: Width D: even if learned, divisible by 4 if sinusoidal.
        size: Most rows and columns of a learned table; None = sinusoidal, any size.
        base: Of the wavelengths.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``dim`` cannot be divided so.

    Example:
        >>> GridPositions(8)(torch.zeros(3, 6, 8), grid=(2, 3)).shape
        torch.Size([3, 6, 8])
        >>> GridPositions(8, size=(7, 7))(torch.zeros(3, 6, 8), grid=(2, 3)).shape
        torch.Size([3, 6, 8])
    """

    def __init__(
        self,
        dim: int,
        size: tuple[int, int] | None = None,
        *,
        base: float = 10000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        parts = 4 if size is None else 2
        if dim % parts:
            raise ValueError(f"grid positions need a dim divisible by {parts}, got {dim}")
        self.dim, self.size, self.base = dim, size, base
        self.tables: nn.ParameterList | None = None
        if size is not None:
            self.tables = nn.ParameterList(
                nn.Parameter(torch.randn(length, dim // 2, device=device, dtype=dtype) * 0.02) for length in size
            )

    def forward(self, x_BTD: Tensor, grid: tuple[int, int], token_mask: Tensor | None = None) -> Tensor:
        """``(B, rows * columns, D)``, row by row, to the same shape.

        Raises:
            ValueError: If the tokens do not fill the grid, the grid is larger than the table, or the mask does not fit.
        """
        rows, columns = grid
        if x_BTD.shape[1] != rows * columns:
            raise ValueError(f"a grid of {rows} x {columns} has {rows * columns} tokens, got {x_BTD.shape[1]}")
        if self.tables is None:
            half = self.dim // 2
            down, across = (sinusoidal_table(n, half, base=self.base, device=x_BTD.device) for n in grid)
        else:
            if self.size is not None and (rows > self.size[0] or columns > self.size[1]):
                raise ValueError(f"the table has {self.size[0]} x {self.size[1]} places, got a grid of {grid}")
            down, across = self.tables[0][:rows], self.tables[1][:columns]
        table = torch.cat((down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)), dim=-1)
        return _present(x_BTD + table.flatten(0, 1).to(x_BTD.dtype), token_mask)


def box_features(boxes_BR4: Tensor, image_size: Tensor | tuple[float, float], kind: int = 5) -> Tensor:
    """``(..., R, kind)`` from corners ``x1, y1, x2, y2`` in pixels.

    Args:
        boxes_BR4: ``(..., R, 4)``.
        image_size: Width and height: one pair, or a tensor ``(..., 2)`` with one pair per image.
        kind: 4 = normalised corners (LXMERT); 5 = and the area (ViLBERT); 7 = and width, height, area (UNITER).

    Raises:
        ValueError: If ``kind`` is another number, or boxes do not have 4 coordinates.

    Example:
        >>> box_features(torch.tensor([[10.0, 10.0, 30.0, 50.0]]), (40, 100), kind=7)
        tensor([[0.2500, 0.1000, 0.7500, 0.5000, 0.5000, 0.4000, 0.2000]])
    """
    if kind not in (4, 5, 7):
        raise ValueError(f"kind must be 4, 5 or 7 coordinates, got {kind}")
    if boxes_BR4.shape[-1] != 4:
        raise ValueError(f"boxes must have 4 coordinates (x1, y1, x2, y2), got {boxes_BR4.shape[-1]}")
    size = torch.as_tensor(image_size, dtype=boxes_BR4.dtype, device=boxes_BR4.device)
    size = size[..., None, :] if size.ndim > 1 else size
    corners = boxes_BR4 / torch.cat((size, size), dim=-1)
    sides = corners[..., 2:] - corners[..., :2]
    area = sides[..., :1] * sides[..., 1:]
    return torch.cat({4: (corners,), 5: (corners, area), 7: (corners, sides, area)}[kind], dim=-1)


class BoxPositions(nn.Module):
    """A linear map of a box's numbers to the width of the tokens.

    Args:
        num_coordinates: Numbers of a box, as ``box_features`` makes them.
        dim: Width D.
        norm: A LayerNorm behind the map (UNITER, LXMERT); False = none (ViLBERT norms the sum).
        eps: Of the norm.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> BoxPositions(5, 8)(torch.zeros(3, 7, 5)).shape
        torch.Size([3, 7, 8])
    """

    def __init__(
        self,
        num_coordinates: int,
        dim: int,
        *,
        norm: bool = False,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(num_coordinates, dim, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype) if norm else nn.Identity()

    def forward(self, boxes_BRC: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """``(B, R, C)`` to ``(B, R, D)``: to be added to the regions.

        Raises:
            ValueError: If a box has another number of coordinates, or the mask does not fit.
        """
        wanted = self.project.in_features
        if boxes_BRC.shape[-1] != wanted:
            raise ValueError(f"a box must have {wanted} coordinates, got {boxes_BRC.shape[-1]}")
        return _present(self.norm(self.project(_present(boxes_BRC, token_mask))), token_mask)


class ModalityTypes(nn.Module):
    """Add a learned vector per modality, by name.

    Args:
        modalities: Names, in the order of the table's rows.
        dim: Width D.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a name comes twice.

    Example:
        >>> types = ModalityTypes(("image", "text"), 4)
        >>> sorted(types({"text": torch.zeros(3, 5, 4), "image": torch.zeros(3, 7, 4)}))
        ['image', 'text']
    """

    def __init__(
        self,
        modalities: Sequence[str],
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities must be distinct, got {list(self.modalities)}")
        self.table = nn.Embedding(len(self.modalities), dim, device=device, dtype=dtype)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(
        self, tokens: Mapping[str, Tensor], token_mask: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``{name: (B, T_m, D)}`` to the same; ``token_mask`` ``{name: (B, T_m)}`` where some are absent.

        Raises:
            ValueError: If a name is unknown, or a mask does not fit.
        """
        unknown = [name for name in tokens if name not in self.modalities]
        if unknown:
            raise ValueError(f"unknown modalities {unknown}; known: {list(self.modalities)}")
        masks = {} if token_mask is None else token_mask
        return {
            name: _present(tokens[name] + self.table.weight[place], masks.get(name))
            for place, name in enumerate(self.modalities)
            if name in tokens
        }
