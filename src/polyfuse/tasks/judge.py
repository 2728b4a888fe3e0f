"""How good a model is at a task, on rows it has not seen: figures, tables by kind, and what it said about every row.

Every figure stands beside what it must beat: the same model with one modality taken away, chance, or the commonest
answer.

Shapes: N rows, P pictures, A answers, E embedding width.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.evaluate.captions import caption_scores
from polyfuse.evaluate.fluency import NGramModel, fluency_scores
from polyfuse.evaluate.grounding import HIT, grounding_table, iou
from polyfuse.evaluate.kinds import rows_by_kind
from polyfuse.evaluate.retrieval import KS, first_right_ranks, retrieval_scores
from polyfuse.models.captioner import Captioner
from polyfuse.registry import Registry
from polyfuse.tasks.batch import MODALITIES, PARTS, TRAIN, Collator, TaskBatch, TaskData
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.words import WordTokenizer

Line = dict[str, str | int | float]
BATCH = 256


@dataclass(frozen=True)
class Judgement:
    """What came out for one part of the rows.

    Attributes:
        task: Entry of ``JUDGES``.
        part: Name of the part.
        figures: The headline, by name.
        by_kind: The main figures for all rows, then per kind of row.
        predictions: Columns of one entry per row (captioning: per picture); ``row`` is the number in the data.
    """

    task: str
    part: str
    figures: dict[str, float]
    by_kind: list[Line] = field(default_factory=list)
    predictions: dict[str, list[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the predictions; what is no number is None."""
        return {
            "task": self.task,
            "part": self.part,
            "figures": {name: _finite(value) for name, value in self.figures.items()},
            "by_kind": [{key: _finite(value) for key, value in line.items()} for line in self.by_kind],
        }


@dataclass(frozen=True)
class Exam:
    """What a judge works with.

    Attributes:
        model: In evaluation mode.
        data: All rows: training rows tell what is common.
        rows: Numbers of those to judge.
        part: Their name.
        words: The tokenizer.
        answers: By column of the answer head.
        max_length: Most tokens of a text.
        batch_size: Rows at a time.
        hide: A modality that the model never had: it is withheld here too.
        alone: Also with each modality alone.
        beams: Captions by beam search of so many; 1 = greedy.
        length: Most tokens of a caption; None = ``max_length``.
        shift: Of values: (mean, deviation) that the model's unit stands for.
        collate: Of the data, where there is one; None makes it.
    """

    model: TaskModel
    data: TaskData
    rows: np.ndarray
    part: str
    words: WordTokenizer
    answers: tuple[str, ...] = ()
    max_length: int = 32
    batch_size: int = BATCH
    hide: str | None = None
    alone: bool = True
    beams: int = 1
    length: int | None = None
    shift: tuple[float, float] = (0.0, 1.0)
    collate: Collator | None = None

    def batches(self, rows: np.ndarray, without: str | None = None) -> Iterator[TaskBatch]:
        """The rows in order, what is withheld being absent."""
        collate = self.collate or Collator(self.data, self.words, max_length=self.max_length)
        device = next(self.model.parameters()).device
        for start in range(0, len(rows), self.batch_size):
            batch = collate(rows[start : start + self.batch_size]).to(device)
            for modality in {self.hide, without} - {None}:
                batch = batch.without(str(modality))
            yield batch

    def run(self, rows: np.ndarray, read: Callable[[TaskBatch], Tensor], without: str | None = None) -> Tensor:
        """What ``read`` gives for the rows, put together."""
        return torch.cat([read(batch).float().cpu() for batch in self.batches(rows, without)])

    def alone_as(self) -> dict[str, str]:
        """``{name of a figure: the modality taken away for it}``."""
        return {f"{MODALITIES[1 - i]}_only": name for i, name in enumerate(MODALITIES) if self.alone and not self.hide}

    def kinds(self) -> list[str] | None:
        """Of the rows."""
        return None if self.data.kinds is None else [self.data.kinds[row] for row in self.rows]

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows' pictures, each once, and the first row of each."""
        there = self.rows[self.data.image_of[self.rows] >= 0]
        found, first = np.unique(self.data.image_of[there], return_index=True)
        return found, there[first]


def judge(
    model: TaskModel,
    data: TaskData,
    words: WordTokenizer,
    *,
    task: str,
    part: str | int = "test",
    rows: np.ndarray | None = None,
    **options: Any,
) -> Judgement:
    """Judge a model on a part of the rows.

    Args:
        model: With the task's head; it is judged in evaluation mode and left as it was.
        data: The rows.
        words: The tokenizer of the model.
        task: Entry of ``JUDGES``.
        part: Name or number of the part.
        rows: Numbers of some of its rows; None = all.
        **options: Of ``Exam``.

    Raises:
        KeyError: If the task is unknown.
        ValueError: If the part is empty, the head is not attached, or the data lacks what the task is about.
    """
    run: Callable[[Exam], Judgement] = JUDGES[task]
    rows = data.rows(part) if rows is None else rows
    if not len(rows):
        raise ValueError(f"{data.name} has no rows in part {part!r}")
    names = {number: name for name, number in PARTS.items()} | dict(enumerate(data.extra_parts, start=3))
    exam = Exam(model, data, rows, part if isinstance(part, str) else names[part], words, **options)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return run(exam)
    finally:
        model.train(training)


def judge_answers(exam: Exam) -> Judgement:
    """Accuracy, soft where several people answered.

    Figures: ``accuracy``; ``text_only``, ``image_only``: of the same model with the other modality absent;
    ``commonest``: of always giving the commonest answer of the training rows; ``reachable``: of the best answer that
    the vocabulary has.
    """
    data, rows = exam.data, exam.rows
    if data.answers is None and data.votes is None:
        raise ValueError(f"{data.name} has no answers to judge by")

    def read(batch: TaskBatch) -> Tensor:
        return _info(exam, batch, "answer", "answer_logits").softmax(dim=1)

    said = {"": exam.run(rows, read)}
    said |= {name: exam.run(rows, read, without) for name, without in exam.alone_as().items()}
    best = {name: [exam.answers[i] for i in shares.argmax(dim=1).tolist()] for name, shares in said.items()}
    right = [_credit(data, int(row)) for row in rows]
    score = {name: [credit.get(a, 0.0) for credit, a in zip(right, found, strict=True)] for name, found in best.items()}
    known, common = set(exam.answers), commonest_answer(data)
    extra = {
        "commonest": [credit.get(common, 0.0) for credit in right],
        "reachable": [max((s for a, s in credit.items() if a in known), default=0.0) for credit in right],
    }
    figures = {"accuracy" if not name else name: float(np.mean(values)) for name, values in (score | extra).items()}
    table = rows_by_kind({name or "accuracy": values for name, values in score.items()}, exam.kinds())
    columns: dict[str, list[Any]] = {
        "answer": [max(credit, key=lambda a: (credit[a], a), default="") for credit in right],
        "predicted": best[""],
        "probability": said[""].max(dim=1).values.tolist(),
        "score": score[""],
        **{name: found for name, found in best.items() if name},
    }
    return Judgement("answers", exam.part, figures, table, _columns(exam, rows) | columns)


def _credit(data: TaskData, row: int) -> dict[str, float]:
    """What each answer to a row's question scores."""
    if data.votes is not None:
        return data.votes[row]
    assert data.answers is not None  # noqa: S101 - looked at by the caller
    return {data.answers[row]: 1.0}


def commonest_answer(data: TaskData) -> str:
    """The answer that would have scored most on the training rows; ties in the order of the alphabet."""
    counts: dict[str, float] = {}
    for row in data.rows(TRAIN):
        for answer, share in _credit(data, int(row)).items():
            counts[answer] = counts.get(answer, 0.0) + share
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")


def judge_values(exam: Exam) -> Judgement:
    """Errors of numbers: ``mae``, ``rmse``, ``r2``; ``mean_mae``: of always saying the training rows' mean.

    ``text_only_r2`` and ``image_only_r2`` are R2 with the other modality absent. Rows without a number do not count.
    """
    data = exam.data
    if data.values is None:
        raise ValueError(f"{data.name} has no values to judge by")
    rows = exam.rows[np.isfinite(data.values[exam.rows])]
    mean, deviation = exam.shift

    def read(batch: TaskBatch) -> Tensor:
        return _info(exam, batch, "value", "value") * deviation + mean

    wanted = data.values[rows].astype(np.float64)
    found = exam.run(rows, read).double().numpy()
    errors = found - wanted
    train = data.values[data.rows(TRAIN)].astype(np.float64)
    figures = {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "r2": _r2(found, wanted),
        "mean_mae": float(np.abs(np.nanmean(train) - wanted).mean()),
    }
    for name, without in exam.alone_as().items():
        figures[f"{name}_r2"] = _r2(exam.run(rows, read, without).double().numpy(), wanted)
    kinds = None if data.kinds is None else [data.kinds[row] for row in rows]
    table = rows_by_kind({"mae": np.abs(errors)}, kinds)
    columns = {"value": wanted.tolist(), "predicted": found.tolist()}
    return Judgement("values", exam.part, figures, table, _columns(exam, rows) | columns)


def _r2(found: np.ndarray, wanted: np.ndarray) -> float:
    spread = np.square(wanted - wanted.mean()).sum()
    return float(1 - np.square(found - wanted).sum() / spread) if spread > 0 else math.nan


def judge_captions(exam: Exam) -> Judgement:
    """Captions of the part's pictures against their references.

    Figures: ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``cider_d``; ``shuffled_cider_d``: of the same captions under
    another picture's references, what captions that look at nothing get; ``nll``, ``perplexity``, ``words``,
    ``distinct_1``, ``distinct_2``, ``copied`` of ``fluency_scores``, under a language model of the training texts;
    ``human_nll``: of a reference each.
    """
    data = exam.data
    numbers, rows = exam.pictures()
    if not len(rows):
        raise ValueError(f"{data.name} has no pictures in part {exam.part!r} to describe")
    said = write_captions(exam, rows)
    known = references_of(data, exam.rows)
    references = [known[int(number)] for number in numbers]
    training = [data.texts[row] for row in data.rows(TRAIN) if data.texts[row]]
    figures = caption_scores(said, references)
    other = [*references[1:], references[0]]
    figures["shuffled_cider_d"] = caption_scores(said, other)["cider_d"]
    if training:
        language = NGramModel().fit(training)
        figures |= fluency_scores(said, training, model=language)
        figures["human_nll"] = fluency_scores([r[0] for r in references], training, model=language)["nll"]
    columns = {
        "row": rows.tolist(),
        "picture": numbers.tolist(),
        "caption": said,
        "references": [list(known) for known in references],
    }
    return Judgement("captioning", exam.part, figures, [], columns)


def write_captions(exam: Exam, rows: np.ndarray) -> list[str]:
    """A caption of the picture of each row, by greedy or beam search."""
    decoder = decoder_of(exam.model)
    room = decoder.max_length
    length = min(exam.length or exam.max_length, room)
    options: dict[str, Any] = {"method": "beam", "num_beams": exam.beams} if exam.beams > 1 else {"method": "greedy"}
    said = []
    for batch in exam.batches(rows):
        context, mask = exam.model.context(batch)
        found = decoder.generate(context, mask, max_length=length, **options)
        said += [exam.words.decode(ids[:count]) for ids, count in zip(found.ids, found.lengths.tolist(), strict=True)]
    return said


def decoder_of(model: TaskModel) -> Captioner:
    """The caption head.

    Raises:
        ValueError: If it is not attached.
    """
    model.asked(("caption",))
    decoder = model.heads["caption"]
    assert isinstance(decoder, Captioner)  # noqa: S101 - HEADS makes it
    return decoder


def references_of(data: TaskData, rows: np.ndarray) -> dict[int, tuple[str, ...]]:
    """``{picture: captions that count as right}``: of its rows' references, else their texts."""
    found: dict[int, dict[str, None]] = {}
    for row in rows:
        known = (data.texts[row],) if data.references is None else data.references[row]
        found.setdefault(int(data.image_of[row]), {}).update(dict.fromkeys(text for text in known if text))
    return {picture: tuple(texts) for picture, texts in found.items()}


def judge_retrieval(exam: Exam) -> Judgement:
    """Recall among the part's pictures and texts, both ways; rows of one id belong together.

    Figures: ``image_to_text_R@k``, ``text_to_image_R@k`` for k of 1, 5, 10, the median ranks, the sizes of the two
    galleries, the same of a random order as ``chance_...``, and ``mean_recall``, the mean of the six.
    """
    data, model = exam.data, exam.model
    numbers, first = exam.pictures()
    texts = exam.rows[[bool(data.texts[row]) for row in exam.rows]]
    if not len(first) or not len(texts):
        raise ValueError(f"{data.name} has no pictures with texts in part {exam.part!r}")
    image, text = exam.run(first, model.embed_image), exam.run(texts, model.embed_text)
    image_ids, text_ids = torch.from_numpy(data.ids[first]), torch.from_numpy(data.ids[texts])
    both = retrieval_scores(image, text, image_ids, text_ids)
    figures: dict[str, float] = {"images": len(first), "texts": len(texts)}
    for way, found in both.items():
        mine, other = (image_ids, text_ids) if way == "image_to_text" else (text_ids, image_ids)
        for k in KS:
            figures[f"{way}_R@{k}"] = found.at[k]
            figures[f"chance_{way}_R@{k}"] = chance_recall(mine, other, k)
        figures[f"{way}_median_rank"] = found.median_rank
    figures["mean_recall"] = float(np.mean([found.at[k] for found in both.values() for k in KS]))
    top = torch.cat([(part @ image.t()).argmax(dim=1) for part in text.split(1024)])
    columns = {
        "rank": first_right_ranks(text, image, text_ids, image_ids).tolist(),
        "best_picture": numbers[top.numpy()].tolist(),
    }
    return Judgement("retrieval", exam.part, figures, [], _columns(exam, texts) | columns)


def chance_recall(ids: Tensor, gallery: Tensor, k: int) -> float:
    """Recall at k of a random order: the mean of 1 - C(G - m, k) / C(G, k), m of G items belonging to a query.

    Example:
        >>> round(chance_recall(torch.arange(20), torch.arange(20), 5), 3)
        0.25
    """
    counts = Counter(gallery.tolist())
    size, shares = len(gallery), []
    for one in ids.tolist():
        right = counts[one]
        if right:
            missed = math.comb(size - right, k) / math.comb(size, k) if k <= size else 0.0
            shares.append(1 - missed)
    return float(np.mean(shares)) if shares else math.nan


def judge_boxes(exam: Exam) -> Judgement:
    """Boxes of phrases: ``accuracy`` at an overlap of .5, ``mean_iou``.

    ``text_only`` and ``image_only`` are the accuracy with the other modality absent, ``mean_box`` that of always
    pointing at the mean box of the training rows.
    """
    data, rows = exam.data, exam.rows
    if data.boxes is None:
        raise ValueError(f"{data.name} has no boxes to judge by")

    def read(batch: TaskBatch) -> Tensor:
        return _info(exam, batch, "box", "box")

    wanted, found = data.boxes[rows], exam.run(rows, read).numpy()
    table = grounding_table(found, wanted, exam.kinds())
    figures = {name: float(table[0][name]) for name in ("accuracy", "mean_iou")}
    for name, without in exam.alone_as().items():
        figures[name] = float((iou(exam.run(rows, read, without).numpy(), wanted) >= HIT).mean())
    train = data.rows(TRAIN)
    if len(train):
        figures["mean_box"] = float((iou(data.boxes[train].mean(axis=0), wanted) >= HIT).mean())
    columns = {"box": wanted.tolist(), "predicted": found.tolist(), "iou": iou(found, wanted).tolist()}
    return Judgement("grounding", exam.part, figures, table, _columns(exam, rows) | columns)


def _info(exam: Exam, batch: TaskBatch, head: str, name: str) -> Tensor:
    found: Tensor = exam.model(batch, tasks=(head,)).info[name]
    return found


def _columns(exam: Exam, rows: np.ndarray) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "row": rows.tolist(),
        "picture": exam.data.image_of[rows].tolist(),
        "text": [exam.data.texts[row] for row in rows],
    }
    if exam.data.kinds is not None:
        columns["kind"] = [exam.data.kinds[row] for row in rows]
    return columns


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: Judges by task; "answers" serves classification, VQA and entailment, "values" sentiment and regression.
JUDGES = Registry(
    "task",
    {
        "answers": judge_answers,
        "values": judge_values,
        "captioning": judge_captions,
        "retrieval": judge_retrieval,
        "grounding": judge_boxes,
    },
)
