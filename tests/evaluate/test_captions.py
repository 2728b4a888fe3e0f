"""Caption metrics on cases worked out by hand, against plain loops, and BLEU against torchmetrics."""

import math
import random

import pytest
from torchmetrics.text import BLEUScore

from polyfuse.evaluate.captions import DocumentFrequencies, bleu, caption_scores, caption_words, cider_d, rouge_l

WORDS = ("a", "red", "blue", "cube", "ball", "on", "box", "the")


def made(rows: int = 11, seed: int = 3) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 9)))

    references = [[text() for _ in range(draw.randint(1, 3))] for _ in range(rows)]
    captions = [draw.choice([text(), " ".join([*known[0].split()[:-1], "box"])]) for known in references]
    return captions, references


def test_words() -> None:
    assert caption_words("Two dogs' T-shirts, isn't it?  Ça va.") == [
        "two",
        "dogs",
        "t-shirts",
        "isn't",
        "it",
        "ça",
        "va",
    ]


def test_bleu_partial_match_of_mmf() -> None:
    """5 of 10 words right, the first five: 5/10, 4/9, 3/8, 2/7; lengths equal, no penalty."""
    caption = "w0 w1 w2 w3 w4 x5 x6 x7 x8 x9"
    reference = " ".join(f"w{number}" for number in range(10))
    got = bleu([caption], [[reference] * 5])
    want = [
        0.5,
        (1 / 2 * 4 / 9) ** (1 / 2),
        (1 / 2 * 4 / 9 * 3 / 8) ** (1 / 3),
        (1 / 2 * 4 / 9 * 3 / 8 * 2 / 7) ** (1 / 4),
    ]
    assert got == pytest.approx(want)
    assert got[3] == pytest.approx(0.392815, abs=1e-6)
    assert bleu([reference], [[reference] * 5]) == pytest.approx([1.0] * 4)


def test_bleu_clips_and_penalises_by_hand() -> None:
    """Papineni's "the" seven times: 2 of 7 count, 0 of 6 pairs. Six words against eight: exp(1 - 8 / 6)."""
    got = bleu(["the " * 7], [["The cat is on the mat.", "There is a cat on the mat."]], max_n=2)
    assert got == [pytest.approx(2 / 7), 0.0]  # 7 words; the nearest reference has 7 words
    got = bleu(["a red cube on a box"], [["a red cube on a box over there"]], max_n=1)
    assert got == [pytest.approx(math.exp(1 - 8 / 6))]
    # 4 words, references of 3 and 5: both as near, the shorter counts, so no penalty.
    assert bleu(["a b c d"], [["a b c d e", "a b c"]], max_n=1) == [1.0]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_bleu_equals_torchmetrics(n: int) -> None:
    captions, references = made(29)
    expected = BLEUScore(n_gram=n)(captions, references).item()
    assert 0 < expected < 1
    assert bleu(captions, references)[n - 1] == pytest.approx(expected, abs=1e-6)


def test_rouge_by_hand() -> None:
    """red cube on box: 4 of 5 words, 4 of 7; 2.44 * .8 * 4/7 / (4/7 + 1.44 * .8) = .64721."""
    assert rouge_l(["a red cube on box"], [["the red cube is on a box"]]) == [pytest.approx(0.64721, abs=1e-5)]
    # Maxima apart: precision 1/2 by both, recall 1/1 by the second reference.
    want = 2.44 * 0.5 * 1.0 / (1.0 + 1.44 * 0.5)
    assert rouge_l(["red x"], [["red a b c", "red"]]) == [pytest.approx(want)]
    assert rouge_l(["", "a"], [["a"], ["b"]]) == [0.0, 0.0]


def longest(a: list[str], b: list[str]) -> int:
    """The definition: try every subset of the shorter one's words."""
    best = 0
    for chosen in range(1 << len(a)):
        kept = [word for place, word in enumerate(a) if chosen >> place & 1]
        rest = iter(b)
        if all(word in rest for word in kept):
            best = max(best, len(kept))
    return best


def test_rouge_equals_its_definition() -> None:
    captions, references = made()
    for caption, known, got in zip(captions, references, rouge_l(captions, references), strict=True):
        common = [longest(caption.split(), one.split()) for one in known]
        p = max(common) / len(caption.split())
        r = max(c / len(one.split()) for c, one in zip(common, known, strict=True))
        assert got == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p) if p else 0.0)


def test_cider_by_hand() -> None:
    """Two pictures, every n-gram in one of them: all weights are counts times ln 2, which cancels.

    Words: caption (red 2, cube 1), reference (1, 1): clipped 1 + 1 over sqrt(5) sqrt(2). Pairs: caption (red red,
    red cube), reference (red cube): 1 over sqrt(2). No triples in the reference. One word longer: exp(-1 / 72).
    """
    want = 10 / 4 * (2 / math.sqrt(10) + 1 / math.sqrt(2)) * math.exp(-1 / 72)
    got = cider_d(["red red cube", "one ball"], [["red cube"], ["one ball"]])
    assert got == [pytest.approx(want), pytest.approx(5.0)]
    four = cider_d(["one red cube here", "x"], [["one red cube here"], ["y"]])
    assert four == [pytest.approx(10.0), 0.0]


def cider_loops(captions: list[str], references: list[list[str]], sigma: float = 6.0) -> list[float]:
    """The published formula over every n-gram of the whole vocabulary, counted by looking at strings."""

    def count(gram: str, text: str) -> int:
        padded, n = text.split(), len(gram.split())
        return sum(" ".join(padded[i : i + n]) == gram for i in range(len(padded) - n + 1))

    out = []
    for caption, known in zip(captions, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            every = {" ".join(t.split()[i : i + n]) for t in [caption, *known] for i in range(len(t.split()) - n + 1)}
            idf = {
                g: math.log(len(references) / max(1, sum(any(count(g, t) for t in ts) for ts in references)))
                for g in every
            }
            for one in known:
                a = {g: count(g, caption) * idf[g] for g in every}
                b = {g: count(g, one) * idf[g] for g in every}
                size = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
                apart = len(caption.split()) - len(one.split())
                if size:
                    cosine = sum(min(a[g], b[g]) * b[g] for g in every) / size
                    total += cosine * math.exp(-(apart**2) / (2 * sigma**2)) / len(known) / 4
        out.append(10 * total)
    return out


def test_cider_equals_plain_loops() -> None:
    captions, references = made()
    got = cider_d(captions, references)
    assert got == pytest.approx(cider_loops(captions, references))
    assert min(got) < 1 < max(got)
    assert cider_d(captions, references, sigma=1.0) == pytest.approx(cider_loops(captions, references, 1.0))


def test_cider_with_given_frequencies() -> None:
    assert cider_d(["red cube"], [["red cube"]]) == [0.0]  # one picture: log 1 everywhere
    given = DocumentFrequencies.of([["red cube"], ["red ball"], ["a box"]])
    assert given.counts["red",] == 2
    # An n-gram of no document weighs as one of a single document.
    assert cider_d(["new thing"], [["new thing"]], frequencies=given) == [pytest.approx(5.0)]
    captions, references = made()
    pairs = zip(captions, references, strict=True)
    alone = [cider_d([one], [known], frequencies=DocumentFrequencies.of(references))[0] for one, known in pairs]
    assert alone == pytest.approx(cider_d(captions, references))


def test_all_scores_and_refusals() -> None:
    captions, references = made()
    scores = caption_scores(captions, references)
    assert scores["bleu_4"] == bleu(captions, references)[3]
    assert scores["cider_d"] == pytest.approx(sum(cider_d(captions, references)) / len(captions))
    assert scores["rouge_l"] == pytest.approx(sum(rouge_l(captions, references)) / len(captions))
    assert all(math.isnan(value) for value in caption_scores([], []).values())
    assert caption_scores([""], [["a cube"]])["bleu_1"] == 0.0
    for score in (bleu, rouge_l, cider_d):
        with pytest.raises(ValueError, match="1 captions for the references of 2 rows"):
            score(["a"], [["a"], ["b"]])
        with pytest.raises(ValueError, match=r"row 0 must have a sequence of one or more references, got \[\]"):
            score(["a"], [[]])
        with pytest.raises(ValueError, match=r"row 0 .* got 'a'"):
            score(["a"], ["a"])
