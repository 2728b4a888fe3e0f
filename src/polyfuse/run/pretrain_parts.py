"""From a pre-training config to its parts: rows, tokenizer, model, tasks, and what is looked at on held-out rows."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from polyfuse.data.schema import nearest
from polyfuse.errors import UserError
from polyfuse.evaluate.retrieval import retrieval_scores
from polyfuse.task_config import PretrainConfig, SourceConfig, TaskModelConfig
from polyfuse.tasks.backbones import BACKBONES
from polyfuse.tasks.batch import Collator, TaskBatch, TaskData, answer_vocabulary
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.task_loop import Task, visual_tokens
from polyfuse.train.task_shares import BatchMeans

_PAIRS = ("contrast", "siglip", "match", "hard_match", "alignment", "caption")
_OTHERS = ("contrast", "siglip", "match", "hard_match")
_RETRIEVAL = ("contrast", "siglip", "hard_match")
_KS = (1, 5, 10)


@dataclass(frozen=True)
class Parts:
    """What a run works with.

    Attributes:
        data: The sources, in the order of the config, without what the model does not read.
        words: The tokenizer.
        answers: Answers by column of the answer head; empty without that objective.
        model: With the heads of all objectives.
        tasks: By name: that of the objective, or ``objective@source`` where several sources feed it.
        held_out: ``{task: (collator, rows)}`` of validation rows.
    """

    data: tuple[TaskData, ...]
    words: WordTokenizer
    answers: tuple[str, ...]
    model: TaskModel
    tasks: dict[str, Task]
    held_out: dict[str, tuple[Collator, np.ndarray]]


def build_parts(config: PretrainConfig, words: WordTokenizer | None = None) -> Parts:
    """Load, learn the tokenizer, build.

    Args:
        config: Of the run.
        words: The tokenizer, where the run has one already: learning it again may number its pieces differently.

    Raises:
        UserError: If a source, an objective or an argument is unknown, or they do not fit together.
    """
    for name in config.objectives:
        if name not in OBJECTIVES:
            hint = nearest(name, OBJECTIVES) or ";"
            raise UserError(f"unknown objective '{name}'{hint} known: {', '.join(sorted(OBJECTIVES))}")
    data = tuple(_load(source, config.model.inputs) for source in config.data)
    uses = _uses(config, data)
    if words is None:
        texts = [text for part in data for row in part.rows("train") if (text := part.texts[row]).strip()]
        words = WordTokenizer.train(texts, config.words.vocab_size)
    asked = [data[number] for name, number in uses if name == "answer"]
    answers = tuple(dict.fromkeys(answer for part in asked for answer in answer_vocabulary(part)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = _model(config.model, data, len(words))
        for name in ("masked_patches", "grounding"):
            if name in config.objectives and getattr(model.stem, "grid", None) == 0:
                raise UserError(
                    f"objective '{name}' cannot train: the visual tokens of backbone '{config.model.backbone}' are "
                    "no places; leave it out"
                )
        made = {name: OBJECTIVES[name](model, **_head(name, data, uses, answers)) for name in config.objectives}
    tasks: dict[str, Task] = {}
    held_out: dict[str, tuple[Collator, np.ndarray]] = {}
    training = [part.rows("train") for part in data]  # one array per source: its tasks share their batches
    collators: dict[tuple[int, bool], Collator] = {}
    for name, number in uses:
        part, several = data[number], [n for used, n in uses if used == name]
        key = (number, name == "caption")
        if key not in collators:
            wanted = answers if ("answer", number) in uses else None
            collators[key] = Collator(
                part, words, max_length=config.model.max_length, answers=wanted, captions=name == "caption"
            )
        task = name if len(several) == 1 else f"{name}@{part.name}"
        if task in tasks:  # the same source twice, with other arguments
            task = f"{task}.{number}"
        weight = config.objectives[name] / len(several)
        fewest = min(config.train.batch_size, len(training[number]))
        if name in _OTHERS and fewest < 2:
            raise UserError(
                f"objective '{name}' learns from the other rows of a batch: it needs 2 rows, got {fewest} "
                f"(train.batch_size={config.train.batch_size}, {len(training[number])} training rows)"
            )
        tasks[task] = Task(made[name], collators[key], training[number], weight)
        rows = part.rows("validation")[: config.held_out.rows]
        if len(rows):
            held_out[task] = (collators[key], rows)
    return Parts(data, words, answers, model, tasks, held_out)


def _load(source: SourceConfig, inputs: str) -> TaskData:
    from polyfuse.tasks.sources import load_source

    data = load_source(source.source, **source.args)
    if not len(data.rows("train")):
        raise UserError(f"source '{source.source}' has no training rows")
    return replace(data, regions=None) if inputs == "pixels" else replace(data, images=None)


def _uses(config: PretrainConfig, data: Sequence[TaskData]) -> list[tuple[str, int]]:
    """``(objective, number of the source)`` of every task."""
    found: list[tuple[str, int]] = []
    for name in config.objectives:
        lacks: list[str] = []
        for number, (source, part) in enumerate(zip(config.data, data, strict=True)):
            if source.objectives is not None and name not in source.objectives:
                continue
            missing = _lacking(name, part, config.model.inputs)
            if missing is None:
                found.append((name, number))
                continue
            lacks.append(f"source '{source.source}' has no {missing}")
            if source.objectives is not None:
                raise UserError(f"objective '{name}' cannot train: {lacks[-1]}")
        if not any(name == used for used, _ in found):
            raise UserError(f"objective '{name}' cannot train: {'; '.join(lacks) or 'no source lists it'}")
    return found


def _lacking(name: str, data: TaskData, inputs: str) -> str | None:
    """What an objective misses in a source, or None."""
    pictures = data.images is not None or data.regions is not None
    classes = data.regions is not None and data.regions.classes is not None
    texts = any(text.strip() for text in data.texts)
    checks: dict[str, list[tuple[bool, str]]] = {
        "masked_words": [(texts, "texts")],
        "masked_patches": [(data.images is not None, "pictures (model.inputs=pixels)")],
        "masked_features": [(data.regions is not None, "regions (model.inputs=regions)")],
        "masked_classes": [(classes, "class probabilities of regions (model.inputs=regions)")],
        "masked_classes_kl": [(classes, "class probabilities of regions (model.inputs=regions)")],
        "answer": [(data.answers is not None or data.votes is not None, "answers")],
        "value": [(data.values is not None, "values")],
        "grounding": [
            (data.boxes is not None, "boxes (of a table: data.args.box=[x0, y0, x1, y1])"),
            (pictures, inputs),
        ],
        **{key: [(pictures, inputs), (texts, "texts")] for key in _PAIRS},
    }
    return next((what for there, what in checks[name] if not there), None)


def _head(
    name: str, data: Sequence[TaskData], uses: Sequence[tuple[str, int]], answers: Sequence[str]
) -> dict[str, Any]:
    """Options of the objective's head."""
    if name == "answer":
        return {"num_answers": len(answers)}
    if name in ("masked_classes", "masked_classes_kl"):
        part = data[next(number for used, number in uses if used == name)]
        assert part.regions is not None and part.regions.classes is not None  # noqa: S101, PT018 - _lacking looked
        return {"num_classes": part.regions.classes.shape[-1]}
    return {}


def _model(config: TaskModelConfig, data: Sequence[TaskData], vocabulary: int) -> TaskModel:
    if config.backbone not in BACKBONES:
        hint = nearest(config.backbone, BACKBONES) or ";"
        raise UserError(f"unknown backbone '{config.backbone}'{hint} known: {', '.join(sorted(BACKBONES))}")
    pictures = config.inputs == "pixels"
    widths = {
        (part.images.shape[1] if part.images is not None else None)
        if pictures
        else (part.regions.features.shape[-1] if part.regions is not None else None)
        for part in data
    }
    if len(widths) > 1 or None in widths:
        what = "pictures of one size" if pictures else "regions of one width"
        raise UserError(f"model.inputs={config.inputs} needs {what} from every source, got {sorted(map(str, widths))}")
    width = widths.pop()
    given = config.model_dump(exclude={"inputs"})
    sized: dict[str, Any] = {"side": width} if pictures else {"region_dim": width}
    try:
        return TaskModel(vocab_size=vocabulary, **given, **sized)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"model: {error.args[0] if error.args else error}") from None


class HeldOut:
    """Figures of a model on validation rows: the loss of every objective with fixed draws, recall of pictures by texts.

    ``loss`` is the sum the training minimises. Draws are keyed by a step that training never reaches, so that every
    evaluation hides the same words. A mean over hidden words (or patches, regions, ...) is that over all held-out rows.

    Args:
        parts: Of the run.
        config: Of the run.
    """

    def __init__(self, parts: Parts, config: PretrainConfig) -> None:
        self.parts, self.config = parts, config

    def __call__(self, model: TaskModel) -> dict[str, float]:
        """``{"loss": ..., "<task>.loss": ..., "<task>.<figure>": ...}``."""
        figures: dict[str, float] = {}
        total = weights = 0.0
        for name, (collate, rows) in self.parts.held_out.items():
            found = self._objective(model, name, collate, rows)
            total += self.parts.tasks[name].weight * found["loss"]
            weights += self.parts.tasks[name].weight
            figures |= {f"{name}.{figure}": value for figure, value in found.items()}
            if self.config.held_out.retrieval and name.partition("@")[0] in _RETRIEVAL:
                figures |= {f"{name}.{key}": value for key, value in self.retrieval(model, collate, rows).items()}
        return {"loss": total / weights if self.config.train.mixing == "sample" else total, **figures}

    def _objective(self, model: TaskModel, name: str, collate: Collator, rows: np.ndarray) -> dict[str, float]:
        objective, settings = self.parts.tasks[name].objective, self.config.train
        means = BatchMeans()
        for batch in self._batches(model, collate, rows):
            draws = objective.draws(batch, visual_tokens(model, batch), settings.seed, settings.steps)
            means.add(objective, model, batch, draws)
        return means.result()

    def retrieval(self, model: TaskModel, collate: Collator, rows: np.ndarray) -> dict[str, float]:
        """Recall both ways among all held-out rows, and what chance would give at 1."""
        images, texts, ids, present = [], [], [], []
        for batch in self._batches(model, collate, rows):
            images.append(model.embed_image(batch).cpu())
            texts.append(model.embed_text(batch).cpu())
            ids.append(batch.ids.cpu())
            present.append(batch.present.all(dim=1).cpu())
        same, here = torch.cat(ids), torch.cat(present)
        both = retrieval_scores(
            torch.cat(images), torch.cat(texts), same, same, image_present=here, text_present=here, ks=_KS
        )
        found = {f"{way}@{k}": share for way, recall in both.items() for k, share in recall.at.items()}
        return found | {"chance@1": (same[here][:, None] == same[here][None, :]).float().mean().item()}

    def _batches(self, model: TaskModel, collate: Collator, rows: np.ndarray) -> Iterator[TaskBatch]:
        device = next(model.parameters()).device
        size = self.config.train.batch_size
        for start in range(0, len(rows), size):
            yield collate(rows[start : start + size]).to(device)


def rows_of(data: Sequence[TaskData]) -> list[dict[str, Any]]:
    """What there is of each source, for the log, and to know whether it has changed."""
    return [
        {
            "source": part.name,
            "training rows": len(part.rows("train")),
            "validation rows": len(part.rows("validation")),
            "notes": list(part.notes),
            "checksum": _checksum(part),
        }
        for part in data
    ]


def _checksum(data: TaskData) -> str:
    """Of texts, pictures and regions."""
    found = hashlib.blake2b("\x1f".join(data.texts).encode("utf-8", "surrogatepass"), digest_size=8)
    regions = data.regions
    arrays = [data.images, data.image_of, data.part, data.ids, *([] if regions is None else [regions.features])]
    for array in arrays:
        if array is not None:
            found.update(array.tobytes())
    return found.hexdigest()
