"""One model for vision and language tasks: a stem, a backbone, and a head per objective or task.

Shapes: B rows, T words, P visual tokens, D width, E embedding width, V vocabulary, A answers. Masks: True = present.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.losses.grounding import centers_to_corners
from polyfuse.losses.scale import LearnableScale
from polyfuse.models.captioner import Captioner
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments
from polyfuse.tasks.backbones import BACKBONES, check_options
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.eyes import Eye
from polyfuse.tasks.stem import GridStem, RegionStem, States, VisualTokens
from polyfuse.tasks.words import BOS, EOS, PAD


class Encoded(NamedTuple):
    """What heads read.

    Attributes:
        states: Of the backbone.
        visual: The visual tokens it read.
        text_mask: ``(B, T)``.
    """

    states: States
    visual: VisualTokens
    text_mask: Tensor


def _decoder(
    model: "TaskModel",
    num_layers: int = 2,
    num_heads: int = 4,
    dropout: float = 0.1,
    hidden_dim: int | None = None,
    tied_output: bool = True,
    normalize_context: bool = True,
    norm_first: bool = True,
    activation: str = "gelu",
    attention_dropout: float | None = None,
    eps: float = 1e-5,
) -> Captioner:
    return Captioner(
        vocab_size=model.config["vocab_size"],
        dim=model.dim,
        context_dim=model.dim,
        max_length=model.config["max_length"],
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        num_layers=num_layers,
        num_heads=num_heads,
        dropout=dropout,
        hidden_dim=hidden_dim,
        tied_output=tied_output,
        normalize_context=normalize_context,
        norm_first=norm_first,
        activation=activation,
        attention_dropout=attention_dropout,
        eps=eps,
    )


class TaskModel(PretrainedModel):
    """A picture and a text to whatever is asked of them.

    The stem turns pixels (or regions) into visual tokens, the backbone reads them with the words, heads answer. A row
    may lack its picture or its text, for every backbone. ``embed_image`` and ``embed_text`` run the same backbone on
    one modality alone, so that contrastive learning trains what the joint tasks use, and a model that has learned both
    can do without either.

    Args:
        vocab_size: Token ids V of the text.
        backbone: Entry of ``BACKBONES``.
        backbone_options: Its arguments: ``num_layers``, ``num_heads``, ``fusion``, ``dropout``, ...
        dim: Width D.
        max_length: Most words of a text, marks included.
        side: Pixels of a picture.
        patch: Pixels of a patch.
        stem: "conv" or "patches"; not read by backbones that look at pixels themselves.
        region_dim: Read regions of this width in place of pixels.
        embed_dim: Width E of the embeddings for retrieval.

    Raises:
        KeyError: If the backbone is unknown.
        ValueError: If sizes do not fit, or the backbone has no such option.
    """

    HEADS: ClassVar[Mapping[str, Callable[..., nn.Module]]] = {
        "contrast": lambda model, scale=1 / 0.07, bias=-10.0: ContrastHead(model.dim, model.embed_dim, scale, bias),
        "match": lambda model: nn.Linear(model.dim, 2),
        "words": lambda model: WordHead(model.dim, model.config["vocab_size"]),
        "pixels": lambda model: nn.Linear(model.dim, 3 * model.config["patch"] ** 2),
        "features": lambda model: nn.Linear(model.dim, model.config["region_dim"]),
        "classes": lambda model, num_classes: nn.Linear(model.dim, num_classes),
        "answer": lambda model, num_answers, dropout=0.1: AnswerHead(model.dim, num_answers, dropout),
        "value": lambda model, dropout=0.1: AnswerHead(model.dim, 1, dropout),
        "box": lambda model: BoxHead(model.dim),
        "caption": _decoder,
    }

    def __init__(
        self,
        *,
        vocab_size: int,
        backbone: str = "multimodal",
        backbone_options: Mapping[str, Any] | None = None,
        dim: int = 128,
        max_length: int = 32,
        side: int = 64,
        patch: int = 8,
        stem: str = "conv",
        region_dim: int | None = None,
        embed_dim: int = 64,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config, self.dim, self.embed_dim = config, dim, embed_dim
        make: Any = BACKBONES[backbone]
        options = dict(backbone_options or {})
        check_options(backbone, options)
        self.stem: GridStem | RegionStem | Eye
        if hasattr(make, "take_stem"):
            if region_dim is not None:
                raise ValueError(f"backbone '{backbone}' looks at pixels itself: it cannot read regions")
            reader = make(vocab_size, dim, max_length, **options)
            self.stem = reader.take_stem(side, patch)
            self.backbone = reader
        else:
            self.stem = GridStem(side, patch, dim, stem) if region_dim is None else RegionStem(region_dim, dim)
            self.backbone = make(vocab_size, dim, max_length, **options)

    def encode(self, batch: TaskBatch, *, text: Tensor | None = None, hide: Tensor | None = None) -> Encoded:
        """States of both sides.

        Args:
            batch: The rows.
            text: ``(B, T)`` ids in place of the batch's, as masked language modelling makes them.
            hide: ``(B, P)`` bool: visual tokens that are not to be seen.
        """
        visual = self.stem(batch, hide)
        mask = batch.text_mask & batch.present[:, 1:]
        return Encoded(self.backbone(visual, batch.text if text is None else text, mask), visual, mask)

    def pairs(self, batch: TaskBatch, visual: VisualTokens, image_rows: Tensor, text_rows: Tensor) -> States:
        """States of other pairs of the same pictures and texts: row numbers ``(N,)`` of each; the stem ran once."""
        mask = batch.text_mask & batch.present[:, 1:]
        picked = VisualTokens(*(part[image_rows] for part in visual))
        return self.backbone(picked, batch.text[text_rows], mask[text_rows])

    @property
    def contrast(self) -> "ContrastHead":
        """The head of the contrastive losses.

        Raises:
            ValueError: If it is not attached.
        """
        self.asked(("contrast",))
        head = self.heads["contrast"]
        assert isinstance(head, ContrastHead)  # noqa: S101 - HEADS makes it
        return head

    def embed_image(self, batch: TaskBatch) -> Tensor:
        """Pictures alone, ``(B, E)`` of length 1."""
        return self.contrast(self.encode(one_word(batch)).states.pooled, "image")

    def embed_text(self, batch: TaskBatch) -> Tensor:
        """Texts alone, ``(B, E)`` of length 1."""
        mask = batch.text_mask & batch.present[:, 1:]
        nothing = self.nothing(len(batch), batch.text.device)
        return self.contrast(self.backbone(nothing, batch.text, mask).pooled, "text")

    def nothing(self, rows: int, device: torch.device) -> VisualTokens:
        """One absent visual token per row."""
        states = torch.zeros(rows, 1, self.dim, device=device)
        return VisualTokens(states, states.new_zeros(rows, 1, 4), states.new_zeros(rows, 1, dtype=torch.bool))

    def forward(
        self, batch: TaskBatch, *, tasks: Sequence[str] | None = None, return_attention: bool = False
    ) -> ModelOutput:
        """States, and the outputs of ``answer``, ``value``, ``box``, ``match`` and ``contrast`` where attached.

        ``info``: ``text (B, T, D)``, ``image (B, P, D)``, ``pooled (B, D)``, ``image_mask``, ``text_mask``,
        ``answer_logits (B, A)``, ``value (B,)``, ``box (B, 4)``, ``box_scores (B, P)``, ``match_logits (B, 2)``,
        ``image_embedding``, ``text_embedding (B, E)``.

        Args:
            batch: The rows.
            tasks: Heads to run; None = all attached that answer from one pass.
            return_attention: Fill ``attentions`` with ``{layer name: (B, H, Q, K)}``.

        Raises:
            ValueError: If a head is not attached.
        """
        if return_attention:
            with capture_attention(self) as maps:
                output = self.forward(batch, tasks=tasks)
            return output._replace(attentions=dict(maps))
        encoded = self.encode(batch)
        states = encoded.states
        info = {
            "text": states.text,
            "image": states.image,
            "pooled": states.pooled,
            "text_mask": encoded.text_mask,
            "image_mask": encoded.visual.mask,
        }
        for task in self.asked(tasks):
            head = self.heads[task]
            if task == "box":
                info["box"], info["box_scores"] = head(states, encoded.visual)
            elif task == "answer":
                info["answer_logits"] = head(states.pooled)
            elif task == "value":
                info["value"] = head(states.pooled)[:, 0]
            elif task == "match":
                info["match_logits"] = head(states.pooled)
            elif task == "contrast":
                info["image_embedding"], info["text_embedding"] = self.embed_image(batch), self.embed_text(batch)
        return ModelOutput(info.get("answer_logits"), None, info)

    def context(self, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """What the decoder reads: states of the picture alone ``(B, P, D)`` and their mask."""
        encoded = self.encode(one_word(batch))
        return encoded.states.image, encoded.visual.mask


def one_word(batch: TaskBatch) -> TaskBatch:
    """The pictures alone: one absent word per row, so that nothing is spent on texts."""
    bare = batch.without("text")
    return replace(bare, text=torch.zeros_like(batch.text[:, :1]), text_mask=bare.text_mask[:, :1])


class ContrastHead(nn.Module):
    """A projection per modality to a shared space, and the scale and bias of the contrastive losses.

    Args:
        dim: Width D.
        embed_dim: Width E.
        scale: 1 / temperature at the start.
        bias: Of SigLIP at the start.
    """

    def __init__(self, dim: int, embed_dim: int, scale: float = 1 / 0.07, bias: float = -10.0) -> None:
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(dim, embed_dim, bias=False) for name in ("image", "text")})
        self.scale = LearnableScale(scale, 1.0, 100.0)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, pooled: Tensor, modality: str) -> Tensor:
        """``(B, D)`` to ``(B, E)`` of length 1."""
        return F.normalize(self.project[modality](pooled), dim=-1)


class WordHead(nn.Module):
    """BERT's head for masked words: ``W LayerNorm(gelu(U x))``.

    Args:
        dim: Width D.
        vocab_size: Token ids V.
    """

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.transform, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., V)``."""
        return self.output(self.norm(F.gelu(self.transform(states))))


class AnswerHead(nn.Module):
    """A hidden layer, then answers.

    Args:
        dim: Width D.
        num_answers: A.
        dropout: On the hidden layer.
    """

    def __init__(self, dim: int, num_answers: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.hidden, self.norm = nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim)
        self.drop, self.output = nn.Dropout(dropout), nn.Linear(2 * dim, num_answers)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, A)``."""
        return self.output(self.drop(self.norm(F.gelu(self.hidden(pooled)))))


class BoxHead(nn.Module):
    """Where a phrase points: visual tokens are scored against it, and a box is read from the mean they weigh.

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.read = nn.Sequential(nn.Linear(2 * dim + 4, dim), nn.GELU(), nn.Linear(dim, 4))

    def forward(self, states: States, visual: VisualTokens) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, 4)`` as corners, and the scores ``(B, P)`` of the tokens (lowest where absent)."""
        scores = torch.einsum("bd,bpd->bp", self.query(states.pooled), self.key(states.image))
        scores = scores / states.pooled.shape[-1] ** 0.5
        scores = scores.masked_fill(~visual.mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)[:, None]
        mean, place = (weights @ states.image)[:, 0], (weights @ visual.boxes)[:, 0]
        box = self.read(torch.cat([states.pooled, mean, place], dim=-1))
        center = (place[:, :2] + place[:, 2:]) / 2
        shifted = torch.cat([center + 0.5 * box[:, :2].tanh(), box[:, 2:].sigmoid()], dim=-1)
        return centers_to_corners(shifted).clamp(0.0, 1.0), scores
