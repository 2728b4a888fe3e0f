"""Fine-tuning: a task model, rows and a task to a trained head on what was learned before, and the judgement of it.

Shapes: N rows.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from polyfuse.data.keyed import key_of, uniform
from polyfuse.data.schema import nearest
from polyfuse.errors import UserError
from polyfuse.models.pretrained import unknown_argument
from polyfuse.registry import Registry
from polyfuse.tasks.batch import MODALITIES, TRAIN, VALIDATION, Collator, TaskBatch, TaskData, answer_vocabulary
from polyfuse.tasks.cached import frozen_features, is_frozen
from polyfuse.tasks.judge import BATCH, Judgement, judge
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES, Objective
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.freeze import GradualUnfreezing, freeze_parameters
from polyfuse.train.task_loop import LoopSettings, Task, TaskFit, fit_tasks
from polyfuse.train.task_shares import BatchMeans

Augment = Callable[[TaskBatch, int], TaskBatch]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Aim:
    """What a task trains and is judged by.

    Attributes:
        head: Of ``TaskModel``.
        objectives: Of ``OBJECTIVES``, the default first.
        judge: Of ``JUDGES``.
        best_by: The validation figure that decides which weights are best.
        best_is: Whether that is the lowest or the highest.
        needs: The field of ``TaskData`` it is about.
        curves: The judge's figures on validation rows, beside the loss.
    """

    head: str
    objectives: tuple[str, ...]
    judge: str
    best_by: str
    best_is: Literal["lowest", "highest"]
    needs: tuple[str, ...]
    curves: tuple[str, ...] = ()


_ANSWER = Aim("answer", ("answer",), "answers", "accuracy", "highest", ("answers", "votes"), ("accuracy",))
_VALUE = Aim("value", ("value",), "values", "loss", "lowest", ("values",), ("mae", "rmse", "r2"))
_RECALL = ("mean_recall", "text_to_image_R@1", "image_to_text_R@1")
#: Tasks by name. Entailment is a class of picture and sentence; sentiment a number, as regression.
TASKS = Registry(
    "task",
    {
        "classification": _ANSWER,
        "vqa": _ANSWER,
        "entailment": _ANSWER,
        "captioning": Aim("caption", ("caption",), "captioning", "loss", "lowest", ("images", "regions")),
        "retrieval": Aim(
            "contrast", ("contrast", "siglip"), "retrieval", "mean_recall", "highest", ("images", "regions"), _RECALL
        ),
        "grounding": Aim(
            "box", ("grounding",), "grounding", "mean_iou", "highest", ("boxes",), ("accuracy", "mean_iou")
        ),
        "sentiment": _VALUE,
        "regression": _VALUE,
    },
)


@dataclass(frozen=True)
class FineTune:
    """What is done.

    Attributes:
        task: Entry of ``TASKS``.
        loop: Of ``fit_tasks``; ``patience`` stops a run that over-fits.
        labels: Share of the training pictures whose rows are used.
        freeze: Patterns of parameters that rest.
        unfreeze: ``{step: patterns}`` that begin to train then.
        hide: A modality withheld throughout: "image" or "text".
        drop: ``{modality: share}`` of the training rows that lose it at a step, where they have the other.
        cache: Frozen stem and backbone compute once; refused where rows are augmented, parts thaw or parameters are
            sharded. None = where it can be.
        objective: In place of the task's first.
        head: Arguments of the head.
        new_head: Begin with a new head though the model has one.
        best_by: In place of the task's; "loss" is always there.
        answers: Most answers in the vocabulary.
        validation_rows: Most rows judged at an evaluation.
        beams: Of captions at the end; 1 = greedy.
    """

    task: str
    loop: LoopSettings
    labels: float = 1.0
    freeze: tuple[str, ...] = ()
    unfreeze: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    hide: str | None = None
    drop: Mapping[str, float] = field(default_factory=dict)
    cache: bool | None = None
    objective: str | None = None
    head: Mapping[str, Any] = field(default_factory=dict)
    new_head: bool = False
    best_by: str | None = None
    answers: int = 3129
    validation_rows: int | None = 1000
    beams: int = 1


@dataclass(frozen=True)
class FineTuned:
    """What came out; the model holds its best weights.

    Attributes:
        fit: Of the loop, with the curves.
        answers: By column of the answer head; () for other tasks.
        shift: Mean and deviation that the value head's unit stands for.
        judgements: By part.
    """

    fit: TaskFit
    answers: tuple[str, ...]
    shift: tuple[float, float]
    judgements: dict[str, Judgement]


def fine_tune(
    model: TaskModel,
    data: TaskData,
    words: WordTokenizer,
    options: FineTune,
    *,
    answers: tuple[str, ...] | None = None,
    augment: Callable[[Collator], Augment] | None = None,
    adapt: Callable[[TaskModel], Any] | None = None,
    parts: tuple[str, ...] | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    fabric: Any = None,
    progress: bool = False,
    say: Say = lambda _: None,
) -> FineTuned:
    """Fine-tune a model in place and judge it.

    Args:
        model: Pre-trained or new. Heads of other tasks are taken off; the task's own stays if it fits.
        data: The rows.
        words: The model's tokenizer.
        options: What is done.
        answers: Those that the model's answer head knows, if it has one.
        augment: Given the collator of the rows, what changes a training batch (``TaskAugmentation``).
        adapt: Called with the model after freezing, to put in low-rank adapters.
        parts: Judged at the end; None = test, and the further test parts, that have rows.
        run_dir: As in ``fit_tasks``.
        resume: Likewise.
        fabric: Likewise.
        progress: Likewise.
        say: Told what is frozen, kept and left out.

    Raises:
        KeyError: If the task is unknown.
        UserError: If the rows do not hold what the task needs, or options do not go together.
    """
    aim: Aim = TASKS[options.task]
    _check(aim, data, options, augment is not None)
    _check_head(model, aim, options)
    kept = () if aim.head != "answer" else answer_vocabulary(data, most=options.answers)
    objective = _objective(model, aim, options, kept, answers, say)
    freeze_parameters(model, options.freeze, say=say) if options.freeze else None
    gradual = GradualUnfreezing(model, options.unfreeze, say=say) if options.unfreeze else None
    adapt(model) if adapt is not None else None
    late = [step for step in sorted(options.unfreeze) if step >= options.loop.steps]
    if late:
        steps = ", ".join(map(str, late))
        say(f"warning: unfreeze at step {steps} has no effect: step {options.loop.steps - 1} is the last")
    if options.cache and not is_frozen(model.stem):
        say("warning: cache=true has no effect: the stem trains; freeze it: freeze=[stem]")
    rows = labelled_rows(data, options.labels, options.loop.seed)
    mean, deviation = _shift(data, rows) if aim.head == "value" else (0.0, 1.0)
    length = int(model.config["max_length"])
    # Processes hold other rows' states: with sharded layers one would wait for those that need not compute theirs.
    still = augment is None and gradual is None and not options.loop.shard_parameters
    with frozen_features(model, data, say=say) if still and options.cache is not False else nullcontext(data) as seen:
        unit = seen
        if seen.values is not None and aim.head == "value":
            unit = replace(seen, values=((seen.values - mean) / deviation).astype(np.float32))
        known = kept if aim.head == "answer" else None
        collate = Collator(unit, words, max_length=length, answers=known, captions=aim.head == "caption")
        exam: dict[str, Any] = {"answers": kept, "max_length": length, "hide": options.hide, "shift": (mean, deviation)}
        exam["collate"] = collate if aim.head != "caption" else Collator(unit, words, max_length=length)
        fit = fit_tasks(
            model,
            {options.task: Task(objective, collate, rows)},
            options.loop,
            validate=_validation(aim, objective, seen, words, collate, exam, options),
            best_by=options.best_by or aim.best_by,
            best_is="lowest" if (options.best_by or aim.best_by) in _LOW else aim.best_is,
            before_step=None if gradual is None else _thaw(gradual),
            augment=_augment(options, None if augment is None else augment(collate)),
            begun=None if run_dir is None else lambda: say(f"run folder: {run_dir}"),
            run_dir=run_dir,
            resume=resume,
            fabric=fabric,
            progress=progress,
        )
        say(f"best {options.best_by or aim.best_by} {fit.best_metric:.4g} after step {fit.best_step} of {fit.steps}")
        if fit.stopped_early:
            say(f"stopped early: no better for {options.loop.patience} evaluations")
        wanted = parts if parts is not None else ("test", *data.extra_parts)
        there = [part for part in wanted if len(data.rows(part))]
        judged = {part: _judge(aim, model, seen, words, part, exam, options) for part in there}
    return FineTuned(fit, kept, (mean, deviation), judged)


_LOW = ("loss", "mae", "rmse")


_OF_A_TABLE = {
    "answer": "a table needs a column answer or label, or data.args.answer=COLUMN",
    "value": "a table needs a column value, or data.args.value=COLUMN",
    "box": "a table needs its four columns named, data.args.box=[x0, y0, x1, y1]: left, top, right and bottom edge as "
    "shares (0 to 1) of the picture's width and height",
}


def _check(aim: Aim, data: TaskData, options: FineTune, augmented: bool) -> None:
    if all(getattr(data, name) is None for name in aim.needs):
        more = f"; {_OF_A_TABLE[aim.head]}" if aim.head in _OF_A_TABLE else ""
        raise UserError(f"task '{options.task}' needs rows with {' or '.join(aim.needs)}; '{data.name}' has none{more}")
    if options.task in ("captioning", "retrieval") and not any(data.texts):
        raise UserError(f"task '{options.task}' needs rows with texts; '{data.name}' has none")
    counts = {name: len(data.rows(name)) for name in ("train", "validation")}
    lacking = [name for name, count in counts.items() if not count]
    if lacking:
        raise UserError(
            f"'{data.name}' needs rows in train and validation, got {counts['train']} and {counts['validation']}; give "
            f"{' and '.join(lacking)} some: drawn sources take data.args.{lacking[0]}=100, a table data.args.ratios or "
            "a column data.args.split"
        )
    fewest = min(options.loop.batch_size, counts["train"])
    if aim.head == "contrast" and fewest < 2:
        raise UserError(
            f"task '{options.task}' learns from the other rows of a batch: it needs 2 rows, got {fewest} "
            f"(train.batch_size={options.loop.batch_size}, {counts['train']} training rows)"
        )
    for name in {options.hide, *options.drop} - {None}:
        if name not in MODALITIES:
            raise UserError(f"a modality must be one of {', '.join(MODALITIES)}, got '{name}'")
    if (options.hide or options.drop) and aim.head not in ("answer", "value"):
        raise UserError(f"task '{options.task}' needs both picture and text: leave out hide and drop")
    if options.cache and (augmented or options.unfreeze):
        raise UserError("cached features are those of fixed rows and fixed parts: leave out augment and unfreeze")
    if options.loop.shard_parameters and (options.cache or options.unfreeze):
        given = "cache=true" if options.cache else f"unfreeze={dict(options.unfreeze)}"
        raise UserError(
            f"train.shard_parameters cannot be combined with cache=true or unfreeze, got {given}; leave out one of the "
            "two (processes that each hold the whole model take both)"
        )
    if options.objective is not None and options.objective not in aim.objectives:
        known = ", ".join(aim.objectives)
        raise UserError(f"task '{options.task}' has the objectives {known}; got '{options.objective}'")
    figures = ("loss", *aim.curves)
    if options.best_by is not None and options.best_by not in figures:
        begun = next((name for name in figures if name.startswith(options.best_by)), options.best_by)  # such as acc
        hint = nearest(begun, figures) or ";"
        raise UserError(
            f"task '{options.task}' has no validation figure '{options.best_by}' for train.best_by{hint} "
            f"known: {', '.join(figures)}"
        )
    if not 0 < options.labels <= 1:
        raise UserError(f"labels must be a share in (0, 1], got {options.labels}")


def _check_head(model: TaskModel, aim: Aim, options: FineTune) -> None:
    own = [name for name in model.head_arguments(aim.head) or {} if name != "num_answers"]  # the rows tell that
    for name in options.head:
        if name not in own:
            raise UserError(unknown_argument(f"the head of task '{options.task}'", str(name), own))
    if aim.head == "box" and getattr(model.stem, "grid", None) == 0:
        raise UserError(
            f"task '{options.task}' cannot train: the visual tokens of backbone '{model.config['backbone']}' are no "
            "places; take another backbone"
        )


def _objective(
    model: TaskModel,
    aim: Aim,
    options: FineTune,
    answers: tuple[str, ...],
    known: tuple[str, ...] | None,
    say: Say,
) -> Objective:
    """The objective, with the task's head alone on the model."""
    others = [name for name in model.heads if name != aim.head]
    if others:
        say(f"heads left behind: {', '.join(others)}")
    stale = options.new_head or options.head or (aim.head == "answer" and answers != known)
    for name in [*others, *([aim.head] if stale and aim.head in model.heads else [])]:
        del model.heads[name]
        del model.head_config[name]
    more = {"num_answers": len(answers)} if aim.head == "answer" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.loop.seed)
        try:
            made: Objective = OBJECTIVES[options.objective or aim.objectives[0]](model, **more, **options.head)
        except (TypeError, ValueError) as error:
            if not options.head:
                raise
            raise UserError(f"the head cannot be built of {dict(options.head)}: {error}") from None
    return made


def labelled_rows(data: TaskData, share: float, seed: int) -> np.ndarray:
    """The training rows of a share of their pictures (rows without one: of the rows), one at least.

    The smaller share is part of the larger one.

    Example:
        >>> from polyfuse.tasks.sources import load_source
        >>> data = load_source("scene_questions", train=10, validation=1, test=1, side=32)
        >>> few, more = (set(labelled_rows(data, share, 0).tolist()) for share in (0.2, 0.5))
        >>> len(few), few < more
        (8, True)
    """
    rows = data.rows(TRAIN)
    if share >= 1:
        return rows
    units = [f"{data.image_of[row]}" if data.image_of[row] >= 0 else f"row {row}" for row in rows]
    names = sorted(set(units))
    order = uniform(seed, "labels", 0, key_of(names), 1)[:, 0].argsort(stable=True)
    kept = {names[place] for place in order[: max(1, round(share * len(names)))].tolist()}
    return rows[[unit in kept for unit in units]]


def _shift(data: TaskData, rows: np.ndarray) -> tuple[float, float]:
    assert data.values is not None  # noqa: S101 - looked at before
    values = data.values[rows].astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        raise UserError(f"'{data.name}' has no training row with a number")
    return float(values.mean()), float(values.std()) or 1.0


def _thaw(gradual: GradualUnfreezing) -> Callable[[int], None]:
    def before(step: int) -> None:
        gradual.apply(step)

    return before


def _augment(options: FineTune, augment: Augment | None) -> Augment | None:
    """The augmentation, then what is withheld."""
    if augment is None and options.hide is None and not options.drop:
        return None

    def change(batch: TaskBatch, step: int) -> TaskBatch:
        if augment is not None:
            batch = augment(batch, step)
        if options.hide is not None:
            batch = batch.without(options.hide)
        return dropped(batch, options.drop, options.loop.seed, step) if options.drop else batch

    return change


def dropped(batch: TaskBatch, rates: Mapping[str, float], seed: int, step: int) -> TaskBatch:
    """Take a modality from a share of the rows that have both, never both."""
    draws = uniform(seed, "drop modality", step, batch.keys, 1)[:, 0]
    present, low = batch.present.clone(), torch.zeros_like(draws)
    both = batch.present.all(dim=1)
    for column, name in enumerate(MODALITIES):
        rate = rates.get(name, 0.0)
        gone = both & (draws >= low) & (draws < low + rate)
        present[:, column] &= ~gone
        low = low + rate
    mask = None if batch.region_mask is None else batch.region_mask & present[:, :1]
    return replace(batch, present=present, text_mask=batch.text_mask & present[:, 1:], region_mask=mask)


def _validation(
    aim: Aim,
    objective: Objective,
    data: TaskData,
    words: WordTokenizer,
    collate: Collator,
    exam: dict[str, Any],
    options: FineTune,
) -> Callable[[TaskModel], Mapping[str, float]]:
    """The loss on validation rows, and what the judge says where that is cheap."""
    rows = data.rows(VALIDATION)
    if options.validation_rows is not None and len(rows) > options.validation_rows:
        order = uniform(options.loop.seed, "validation rows", 0, collate.keys[rows], 1)[:, 0].argsort(stable=True)
        rows = np.sort(rows[order[: options.validation_rows].numpy()])
    again = {**exam, "alone": False, "batch_size": BATCH}

    def validate(model: TaskModel) -> Mapping[str, float]:
        means = BatchMeans()
        for start in range(0, len(rows), options.loop.batch_size):
            batch = collate(rows[start : start + options.loop.batch_size]).to(next(model.parameters()).device)
            if options.hide is not None:
                batch = batch.without(options.hide)
            means.add(objective, model, batch, {})
        figures = {"loss": means.result()["loss"]}
        if aim.head != "caption":  # writing takes long
            scored = judge(model, data, words, task=aim.judge, part="validation", rows=rows, **again)
            figures |= {name: value for name, value in scored.figures.items() if name in aim.curves}
        return figures

    return validate


def _judge(
    aim: Aim, model: TaskModel, data: TaskData, words: WordTokenizer, part: str, exam: dict[str, Any], options: FineTune
) -> Judgement:
    return judge(model, data, words, task=aim.judge, part=part, **exam, beams=options.beams)
