"""Keys and values of tokens that have been seen, so that the next token costs one row and not all of them.

Shapes: B batch, H heads, T tokens, d width of a head.
"""

import torch
from torch import Tensor


class KeyValueCache:
    """Room for ``max_length`` tokens, taken at the first ``append``; nothing is copied when a token is added.

    Args:
        max_length: Most tokens; None = as many as the first ``append`` brings (a context that does not grow).
    """

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = max_length
        self.length = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._spare_key: Tensor | None = None
        self._spare_value: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether anything is in it."""
        return self.length > 0

    def append(self, key_BHTd: Tensor, value_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens; return all keys and values so far.

        Raises:
            ValueError: If there is no room left, or rows, heads or widths are others than before.
        """
        batch, heads, new, width = key_BHTd.shape
        if self._key is None or self._value is None:
            room = new if self.max_length is None else self.max_length
            self._key = key_BHTd.new_empty(batch, heads, room, width)
            self._value = value_BHTd.new_empty(batch, heads, room, value_BHTd.shape[-1])
        held = self._key.shape
        if (batch, heads, width) != (held[0], held[1], held[3]):  # a single row would be broadcast over all
            raise ValueError(
                f"the cache holds keys of ({held[0]}, {held[1]}, *, {held[3]}), got {tuple(key_BHTd.shape)}"
            )
        end = self.length + new
        if end > held[2]:
            raise ValueError(f"the cache has room for {held[2]} tokens, got {end}")
        self._key[:, :, self.length : end] = key_BHTd
        self._value[:, :, self.length : end] = value_BHTd
        self.length = end
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, ``(B, H, length, d)`` each.

        Raises:
            ValueError: If nothing was appended.
        """
        if self._key is None or self._value is None:
            raise ValueError("the cache is empty: append keys and values first")
        return self._key[:, :, : self.length], self._value[:, :, : self.length]

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows ``rows (B',)`` in that order: what beam search does after every token, and finished rows.

        Two buffers take turns while their number stays the same (fresh memory costs several times the copy): what
        ``read`` gave before is overwritten by the second ``reorder`` after it.
        """
        if self._key is None or self._value is None:
            return
        key, spare_key = self._taken(self._key, self._spare_key, rows)
        value, spare_value = self._taken(self._value, self._spare_value, rows)
        self._key, self._spare_key, self._value, self._spare_value = key, spare_key, value, spare_value

    def _taken(self, held: Tensor, spare: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of one buffer, and the buffer for the next time. Only tokens that are there are copied."""
        if torch.is_grad_enabled() and held.requires_grad:
            return held.index_select(0, rows), None
        if spare is None or len(spare) != len(rows):
            spare = held.new_empty(len(rows), *held.shape[1:])
        torch.index_select(held[:, :, : self.length], 0, rows, out=spare[:, :, : self.length])
        return spare, held


def caches(number: int, max_length: int | None = None) -> list[KeyValueCache]:
    """One cache per layer."""
    return [KeyValueCache(max_length) for _ in range(number)]
