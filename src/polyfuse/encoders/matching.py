"""Inputs of the small matchers: features of several text networks side by side, word ids, ink.

Shapes: N items, D features, L words, S pixels.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

MATCHER_SETTINGS = "matcher.json"


def text_features(networks: Mapping[str, Any], texts: Sequence[str]) -> np.ndarray:
    """``(N, D)`` float32: every network's features at length 1, side by side."""
    parts = [network(list(texts)) for network in networks.values()]
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-6) for part in parts], axis=1)


def word_list(text: str) -> list[str]:
    """Words as ``word_ids`` reads them.

    Example:
        >>> word_list("Semi-bold Letter")
        ['semi', 'bold', 'letter']
    """
    return text.lower().replace("-", " ").split()


def word_ids(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Tensor:
    """``(N, L)`` ids of the words and neighbouring pairs of words that are known, padded by 0.

    Example:
        >>> word_ids(["small letter e", "e"], {"small": 1, "letter": 2, "e": 3, "small letter": 4})
        tensor([[1, 2, 3, 4],
                [3, 0, 0, 0]])
    """
    rows = []
    for text in texts:
        words = word_list(text)
        pieces = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
        rows.append([vocabulary[piece] for piece in pieces if piece in vocabulary])
    width = max([1, *map(len, rows)])
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def ink(pictures: np.ndarray) -> Tensor:
    """``(N, 1, S, S)`` in [0, 1], the drawing 1 and the ground 0, of ``(N, S, S, 3)`` or ``(N, S, S)`` uint8.

    The ground is what most of the border is.
    """
    grey = pictures if pictures.ndim == 3 else pictures.astype(np.float32).mean(axis=-1)
    x = torch.from_numpy(grey.astype(np.float32) / 255)[:, None]
    border = torch.cat([x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0], x[:, 0, :, -1]], dim=1)
    light = border.median(dim=1).values > 0.5
    return torch.where(light[:, None, None, None], 1 - x, x)
