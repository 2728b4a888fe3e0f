"""A step's batch in shares, for several processes or passes: the losses of the shares add up to that of the batch.

The mean over what an objective counts (hidden words, matched pairs, ...) is not the mean of the shares' means, so a
share weighs by how many of them it has; a loss that adds up several means weighs each by its own. Every process makes
the whole batch, which is cheap, and can therefore count, and draw partners from, rows that others compute.

Shapes: B rows of the batch, b rows of a share.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from polyfuse.errors import UserError
from polyfuse.losses.contrastive import info_nce, siglip_loss
from polyfuse.losses.distributed import distributed_info_nce, distributed_siglip
from polyfuse.losses.masking import choose, choose_patches, mask_tokens
from polyfuse.losses.matching import MatchingPairs, hard_pairs, matching_loss, random_pairs
from polyfuse.tasks import objectives as known
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import Draws, Objective, both, tokens_inside
from polyfuse.tasks.words import MASK, PAD, SPECIALS
from polyfuse.train.task_parts import visual_places

Loss = tuple[Tensor, dict[str, Tensor]]


def rows_of(batch: TaskBatch, index: Tensor) -> TaskBatch:
    """Some rows."""
    taken: dict[str, Any] = {
        item.name: value[index] if isinstance(value := getattr(batch, item.name), Tensor) else value
        for item in fields(batch)
    }
    return replace(batch, **{**taken, "target": {name: value[index] for name, value in batch.target.items()}})


def _words(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    vocabulary, specials = model.config["vocab_size"], range(len(SPECIALS))
    found = mask_tokens(
        batch.text,
        batch.text_mask,
        draws["words"],
        mask_id=MASK,
        vocabulary=vocabulary,
        specials=specials,
        rate=objective.rate,
    )
    return found.chosen.sum(dim=1)


def _patches(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    return choose_patches(batch.present[:, :1].expand_as(draws["patches"]), draws["patches"], objective.rate).sum(dim=1)


def _regions(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    if batch.region_mask is None:
        raise ValueError("masked regions need regions; use masked_patches for pixels")
    return choose(batch.region_mask & batch.present[:, :1], draws["regions"]).sum(dim=1)


def _alignments(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    seen = batch.present[:, 0] if batch.region_mask is None else batch.region_mask.any(dim=1)
    return both(batch) & batch.text_mask.any(dim=1) & seen


def _captions(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    return ((batch.target["caption"][:, 1:] != PAD) & batch.present[:, :1]).sum(dim=1)


def _answers(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> dict[str, Tensor]:
    known = batch.target["answer"].sum(dim=1) > 0
    return {"loss": known, "right": torch.ones_like(known)}  # an answer outside the vocabulary counts as wrong


def _values(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    return batch.target["value"].isfinite()


def _boxes(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> dict[str, Tensor]:
    boxes, mask = visual_places(model, batch)
    here = both(batch)
    inside = tokens_inside(boxes, mask & here[:, None], batch.target["box"])
    return {"box": here, "tokens": inside.any(dim=1), "distance": here}


#: How many things each row ``(B,)`` brings to the mean of an objective; by name where it adds up several
#: (``Objective.means``), or where a figure is over others than the ``loss``.
COUNTS: dict[type[Objective], Callable[[Any, TaskModel, TaskBatch, Draws], Tensor | dict[str, Tensor]]] = {
    known.MaskedWords: _words,
    known.MaskedPatches: _patches,
    known.MaskedFeatures: _regions,
    known.MaskedClasses: _regions,
    known.MaskedClassesKL: _regions,
    known.Alignment: _alignments,
    known.Captions: _captions,
    known.Answers: _answers,
    known.Values: _values,
    known.Grounding: _boxes,
}


class _Counts:
    """How many things each row of a batch brings to each mean of an objective; itself, where that is not known."""

    def __init__(self, objective: Objective, model: TaskModel, batch: TaskBatch, draws: Draws) -> None:
        count = COUNTS.get(type(objective))
        found = torch.ones_like(batch.ids) if count is None else count(objective, model, batch, draws)
        self._by_name = found if isinstance(found, dict) else {"loss": found}

    def of(self, name: str) -> Tensor:
        """``(B,)`` of a mean or figure."""
        return self._by_name[name if name in self._by_name else "loss"].float()


class BatchMeans:
    """The loss and the figures of an objective over several batches: means over all rows, whatever the batches.

    Not of losses that depend on the other rows of a batch (contrast, matching): those are means over batches by rows.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._terms: dict[str, None] = {}

    def add(self, objective: Objective, model: TaskModel, batch: TaskBatch, draws: Draws) -> None:
        """One more batch."""
        counts = _Counts(objective, model, batch, draws)
        terms, figures = objective.means(model, batch, draws)
        self._terms |= dict.fromkeys(terms)
        for name, value in {**terms, **figures}.items():
            count = float(counts.of(name).sum())
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * count
            self._counts[name] = self._counts.get(name, 0.0) + count

    def result(self) -> dict[str, float]:
        """``loss``, then the figures; 0 of nothing."""
        means = {name: total / max(self._counts[name], 1.0) for name, total in self._sums.items()}
        loss = sum(means[name] for name in self._terms)
        return {"loss": loss} | {name: value for name, value in means.items() if name not in self._terms}


def can_share(objective: Objective) -> bool:
    """Whether ``shared_loss`` knows how to cut this objective's batch."""
    return type(objective) in {*COUNTS, *_PAIRED, *_CONTRAST}


def check_shares(tasks: Mapping[str, Objective], shares: int) -> None:
    """Refuse an objective whose loss over a batch is not known as a sum over shares.

    Raises:
        UserError: With its name.
    """
    for name, objective in tasks.items():
        if shares > 1 and not can_share(objective):
            raise UserError(
                f"objective '{name}' ({type(objective).__name__}) needs its whole batch in one pass of one process, "
                f"got {shares} shares; train it with one process and train.accumulate=1"
            )


def shared_loss(
    objective: Objective, model: TaskModel, batch: TaskBatch, draws: Draws, *, part: int, parts: int, passes: int
) -> Loss:
    """The loss of share number ``part``: rows ``part, part + parts, ...``; all shares add up to the batch's.

    Args:
        objective: What to compute.
        model: Of what.
        batch: All B rows of the step.
        draws: Of all rows.
        part: Number of the share.
        parts: Shares, over all processes and passes.
        passes: Passes of each process. With one, contrastive losses gather the other processes' embeddings; with more,
            the rest of the batch is embedded without gradients (https://arxiv.org/abs/2101.06983).

    Returns:
        The share of the loss, and figures times the share.
    """
    index = torch.arange(part, len(batch), parts, device=batch.ids.device)
    kind = type(objective)
    if kind in _CONTRAST:
        return _contrast(objective, model, batch, index, parts, passes)
    if kind in _PAIRED:
        return _matched(_PAIRED[kind](model, batch, draws), model, batch, index)
    counts = _Counts(objective, model, batch, draws)

    def weighed(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shares = {name: counts.of(name)[index].sum() / counts.of(name).sum().clamp(min=1) for name in means}
        return {name: value * shares[name] for name, value in means.items()}

    own = {name: draw[index] for name, draw in draws.items()}
    terms, figures = objective.means(model, rows_of(batch, index), own)
    return torch.stack(list(weighed(terms).values())).sum(), weighed(figures)


def _random(model: TaskModel, batch: TaskBatch, draws: Draws) -> MatchingPairs:
    return random_pairs(len(batch), draws["match"], draws["match"], ids=batch.ids, present=both(batch))


def _hard(model: TaskModel, batch: TaskBatch, draws: Draws) -> MatchingPairs:
    """From the whole batch's embeddings, which every process computes: no gradient is needed of them."""
    with torch.no_grad():
        similarity = model.contrast.scale() * model.embed_image(batch) @ model.embed_text(batch).t()
    return hard_pairs(similarity, draws["hard_match"], ids=batch.ids, present=both(batch))


_PAIRED: dict[type[Objective], Callable[[TaskModel, TaskBatch, Draws], MatchingPairs]] = {
    known.Match: _random,
    known.HardMatch: _hard,
}


def _matched(pairs: MatchingPairs, model: TaskModel, batch: TaskBatch, index: Tensor) -> Loss:
    """The pairs of some rows, with partners from the whole batch."""
    count = len(batch)
    own = torch.cat([index + start for start in range(0, len(pairs.first), count)])
    first, second = rows_of(batch, pairs.first[own]), rows_of(batch, pairs.second[own])
    joined = replace(
        first,
        text=second.text,
        text_mask=second.text_mask,
        present=torch.stack([first.present[:, 0], second.present[:, 1]], dim=1),
    )
    logits = model.heads["match"](model.encode(joined).states.pooled)
    label, valid = pairs.label[own], pairs.valid[own]
    share = valid.sum() / pairs.valid.sum().clamp(min=1)
    right = (logits.argmax(dim=1) == label)[valid].float().mean().nan_to_num()
    return matching_loss(logits, label, valid) * share, {"right": (right * share).detach()}


_CONTRAST = (known.Contrast, known.SigLIP)


def _contrast(objective: Objective, model: TaskModel, batch: TaskBatch, index: Tensor, parts: int, passes: int) -> Loss:
    head, own = model.contrast, rows_of(batch, index)
    image, text = model.embed_image(own), model.embed_text(own)
    siglip = isinstance(objective, known.SigLIP)
    if passes == 1:
        options: dict[str, Any] = {"ids": own.ids, "present": both(own), "mode": "gather"}
        if siglip:
            return distributed_siglip(image, text, head.scale(), head.bias, **options) / parts, {}
        loss = distributed_info_nce(image, text, head.scale(), **options)
        return loss / parts, {}
    with torch.no_grad():
        everyone = [model.embed_image(batch), model.embed_text(batch)]
    image, text = (rest.index_copy(0, index, mine) for rest, mine in zip(everyone, (image, text), strict=True))
    scale, bias = (_one_share(value, parts) for value in (head.scale(), head.bias))
    options = {"ids": batch.ids, "present": both(batch)}
    loss = siglip_loss(image, text, scale, bias, **options) if siglip else info_nce(image, text, scale, **options)
    # Every share computes the whole loss; of what all rows share, it brings its part of the gradient.
    return loss - (1 - 1 / parts) * loss.detach(), {}


def _one_share(value: Tensor, parts: int) -> Tensor:
    """The same value with ``1 / parts`` of the gradient."""
    return value / parts + (1 - 1 / parts) * value.detach()
