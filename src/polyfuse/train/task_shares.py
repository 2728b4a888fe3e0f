"""A step's batch in shares, for several processes or passes: the losses of the shares add up to that of the batch.

The mean over what an objective counts (hidden words, matched pairs, ...) is not the mean of the shares' means, so a
share weighs by how many of them it has. Every process makes the whole batch, which is cheap, and can therefore count,
and draw partners from, rows that others compute.

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
from polyfuse.tasks.objectives import Draws, Objective, both
from polyfuse.tasks.words import MASK, PAD, SPECIALS

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


def _answers(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    return batch.target["answer"].sum(dim=1) > 0


def _values(objective: Any, model: TaskModel, batch: TaskBatch, draws: Draws) -> Tensor:
    return batch.target["value"].isfinite()


#: How many things each row ``(B,)`` brings to the mean of an objective.
COUNTS: dict[type[Objective], Callable[[Any, TaskModel, TaskBatch, Draws], Tensor]] = {
    known.MaskedWords: _words,
    known.MaskedPatches: _patches,
    known.MaskedFeatures: _regions,
    known.MaskedClasses: _regions,
    known.MaskedClassesKL: _regions,
    known.Alignment: _alignments,
    known.Captions: _captions,
    known.Answers: _answers,
    known.Values: _values,
}


def counted(objective: Objective, model: TaskModel, batch: TaskBatch, draws: Draws) -> float:
    """Of how many things the objective's loss on a batch is the mean; rows, where that is not known."""
    count = COUNTS.get(type(objective))
    return float(len(batch)) if count is None else float(count(objective, model, batch, draws).sum())


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
    counts = COUNTS[kind](objective, model, batch, draws).float()
    share = counts[index].sum() / counts.sum().clamp(min=1)
    loss, figures = objective.loss(model, rows_of(batch, index), {name: draw[index] for name, draw in draws.items()})
    return loss * share, {name: figure * share for name, figure in figures.items()}


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
