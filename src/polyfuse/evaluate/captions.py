"""How near a caption is to those people wrote: BLEU, ROUGE-L and CIDEr-D.

All work on words: lower case, punctuation dropped, as the COCO evaluation drops it (its tokenizer also parts "don't"
and hyphens; pass ``split`` for another rule). Each row has one caption and one or more references. A score of no rows
is NaN.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Words = Sequence[str]
Split = Callable[[str], Words]
Gram = tuple[str, ...]
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def caption_words(text: str) -> list[str]:
    """The words of a caption.

    Example:
        >>> caption_words("A man's T-shirt, red.")
        ['a', "man's", 't-shirt', 'red']
    """
    return _WORD.findall(text.lower())


def grams(words: Words, n: int) -> list[Gram]:
    """The n words that follow each other, in order.

    Example:
        >>> grams(["a", "red", "cube"], 2)
        [('a', 'red'), ('red', 'cube')]
    """
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _rows(
    captions: Sequence[str], references: Sequence[Sequence[str]], split: Split
) -> list[tuple[Words, list[Words]]]:
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions for the references of {len(references)} rows")
    for row, known in enumerate(references):
        if isinstance(known, str) or not known:
            raise ValueError(f"row {row} must have a sequence of one or more references, got {known!r}")
    return [
        (split(caption), [split(one) for one in known]) for caption, known in zip(captions, references, strict=True)
    ]


def bleu(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, max_n: int = 4, split: Split = caption_words
) -> list[float]:
    """BLEU-1 to BLEU-``max_n`` of all captions together, without smoothing.

    The clipped matches and n-grams of all rows are summed before they are divided; the brevity penalty is
    exp(1 - r / c) for c words in all captions and r in the references nearest in length (the shorter of two as near).

    Source: https://aclanthology.org/P02-1040, section 2.

    Args:
        captions: One per row.
        references: One or more per row.
        max_n: Longest n-gram.
        split: Text to words.

    Returns:
        ``max_n`` numbers in [0, 1]; 0 where no n-gram matches.

    Raises:
        ValueError: If lengths differ or a row has no reference.

    Example:
        >>> [round(x, 3) for x in bleu(["a red cube on a box"], [["a red cube on the box"]], max_n=2)]
        [0.833, 0.707]
    """
    rows = _rows(captions, references, split)
    if not rows:
        return [math.nan] * max_n
    matched, said = np.zeros(max_n), np.zeros(max_n)
    length = nearest = 0
    for caption, known in rows:
        length += len(caption)
        nearest += min((abs(len(one) - len(caption)), len(one)) for one in known)[1]
        for n in range(1, max_n + 1):
            counts = Counter(grams(caption, n))
            most: Counter[Gram] = Counter()
            for one in known:
                most |= Counter(grams(one, n))
            matched[n - 1] += (counts & most).total()
            said[n - 1] += counts.total()
    if not matched[0]:
        return [0.0] * max_n
    penalty = min(0.0, 1.0 - nearest / length)
    with np.errstate(divide="ignore"):
        precision = np.log(matched / said.clip(min=1))
    return [math.exp(penalty + precision[:n].mean()) for n in range(1, max_n + 1)]


def common_length(first: Words, second: Words) -> int:
    """Length of the longest sequence of words that stands in both in this order, gaps allowed.

    Example:
        >>> common_length("a red cube".split(), "a cube is red".split())
        2
    """
    row = [0] * (len(second) + 1)
    for word in first:
        corner = 0
        for place, other in enumerate(second, start=1):
            corner, row[place] = row[place], corner + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def rouge_l(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, beta: float = 1.2, split: Split = caption_words
) -> list[float]:
    """ROUGE-L per row: (1 + beta²) P R / (R + beta² P), P and R each the largest over the row's references.

    Source: https://aclanthology.org/W04-1013, section 3.1, with the maxima and beta of the COCO evaluation.

    Args:
        captions: One per row.
        references: One or more per row.
        beta: Weight of recall against precision.
        split: Text to words.

    Raises:
        ValueError: If lengths differ or a row has no reference.

    Example:
        >>> rouge_l(["a red cube"], [["a red cube"]])
        [1.0]
    """
    scores = []
    for caption, known in _rows(captions, references, split):
        common = [common_length(caption, one) for one in known]
        precision = max(common) / max(len(caption), 1)
        recall = max(shared / max(len(one), 1) for shared, one in zip(common, known, strict=True))
        below = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / below if below else 0.0)
    return scores


@dataclass(frozen=True)
class DocumentFrequencies:
    """In the references of how many pictures each n-gram stands.

    Attributes:
        counts: ``{n-gram: pictures}``.
        pictures: Pictures counted.
        max_n: Longest n-gram counted.
    """

    counts: Mapping[Gram, int]
    pictures: int
    max_n: int = 4

    @classmethod
    def of(
        cls, references: Iterable[Sequence[str]], *, max_n: int = 4, split: Split = caption_words
    ) -> "DocumentFrequencies":
        """Count each n-gram once per picture.

        Example:
            >>> DocumentFrequencies.of([["a cube", "a box"], ["a ball"]]).counts["a",]
            2
        """
        counts: Counter[Gram] = Counter()
        pictures = 0
        for known in references:
            pictures += 1
            counts.update({gram for one in map(split, known) for n in range(1, max_n + 1) for gram in grams(one, n)})
        return cls(dict(counts), pictures, max_n)

    def weigh(self, words: Words) -> list[dict[Gram, float]]:
        """Count times log(pictures / document frequency) of each n-gram, a dict per n; one never seen counts as 1."""
        everything = math.log(max(self.pictures, 1))
        return [
            {
                gram: count * (everything - math.log(max(self.counts.get(gram, 0), 1)))
                for gram, count in Counter(grams(words, n)).items()
            }
            for n in range(1, self.max_n + 1)
        ]


def cider_d(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    frequencies: DocumentFrequencies | None = None,
    sigma: float = 6.0,
    split: Split = caption_words,
) -> list[float]:
    """CIDEr-D per row, 0 to 10; its mean over rows is the figure that is printed.

    Per n of 1 to 4 and reference: the cosine of the two vectors of weighted n-gram counts, the caption's clipped to
    the reference's, times exp(-(difference of lengths)² / (2 sigma²)); the mean over n and references, times 10.

    Frequencies come from the references of these rows unless given. Few rows make them coarse (a single row has
    log 1 = 0 everywhere and scores 0): then give those of the training captions.

    Source: https://arxiv.org/abs/1411.5726, equations 1 to 4 and the end of section 5, as in the COCO evaluation
    (raw counts, no stemming).

    Args:
        captions: One per row.
        references: One or more per row.
        frequencies: Of other captions than these references.
        sigma: Words by which lengths may differ.
        split: Text to words.

    Raises:
        ValueError: If lengths differ or a row has no reference.

    Example:
        >>> cider_d(["red cube", "a box"], [["red cube"], ["one ball"]])
        [5.0, 0.0]
    """
    rows = _rows(captions, references, split)
    if frequencies is None:
        frequencies = DocumentFrequencies.of(references, split=split)
    scores = []
    for caption, known in rows:
        vectors = frequencies.weigh(caption)
        total = 0.0
        for one in known:
            nearness = math.exp(-((len(caption) - len(one)) ** 2) / (2 * sigma**2))
            pairs = zip(vectors, frequencies.weigh(one), strict=True)
            total += nearness * sum(_clipped_cosine(ours, theirs) for ours, theirs in pairs)
        scores.append(10.0 * total / (frequencies.max_n * len(known)))
    return scores


def _clipped_cosine(ours: Mapping[Gram, float], theirs: Mapping[Gram, float]) -> float:
    sizes = math.sqrt(sum(x * x for x in ours.values()) * sum(x * x for x in theirs.values()))
    product = sum(min(ours[gram], weight) * weight for gram, weight in theirs.items() if gram in ours)
    return product / sizes if sizes else 0.0


def caption_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    frequencies: DocumentFrequencies | None = None,
    split: Split = caption_words,
) -> dict[str, float]:
    """``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider_d`` of all rows, with the defaults of each.

    Raises:
        ValueError: If lengths differ or a row has no reference.
    """
    scores = {f"bleu_{n}": value for n, value in enumerate(bleu(captions, references, split=split), start=1)}
    per_row = {
        "rouge_l": rouge_l(captions, references, split=split),
        "cider_d": cider_d(captions, references, frequencies=frequencies, split=split),
    }
    return scores | {name: float(np.mean(values)) if values else math.nan for name, values in per_row.items()}
