"""The worlds of the studies of pre-training: rows with labels, rows without, a tokenizer, a model of matching size.

A world is a function of plain options, and is kept in memory by the process that made it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyfuse.report.task_page import Example
from polyfuse.tasks.batch import TRAIN, Collator, TaskData
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.finetune import FineTune, FineTuned, fine_tune
from polyfuse.train.task_loop import LoopSettings, Task, TaskFit, fit_tasks

EASY: Mapping[str, Any] = {
    "shapes": ("circle", "square", "triangle", "cross"),
    "colours": ("red", "green", "blue", "yellow"),
    "sizes": ("large",),
    "materials": ("plain",),
    "most": 3,
    "side": 48,
}
"""Scenes that a model of this size learns in minutes: two or three objects of four shapes and four colours."""


@dataclass(frozen=True)
class World:
    """What is learned in one world.

    Attributes:
        name: Of the world.
        task: Of ``TASKS``.
        labelled: Rows with answers.
        plain: Rows to pre-train on: pictures with words, and no answers.
        words: Learned from the training texts of both.
        model: Arguments of ``TaskModel``.
        objectives: Of the pre-training, by weight; each step trains one of them, drawn by weight.
        pictures: ``(P, S, S, 3)`` uint8, for examples.
        lr: Peak learning rate of every training on labels.
    """

    name: str
    task: str
    labelled: TaskData
    plain: TaskData
    words: WordTokenizer
    model: Mapping[str, Any]
    objectives: Mapping[str, float]
    pictures: np.ndarray
    lr: float = 1e-3


@lru_cache(maxsize=2)
def scene_world(
    *,
    train: int,
    validation: int,
    test: int,
    novel: int = 0,
    labelled: int | None = None,
    dim: int = 64,
    layers: int = 2,
) -> World:
    """Questions about scenes, and captions of the same scenes; regions in place of pixels, as UNITER reads them.

    Args:
        train: Scenes with captions.
        validation: Likewise, with questions too.
        test: Likewise.
        novel: Scenes of combinations held out.
        labelled: Training scenes that questions are asked about; None = all.
        dim: Width of the model.
        layers: Its layers.
    """
    from polyfuse.tasks.sources import load_source

    sizes = {"train": train, "validation": validation, "test": test, "novel": novel}
    common: dict[str, Any] = {**sizes, **EASY, "regions": True}
    asked = load_source("scene_questions", per_scene=4, **common)
    said = load_source("scene_captions", per_scene=2, **common)
    assert asked.regions is not None  # noqa: S101 - asked for
    assert asked.regions.classes is not None  # noqa: S101 - scenes have them
    texts = [data.texts[row] for data in (asked, said) for row in data.rows("train")]
    words = WordTokenizer.train(texts, 600)
    model = {
        "vocab_size": len(words),
        "dim": dim,
        "max_length": 40,
        "region_dim": asked.regions.features.shape[-1],
        "backbone_options": {"fusion": "early", "num_layers": layers, "num_heads": 4, "dropout": 0.0},
    }
    objectives = {"contrast": 1.0, "match": 1.0, "masked_words": 2.0, "masked_features": 0.5, "masked_classes": 0.5}
    assert asked.images is not None  # noqa: S101 - not left out
    bare, told = replace(asked, images=None), replace(said, images=None)  # the model reads regions alone
    if labelled is not None:
        bare = bare.take(np.flatnonzero((bare.part != TRAIN) | (bare.image_of < labelled)))
    return World("scenes", "vqa", bare, told, words, model, objectives, asked.images)


@lru_cache(maxsize=2)
def emoji_world(*, dim: int = 64, layers: int = 2, limit: int | None = None) -> World:
    """The emoji that ship with the package: picture and English name, nine classes, concepts never cross parts."""
    from polyfuse.data.emoji import CLASSES, SPLITS, load_emoji

    tables = load_emoji(missing_rate=0.0)
    kept = [(part, row) for part, split in enumerate(SPLITS) for row in range(len(tables.rows[split]))]
    if limit is not None:
        kept = kept[:: max(1, len(kept) // limit)]
    rows = [tables.rows[SPLITS[part]][row] for part, row in kept]
    drawn = [getattr(tables, SPLITS[part]).inputs["picture"][row].numpy().transpose(1, 2, 0) for part, row in kept]
    numbers: dict[str, int] = {}
    names = [row["name"] for row in rows]
    images = np.stack(drawn)
    data = TaskData(
        name="emoji",
        images=images,
        image_of=np.arange(len(rows), dtype=np.int64),
        texts=names,
        part=np.array([part for part, _ in kept], dtype=np.int8),
        ids=np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64),
        answers=[row["class"] for row in rows],
    )
    assert set(data.answers or ()) <= set(CLASSES)  # noqa: S101
    words = WordTokenizer.train([names[row] for row in data.rows("train")], 1200)
    model = {
        "vocab_size": len(words),
        "dim": dim,
        "max_length": 16,
        "side": 32,
        "patch": 8,
        "stem": "conv",
        "backbone_options": {"fusion": "early", "num_layers": layers, "num_heads": 4, "dropout": 0.1},
    }
    # Of 2,217 pairs the other objectives learn by heart what does not help: with them it did worse on validation rows.
    plain = replace(data, answers=None)
    return World("emoji", "classification", data, plain, words, model, {"contrast": 1.0}, images, lr=5e-4)


@lru_cache(maxsize=2)
def glyph_world(*, dim: int = 64, layers: int = 2, limit: int | None = None, test: int | None = None) -> World:
    """Characters in six faces: questions about letters, and the Unicode names of all characters.

    Args:
        dim: Width of the model.
        layers: Its layers.
        limit: About how many pictures in all; None = 23,576.
        test: Most test questions.
    """
    from polyfuse.tasks.sources import load_source

    asked, named = load_source("glyph_questions"), load_source("glyphs")
    if limit is not None:
        step = max(1, len(named) // limit)
        asked, named = (data.take(np.flatnonzero(data.image_of % step == 0)) for data in (asked, named))
    kept = asked.rows("test")
    if test is not None and len(kept) > test:
        gone = np.setdiff1d(kept, kept[np.linspace(0, len(kept) - 1, test).astype(int)])
        asked = asked.take(np.setdiff1d(np.arange(len(asked)), gone))
    texts = [data.texts[row] for data in (asked, named) for row in data.rows("train")]
    words = WordTokenizer.train(texts, 1500)
    model = {
        "vocab_size": len(words),
        "dim": dim,
        "max_length": 24,
        "side": 32,
        "patch": 8,
        "stem": "conv",
        "backbone_options": {"fusion": "early", "num_layers": layers, "num_heads": 4, "dropout": 0.0},
    }
    objectives = {"contrast": 1.0, "match": 1.0, "masked_words": 2.0, "masked_patches": 0.5}
    assert named.images is not None  # noqa: S101 - they are drawn
    return World("glyphs", "vqa", asked, named, words, model, objectives, named.images)


WORLDS: dict[str, Callable[..., World]] = {"scenes": scene_world, "glyphs": glyph_world, "emoji": emoji_world}


def world_of(options: Mapping[str, Any]) -> World:
    """From ``{"world": name, "sizes": arguments}``."""
    return WORLDS[options["world"]](**options["sizes"])


def new_model(world: World, seed: int) -> TaskModel:
    """Untrained; the seed decides it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TaskModel(**world.model)


def pretrain(
    world: World, seed: int, steps: int, *, lr: float = 1e-3, evaluations: int = 8
) -> tuple[TaskModel, TaskFit]:
    """Pre-train a new model on the world's plain rows; the last weights are kept, since no label may choose."""
    model = new_model(world, seed)
    plain, length = world.plain, int(world.model["max_length"])
    collate, rows = Collator(plain, world.words, max_length=length), plain.rows("train")
    tasks = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in world.objectives.items():
            more: dict[str, Any] = {}
            if name.startswith("masked_classes"):
                assert plain.regions is not None  # noqa: S101 - scenes have them
                assert plain.regions.classes is not None  # noqa: S101
                more = {"num_classes": plain.regions.classes.shape[-1]}
            tasks[name] = Task(OBJECTIVES[name](model, **more), collate, rows, weight)
    settings = LoopSettings(steps=steps, lr=lr, seed=seed, evaluations=evaluations, mixing="sample")
    return model, fit_tasks(model, tasks, settings)


def objective_curves(fit: TaskFit) -> dict[str, list[tuple[float, float]]]:
    """Training loss of every objective over the steps."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in fit.history:
        for name, figures in record["objectives"].items():
            found.setdefault(f"train {name}", []).append((record["step"], figures["loss"]))
    return found


def fit_curves(fit: TaskFit, task: str) -> dict[str, list[tuple[float, float]]]:
    """Training loss, validation loss and accuracy over the steps of a fine-tuning."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in fit.history:
        found.setdefault("train loss", []).append((record["step"], record["objectives"][task]["loss"]))
        for name in ("loss", "accuracy"):
            if name in record["validation"]:
                found.setdefault(f"validation {name}", []).append((record["step"], record["validation"][name]))
    return found


def tune(model: TaskModel, world: World, options: FineTune, **more: Any) -> FineTuned:
    """Fine-tune on the labelled rows, or for captions on the plain ones."""
    data = world.plain if options.task == "captioning" else world.labelled
    return fine_tune(model, data, world.words, options, **more)


_WORDS = "words.json"


def save_model(model: TaskModel, world: World, folder: Path) -> None:
    """Weights and tokenizer, for later jobs."""
    model.save_pretrained(folder)
    world.words.write(folder / _WORDS)


def load_model(folder: Path, world: World) -> tuple[TaskModel, World]:
    """Of an earlier job, which may have been another process: the world with the tokenizer that its model learned."""
    words = WordTokenizer.read(folder / _WORDS)
    return TaskModel.from_pretrained(folder).train(), replace(world, words=words)


def answer_examples(world: World, found: FineTuned, count: int, title: str = "", part: str = "test") -> list[Example]:
    """Pictures from all over a part with what was asked, what was said and what is right."""
    said, shown = found.judgements[part].predictions, []
    for row in np.linspace(0, len(said["row"]) - 1, count).astype(int).tolist():
        mark = "" if said["score"][row] >= 0.5 else f", right: {said['answer'][row]}"
        lines = (said["text"][row], f"answer: {said['predicted'][row]}{mark}")
        shown.append(Example(world.pictures[said["picture"][row]], lines, title=title))
    return shown
