"""What a model is trained to do: one class per objective; ``OBJECTIVES`` names them.

An objective says which heads it needs, makes its random draws from row keys (``data/keyed.py``: the same whatever the
batch, the rank or the moment of a resumed run), and gives a loss. Shapes: B rows, T words, P visual tokens.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.data.keyed import uniform
from polyfuse.losses.captioning import captioning_loss
from polyfuse.losses.contrastive import info_nce, siglip_loss
from polyfuse.losses.grounding import box_loss, region_phrase_loss
from polyfuse.losses.masked import (
    masked_language_loss,
    masked_patches,
    masked_region_class,
    masked_region_kl,
    masked_region_regression,
)
from polyfuse.losses.masking import choose, choose_patches, mask_tokens, patches
from polyfuse.losses.matching import hard_pairs, matching_loss, random_pairs
from polyfuse.losses.transport import word_region_alignment
from polyfuse.registry import Registry
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.words import MASK, PAD, SPECIALS

Draws = Mapping[str, Tensor]


class Objective(nn.Module):
    """Base: a loss of a model on a batch.

    Args:
        model: Whose heads are attached where they are missing.
    """

    #: Heads that the model needs.
    HEADS: ClassVar[tuple[str, ...]] = ()
    #: Whether both modalities must be present for a row to count.
    NEEDS: ClassVar[tuple[str, ...]] = ("image", "text")

    def __init__(self, model: TaskModel, **options: Any) -> None:
        super().__init__()
        for head in self.HEADS:
            if head not in model.heads:
                model.attach(head, **options)

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """Uniform draws of the rows at a step; ``tokens`` is the number of visual tokens."""
        return {}

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar, and figures worth a curve, detached."""
        raise NotImplementedError

    def means(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The means that ``loss`` adds up, by name, and its figures: one, where all is over the same things."""
        loss, figures = self.loss(model, batch, draws)
        return {"loss": loss}, figures


def both(batch: TaskBatch) -> Tensor:
    """``(B,)``: picture and text are there."""
    return batch.present.all(dim=1)


def _draw(name: str, batch: TaskBatch, count: int, seed: int, step: int) -> dict[str, Tensor]:
    return {name: uniform(seed, name, step, batch.keys, count)}


class Contrast(Objective):
    """InfoNCE between pictures alone and texts alone (ITC). Source: CLIP, https://arxiv.org/abs/2103.00020."""

    HEADS = ("contrast",)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Both directions."""
        image, text = model.embed_image(batch), model.embed_text(batch)
        loss = info_nce(image, text, model.contrast.scale(), ids=batch.ids, present=both(batch))
        with torch.no_grad():
            best = (image @ text.t()).argmax(dim=1)
            right = (batch.ids[best] == batch.ids).float().mean()
        return loss, {"in_batch": right}


class SigLIP(Objective):
    """Sigmoid loss between pictures alone and texts alone. Source: https://arxiv.org/abs/2303.15343."""

    HEADS = ("contrast",)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Every pair by itself."""
        head = model.contrast
        image, text = model.embed_image(batch), model.embed_text(batch)
        return siglip_loss(image, text, head.scale(), head.bias, ids=batch.ids, present=both(batch)), {}


class Match(Objective):
    """Do picture and text belong together (ITM)? Half of the pairs have another row's picture, as UNITER draws them."""

    HEADS = ("match",)

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """Whether, and which."""
        return _draw("match", batch, 2, seed, step)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the pairs."""
        pairs = random_pairs(len(batch), draws["match"], draws["match"], ids=batch.ids, present=both(batch))
        states = model.pairs(batch, model.stem(batch), pairs.first, pairs.second)
        logits = model.heads["match"](states.pooled)
        right = (logits.argmax(dim=1) == pairs.label)[pairs.valid].float().mean().nan_to_num()
        return matching_loss(logits, pairs.label, pairs.valid), {"right": right.detach()}


class HardMatch(Objective):
    """ITM on mistakes that the contrastive embeddings nearly make. Source: ALBEF, https://arxiv.org/abs/2107.07651."""

    HEADS = ("match", "contrast")

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """One for each side."""
        return _draw("hard_match", batch, 2, seed, step)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Three pairs per row."""
        with torch.no_grad():
            similarity = model.contrast.scale() * model.embed_image(batch) @ model.embed_text(batch).t()
        pairs = hard_pairs(similarity, draws["hard_match"], ids=batch.ids, present=both(batch))
        states = model.pairs(batch, model.stem(batch), pairs.first, pairs.second)
        logits = model.heads["match"](states.pooled)
        right = (logits.argmax(dim=1) == pairs.label)[pairs.valid].float().mean().nan_to_num()
        return matching_loss(logits, pairs.label, pairs.valid), {"right": right.detach()}


class MaskedWords(Objective):
    """Masked language modelling with the whole picture in view (conditional masking, UNITER)."""

    HEADS = ("words",)
    NEEDS = ("text",)
    rate: float = 0.15

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """One per word."""
        return _draw("words", batch, batch.text.shape[1], seed, step)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the hidden words."""
        vocabulary = model.config["vocab_size"]
        masked = mask_tokens(
            batch.text,
            batch.text_mask,
            draws["words"],
            mask_id=MASK,
            vocabulary=vocabulary,
            specials=range(len(SPECIALS)),
            rate=self.rate,
        )
        encoded = model.encode(batch, text=masked.tokens)
        logits = model.heads["words"](encoded.states.text[masked.chosen])
        everywhere = torch.ones(1, len(logits), dtype=torch.bool, device=logits.device)
        wanted = masked.target[masked.chosen]
        right = (logits.argmax(dim=1) == wanted).float().mean().nan_to_num()
        return masked_language_loss(logits[None], wanted[None], everywhere), {"right": right.detach()}


class MaskedPatches(Objective):
    """Hidden patches of the picture, told from the rest and the whole text, as standardised pixels (MAE)."""

    HEADS = ("pixels",)
    NEEDS = ("image",)
    rate: float = 0.5

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """One per patch."""
        return _draw("patches", batch, tokens, seed, step)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error."""
        if batch.image is None:
            raise ValueError("masked patches need pixels; use masked_features for regions")
        here = batch.present[:, :1].expand_as(draws["patches"])
        hide = choose_patches(here, draws["patches"], self.rate)
        encoded = model.encode(batch, hide=hide)
        wanted = patches(batch.image, model.config["patch"])
        cells = encoded.states.image[:, : hide.shape[1]]  # a class token stands behind them
        return masked_patches(model.heads["pixels"](cells), wanted, hide), {}


class MaskedFeatures(Objective):
    """Features of hidden regions (MRFR). Source: UNITER, https://arxiv.org/abs/1909.11740."""

    HEADS = ("features",)
    NEEDS = ("image",)

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """One per region."""
        return _draw("regions", batch, tokens, seed, step)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error."""
        hide = _hidden_regions(batch, draws["regions"])
        encoded = model.encode(batch, hide=hide)
        assert batch.regions is not None  # noqa: S101 - the stem refuses it
        return masked_region_regression(model.heads["features"](encoded.states.image), batch.regions, hide), {}


class MaskedClasses(Objective):
    """Detector classes of hidden regions, the most likely one (MRC)."""

    HEADS = ("classes",)
    NEEDS = ("image",)
    divergence: ClassVar[bool] = False

    def draws(self, batch: TaskBatch, tokens: int, seed: int, step: int) -> dict[str, Tensor]:
        """One per region."""
        return _draw("regions", batch, tokens, seed, step)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, or divergence from the detector's probabilities."""
        if batch.region_classes is None:
            raise ValueError("the regions of this data have no class probabilities; use masked_features")
        hide = _hidden_regions(batch, draws["regions"])
        logits = model.heads["classes"](model.encode(batch, hide=hide).states.image)
        if self.divergence:
            return masked_region_kl(logits, batch.region_classes, hide), {}
        return masked_region_class(logits, batch.region_classes, hide), {}


class MaskedClassesKL(MaskedClasses):
    """Detector classes of hidden regions, all its probabilities (MRC-KL)."""

    divergence = True


def _hidden_regions(batch: TaskBatch, draws: Tensor) -> Tensor:
    if batch.region_mask is None:
        raise ValueError("masked regions need regions; use masked_patches for pixels")
    return choose(batch.region_mask & batch.present[:, :1], draws)


class Alignment(Objective):
    """Words and visual tokens lie close by optimal transport (WRA), 0.1 of the distance, as in UNITER."""

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the pairs that are there."""
        encoded = model.encode(batch)
        distance = word_region_alignment(
            encoded.states.text, encoded.states.image, encoded.text_mask, encoded.visual.mask, present=both(batch)
        )
        return 0.1 * distance, {"distance": distance.detach()}


class Captions(Objective):
    """The text, word by word, from the picture alone."""

    HEADS = ("caption",)
    smoothing: float = 0.1

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per word; the figure is without smoothing."""
        target = batch.target["caption"]
        context, mask = model.context(batch)
        logits = model.heads["caption"](target[:, :-1], target[:, :-1] != PAD, context, mask).logits
        wanted, here = target[:, 1:], (target[:, 1:] != PAD) & batch.present[:, :1]
        loss = captioning_loss(logits, wanted, here, label_smoothing=self.smoothing)
        with torch.no_grad():
            plain = captioning_loss(logits, wanted, here)
        return loss, {"nats": plain}


class Answers(Objective):
    """The answer among all: cross-entropy with soft targets, shared where several answers were given."""

    HEADS = ("answer",)
    NEEDS = ()

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows whose answer is outside the vocabulary do not count."""
        target = batch.target["answer"]
        logits = model(batch, tasks=("answer",)).answer_logits
        total = target.sum(dim=1)
        share = target / total.clamp(min=1e-6)[:, None]
        each = -(share * logits.float().log_softmax(dim=1)).sum(dim=1)
        counted = (total > 0).float()
        score = target.gather(1, logits.argmax(dim=1, keepdim=True)).mean()
        return (each * counted).sum() / counted.sum().clamp(min=1), {"right": score.detach()}


class Values(Objective):
    """A number: squared error."""

    HEADS = ("value",)
    NEEDS = ()

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over rows that have a number."""
        wanted = batch.target["value"]
        known = wanted.isfinite()
        error = (model(batch, tasks=("value",)).value - wanted.nan_to_num()).square()
        return (error * known).sum() / known.sum().clamp(min=1), {}


class Grounding(Objective):
    """The box that a phrase means: distance and overlap of the box, and which visual tokens lie in it."""

    HEADS = ("box",)

    def loss(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Box loss and the alignment of visual tokens whose centres the box holds."""
        means, figures = self.means(model, batch, draws)
        return means["box"] + means["tokens"], figures

    def means(self, model: TaskModel, batch: TaskBatch, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``box`` over the rows with picture and phrase, ``tokens`` over those of them whose box holds a token."""
        encoded = model.encode(batch)
        box, scores = model.heads["box"](encoded.states, encoded.visual)
        wanted, here = batch.target["box"], both(batch)
        mask = encoded.visual.mask & here[:, None]
        inside = tokens_inside(encoded.visual.boxes, mask, wanted)
        distance = F.l1_loss(box.detach()[here], wanted[here]).nan_to_num()
        return {"box": box_loss(box, wanted, here), "tokens": region_phrase_loss(scores, inside, mask)}, {
            "distance": distance
        }


def tokens_inside(boxes: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """``(B, P)`` bool: the visual tokens of ``mask`` whose centres lie in the row's box ``wanted (B, 4)``."""
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    return ((centres >= wanted[:, None, :2]) & (centres <= wanted[:, None, 2:])).all(dim=-1) & mask


#: Objectives by name.
OBJECTIVES = Registry(
    "objective",
    {
        "contrast": Contrast,
        "siglip": SigLIP,
        "match": Match,
        "hard_match": HardMatch,
        "masked_words": MaskedWords,
        "masked_patches": MaskedPatches,
        "masked_features": MaskedFeatures,
        "masked_classes": MaskedClasses,
        "masked_classes_kl": MaskedClassesKL,
        "alignment": Alignment,
        "caption": Captions,
        "answer": Answers,
        "value": Values,
        "grounding": Grounding,
    },
)
