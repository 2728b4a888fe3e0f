"""What the studies of answering models share: rows to learn from, a model of a strategy, its training and its costs.

Shapes: N rows, A answers, P visual tokens.
"""

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from polyfuse.data.keyed import permutation, seed_of
from polyfuse.layers.attention_maps import capture_attention
from polyfuse.tasks.batch import Collator, TaskBatch, TaskData, answer_vocabulary
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.task_loop import LoopSettings, Task, TaskFit, fit_tasks

SCENES: Mapping[str, Any] = {
    "shapes": ["circle", "square", "triangle"],
    "colours": ["red", "green", "blue", "yellow"],
    "sizes": ["large"],
    "materials": ["plain"],
    "most": 3,
}
"""Scenes that a small model learns in minutes: two or three large, plain objects of three shapes and four colours."""

MAX_LENGTH = 24
_WIDEST = 256  # rows of a batch that is only judged


@dataclass(frozen=True)
class Questions:
    """Rows with questions, as models read them, and the pictures to print.

    Attributes:
        data: Without pictures where there are regions.
        images: ``(P, S, S, 3)`` uint8.
        words: Learned from the training questions.
        answers: By column.
        collate: Makes batches.
        rows: Numbers of the rows per part, as many as are asked for.
    """

    data: TaskData
    images: np.ndarray
    words: WordTokenizer
    answers: tuple[str, ...]
    collate: Collator
    rows: Mapping[str, np.ndarray]

    @property
    def kinds(self) -> list[str]:
        """Kinds of question that the test rows have."""
        return sorted({self.kind(row) for row in self.rows["test"]})

    def kind(self, row: int) -> str:
        """Of a row."""
        assert self.data.kinds is not None  # noqa: S101 - every source here has them
        return self.data.kinds[row]

    def answer(self, row: int) -> str:
        """The right one."""
        assert self.data.answers is not None  # noqa: S101 - every source here has them
        return self.data.answers[row]

    def picture(self, row: int) -> np.ndarray:
        """Of a row."""
        return self.images[self.data.image_of[row]]


def questions_of(options: Mapping[str, Any]) -> Questions:
    """Load ``{"source": name, "data": arguments, "validation_rows": most, "test_rows": most}``; kept in memory."""
    return _questions(json.dumps({key: options[key] for key in ("source", "data", "validation_rows", "test_rows")}))


@lru_cache(maxsize=2)
def _questions(text: str) -> Questions:
    from polyfuse.tasks.sources import load_source

    options = json.loads(text)
    data = load_source(options["source"], **options["data"])
    assert data.images is not None  # noqa: S101 - asked for, to print examples
    images, data = data.images, data if data.regions is None else replace(data, images=None)
    words = WordTokenizer.train([data.texts[row] for row in data.rows("train")], 600)
    answers = answer_vocabulary(data)
    rows = {"train": data.rows("train")}
    for part in ("validation", "test"):
        found, most = data.rows(part), options[f"{part}_rows"]
        rows[part] = np.sort(found[permutation(0, part, 0, len(found)).numpy()[:most]])
    collate = Collator(data, words, max_length=MAX_LENGTH, answers=answers)
    return Questions(data, images, words, answers, collate, rows)


def words_alone(questions: Questions) -> dict[str, float]:
    """Share of test questions that the best answer by the words alone gets right: ``all`` and per kind.

    Counted, not trained: the most frequent answer of the training rows to exactly this question, to a question never
    met that of its kind.
    """
    exact: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for row in questions.rows["train"]:
        exact[questions.data.texts[row]][questions.answer(row)] += 1
        by_kind[questions.kind(row)][questions.answer(row)] += 1
    right: dict[str, list[float]] = defaultdict(list)
    for row in questions.rows["test"]:
        known = exact.get(questions.data.texts[row]) or by_kind[questions.kind(row)]
        hit = float(bool(known) and known.most_common(1)[0][0] == questions.answer(row))
        right["all"].append(hit)
        right[questions.kind(row)].append(hit)
    return {kind: float(np.mean(hits)) for kind, hits in right.items()}


def new_model(questions: Questions, options: Mapping[str, Any], seed: int) -> TaskModel:
    """Untrained, with its answer head.

    Args:
        questions: What it is to answer.
        options: ``backbone`` (arguments of the backbone), ``dim``, ``patch``.
        seed: Of its weights.
    """
    regions = questions.data.regions
    size = {"region_dim": regions.features.shape[-1]} if regions is not None else {"side": questions.images.shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights"))
        model = TaskModel(
            vocab_size=len(questions.words),
            backbone_options={"dropout": 0.0, **options["backbone"]},
            dim=options["dim"],
            patch=options["patch"],
            max_length=MAX_LENGTH,
            **size,
        )
        return model.attach("answer", num_answers=len(questions.answers))


def train_answers(
    questions: Questions, options: Mapping[str, Any], seed: int, *, lr: float, hide: str | None = None
) -> tuple[TaskModel, TaskFit]:
    """Train a new model on the training rows; the weights of the best validation accuracy are kept.

    Args:
        questions: What to learn.
        options: As of ``new_model``, and ``steps``, ``batch_size``, ``evaluations``.
        seed: Of weights and batches.
        lr: Peak learning rate.
        hide: A modality that is withheld, in training and in validation.
    """
    model = new_model(questions, options, seed)
    task = Task(
        OBJECTIVES["answer"](model, num_answers=len(questions.answers)), questions.collate, questions.rows["train"]
    )
    settings = LoopSettings(
        steps=options["steps"],
        batch_size=options["batch_size"],
        lr=lr,
        seed=seed,
        evaluations=options["evaluations"],
    )

    def validate(trained: TaskModel) -> dict[str, float]:
        return {"accuracy": float(hits(questions, shares(trained, questions, "validation", hide), "validation").mean())}

    fit = fit_tasks(
        model,
        {"answer": task},
        settings,
        validate=validate,
        best_by="accuracy",
        best_is="highest",
        augment=None if hide is None else lambda batch, step: batch.without(hide),
    )
    return model, fit


def curve(fit: TaskFit) -> list[tuple[float, float]]:
    """Validation accuracy over the steps."""
    return [(float(record["step"]), record["validation"]["accuracy"]) for record in fit.history]


def batches(questions: Questions, rows: np.ndarray, hide: str | None = None) -> Iterator[TaskBatch]:
    """The rows in order."""
    for start in range(0, len(rows), _WIDEST):
        batch = questions.collate(rows[start : start + _WIDEST])
        yield batch if hide is None else batch.without(hide)


def shares(model: TaskModel, questions: Questions, part: str, hide: str | None = None) -> Tensor:
    """Probabilities of the answers to the rows of a part, ``(N, A)``."""
    model.eval()
    with torch.no_grad():
        logits = [
            model(batch, tasks=("answer",)).answer_logits for batch in batches(questions, questions.rows[part], hide)
        ]
    return torch.cat(logits).float().softmax(dim=1)


def truth(questions: Questions, part: str) -> np.ndarray:
    """``(N,)`` column of the right answer; -1 where the vocabulary lacks it."""
    column = {answer: number for number, answer in enumerate(questions.answers)}
    return np.array([column.get(questions.answer(row), -1) for row in questions.rows[part]])


def hits(questions: Questions, found: Tensor, part: str) -> np.ndarray:
    """``(N,)`` 1 where the most probable answer is right."""
    return (found.argmax(dim=1).numpy() == truth(questions, part)).astype(np.float64)


def by_kind(questions: Questions, right: np.ndarray, name: str) -> dict[str, float]:
    """``{name: mean, "name kind": mean of each kind}`` over the test rows."""
    kinds = np.array([questions.kind(row) for row in questions.rows["test"]])
    return {name: float(right.mean())} | {
        f"{name} {kind}": float(right[kinds == kind].mean()) for kind in questions.kinds
    }


def costs(model: TaskModel, questions: Questions) -> dict[str, float]:
    """``parameters``, and ``multiply_adds`` per row: matrix products and convolutions of a batch of 64 test rows."""
    batch = questions.collate(questions.rows["test"][:64])
    model.eval()
    # Attention made of plain products, which the counter knows; the fused kernel of the CPU it does not.
    with (
        torch.no_grad(),
        capture_attention(model, differentiable=True),
        FlopCounterMode(display=False) as counter,
    ):
        model(batch, tasks=("answer",))
    return {
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "multiply_adds": counter.get_total_flops() / 2 / len(batch),
    }


def side_by_side(
    models: Mapping[str, TaskModel], questions: Questions, sizes: Sequence[int], rounds: int
) -> dict[tuple[str, int], float]:
    """Seconds of a forward pass by name and batch size: the median of rounds in which the models take turns.

    Args:
        models: By name; what they have learned does not matter.
        questions: Whose first test rows they answer.
        sizes: Rows of a batch.
        rounds: Turns of each model.
    """
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    test = questions.rows["test"]
    ready = {size: questions.collate(np.resize(test, size)) for size in sizes}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for size, batch in ready.items():
                for name, model in models.items():
                    passes = max(1, 8 // size)
                    began = time.perf_counter()
                    for _ in range(passes):
                        model.eval()(batch, tasks=("answer",))
                    if turn:  # the first warms up
                        seconds[name, size].append((time.perf_counter() - began) / passes)
    return {key: statistics.median(times) for key, times in seconds.items()}


def rows_of_kinds(questions: Questions, right: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """``{name: (N,), "name kind": (N,) NaN at the other kinds}`` of the test rows, for paired intervals."""
    kinds = np.array([questions.kind(row) for row in questions.rows["test"]])
    return {name: right} | {f"{name} {kind}": np.where(kinds == kind, right, np.nan) for kind in questions.kinds}
