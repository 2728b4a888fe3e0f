"""Finding the partner among many: recall at k and the median rank, from pictures to texts and back.

A query hits at k if at least one of the items that belong to it is among its first k (not the share of them). What
scores the same as the best of them stands before it: a model that gives all pairs one score finds nothing. NaN is the
worst score an item that belongs can have, and the best of any other.

Shapes: N queries, G items of the gallery, E embedding width. Masks: True = present.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyfuse.functional import at_least_float32

_SCORES_AT_ONCE = 1 << 23
KS = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """How often a query finds what belongs to it.

    Attributes:
        gallery: Items that were present.
        queries: Queries that were present and had something to find.
        unanswerable: Queries that were present while nothing of the gallery belonged to them; they count nowhere.
        at: ``{k: share}``.
        median_rank: From 1; of two middle ranks their mean.
    """

    gallery: int
    queries: int
    unanswerable: int
    at: Mapping[int, float]
    median_rank: float


def retrieval_scores(
    images: Tensor,
    texts: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    image_present: Tensor | None = None,
    text_present: Tensor | None = None,
    ks: Sequence[int] = KS,
    scores_at_once: int = _SCORES_AT_ONCE,
) -> dict[str, Recall]:
    """Recall both ways: ``{"image_to_text": ..., "text_to_image": ...}``.

    A picture and a text belong together where their ids are equal: give every caption the id of its picture, and
    pictures or captions that say the same one id. The matrix of scores is never held whole.

    Args:
        images: ``(N, E)`` embeddings; unit vectors give cosines.
        texts: ``(G, E)``.
        image_ids: ``(N,)`` integers.
        text_ids: ``(G,)`` integers.
        image_present: ``(N,)`` bool; absent pictures neither ask nor stand in the gallery, whatever they hold.
        text_present: ``(G,)`` bool.
        ks: Depths.
        scores_at_once: Scores held at a time (4 bytes each, and 3 of masks).

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> captions_of = torch.tensor([0, 0, 1, 2])
        >>> both = retrieval_scores(torch.eye(3), torch.eye(3)[captions_of], torch.arange(3), captions_of)
        >>> both["image_to_text"].at[1], both["text_to_image"].median_rank
        (1.0, 1.0)
    """
    image, image_id = _present(images, image_ids, image_present, "images")
    text, text_id = _present(texts, text_ids, text_present, "texts")
    ways = {"image_to_text": (image, text, image_id, text_id), "text_to_image": (text, image, text_id, image_id)}
    return {
        way: recall(first_right_ranks(*sides, scores_at_once=scores_at_once), len(sides[1]), ks)
        for way, sides in ways.items()
    }


def _present(vectors: Tensor, ids: Tensor, present: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    if vectors.ndim != 2 or ids.shape != vectors.shape[:1] or (present is not None and present.shape != ids.shape):
        raise ValueError(
            f"{name} must be (N, E) with ids (N,) and a mask (N,), got {tuple(vectors.shape)}, {tuple(ids.shape)}"
            + ("" if present is None else f" and {tuple(present.shape)}")
        )
    return (vectors, ids) if present is None else (vectors[present], ids[present])


def first_right_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    scores_at_once: int = _SCORES_AT_ONCE,
) -> Tensor:
    """Rank from 1 of the best item that belongs to each query, by inner products; 0 where none does: ``(N,)`` int64.

    Args:
        queries: ``(N, E)``.
        gallery: ``(G, E)``.
        query_ids: ``(N,)``.
        gallery_ids: ``(G,)``.
        scores_at_once: Scores held at a time.

    Raises:
        ValueError: If widths differ.
    """
    if queries.shape[-1] != gallery.shape[-1]:
        raise ValueError(f"queries and gallery must be of one width, got {queries.shape[-1]} and {gallery.shape[-1]}")
    asked, items = at_least_float32(queries), at_least_float32(gallery)
    blocks = [
        ranks_of_scores(asked[rows] @ items.t(), query_ids[rows], gallery_ids)
        for rows in _blocks(len(asked), max(1, scores_at_once // max(len(items), 1)))
    ]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def ranks_of_scores(scores: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """As ``first_right_ranks``, of scores ``(N, G)`` that are already there (of a matching head, say).

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5, 0.1], [0.5, 0.5, 0.1]])
        >>> ranks_of_scores(scores, torch.tensor([0, 0]), torch.tensor([0, 1, 2])).tolist()
        [1, 2]
    """
    if scores.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(f"scores must be (N, G) = ({len(query_ids)}, {len(gallery_ids)}), got {tuple(scores.shape)}")
    if not scores.numel():
        return torch.zeros(len(query_ids), dtype=torch.int64, device=scores.device)
    right = query_ids[:, None] == gallery_ids[None, :]
    best = scores.masked_fill(~right | scores.isnan(), -torch.inf).amax(dim=1, keepdim=True)
    before = (~right & ~(scores < best)).sum(dim=1)
    return torch.where(right.any(dim=1), before + 1, 0)


def recall(ranks: Tensor, gallery: int, ks: Sequence[int] = KS) -> Recall:
    """Ranks from 1 (0 = nothing to find) to shares; NaN of no queries.

    Example:
        >>> recall(torch.tensor([1, 3, 0, 7]), 9).at[5]
        0.6666666865348816
    """
    found = ranks[ranks > 0]
    at = {k: (found <= k).float().mean().item() for k in ks}
    median = found.double().quantile(0.5).item() if len(found) else float("nan")
    return Recall(gallery, len(found), len(ranks) - len(found), at, median)
