"""How captions read, whatever they are about: likely under a language model, varied, and not copied.

Shapes: none; words are split as in ``polyfuse.evaluate.captions``.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from polyfuse.evaluate.captions import Gram, Split, caption_words, grams

BEGIN, END, UNKNOWN = "<begin>", "<end>", "<unknown>"
_USUAL_DISCOUNT = 0.75


class NGramModel:
    """An interpolated Kneser-Ney model of word sequences.

    p(w | h) = max(c(h w) - D, 0) / c(h) + D t(h) / c(h) p(w | h without its first word), t(h) being the number of
    different words after h; after a history never seen, p of the shorter one; below single words, all words of the
    vocabulary alike. c are counts for the longest histories and those that begin a text, elsewhere the number of
    different words before h w. D = n1 / (n1 + 2 n2) per length of history, of the numbers of n-grams with count 1
    and 2, or .75 where either is 0.

    Source: Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128, equations 24 to 26 (one discount).

    The vocabulary is the words of the texts, the end of a text, and one word that stands for all others.

    Args:
        order: Words that are looked at together: 3 looks two words back.
        split: Text to words.

    Example:
        >>> model = NGramModel().fit(["a red cube", "a red ball", "a blue cube"])
        >>> model.nll("a red cube") < model.nll("cube red a") < model.nll("seven sleepy zebras")
        True
    """

    def __init__(self, order: int = 3, split: Split = caption_words) -> None:
        if order < 1:
            raise ValueError(f"order must be 1 or more, got {order}")
        self.order, self.split = order, split
        self.vocabulary: tuple[str, ...] = (END, UNKNOWN)
        self._counts: dict[Gram, dict[str, int]] = {}
        self._totals: dict[Gram, int] = {}
        self._discounts = [_USUAL_DISCOUNT] * order

    def fit(self, texts: Iterable[str]) -> "NGramModel":
        """Count the texts, anew; returns the model.

        Raises:
            ValueError: If there is no text.
        """
        plain: defaultdict[Gram, Counter[str]] = defaultdict(Counter)
        before: defaultdict[Gram, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        words: set[str] = set()
        for text in texts:
            said = [BEGIN, *self.split(text), END]
            words.update(said[1:-1])
            for place in range(1, len(said)):
                for back in range(min(self.order - 1, place) + 1):
                    history, word = tuple(said[place - back : place]), said[place]
                    if back == self.order - 1 or back == place:
                        plain[history][word] += 1
                    else:
                        before[history][word].add(said[place - back - 1])
        if not plain:
            raise ValueError("a language model needs one text at least, got none")
        self.vocabulary = (*sorted(words - {END, UNKNOWN}), END, UNKNOWN)
        self._known = frozenset(self.vocabulary)
        self._counts = {history: dict(counts) for history, counts in plain.items()}
        for history, follows in before.items():
            self._counts[history] = {word: len(left) for word, left in follows.items()}
        self._totals = {history: sum(counts.values()) for history, counts in self._counts.items()}
        for back in range(self.order):
            seen = Counter(n for h, counts in self._counts.items() if len(h) == back for n in counts.values())
            self._discounts[back] = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] and seen[2] else _USUAL_DISCOUNT
        return self

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        """p(word | the last ``order - 1`` words of the history); begin a text with ``BEGIN``.

        Raises:
            ValueError: If nothing was fitted.
        """
        if not self._counts:
            raise ValueError("fit the language model before asking it")
        word = word if word in self._known else UNKNOWN
        kept = tuple(history)[max(len(history) - self.order + 1, 0) :]
        share = 1.0 / len(self.vocabulary)
        for back in range(len(kept) + 1):
            seen = kept[len(kept) - back :]
            counts = self._counts.get(seen)
            if counts is None:
                break  # a longer history has not been seen either
            discount, total = self._discounts[back], self._totals[seen]
            share = max(counts.get(word, 0) - discount, 0.0) / total + discount * len(counts) / total * share
        return share

    def token_nll(self, text: str) -> list[float]:
        """-log p of each word of a text and of its end, in nats: one number more than words."""
        said = [BEGIN, *self.split(text), END]
        return [
            -math.log(self.probability(said[place], said[max(place - self.order + 1, 0) : place]))
            for place in range(1, len(said))
        ]

    def nll(self, text: str) -> float:
        """The mean of ``token_nll``: nats per token, the end counted as one."""
        tokens = self.token_nll(text)
        return sum(tokens) / len(tokens)


def distinct_n(texts: Iterable[str], n: int, *, split: Split = caption_words) -> float:
    """Different n-grams as a share of all n-grams of the texts; NaN of none.

    Source: https://arxiv.org/abs/1510.03055, section 5.2.

    Example:
        >>> distinct_n(["a cube", "a ball"], 1)
        0.75
    """
    said = [gram for text in texts for gram in grams(split(text), n)]
    return len(set(said)) / len(said) if said else math.nan


def copied_share(texts: Sequence[str], training: Iterable[str], *, split: Split = caption_words) -> float:
    """Share of the texts whose words are, in order, those of a training text; NaN of none.

    Example:
        >>> copied_share(["A cube.", "a ball"], ["a cube", "one ball"])
        0.5
    """
    known = {tuple(split(text)) for text in training}
    return sum(tuple(split(text)) in known for text in texts) / len(texts) if texts else math.nan


def fluency_scores(
    captions: Sequence[str], training: Sequence[str], *, model: NGramModel | None = None
) -> dict[str, float]:
    """How a set of captions reads beside the training captions.

    Args:
        captions: What a model said.
        training: The captions it learned from.
        model: Fitted on them; None fits one of three words.

    Returns:
        ``nll`` (nats per token, over all tokens together), ``perplexity``, ``words`` per caption, ``distinct_1``,
        ``distinct_2`` and ``copied``. Held-out human captions give the yardstick.

    Raises:
        ValueError: If there is no training caption.
    """
    model = NGramModel().fit(training) if model is None else model
    tokens = [value for caption in captions for value in model.token_nll(caption)]
    nll = sum(tokens) / len(tokens) if tokens else math.nan
    return {
        "nll": nll,
        "perplexity": math.exp(nll),
        "words": len(tokens) / len(captions) - 1 if captions else math.nan,
        "distinct_1": distinct_n(captions, 1, split=model.split),
        "distinct_2": distinct_n(captions, 2, split=model.split),
        "copied": copied_share(captions, training, split=model.split),
    }
