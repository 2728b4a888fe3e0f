"""Greedy, beam and nucleus search against enumeration, plain loops and transformers' ``generate``."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from polyfuse.models.generation import Generated, beam_search, greedy, nucleus, nucleus_set
from polyfuse.models.generation_rules import repeats

B, V, L = 3, 5, 4
EOS = 1


class Table:
    """A random language model: its logits depend on the row's group and on every token so far."""

    def __init__(self, groups: int, vocabulary: int, length: int, seed: int = 0, spread: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary, self.groups = vocabulary, torch.arange(groups)
        size = (groups, vocabulary ** (length + 1), vocabulary)
        self.logits = spread * torch.randn(size, generator=generator)
        self.calls: list[int] = []

    def __call__(self, ids: Tensor) -> Tensor:
        self.calls.append(len(ids))
        group = self.groups.repeat_interleave(len(ids) // len(self.groups))
        return self.logits[group, self.code(ids)]

    def code(self, ids: Tensor) -> Tensor:
        return (ids * self.vocabulary ** torch.arange(ids.shape[1])).sum(1)

    def reorder(self, rows: Tensor, groups: Tensor | None) -> None:
        if groups is not None:
            self.groups = self.groups[groups]


def every_row(model: Table, group: int, length: int, alpha: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every sequence that ends (by EOS, or at ``length``), best first, by plain loops in double precision."""
    found = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(model.vocabulary), repeat=size):
            if EOS in tokens[:-1] or (tokens[-1] != EOS and size < length):
                continue
            total = 0.0
            for step, token in enumerate(tokens):
                code = int(model.code(torch.tensor([[0, *tokens[:step]]])))
                total += float(model.logits[group, code].double().log_softmax(-1)[token])
            found.append((total / size**alpha, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("vocabulary", "length"), [(3, 4), (5, 3)])
def test_beams_of_full_width_find_what_enumeration_finds(vocabulary: int, length: int, alpha: float) -> None:
    model = Table(B, vocabulary, length)
    number = 7
    out = beam_search(
        model,
        torch.zeros(B, 1, dtype=torch.long),
        num_beams=vocabulary**length,
        max_length=length,
        eos_id=EOS,
        length_penalty=alpha,
        early_stopping="never",
        num_return=number,
        reorder=model.reorder,
    )
    for row in range(B):
        best = every_row(model, row, length, alpha)[:number]
        for place, (score, tokens) in enumerate(best):
            assert tuple(out.ids[row, place, : len(tokens)].tolist()) == tokens
            assert not out.ids[row, place, len(tokens) :].any()
            assert int(out.lengths[row, place]) == len(tokens)
            assert float(out.scores[row, place]) == pytest.approx(score, abs=1e-5)


def test_length_penalty_changes_the_winner() -> None:
    lengths = []
    for alpha in (0.0, 3.0):
        model = Table(17, 3, 4, seed=1)
        prompt = torch.zeros(17, 1, dtype=torch.long)
        out = beam_search(model, prompt, num_beams=81, max_length=4, eos_id=EOS, length_penalty=alpha)
        lengths.append(float(out.lengths.float().mean()))
    assert lengths[0] < lengths[1]


def test_never_stopping_early_is_exact_and_stopping_early_is_not() -> None:
    """Of many random models some tell the three rules apart; only ``never`` is as good as not stopping at all."""
    groups, beams = 199, 2
    prompt = torch.zeros(groups, 1, dtype=torch.long)
    scores = {}
    for rule in (True, False, "never"):
        model = Table(groups, 3, 4, seed=2)
        found = beam_search(
            model, prompt, num_beams=beams, max_length=4, eos_id=EOS, length_penalty=2.0, early_stopping=rule
        )
        scores[rule] = found.scores
    model = Table(groups, 3, 4, seed=2)
    full = plain_beams(model, groups, beams, 4, 2.0)
    torch.testing.assert_close(scores["never"], full, atol=1e-5, rtol=0)
    assert (scores[True] < full - 1e-4).any()
    assert (scores[False] < full - 1e-4).any()
    assert (scores[True] <= scores[False] + 1e-5).all()


def plain_beams(model: Table, groups: int, beams: int, length: int, alpha: float) -> Tensor:
    """The best score of each group, by lists and without stopping early."""
    best = []
    for group in range(groups):
        running: list[tuple[float, list[int]]] = [(0.0, [0])]
        ended: list[float] = []
        for size in range(1, length + 1):
            options = []
            for score, ids in running:
                log_p = model.logits[group, model.code(torch.tensor([ids]))[0]].log_softmax(-1)
                options += [(score + float(log_p[token]), [*ids, token]) for token in range(model.vocabulary)]
            options.sort(reverse=True)
            ends = [ids[-1] == EOS or size == length for _, ids in options]
            top = zip(options[:beams], ends[:beams], strict=True)
            ended += [score / size**alpha for (score, _), end in top if end]
            running = [one for one, end in zip(options[: 2 * beams], ends, strict=False) if not end][:beams]
        best.append(max(ended))
    return torch.tensor(best)


def test_greedy_is_the_plain_loop_and_one_beam() -> None:
    for seed in range(5):
        model = Table(B, V, L, seed)
        out = greedy(model, torch.zeros(B, 1, dtype=torch.long), max_length=L, eos_id=EOS, reorder=model.reorder)
        for row in range(B):
            ids, score = [0], 0.0
            while len(ids) <= L and (len(ids) == 1 or ids[-1] != EOS):
                log_p = model.logits[row, model.code(torch.tensor([ids]))[0]].log_softmax(-1)
                score += float(log_p.max())
                ids.append(int(log_p.argmax()))
            assert out.ids[row].tolist() == ids[1:] + [0] * (out.ids.shape[1] - len(ids) + 1)
            assert int(out.lengths[row]) == len(ids) - 1
            assert float(out.scores[row]) == pytest.approx(score, abs=1e-5)
        model = Table(B, V, L, seed)
        one = beam_search(
            model, torch.zeros(B, 1, dtype=torch.long), num_beams=1, max_length=L, eos_id=EOS, length_penalty=0.0
        )
        assert torch.equal(one.ids, out.ids)
        torch.testing.assert_close(one.scores, out.scores)


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_finished_rows_leave_and_nothing_else_changes(method: str) -> None:
    """With ``reorder`` rows leave the batch, one at a time; ids and scores are those of the whole batch."""
    groups, length = 11, 4

    def run(model: Table, leave: bool, every: int) -> Generated:
        common = {"max_length": length, "eos_id": EOS, "pad_id": 2, "check_every": every}
        common["reorder"] = model.reorder if leave else None
        prompt = torch.zeros(groups, 1, dtype=torch.long)
        if method == "beam":
            return beam_search(model, prompt, num_beams=2, early_stopping=True, **common)
        if method == "nucleus":
            return nucleus(model, prompt, generator=torch.Generator().manual_seed(3), **common)
        return greedy(model, prompt, **common)

    seen = []
    for seed in range(5):
        whole = Table(groups, 3, length, seed)
        expected = run(whole, leave=False, every=99)
        assert whole.calls[-1] == groups * (2 if method == "beam" else 1)
        for every in (1, 2):
            model = Table(groups, 3, length, seed)
            out = run(model, leave=True, every=every)
            seen.append(model.calls[-1])
            assert torch.equal(out.ids, expected.ids)
            torch.testing.assert_close(out.scores, expected.scores)
            assert torch.equal(out.lengths, expected.lengths)
            after = torch.arange(out.ids.shape[1]) >= out.lengths[:, None]
            assert (out.ids[after] == 2).all()
    assert min(seen) < groups


def test_the_loop_ends_with_its_last_row() -> None:
    model = Table(2, 3, 9)
    model.logits[..., EOS] = 50.0
    out = greedy(model, torch.zeros(2, 1, dtype=torch.long), max_length=9, eos_id=EOS)
    assert out.ids.tolist() == [[EOS], [EOS]]
    assert len(model.calls) == 1
    model.calls.clear()
    out = beam_search(model, torch.zeros(2, 1, dtype=torch.long), num_beams=1, max_length=9, eos_id=EOS)
    assert out.ids.tolist() == [[EOS], [EOS]]
    assert len(model.calls) == 1


def test_minimum_length_and_no_eos() -> None:
    model = Table(B, V, L)
    model.logits[..., EOS] = 50.0
    prompt = torch.zeros(B, 1, dtype=torch.long)
    for out in (
        greedy(model, prompt, max_length=L, eos_id=EOS, min_length=2),
        beam_search(model, prompt, num_beams=2, max_length=L, eos_id=EOS, min_length=2),
        nucleus(model, prompt, max_length=L, eos_id=EOS, min_length=2),
    ):
        assert (out.ids[:, :2] != EOS).all()
        assert (out.ids[:, 2] == EOS).all()
    for out in (greedy(model, prompt, max_length=L), beam_search(model, prompt, num_beams=2, max_length=L)):
        assert out.ids.tolist() == [[EOS] * L] * B  # an id like any other


def test_no_ngram_comes_twice() -> None:
    torch.manual_seed(0)
    ids = torch.randint(4, (7, 23))
    for size in (1, 2, 3):
        found = repeats(ids, size, 6)
        for row in range(7):
            line = ids[row].tolist()
            seen = {tuple(line[i : i + size]) for i in range(len(line) - size + 1)}
            tail = tuple(line[len(line) - size + 1 :])
            assert [(*tail, token) in seen for token in range(6)] == found[row].tolist()
    assert not repeats(ids[:, :2], 3, 6).any()

    def stubborn(ids: Tensor) -> Tensor:
        return torch.tensor([[3.0, 2.0, 1.0, 0.5]]).expand(len(ids), -1)

    out = greedy(stubborn, torch.tensor([[0]]), max_length=6, no_repeat_ngram=2)
    pairs = list(itertools.pairwise([0, *out.ids[0].tolist()]))
    assert len(set(pairs)) == len(pairs)


def smallest_sets(probability: Tensor, top_p: float) -> int:
    """Size of the smallest subset with mass at least ``top_p``, by trying all of them, in exact arithmetic."""
    values = [float(p) for p in probability]
    for size in range(1, len(values) + 1):
        for chosen in itertools.combinations(values, size):
            if math.fsum(chosen) >= top_p:
                return size
    return len(values)


@pytest.mark.parametrize("top_p", [1e-6, 0.125, 0.25, 0.5, 0.6, 0.75, 0.9, 0.99])
def test_nucleus_is_the_smallest_set_with_the_mass(top_p: float) -> None:
    """Random rows, and rows of eighths: sums are exact, many tokens tie."""
    torch.manual_seed(0)
    eighths = torch.tensor([[2, 1, 1, 2, 1, 1, 0], [4, 4, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0], [3, 1, 1, 1, 1, 1, 0]])
    rows = torch.cat([torch.randn(19, 7).mul(2).double().softmax(-1), eighths.double() / 8])
    kept = nucleus_set(rows, top_p)
    for row, chosen in zip(rows, kept, strict=True):
        assert math.fsum(row[chosen].tolist()) >= top_p
        assert int(chosen.sum()) == smallest_sets(row, top_p)
        assert chosen.all() or row[chosen].min() >= row[~chosen].max()
        tie = (row == row[chosen].min()).nonzero()[:, 0].tolist()
        taken = [index for index in tie if chosen[index]]
        assert taken == tie[: len(taken)]  # of equals those that come first


def test_the_whole_mass_keeps_every_possible_token() -> None:
    torch.manual_seed(0)
    rows = torch.randn(5, 1009).mul(9).softmax(-1)  # rounding must not cut the tail
    rows[0, 3] = 0.0
    assert torch.equal(nucleus_set(rows, 1.0), rows > 0)


def drawn(logits: Tensor, number: int, seed: int = 0, **kwargs: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.zeros(number, 1, dtype=torch.long)
    return nucleus(lambda ids: logits.expand(len(ids), -1), prompt, max_length=1, generator=generator, **kwargs).ids[
        :, 0
    ]


@pytest.mark.parametrize("top_p", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_tokens_come_as_often_as_they_should(top_p: float, temperature: float) -> None:
    torch.manual_seed(1)
    logits, number = torch.randn(7), 40_009
    target = (logits / temperature).softmax(-1)
    kept = nucleus_set(target[None], top_p)[0]
    target = (target * kept) / (target * kept).sum()
    share = torch.bincount(drawn(logits, number, top_p=top_p, temperature=temperature), minlength=7) / number
    assert not share[~kept].any()
    assert (share - target).abs().max() < 4 * (0.25 / number) ** 0.5


def test_a_large_vocabulary_is_sorted_only_where_it_must_be() -> None:
    """Beyond the first 256 tokens: a flat distribution needs all, a peaked one does not; both are drawn right."""
    torch.manual_seed(2)
    size = 601
    flat = drawn(torch.zeros(size), 20_011, top_p=0.999)
    assert len(flat.unique()) > 590
    peaked = torch.cat([torch.full((3,), 9.0), torch.zeros(size - 3)])
    assert set(drawn(peaked, 5_003, top_p=0.9).tolist()) == {0, 1, 2}


def test_small_mass_or_low_temperature_is_greedy() -> None:
    torch.manual_seed(3)
    logits = torch.randn(13)
    best = torch.full((101,), int(logits.argmax()))
    assert torch.equal(drawn(logits, 101, top_p=1e-9), best)
    assert torch.equal(drawn(logits, 101, top_p=1.0, temperature=1e-3), best)


def test_the_generator_decides_and_rows_behind_do_not_matter() -> None:
    torch.manual_seed(4)
    logits = torch.randn(13)
    first = drawn(logits, 41, seed=5)
    assert torch.equal(first, drawn(logits, 41, seed=5))
    assert not torch.equal(first, drawn(logits, 41, seed=6))
    state = torch.get_rng_state()
    drawn(logits, 3, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, drawn(logits, 97, seed=5)[:41])


def test_what_is_broken_shows() -> None:
    prompt = torch.zeros(2, 1, dtype=torch.long)

    def broken(ids: Tensor) -> Tensor:
        return torch.tensor([math.nan, 0.0, 1.0]).expand(len(ids), -1)

    for out in (
        greedy(broken, prompt, max_length=3, eos_id=EOS),
        nucleus(broken, prompt, max_length=3, eos_id=EOS),
        beam_search(broken, prompt, num_beams=2, max_length=3, eos_id=EOS),
    ):
        assert out.scores.isnan().all()


PROMPT = torch.zeros(2, 1, dtype=torch.long)
BAD = [
    ({"max_length": 0}, "max_length must be at least 1, got 0"),
    ({"min_length": 7}, "min_length must be between 0 and max_length = 3, got 7"),
    ({"min_length": -1}, "got -1"),
    ({"no_repeat_ngram": -2}, "no_repeat_ngram must be 0 or more, got -2"),
    ({"eos_id": 5}, "eos_id must be in the vocabulary, 0 to 4, got 5"),
    ({"eos_id": -1}, "eos_id must be in the vocabulary, 0 to 4, got -1"),
    ({"pad_id": 9}, "pad_id must be in the vocabulary, 0 to 4, got 9"),
    ({"check_every": 0}, "check_every must be at least 1, got 0"),
    ({"prompt": PROMPT[0]}, r"prompt must be integer ids of shape \(B, P\).*got torch.int64 \(1,\)"),
    ({"prompt": PROMPT.float()}, "got torch.float32"),
    ({"prompt": PROMPT[:, :0]}, r"got torch.int64 \(2, 0\)"),
    ({"step": lambda ids: torch.zeros(2, 1, 5)}, r"step must return logits \(N, V\) with N = 2, got \(2, 1, 5\)"),
]


@pytest.mark.parametrize("method", [greedy, nucleus, beam_search])
@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_bad_arguments_are_refused(method, wrong, message) -> None:  # type: ignore[no-untyped-def]
    given = {"step": lambda ids: torch.zeros(2, 5), "prompt": PROMPT, "max_length": 3, **wrong}
    extra = {"num_beams": 2} if method is beam_search else {}
    with pytest.raises(ValueError, match=message):
        method(given.pop("step"), given.pop("prompt"), **given, **extra)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"length_penalty": math.inf}, "length_penalty must be finite, got inf"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never', got 'always'"),
        ({"num_return": 3}, "num_return must be between 1 and num_beams = 2, got 3"),
        ({"num_return": 0}, "num_beams = 2, got 0"),
    ],
)
def test_bad_beams_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(lambda ids: torch.zeros(len(ids), 5), PROMPT, **{"num_beams": 2, "max_length": 3, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, "got 1.5"),
        ({"top_p": math.nan}, "got nan"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, "got inf"),
    ],
)
def test_bad_sampling_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nucleus(lambda ids: torch.zeros(len(ids), 5), PROMPT, max_length=3, **wrong)
