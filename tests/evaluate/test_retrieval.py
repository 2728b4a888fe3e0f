"""Recall at k: published numbers, several captions, ties, absent rows, blocks; against sorting in plain loops."""

import math

import pytest
import torch

from polyfuse.evaluate import retrieval as module
from polyfuse.evaluate.retrieval import first_right_ranks, ranks_of_scores, recall, retrieval_scores

IMAGES, TEXTS, WIDTH = 7, 23, 5


def made() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, WIDTH, generator=generator, dtype=torch.float64)
    texts = torch.randn(TEXTS, WIDTH, generator=generator, dtype=torch.float64)
    return images, texts, torch.arange(IMAGES), torch.randint(0, IMAGES, (TEXTS,), generator=generator)


def loop(queries: torch.Tensor, gallery: torch.Tensor, own: torch.Tensor, theirs: torch.Tensor) -> list[int]:
    """Sort, wrong before right at equal scores, and look for the first that belongs."""
    ranks = []
    for query, number in zip(queries.tolist(), own.tolist(), strict=True):
        scored = [
            (-sum(a * b for a, b in zip(query, item, strict=True)), belongs == number)
            for item, belongs in zip(gallery.tolist(), theirs.tolist(), strict=True)
        ]
        order = [right for _, right in sorted(scored)]
        ranks.append(order.index(True) + 1 if True in order else 0)
    return ranks


def test_numbers_of_mmf() -> None:
    torch.manual_seed(1234)
    first, second = torch.rand(10, 4), torch.rand(10, 4)
    ids = torch.arange(10)
    found = recall(ranks_of_scores(second @ first.t(), ids, ids), 10)
    assert {k: pytest.approx(share) for k, share in found.at.items()} == {1: 0.1, 5: 0.4, 10: 1.0}


def test_both_ways_equal_sorting() -> None:
    images, texts, image_ids, text_ids = made()
    both = retrieval_scores(images, texts, image_ids, text_ids, ks=(1, 3))
    for way, sides in {
        "image_to_text": (images, texts, image_ids, text_ids),
        "text_to_image": (texts, images, text_ids, image_ids),
    }.items():
        want = loop(*sides)
        assert first_right_ranks(*sides).tolist() == want
        found = [rank for rank in want if rank]
        assert both[way].at == {k: pytest.approx(sum(r <= k for r in found) / len(found)) for k in (1, 3)}
        assert both[way].median_rank == sorted(found)[len(found) // 2] or not len(found) % 2
        assert (both[way].gallery, both[way].queries) == (len(sides[1]), len(found))


def test_one_of_five_captions_in_the_top_is_a_hit() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.1, 0.1, 0.1, 0.5]])
    found = recall(ranks_of_scores(scores, torch.tensor([0]), torch.tensor([0, 0, 0, 0, 0, 1])), 6)
    assert found.at[1] == 1.0


def test_duplicates_by_id_are_right_too() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.1, 0.2, 0.3]])
    assert ranks_of_scores(scores, torch.arange(3), torch.arange(3)).tolist() == [3, 3, 1]
    ids = torch.tensor([4, 4, 6])
    assert ranks_of_scores(scores, ids, ids).tolist() == [1, 1, 1]


def test_ties_stand_before_the_right_one() -> None:
    collapsed = torch.ones(11, 3)
    both = retrieval_scores(collapsed, collapsed, torch.arange(11), torch.arange(11))
    assert both["image_to_text"].at == {1: 0.0, 5: 0.0, 10: 0.0}
    assert both["image_to_text"].median_rank == 11
    same = torch.full((1, 4), 0.5)
    assert ranks_of_scores(same, torch.tensor([1]), torch.tensor([1, 1, 2, 3])).tolist() == [3]


def test_nan_never_helps() -> None:
    scores = torch.tensor([[math.nan, 0.1, 0.2], [0.5, math.nan, 0.1], [math.nan] * 3, [0.3, 0.1, -math.inf]])
    assert ranks_of_scores(scores, torch.tensor([0, 0, 0, 2]), torch.arange(3)).tolist() == [3, 2, 3, 3]
    assert ranks_of_scores(scores[:1], torch.tensor([0]), torch.tensor([0, 1, 0])).tolist() == [1]  # nor spoils another


def test_absent_rows_are_nowhere_whatever_they_hold() -> None:
    images, texts, image_ids, text_ids = made()
    image_present, text_present = torch.ones(IMAGES, dtype=torch.bool), torch.ones(TEXTS, dtype=torch.bool)
    image_present[2], text_present[::4] = False, False
    broken, holes = images.clone(), texts.clone()
    broken[2], holes[::4] = math.nan, math.inf
    masks = {"image_present": image_present, "text_present": text_present}
    masked = retrieval_scores(broken, holes, image_ids, text_ids, **masks)
    dropped = retrieval_scores(
        images[image_present], texts[text_present], image_ids[image_present], text_ids[text_present]
    )
    assert masked == dropped
    assert masked["text_to_image"].unanswerable == int((text_ids[text_present] == 2).sum()) > 0
    assert masked != retrieval_scores(images, texts, image_ids, text_ids)


def test_no_queries_and_no_gallery() -> None:
    nothing, some = torch.zeros(0, 3), torch.ones(2, 3)
    ids = torch.arange(2)
    both = retrieval_scores(nothing, some, ids[:0], ids)
    assert math.isnan(both["image_to_text"].at[1])
    assert both["text_to_image"].unanswerable == 2
    assert math.isnan(both["text_to_image"].median_rank)


def test_blocks_change_nothing_and_bound_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, image_ids, text_ids = made()
    held = []

    def watched(scores: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
        held.append(scores.numel())
        return ranks_of_scores(scores, *ids)

    monkeypatch.setattr(module, "ranks_of_scores", watched)
    whole = retrieval_scores(images, texts, image_ids, text_ids)
    assert max(held) == IMAGES * TEXTS
    held.clear()
    assert retrieval_scores(images, texts, image_ids, text_ids, scores_at_once=2 * TEXTS) == whole
    assert max(held) <= 2 * TEXTS
    assert len(held) == 4 + 4
    assert retrieval_scores(images, texts, image_ids, text_ids, scores_at_once=1) == whole


def test_half_precision_is_compared_in_single() -> None:
    images, texts, image_ids, text_ids = made()
    low, single = (first_right_ranks(images.to(d), texts.to(d), image_ids, text_ids) for d in (torch.half, torch.float))
    assert low.tolist() == single.tolist()


def test_refusals() -> None:
    images, texts, image_ids, text_ids = made()
    with pytest.raises(ValueError, match=r"images must be .* got \(7, 5\), \(23,\)"):
        retrieval_scores(images, texts, text_ids, text_ids)
    with pytest.raises(ValueError, match="one width, got 5 and 4"):
        retrieval_scores(images, texts[:, :4], image_ids, text_ids)
    with pytest.raises(ValueError, match=r"\(N, G\) = \(7, 23\), got \(7, 22\)"):
        ranks_of_scores((images @ texts.t())[:, 1:], image_ids, text_ids)
