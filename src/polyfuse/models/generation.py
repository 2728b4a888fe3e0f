"""Greedy, beam and nucleus search over a step function: nothing here knows a model.

``step(ids (N, T)) -> logits (N, V)`` scores the next token after all tokens so far. A step that remembers (a KV cache)
looks at the columns it has not seen yet. ``reorder(rows, groups)`` tells it which of its rows go on: new row ``i``
continues old row ``rows[i]``; ``groups`` lists the prompts that are left, None = the same ones (beams of one prompt
always stand together, so row ``i`` belongs to group ``i // (N / G)``). A step of ids alone needs none.

Lengths count generated tokens: the prompt is not in them, EOS is. All loops run over time only.

Shapes: B prompts, K beams, N rows of the step (B, or B K), P prompt tokens, L generated tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polyfuse.models.generation_rules import (
    Limits,
    allowed_log_probabilities,
    check_beams,
    check_interval,
    checked_limits,
)

Step = Callable[[Tensor], Tensor]
Reorder = Callable[[Tensor, Tensor | None], None]

#: Finished rows leave the batch when at most this share is unfinished; measured in benchmarks/captioner.py.
KEEP_ALL_ABOVE = 0.75
#: Most likely tokens that nucleus sampling sorts first; all are sorted only where these do not hold the mass.
_NUCLEUS_FIRST = 256


class Generated(NamedTuple):
    """What was generated.

    Attributes:
        ids: ``(B, L)`` without the prompt, the padding id behind each row's EOS; L is the longest row's length.
        scores: ``(B,)`` sum of log-probabilities of a row's tokens, EOS included, under the model's own distribution
            (no temperature, nothing cut); beam search divides it by ``length ** length_penalty``.
        lengths: ``(B,)`` tokens of each row, EOS included.
    """

    ids: Tensor
    scores: Tensor
    lengths: Tensor


@torch.no_grad()
def greedy(
    step: Step,
    prompt: Tensor,
    *,
    max_length: int,
    eos_id: int | None = None,
    pad_id: int = 0,
    min_length: int = 0,
    no_repeat_ngram: int = 0,
    reorder: Reorder | None = None,
    check_every: int | None = None,
) -> Generated:
    """The most likely token at every step.

    Args:
        step: See the head of this file.
        prompt: ``(B, P)`` ids to go on from.
        max_length: Most tokens to generate.
        eos_id: Ends a row; None = every row gets ``max_length`` tokens.
        pad_id: Stands behind EOS.
        min_length: Tokens that must come before EOS.
        no_repeat_ngram: No n-gram of this size comes twice in a row (prompt included); 0 = allowed.
        reorder: See the head of this file; with it, rows that have ended leave the batch.
        check_every: Steps between looks at whether rows have ended, each of which waits for the device; None = 1 on
            the CPU, 8 elsewhere.

    Raises:
        ValueError: If a number is out of range or the logits are not ``(N, V)``.

    Example:
        >>> counting = lambda ids: torch.eye(5)[(ids[:, -1] + 1) % 5]
        >>> greedy(counting, torch.tensor([[0], [2]]), max_length=9, eos_id=4).ids
        tensor([[1, 2, 3, 4],
                [3, 4, 0, 0]])
    """
    limits = checked_limits(prompt, max_length, eos_id, pad_id, min_length, no_repeat_ngram)

    def choose(log_p_NV: Tensor, index: int, rows: Tensor) -> Tensor:
        return log_p_NV.argmax(dim=-1)

    return _one_by_one(step, prompt, limits, choose, reorder, check_every)


@torch.no_grad()
def nucleus(
    step: Step,
    prompt: Tensor,
    *,
    max_length: int,
    top_p: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
    min_length: int = 0,
    no_repeat_ngram: int = 0,
    reorder: Reorder | None = None,
    check_every: int | None = None,
) -> Generated:
    """Draw every token from the smallest set of most likely tokens that holds ``top_p`` of the mass.

    Every row has its own uniform numbers, drawn before the first step: what a row says does not depend on when its
    neighbours end, nor on rows behind it in the batch.

    Source: https://arxiv.org/abs/1904.09751, equations 2 and 3.

    Args:
        step: See the head of this file.
        prompt: ``(B, P)`` ids to go on from.
        max_length: Most tokens to generate.
        top_p: In (0, 1]; 1 = draw from all tokens, towards 0 = greedy.
        temperature: Divides the logits before the set is cut.
        generator: Of the uniform numbers; on the device of ``prompt``.
        eos_id: Ends a row.
        pad_id: Stands behind EOS.
        min_length: Tokens that must come before EOS.
        no_repeat_ngram: No n-gram of this size comes twice in a row; 0 = allowed.
        reorder: See the head of this file.
        check_every: As in ``greedy``.

    Raises:
        ValueError: If a number is out of range or the logits are not ``(N, V)``.
    """
    limits = checked_limits(prompt, max_length, eos_id, pad_id, min_length, no_repeat_ngram)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}; its limit at 0 is greedy")
    shape = (prompt.shape[0], max_length)
    uniform_BL = torch.rand(shape, generator=generator, device=prompt.device, dtype=torch.float64)

    def choose(log_p_NV: Tensor, index: int, rows: Tensor) -> Tensor:
        probability = (log_p_NV / temperature).softmax(dim=-1)
        return _draw(probability, top_p, uniform_BL[rows, index])

    return _one_by_one(step, prompt, limits, choose, reorder, check_every)


def nucleus_set(probability_NV: Tensor, top_p: float) -> Tensor:
    """``(N, V)`` bool: the smallest set with mass at least ``top_p``, of equally likely tokens those that come first.

    Example:
        >>> nucleus_set(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), 0.6)
        tensor([[False,  True,  True, False]])
    """
    ordered, order = probability_NV.sort(dim=-1, descending=True, stable=True)
    kept = _kept(ordered, ordered.double().cumsum(dim=-1), top_p)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def _kept(ordered_NV: Tensor, mass_NV: Tensor, top_p: float) -> Tensor:
    """Tokens, most likely first, that are needed: those before which less than ``top_p`` is collected."""
    possible = ordered_NV > 0
    if top_p == 1.0:
        return possible
    before = torch.cat([torch.zeros_like(mass_NV[:, :1]), mass_NV[:, :-1]], dim=-1)
    return possible & (before < top_p)


def _draw(probability_NV: Tensor, top_p: float, uniform_N: Tensor) -> Tensor:
    """One token a row by the inverse distribution function of its nucleus."""
    first = min(_NUCLEUS_FIRST, probability_NV.shape[-1])
    ordered, order = probability_NV.topk(first, dim=-1)
    mass = ordered.double().cumsum(dim=-1)
    if first < probability_NV.shape[-1] and not bool((mass[:, -1] >= top_p).all()):
        ordered, order = probability_NV.sort(dim=-1, descending=True)
        mass = ordered.double().cumsum(dim=-1)
    number = _kept(ordered, mass, top_p).sum(dim=-1, keepdim=True).clamp(min=1)
    mark = uniform_N[:, None] * mass.gather(-1, number - 1)
    place = torch.searchsorted(mass, mark, right=True)
    return order.gather(-1, place.minimum(number - 1))[:, 0]


def _one_by_one(
    step: Step,
    prompt: Tensor,
    limits: Limits,
    choose: Callable[[Tensor, int, Tensor], Tensor],
    reorder: Reorder | None,
    check_every: int | None,
) -> Generated:
    """One row a prompt, a token a step."""
    batch, start = prompt.shape
    every = check_interval(check_every, prompt)
    ids = torch.cat([prompt, prompt.new_full((batch, limits.max_length), limits.pad_id)], dim=1)
    rows = torch.arange(batch, device=prompt.device)
    scores = torch.zeros(batch, device=prompt.device)
    lengths, ended = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    result = (prompt.new_full((batch, limits.max_length), limits.pad_id), scores.clone(), lengths.clone())

    def settle() -> None:
        for all_rows, now in zip(result, (ids[:, start:], scores, lengths), strict=True):
            all_rows[rows] = now.to(all_rows.dtype)

    for index in range(limits.max_length):
        end = start + index
        log_p_NV = allowed_log_probabilities(step(ids[:, :end]), ids[:, :end], index, limits)
        token_N = choose(log_p_NV, index, rows)
        gained_N = log_p_NV.gather(1, token_N[:, None])[:, 0]
        scores = scores + gained_N.masked_fill(ended, 0.0)
        ids[:, end] = token_N.masked_fill(ended, limits.pad_id)
        lengths = lengths + ~ended
        if limits.eos_id is None:
            continue
        ended = ended | (token_N == limits.eos_id)
        if (index + 1) % every or index + 1 == limits.max_length:
            continue
        left = len(rows) - int(ended.sum())
        if left == 0:
            break
        if reorder is not None and left <= KEEP_ALL_ABOVE * len(rows):
            settle()
            kept = (~ended).nonzero()[:, 0]
            ids, scores, lengths, ended, rows = ids[kept], scores[kept], lengths[kept], ended[kept], rows[kept]
            reorder(kept, kept)
    settle()
    longest = int(result[2].max())
    return Generated(result[0][:, :longest], result[1], result[2])


@torch.no_grad()
def beam_search(
    step: Step,
    prompt: Tensor,
    *,
    num_beams: int,
    max_length: int,
    eos_id: int | None = None,
    pad_id: int = 0,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    min_length: int = 0,
    no_repeat_ngram: int = 0,
    num_return: int | None = None,
    reorder: Reorder | None = None,
    check_every: int | None = None,
) -> Generated:
    """Keep the ``num_beams`` likeliest beginnings; return the best ended row by ``sum log p / length ** penalty``.

    Of the ``2 K`` best continuations of a prompt, those among the first K that end go into a pool of the K best ended
    rows, and the K best that do not end go on. Rows still open at ``max_length`` end there. A prompt is finished when
    its pool is full and no open row can get into it:

    - ``early_stopping=True``: as soon as the pool is full.
    - ``False``: the best open row, divided by its present length, is no better than the worst of the pool. With a
      positive penalty a longer row might still get there.
    - ``"never"``: it would not be better even at ``max_length``: exact.

    These are the rules of Hugging Face's ``generate``, so that both give the same ids. Wu et al.
    (https://arxiv.org/abs/1609.08144, equation 14) divide by ``((5 + length) / 6) ** penalty`` instead.

    Args:
        step: See the head of this file.
        prompt: ``(B, P)`` ids to go on from.
        num_beams: Beams K.
        max_length: Most tokens to generate.
        eos_id: Ends a row.
        pad_id: Stands behind EOS.
        length_penalty: Exponent; 0 = the plain sum, above 0 favours long rows.
        early_stopping: See above.
        min_length: Tokens that must come before EOS.
        no_repeat_ngram: No n-gram of this size comes twice in a row; 0 = allowed.
        num_return: Best rows n of each prompt to return, ``(B, n, L)``, best first; None = the best, ``(B, L)``. A
            place for which there is no row holds padding, score -inf and length 0.
        reorder: See the head of this file.
        check_every: As in ``greedy``.

    Raises:
        ValueError: If a number is out of range or the logits are not ``(N, V)``.
    """
    limits = checked_limits(prompt, max_length, eos_id, pad_id, min_length, no_repeat_ngram)
    check_beams(num_beams, length_penalty, early_stopping, num_return)
    beams = _Beams(prompt, limits, num_beams, length_penalty, early_stopping)
    every = check_interval(check_every, prompt)
    for index in range(max_length):
        so_far_NT = beams.ids[:, :, : beams.start + index].flatten(0, 1)
        log_p_NV = allowed_log_probabilities(step(so_far_NT), so_far_NT, index, limits)
        rows_N = beams.advance(log_p_NV, index)
        if index + 1 == max_length:
            break
        groups = None
        if (index + 1) % every == 0:
            left = len(beams.done) - int(beams.done.sum())
            if left == 0:
                break
            if reorder is not None and left <= KEEP_ALL_ABOVE * len(beams.done):
                groups = (~beams.done).nonzero()[:, 0]
                rows_N = rows_N.view(len(beams.done), -1)[groups].flatten()
                beams.keep(groups)
        if reorder is not None:
            reorder(rows_N, groups)
    return beams.best(num_return)


class _Beams:
    """Open and ended rows of every prompt that is not finished, and the results of those that are."""

    def __init__(
        self, prompt: Tensor, limits: Limits, num_beams: int, penalty: float, early_stopping: bool | str
    ) -> None:
        (batch, self.start), device = prompt.shape, prompt.device
        self.limits, self.num_beams, self.penalty, self.early_stopping = limits, num_beams, penalty, early_stopping
        room = prompt.new_full((batch, limits.max_length), limits.pad_id)
        self.ids = torch.cat([prompt, room], dim=1)[:, None]  # (B, W, P + L): one beam at first, so that none is twice
        self.scores = torch.zeros(batch, 1, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.prompts = torch.arange(batch, device=device)
        # Ended rows, best first: score, length, ids.
        self.pool = (
            torch.full((batch, num_beams), -torch.inf, device=device),
            torch.zeros(batch, num_beams, dtype=torch.long, device=device),
            room[:, None].repeat(1, num_beams, 1),
        )
        self.result = tuple(part.clone() for part in self.pool)

    def advance(self, log_p_NV: Tensor, index: int) -> Tensor:
        """Choose the next open rows and put ended ones into the pool; the old row that each new one continues."""
        batch, width = self.scores.shape
        vocabulary = log_p_NV.shape[-1]
        total = log_p_NV.view(batch, width, vocabulary) + self.scores[..., None]
        top, place = total.flatten(1).topk(min(2 * self.num_beams, width * vocabulary), dim=1)
        parent, token = place // vocabulary, place % vocabulary
        ids = _pick(self.ids, parent)
        ids[:, :, self.start + index] = token
        last = index + 1 == self.limits.max_length
        ends = torch.full_like(token, last, dtype=torch.bool)
        if self.limits.eos_id is not None:
            ends = ends | (token == self.limits.eos_id)
        if self.limits.eos_id is not None or last:
            self._collect(top, ends, ids, index + 1)
        self.scores, order = top.masked_fill(ends, -torch.inf).topk(min(self.num_beams, top.shape[1]), dim=1)
        self.ids = _pick(ids, order)
        self._finish(index + 1)
        return (parent.gather(1, order) + torch.arange(batch, device=parent.device)[:, None] * width).flatten()

    def _collect(self, top: Tensor, ends: Tensor, ids: Tensor, length: int) -> None:
        """Merge rows that end now, if they are among the first K, into the pools of unfinished prompts."""
        first = torch.arange(top.shape[1], device=top.device) < self.num_beams
        enters = ends & first & ~self.done[:, None]
        new = (top / length**self.penalty).masked_fill(~enters, -torch.inf)
        scores, order = torch.cat([self.pool[0], new], dim=1).topk(self.num_beams, dim=1)
        lengths = torch.cat([self.pool[1], torch.full_like(ids[:, :, 0], length)], dim=1)
        merged = torch.cat([self.pool[2], ids[:, :, self.start :]], dim=1)
        self.pool = (scores, lengths.gather(1, order), _pick(merged, order))

    def _finish(self, length: int) -> None:
        """Which prompts cannot get better."""
        ahead = self.limits.max_length if self.early_stopping == "never" and self.penalty > 0 else length
        best, worst = self.scores[:, 0] / ahead**self.penalty, self.pool[0][:, -1]
        hopeless = torch.ones_like(self.done) if self.early_stopping is True else best <= worst
        # Comparisons with NaN are false: a broken row runs to its end and shows its NaN.
        self.done = self.done | ((worst > -torch.inf) & hopeless) | (self.scores[:, 0] == -torch.inf)

    def keep(self, groups: Tensor) -> None:
        """Drop the finished prompts, after their results are stored."""
        self._settle()
        self.ids, self.scores, self.done = self.ids[groups], self.scores[groups], self.done[groups]
        self.pool = (self.pool[0][groups], self.pool[1][groups], self.pool[2][groups])
        self.prompts = self.prompts[groups]

    def _settle(self) -> None:
        for all_prompts, now in zip(self.result, self.pool, strict=True):
            all_prompts[self.prompts] = now

    def best(self, number: int | None) -> Generated:
        """The first of each pool, or the first ``number``."""
        self._settle()
        scores, lengths, ids = (part[:, : number or 1] for part in self.result)
        empty = scores == -torch.inf
        lengths = lengths.masked_fill(empty, 0)
        ids = ids.masked_fill(empty[..., None], self.limits.pad_id)[..., : int(lengths.max())]
        return Generated(ids, scores, lengths) if number else Generated(ids[:, 0], scores[:, 0], lengths[:, 0])


def _pick(x_BWL: Tensor, index_BK: Tensor) -> Tensor:
    """``(B, K, L)``: rows of each prompt by index."""
    return x_BWL.gather(1, index_BK[..., None].expand(-1, -1, x_BWL.shape[-1]))
