"""The language model of captions by hand, by its sums, and against counting; variety and copies."""

import itertools
import math

import pytest

from polyfuse.evaluate.fluency import BEGIN, END, UNKNOWN, NGramModel, copied_share, distinct_n, fluency_scores

TEXTS = ("a red cube on a box", "a red ball", "two red balls on a blue box", "a blue cube", "a red cube", "")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_sums_to_one_after_every_history(order: int) -> None:
    model = NGramModel(order).fit(TEXTS)
    assert {END, UNKNOWN, "cube"} <= set(model.vocabulary)
    words = (BEGIN, "a", "red", "zebra")
    for history in itertools.chain.from_iterable(itertools.product(words, repeat=n) for n in range(4)):
        shares = [model.probability(word, history) for word in model.vocabulary]
        assert sum(shares) == pytest.approx(1.0), history
        assert min(shares) > 0


def test_two_words_by_hand() -> None:
    """Texts "a b" and "a c"; the vocabulary is a, b, c, the end and the unknown.

    Pairs: begin-a twice, a-b, a-c, b-end, c-end once: D = 4 / (4 + 2) = 2/3. Different words before a, b, c: 1 each,
    before the end: 2; D = 3 / (3 + 2) = .6. p(b) = .4 / 5 + .6 * 4 / 5 / 5 = .176; p(b | a) = (1/3) / 2 + (2/3) .176;
    p(end) = 1.4 / 5 + .096; p(end | b) = 1/3 + (2/3) p(end); p(unknown) = .096.
    """
    model = NGramModel(2).fit(["a b", "a c"])
    assert model.probability("b") == pytest.approx(0.176)
    assert model.probability("b", ["a"]) == pytest.approx(1 / 6 + 2 / 3 * 0.176)
    assert model.probability("zebra") == pytest.approx(0.096)
    assert model.probability("b", ["zebra"]) == pytest.approx(0.176)
    p_a = 4 / 3 / 2 + 2 / 3 * 1 / 2 * 0.176
    p_end = 1 / 3 + 2 / 3 * (1.4 / 5 + 0.096)
    want = [-math.log(p_a), -math.log(1 / 6 + 2 / 3 * 0.176), -math.log(p_end)]
    assert model.token_nll("A b.") == pytest.approx(want)
    assert model.nll("a b") == pytest.approx(sum(want) / 3)
    # Of three words: what begins a text is counted plainly (twice), for no word stands before the beginning.
    assert NGramModel(3).fit(["a b", "a c"]).probability("a", [BEGIN]) == pytest.approx(p_a)


def test_an_often_repeated_pair_does_not_make_its_word_likely_elsewhere() -> None:
    """Kneser-Ney's point: "francisco" is frequent, but only behind "san"."""
    texts = ["san francisco"] * 9 + [f"{word} dog" for word in ("a", "the", "one", "big")]
    model = NGramModel(2).fit(texts)
    assert model.probability("dog", ["zebra"]) > model.probability("francisco", ["zebra"])
    plain = NGramModel(1).fit(texts)
    assert plain.probability("dog") < plain.probability("francisco")


def test_order_of_words_and_known_texts_matter() -> None:
    model = NGramModel().fit(TEXTS)
    assert model.nll("a red cube") < model.nll("cube a red") < model.nll("seven sleepy zebras nod")
    assert len(model.token_nll("a red cube")) == 4
    assert model.nll("") == pytest.approx(-math.log(model.probability(END, [BEGIN])))
    again = model.fit(["x"])
    assert again is model
    assert again.vocabulary == ("x", END, UNKNOWN)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="1 or more, got 0"):
        NGramModel(0)
    with pytest.raises(ValueError, match="one text at least"):
        NGramModel().fit([])
    with pytest.raises(ValueError, match="fit the language model"):
        NGramModel().probability("a")


def test_variety_and_copies() -> None:
    said = ["a red cube", "a red cube", "a blue ball"]
    assert distinct_n(said, 1) == pytest.approx(5 / 9)
    assert distinct_n(said, 2) == pytest.approx(4 / 6)
    assert math.isnan(distinct_n(["a"], 2))
    assert copied_share(said, ["A red cube."]) == pytest.approx(2 / 3)
    assert math.isnan(copied_share([], ["a"]))


def test_fluency_of_a_set() -> None:
    model = NGramModel(2).fit(TEXTS)
    said = ["a red cube", "blue"]
    scores = fluency_scores(said, TEXTS, model=model)
    tokens = [*model.token_nll(said[0]), *model.token_nll(said[1])]
    assert scores["nll"] == pytest.approx(sum(tokens) / 6)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["nll"]))
    assert scores["words"] == 2.0
    assert scores["copied"] == 0.5
    assert fluency_scores(TEXTS[:2], TEXTS)["nll"] == pytest.approx(
        sum(sum(NGramModel().fit(TEXTS).token_nll(t)) for t in TEXTS[:2]) / 11
    )
    assert all(math.isnan(value) for value in fluency_scores([], TEXTS).values())
