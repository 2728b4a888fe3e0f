"""Exercise 8.2: pre-trained against from scratch; all weights against frozen, adapters, and gentler rates.

Questions about scenes, and captions of them, with few labelled pictures; scenes of combinations of colour
and shape that no training picture shows tell what transfers.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.layers.lora import add_lora
from polyfuse.report.study_tables import Table
from polyfuse.report.task_page import Chart, Example
from polyfuse.studies.task_jobs import Outcome, TaskJob, TaskStudy, paragraphs
from polyfuse.studies.task_records import Column, Records, curve_chart, figure_table, gap_table, gap_words, show
from polyfuse.studies.task_worlds import (
    World,
    answer_examples,
    fit_curves,
    load_model,
    new_model,
    objective_curves,
    pretrain,
    save_model,
    scene_world,
    tune,
)
from polyfuse.tasks.model import TaskModel
from polyfuse.train.finetune import FineTune, FineTuned
from polyfuse.train.freeze import trainable_count
from polyfuse.train.task_layers import layers_of
from polyfuse.train.task_loop import LoopSettings

PRETRAIN, SCRATCH, LONG = "pre-training", "from scratch", "from scratch, all steps"
FULL, FROZEN, LORA, DECAY, GRADUAL = "full", "frozen", "LoRA", "layer-wise decay", "gradual unfreezing"
LABELS = {
    SCRATCH: "from scratch, tuning steps",
    FULL: "pre-trained: all weights",
    FROZEN: "pre-trained: backbone frozen",
    LORA: "pre-trained: LoRA of rank 8",
    DECAY: "pre-trained: rates × 0.6 a layer",
    GRADUAL: "pre-trained: gradual unfreezing",
}
SHORT = {
    SCRATCH: "from scratch",
    LONG: "from scratch with all steps",
    FULL: "all weights",
    FROZEN: "a frozen backbone",
    LORA: "LoRA",
    DECAY: "layer-wise decay",
    GRADUAL: "gradual unfreezing",
}
VQA, CAPTIONS = "questions", "captions"
TASK_OF = {VQA: "vqa", CAPTIONS: "captioning"}
ARMS = {
    VQA: (SCRATCH, LONG, FULL, FROZEN, LORA, DECAY, GRADUAL),
    CAPTIONS: (SCRATCH, LONG, FULL, FROZEN, LORA),
}
SHARE = 0.1

#: Per scale: seeds, steps of pre-training and of fine-tuning, arguments of the world.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "pretrain": 6,
        "tune": 4,
        "sizes": {"train": 60, "validation": 5, "test": 11, "novel": 7, "dim": 16, "layers": 1},
    },
    "small": {
        "seeds": 3,
        "pretrain": 3000,
        "tune": 600,
        "sizes": {"train": 6000, "labelled": 2000, "validation": 150, "test": 500, "novel": 500},
    },
    "full": {
        "seeds": 5,
        "pretrain": 10_000,
        "tune": 2000,
        "sizes": {
            "train": 12_000,
            "labelled": 4000,
            "validation": 250,
            "test": 1000,
            "novel": 1000,
            "dim": 96,
            "layers": 3,
        },
    },
}


def jobs(scale: str) -> list[TaskJob]:
    """Pre-training first, then the long ones, then what needs it."""
    size = SIZES[scale]
    found = []
    for seed in range(size["seeds"]):
        base = {"sizes": size["sizes"]}
        found.append(TaskJob(PRETRAIN, seed, run_pretrain, options={**base, "steps": size["pretrain"]}))
        for task, arms in ARMS.items():
            for arm in arms:
                steps = size["tune"] + (size["pretrain"] if arm == LONG else 0)
                needs = () if arm in (SCRATCH, LONG) else ((PRETRAIN, seed),)
                found.append(TaskJob(arm, seed, run_tune, task, needs, {**base, "steps": steps}))
    # What needs nothing keeps both processes busy while the pre-training runs.
    return sorted(found, key=lambda job: (job.arm != PRETRAIN, job.arm != LONG))


def run_pretrain(job: TaskJob, folder: Path) -> Outcome:
    """Learn from captions without answers, and keep the weights."""
    world = scene_world(**job.options["sizes"])
    model, fit = pretrain(world, job.seed, job.options["steps"])
    save_model(model, world, folder)
    figures = {"seconds": fit.seconds, "trainable": float(trainable_count(model)), "steps": float(fit.steps)}
    return Outcome(figures, objective_curves(fit))


def run_tune(job: TaskJob, folder: Path) -> Outcome:
    """Fine-tune one way on one task."""
    world = scene_world(**job.options["sizes"])
    if job.needs:
        model, world = load_model(job.folder_of(*job.needs[0]), world)
    else:
        model = new_model(world, job.seed)
    steps = job.options["steps"]
    counted: dict[str, int] = {}

    def adapt(adapted: TaskModel) -> None:
        if job.arm == LORA:
            add_lora(adapted, ["backbone", "stem"], rank=8, alpha=16.0, train=["heads"])
        counted["trainable"] = trainable_count(adapted)

    options = FineTune(
        task=TASK_OF[job.setting],
        loop=LoopSettings(
            steps=steps, seed=job.seed, evaluations=min(steps, 16), layer_decay=0.6 if job.arm == DECAY else 1.0
        ),
        labels=SHARE * (asked_pictures(world) if job.setting == CAPTIONS else 1.0),
        freeze=("stem", "backbone") if job.arm == FROZEN else (),
        unfreeze=thaw(model, steps) if job.arm == GRADUAL else {},
        validation_rows=600,
    )
    found = tune(model, world, options, adapt=adapt, parts=("test", "novel"))
    if job.arm == GRADUAL:
        counted["trainable"] = trainable_count(model)  # in the end
    costs = {
        "trainable": float(counted["trainable"]),
        "seconds": found.fit.seconds,
        "steps": float(steps),
        "best_step": float(found.fit.best_step),
    }
    shown = job.seed == 0 and job.arm in (SCRATCH, FULL, FROZEN)
    return (
        _answers(world, found, costs, job, shown) if job.setting == VQA else _captions(world, found, costs, job, shown)
    )


def asked_pictures(world: World) -> float:
    """Share of the training pictures that questions are asked about: captions are learned from as many."""
    some, every = (len(np.unique(d.image_of[d.rows("train")])) for d in (world.labelled, world.plain))
    return some / every


def thaw(model: TaskModel, steps: int) -> dict[int, tuple[str, ...]]:
    """The head from the start, the last layer after a sixth, a layer every sixth after it, then the rest."""
    layers = [path for path in reversed(layers_of(model))][:3]
    schedule: dict[int, tuple[str, ...]] = {0: ("heads",)}
    for place, path in enumerate(layers, start=1):
        schedule[place * steps // 6] = (path,)
    schedule[(len(layers) + 1) * steps // 6] = ("backbone", "stem")
    return schedule


def _answers(world: World, found: FineTuned, costs: dict[str, float], job: TaskJob, shown: bool) -> Outcome:
    test, novel = found.judgements["test"], found.judgements["novel"]
    figures = {
        **costs,
        "accuracy": test.figures["accuracy"],
        "novel": novel.figures["accuracy"],
        "text_only": test.figures["text_only"],
        "commonest": test.figures["commonest"],
        "validation_loss": min(r["validation"]["loss"] for r in found.fit.history),
        "last_loss": found.fit.history[-1]["validation"]["loss"],
        "train_loss": found.fit.history[-1]["objectives"]["vqa"]["loss"],
    }
    examples = answer_examples(world, found, 3, LABELS.get(job.arm, job.arm)) if shown else []
    rows = {name: np.array(one.predictions["score"]) for name, one in (("accuracy", test), ("novel", novel))}
    return Outcome(figures, fit_curves(found.fit, "vqa"), examples, rows)


def _captions(world: World, found: FineTuned, costs: dict[str, float], job: TaskJob, shown: bool) -> Outcome:
    test, novel = found.judgements["test"], found.judgements["novel"]
    names = ("bleu_4", "cider_d", "rouge_l", "nll", "human_nll", "shuffled_cider_d", "distinct_2", "copied", "words")
    figures = {**costs, **{name: test.figures[name] for name in names}}
    figures |= {f"novel_{name}": novel.figures[name] for name in ("bleu_4", "cider_d", "nll")}
    examples = []
    for row in range(3 if shown else 0):
        said = test.predictions
        lines = (f"says: {said['caption'][row]}", f"one of the references: {said['references'][row][0]}")
        examples.append(Example(world.pictures[said["picture"][row]], lines, title=LABELS.get(job.arm, job.arm)))
    return Outcome(figures, fit_curves(found.fit, "captioning"), examples)


def tables(records: Records) -> list[Table]:
    """Answers, captions, costs, differences."""
    answers = [
        Column("accuracy", "accuracy", "%", best="high", setting=VQA),
        Column("novel", "new combinations", "%", best="high", setting=VQA),
        Column("text_only", "words alone", "%", setting=VQA),
        Column("validation_loss", "lowest loss", "validation", "number", "low", VQA),
        Column("last_loss", "last loss", "validation", "number", "low", VQA),
        Column("train_loss", "last loss", "training", "number", "", VQA),
    ]
    captions = [
        Column("bleu_4", "BLEU-4", "%", best="high", setting=CAPTIONS),
        Column("cider_d", "CIDEr-D", "", "number", "high", CAPTIONS),
        Column("nll", "NLL", "nats a token", "number", "", CAPTIONS),
        Column("novel_bleu_4", "BLEU-4", "new combinations, %", best="high", setting=CAPTIONS),
        Column("novel_cider_d", "CIDEr-D", "new combinations", "number", "high", CAPTIONS),
        Column("shuffled_cider_d", "CIDEr-D", "other picture", "number", "", CAPTIONS),
        Column("human_nll", "NLL", "of references", "number", "", CAPTIONS),
        Column("copied", "copied", "%", setting=CAPTIONS),
    ]
    costs = [
        Column(metric, head, unit, kind, "", setting)
        for setting, tail in ((VQA, "questions"), (CAPTIONS, "captions"))
        for metric, head, unit, kind in (
            ("trainable", "trained", tail, "count"),
            ("seconds", "seconds", tail, "seconds"),
            ("best_step", "best step", tail, "count"),
        )
    ]
    arms = [*dict.fromkeys(ARMS[VQA])]
    share = "few labelled pictures"
    pairs = [
        ("pre-trained − scratch, tuning steps", FULL, SCRATCH),
        ("pre-trained − scratch, all steps", FULL, LONG),
        *((f"{SHORT[arm]} − all weights", arm, FULL) for arm in (FROZEN, LORA, DECAY, GRADUAL)),
    ]
    gains = [answers[0], answers[1], captions[0], captions[1]]
    before = [Column("trainable", "weights", "", "count"), Column("steps", "steps", "", "count"),
              Column("seconds", "training", "s", "seconds")]  # fmt: skip
    return [
        figure_table(records, f"Questions about scenes, {share}", answers, arms, labels=LABELS, default=FULL, keep=3),
        figure_table(records, f"Captions of scenes, {share}", captions, arms, labels=LABELS, default=FULL, keep=3),
        gap_table(records, "Differences: accuracy in points, captions in BLEU-4 points and CIDEr-D", pairs, gains),
        figure_table(records, "Costs", costs, arms, labels=LABELS, default=FULL),
        figure_table(records, "The pre-training that they share", before, [PRETRAIN]),
    ]


def charts(records: Records) -> list[Chart]:
    """Over-fitting curves of both tasks, accuracy over steps, the pre-training."""
    out = []
    for setting, unit in ((VQA, "nats"), (CAPTIONS, "nats a word, smoothed")):
        for arms, title in (((SCRATCH, FULL), "scratch and pre-trained"), ((FULL, FROZEN, LORA), "how much trains")):
            lines = [(f"{LABELS[arm]}, {part}", arm, f"{part} loss", setting)
                     for arm in arms for part in ("train", "validation")]  # fmt: skip
            style = {label: (place // 2, place % 2 == 0) for place, (label, *_) in enumerate(lines)}
            note = "Dashed: training rows. Where the solid line turns up, the arm over-fits."
            out.append(curve_chart(records, f"{setting}: {title}", lines, y=f"loss, {unit}", note=note, style=style))
    seen = [(LABELS[arm], arm, "validation accuracy", VQA) for arm in ARMS[VQA] if arm != LONG]
    out.append(curve_chart(records, "questions: accuracy on validation rows", seen, y="accuracy, %", percent=True))
    learned = [(m.removeprefix("train "), PRETRAIN, m, "") for m in records.curve_names(PRETRAIN)]
    out.append(curve_chart(records, "pre-training", learned, y="loss of each objective, nats"))
    return [chart for chart in out if chart.lines]


def verdict(records: Records) -> list[str]:
    """What the differences say."""
    out = []
    steps = {SCRATCH: "with the same fine-tuning steps", LONG: "with the steps of the pre-training too"}
    for other, words in steps.items():
        gap, novel = (records.gap(FULL, other, metric, VQA) for metric in ("accuracy", "novel"))
        if gap and novel:
            how = {"better": "surely beats", "worse": "surely loses to"}.get(gap.verdict, "ties with")
            out.append(
                f"On questions the pre-trained model {how} one from scratch {words}: {gap_words(gap)}, on new "
                f"combinations {gap_words(novel)}."
            )
    parts = []
    for arm in (FROZEN, LORA, DECAY, GRADUAL):
        gap = records.gap(arm, FULL, "accuracy", VQA)
        share = records.mean(arm, "trainable", VQA) / records.mean(FULL, "trainable", VQA)
        if gap and math.isfinite(share):
            tie = ", a tie" if gap.verdict == "tied" else ""
            parts.append(f"{SHORT[arm]} {gap_words(gap)}{tie} ({100 * share:.0f} % of the weights)")
    if parts:
        out.append(f"Against training all weights: {'; '.join(parts)}.")
    return [*out, *_over_fitting(records), *_caption_words(records)]


def _over_fitting(records: Records) -> list[str]:
    parts = []
    for arm in (SCRATCH, LONG, FULL, FROZEN, LORA):
        low, last = records.mean(arm, "validation_loss", VQA), records.mean(arm, "last_loss", VQA)
        if math.isfinite(low) and math.isfinite(last):
            parts.append(f"{SHORT[arm]} {show(low, 'number')} to {show(last, 'number')}")
    return [f"Over-fitting, lowest validation loss to that of the last step: {'; '.join(parts)}."] if parts else []


def _caption_words(records: Records) -> list[str]:
    parts = []
    for arm in ARMS[CAPTIONS]:
        bleu, cider, nll = (records.mean(arm, metric, CAPTIONS) for metric in ("bleu_4", "cider_d", "nll"))
        if math.isfinite(bleu):
            parts.append(f"{SHORT[arm]} {show(bleu)} / {show(cider, 'number')} / {show(nll, 'number')}")
    human = records.mean(FULL, "human_nll", CAPTIONS)
    tail = f"; the references have {show(human, 'number')} nats" if math.isfinite(human) else ""
    return [f"Captions, BLEU-4 / CIDEr-D / nats a token: {'; '.join(parts)}{tail}."] if parts else []


_PROTOCOL = """
Drawn scenes of two or three objects, read as regions; questions with answers by program, and captions.

Pre-training on captions of all training scenes: contrast, matching, masked words, masked region features and
classes, one objective a step, drawn by weight; the last weights are kept.

Questions are asked about a third of the training scenes; fine-tuning has 10 % of these pictures, drawn by the seed, and
as many with captions; all arms of a seed get the same. The best weights on validation rows are kept (questions:
accuracy; captions: loss).

From scratch: the same fine-tuning steps; “all steps”: those of the pre-training are added.

Frozen: stem and backbone rest and compute once; the head trains (for captions a decoder of two layers). LoRA:
rank 8 on all linear layers of stem and backbone, and the head. Layer-wise decay: the rate falls by 0.6 a layer.
Gradual unfreezing: the head, then a layer every sixth of the steps, then the rest.

New combinations: scenes that show a colour and a shape that no training picture has together.

NLL: nats per token of the captions under an n-gram model of the training captions, a measure of fluency alone.

Intervals: 95 %, Student's t over seeds; of answers the wider ends of that and of test rows and seeds resampled
together, paired. They are not corrected for their number.
"""

FINETUNE = TaskStudy(
    name="finetune",
    title="Fine-tuning: what pre-training brings, and how much of the model should move",
    question="Pre-trained or from scratch; all weights, a frozen backbone, adapters, or gentler rates?",
    protocol=paragraphs(_PROTOCOL),
    jobs=jobs,
    tables=tables,
    charts=charts,
    verdict=verdict,
)
