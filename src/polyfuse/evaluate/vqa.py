"""Accuracy of answers that several people gave: the rules of the VQA challenge.

An answer counts by how many of ten people gave it: every choice of nine of them scores min(1, n / 3), and the ten
scores are averaged: 0, .3, .6, .9 and 1 for 0, 1, 2, 3 and 4 or more. Before that both sides are normalised.

Source: https://arxiv.org/abs/1505.00468 and the challenge's evaluation page, https://visualqa.org/evaluation.html.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from polyfuse.evaluate.kinds import rows_by_kind

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
# Written without one of their apostrophes these are mended; forms that are words of their own (shell, well, its, were,
# lets) stay as they are.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_MENDED = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTIONS for place in range(len(word)) if word[place] == "'"
}
_NUMBER_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


@lru_cache(maxsize=1 << 16)
def normalise_answer(answer: str) -> str:
    """An answer as the challenge compares it.

    Each punctuation mark becomes a space, or nothing where it touches a space somewhere in the answer or the answer
    has a comma between digits; a period goes unless a digit follows; all is lower-cased; number words up to ten become
    digits and "none" 0; articles go; contractions written without an apostrophe get it back.

    Differs from the challenge's script: its reversed entry (somebody'd to somebodyd) is left out.

    Example:
        >>> [normalise_answer(x) for x in ("The two dogs.", "1,000", "dont know!", "black/white", "3.5")]
        ['2 dogs', '1000', "don't know", 'black white', '3.5']
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = _NUMBER_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        gone = joined or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if gone else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def soft_targets(votes: Sequence[str], *, normalise: bool = True) -> dict[str, float]:
    """What each of the given answers would score: the targets of training, the most frequent first.

    With fewer than four people the divisor is what is left of them, so that what all say counts 1; one person's answer
    counts 1.

    Args:
        votes: The answers of the people asked, ten in VQA v2.
        normalise: Apply ``normalise_answer`` first.

    Raises:
        ValueError: If there is no vote.

    Example:
        >>> soft_targets(["red"] * 3 + ["Orange"] * 2 + ["brown", "pink", "a red dot", "rose", "rust"])["red"]
        0.9
    """
    if not votes:
        raise ValueError("an accuracy needs one human answer at least, got none")
    counts = Counter(normalise_answer(vote) if normalise else vote for vote in votes)
    return {answer: _left_one_out(count, len(votes)) for answer, count in counts.most_common()}


def _left_one_out(count: int, people: int) -> float:
    """The mean over leaving each person out of min(1, others who said it / 3)."""
    if people == 1:
        return float(count)
    full = min(3, people - 1)
    # Whole numbers up to one division, so that three of ten are .9 and not .8999...
    return (count * min(full, count - 1) + (people - count) * min(full, count)) / (people * full)


def vqa_accuracy(prediction: str, human_answers: Sequence[str], *, normalise: bool = True) -> float:
    """What one answer scores against those of several people, in [0, 1].

    Differs from the challenge's script: it leaves the people's answers as they are where all agree, and does not
    normalise their articles and digits, because in the published files that is done already.

    Args:
        prediction: The model's answer.
        human_answers: Ten in VQA v2; see ``soft_targets`` for fewer.
        normalise: Apply ``normalise_answer`` to both sides.

    Raises:
        ValueError: If there is no human answer.

    Example:
        >>> [vqa_accuracy("2", ["two"] * n + ["many"] * (10 - n)) for n in range(6)]
        [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]
    """
    asked = normalise_answer(prediction) if normalise else prediction
    return soft_targets(human_answers, normalise=normalise).get(asked, 0.0)


def vqa_table(
    predictions: Sequence[str],
    human_answers: Sequence[Sequence[str]],
    kinds: Sequence[str] | None = None,
    *,
    normalise: bool = True,
) -> list[dict[str, str | int | float]]:
    """Mean accuracy of all questions and of each kind: lines ``{"kind", "rows", "accuracy"}``.

    Args:
        predictions: One answer per question.
        human_answers: The people's answers to each question.
        kinds: Kind of each question.
        normalise: As in ``vqa_accuracy``.

    Raises:
        ValueError: If lengths differ or a question has no human answer.
    """
    if len(predictions) != len(human_answers):
        raise ValueError(f"{len(predictions)} predictions for the human answers of {len(human_answers)} questions")
    scores = [
        vqa_accuracy(said, asked, normalise=normalise) for said, asked in zip(predictions, human_answers, strict=True)
    ]
    return rows_by_kind({"accuracy": scores}, kinds)
