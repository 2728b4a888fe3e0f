"""A tiny world for the tests of the task loop: random pictures with texts, a model of a few thousand parameters."""

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from polyfuse.tasks.batch import Collator, TaskData, answer_vocabulary
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES
from polyfuse.tasks.words import SPECIALS, WordTokenizer
from polyfuse.train.task_loop import Task

SIDE, PATCH, ROWS = 16, 8, 23
WORDS = ("red", "blue", "green", "circle", "square", "star", "two", "three")


def toy_data(rows: int = ROWS, seed: int = 0) -> TaskData:
    """Rows with a picture and a text each, but for one without a picture and one without a text."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=int(rng.integers(2, 6)))) for _ in range(rows)]
    texts[3] = ""
    image_of = np.arange(rows)
    image_of[5] = -1
    low = rng.random((rows, 2), dtype=np.float32) / 2
    return TaskData(
        "toy",
        rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8),
        image_of,
        texts,
        (np.arange(rows) % 4 == 0).astype(np.int8),
        np.arange(rows) % (rows - 2),
        answers=[("yes", "no", "maybe")[i % 3] for i in range(rows)],
        boxes=np.concatenate([low, low + 0.4], axis=1),
        values=np.where(np.arange(rows) % 5 == 1, np.nan, rng.standard_normal(rows)).astype(np.float32),
    )


def toy_words() -> WordTokenizer:
    """A token per word, the same ids in every process."""
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return WordTokenizer(tokenizer)


def toy_model(words: WordTokenizer, *, dropout: float = 0.0, backbone: str = "uniter", **options: Any) -> TaskModel:
    """The same weights every time."""
    torch.manual_seed(0)
    return TaskModel(
        vocab_size=len(words),
        backbone=backbone,
        backbone_options={"num_layers": 2, "num_heads": 2, "dropout": dropout, **options},
        dim=16,
        max_length=8,
        side=SIDE,
        patch=PATCH,
        embed_dim=6,
    )


def toy_tasks(
    weights: dict[str, float], *, dropout: float = 0.0, backbone: str = "uniter", rows: int = ROWS
) -> tuple[TaskModel, dict[str, Task]]:
    """A model with the heads of these objectives, and a task for each."""
    data = toy_data(rows)
    words = toy_words()
    model = toy_model(words, dropout=dropout, backbone=backbone)
    answers = answer_vocabulary(data)
    collate = Collator(data, words, max_length=8, answers=answers)
    captions = Collator(data, words, max_length=8, captions=True)
    train = data.rows("train")
    heads: dict[str, dict[str, Any]] = {
        "answer": {"num_answers": len(answers), "dropout": dropout},
        "value": {"dropout": dropout},
        "caption": {"num_layers": 1, "num_heads": 2, "dropout": dropout},
    }
    tasks = {
        name: Task(
            OBJECTIVES[name](model, **heads.get(name, {})), captions if name == "caption" else collate, train, weight
        )
        for name, weight in weights.items()
    }
    return model, tasks
