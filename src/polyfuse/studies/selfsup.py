"""Exercise 8.5: does pre-training without labels help, when few labels, some, or all of them are there?

Two worlds: questions about drawn scenes (pre-trained on captions of the scenes), and the classes of real emoji
(pre-trained on their pictures and names). Every share of labels is a draw of training pictures by the seed; the smaller
is part of the larger, and all arms of a seed see the same.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.report.study_tables import Cell, Table
from polyfuse.report.task_page import Chart
from polyfuse.studies.task_jobs import Outcome, TaskJob, TaskStudy, paragraphs
from polyfuse.studies.task_records import (
    Column,
    Records,
    curve_chart,
    figure_table,
    gap_cell,
    gap_words,
    setting_chart,
    stat_cell,
)
from polyfuse.studies.task_worlds import (
    World,
    answer_examples,
    fit_curves,
    load_model,
    new_model,
    objective_curves,
    pretrain,
    save_model,
    tune,
    world_of,
)
from polyfuse.train.finetune import FineTune, FineTuned
from polyfuse.train.freeze import trainable_count
from polyfuse.train.task_loop import LoopSettings

SHARES = {"1 %": 0.01, "5 %": 0.05, "10 %": 0.1, "100 %": 1.0}
FEW = ("1 %", "5 %", "10 %")
PRETRAIN, TUNED, LONG, SHORT = "pre-training", "pre-trained", "from scratch, all steps", "from scratch, tuning steps"
ALONE = {"text": "words alone", "image": "picture alone"}
NAMES = {"scenes": "questions about scenes", "glyphs": "questions about letters", "emoji": "classes of emoji"}

#: Per scale and world: seeds; steps of pre-training, of fine-tuning and of a modality alone; arguments of the world.
SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "smoke": {
        "scenes": {
            "seeds": 2, "pretrain": 6, "tune": 3, "alone": 3,
            "sizes": {"train": 100, "validation": 5, "test": 11, "dim": 16, "layers": 1},
        },
        "glyphs": {
            "seeds": 1, "pretrain": 6, "tune": 3, "alone": 3,
            "sizes": {"dim": 16, "layers": 1, "limit": 500, "test": 50},
        },
        "emoji": {"seeds": 1, "pretrain": 6, "tune": 3, "alone": 3, "sizes": {"dim": 16, "layers": 1, "limit": 400}},
    },
    "small": {
        "scenes": {
            "seeds": 3, "pretrain": 3000, "tune": 600, "alone": 1000,
            "sizes": {"train": 6000, "labelled": 2000, "validation": 150, "test": 500},
        },
        "glyphs": {"seeds": 3, "pretrain": 800, "tune": 150, "alone": 500, "sizes": {"test": 2000}},
        "emoji": {"seeds": 3, "pretrain": 400, "tune": 150, "alone": 300, "sizes": {}},
    },
    "full": {
        "scenes": {
            "seeds": 5, "pretrain": 10_000, "tune": 2000, "alone": 2000,
            "sizes": {"train": 12_000, "labelled": 4000, "validation": 250, "test": 1000, "dim": 96, "layers": 3},
        },
        "glyphs": {"seeds": 5, "pretrain": 6000, "tune": 600, "alone": 2000, "sizes": {"dim": 96, "layers": 3}},
        "emoji": {"seeds": 5, "pretrain": 800, "tune": 300, "alone": 600, "sizes": {"dim": 96, "layers": 3}},
    },
}  # fmt: skip
PATIENCE = 5


def arm_of(world: str, arm: str) -> str:
    """The arm of a world.

    Example:
        >>> arm_of("emoji", TUNED)
        'emoji: pre-trained'
    """
    return f"{world}: {arm}"


def jobs(scale: str) -> list[TaskJob]:
    """Pre-training first, then what needs it; the longest of the rest before the shorter."""
    found = []
    for world, size in SIZES[scale].items():
        base = {"world": world, "sizes": size["sizes"]}
        both = size["pretrain"] + size["tune"]
        for seed in range(size["seeds"]):
            mine = arm_of(world, PRETRAIN)
            found.append(TaskJob(mine, seed, run_pretrain, options={**base, "steps": size["pretrain"]}))
            for share in SHARES:
                found.append(TaskJob(arm_of(world, LONG), seed, run_tune, share, options={**base, "steps": both}))
            for share in SHARES:
                options = {**base, "steps": size["tune"]}
                found.append(TaskJob(arm_of(world, TUNED), seed, run_tune, share, ((mine, seed),), options))
                found.append(TaskJob(arm_of(world, SHORT), seed, run_tune, share, options=options))
            for hide, arm in (("image", ALONE["text"]), ("text", ALONE["image"])):
                options = {**base, "steps": size["alone"], "hide": hide}
                found.append(TaskJob(arm_of(world, arm), seed, run_tune, "100 %", options=options))
    return found


def run_pretrain(job: TaskJob, folder: Path) -> Outcome:
    """Learn from the plain rows and keep the weights."""
    world = world_of(job.options)
    model, fit = pretrain(world, job.seed, job.options["steps"])
    save_model(model, world, folder)
    figures = {"seconds": fit.seconds, "parameters": float(trainable_count(model)), "steps": float(fit.steps)}
    return Outcome(figures, objective_curves(fit))


def run_tune(job: TaskJob, folder: Path) -> Outcome:
    """Fine-tune what was pre-trained, or a new model, on a share of the labels."""
    world = world_of(job.options)
    if job.needs:
        model, world = load_model(job.folder_of(*job.needs[0]), world)
    else:
        model = new_model(world, job.seed)
    steps = job.options["steps"]
    loop = LoopSettings(steps=steps, lr=world.lr, seed=job.seed, evaluations=min(steps, 12), patience=PATIENCE)
    options = FineTune(world.task, loop, labels=SHARES[job.setting], hide=job.options.get("hide"), validation_rows=600)
    found = tune(model, world, options, parts=("test",))
    shown = job.seed == 0 and job.setting in ("1 %", "10 %") and job.arm.endswith((TUNED, LONG))
    return outcome_of(world, found, steps, f"{job.setting} of the labels: {job.arm}" if shown else "")


def outcome_of(world: World, found: FineTuned, steps: int, title: str = "") -> Outcome:
    """Figures of the test rows, curves, and for a titled job two examples where the world has pictures."""
    judged = found.judgements["test"]
    figures = {
        "accuracy": judged.figures["accuracy"],
        "commonest": judged.figures["commonest"],
        "seconds": found.fit.seconds,
        "steps": float(steps),
        "done": float(found.fit.steps),
        "best_step": float(found.fit.best_step),
    }
    figures |= {f"accuracy of {line['kind']}": float(line["accuracy"]) for line in judged.by_kind[1:]}
    shown = answer_examples(world, found, 2, title) if title else []
    rows = {"accuracy": np.array(judged.predictions["score"])}
    return Outcome(figures, fit_curves(found.fit, world.task), shown, rows)


def tables(records: Records) -> list[Table]:
    """Per world: accuracy by share, gains, costs."""
    out = []
    for world, name in NAMES.items():
        arms = [arm_of(world, arm) for arm in (TUNED, LONG, SHORT, *ALONE.values())]
        rows = []
        for arm in arms:
            stats = [records.stat(arm, "accuracy", share) for share in SHARES]
            if not any(stats):
                continue
            tops = [max((s.mean for a in arms[:3] if (s := records.stat(a, "accuracy", x))), default=0) for x in SHARES]
            cells = tuple(stat_cell(s, best=s is not None and s.mean == t) for s, t in zip(stats, tops, strict=True))
            rows.append((arm.partition(": ")[2], cells, "default" if arm == arms[0] else ""))
        heads = (("Arm", ""), *((share, "of labels, %") for share in SHARES))
        out.append(Table(f"Accuracy on {name}, by share of labels", heads, tuple(rows), keep=4))
        gains = []
        for other, label in ((LONG, "− scratch, all steps"), (SHORT, "− scratch, tuning steps")):
            gaps = [records.gap(arms[0], arm_of(world, other), "accuracy", share) for share in SHARES]
            gains.append((label, tuple(map(gap_cell, gaps)), ""))
        out.append(
            Table(
                f"What pre-training gains on {name}, points",
                (("", ""), *((s, "") for s in SHARES)),
                tuple(gains),
                keep=4,
            )
        )
        costs = [Column("steps", "steps", "", "count"), Column("seconds", "training", "s", "seconds")]
        costs += [Column("done", "done", "", "count"), Column("best_step", "best", "step", "count")]
        last = [Column(c.metric, c.head, c.unit, c.kind, "", "100 %") for c in costs]
        first = figure_table(records, f"Costs on {name}", costs[:2], [arm_of(world, PRETRAIN)])
        rest = figure_table(records, f"Costs on {name}, with all labels", last, arms)
        empty = (*((name, (*cells, Cell("–"), Cell("–")), c) for name, cells, c in first.rows), *rest.rows)
        out.append(Table(rest.title, rest.columns, tuple((n.partition(": ")[2], c, k) for n, c, k in empty), keep=3))
    return out


def charts(records: Records) -> list[Chart]:
    """Per world: accuracy over the share of labels; loss of the fine-tuning; losses of the pre-training."""
    out = []
    for world, name in NAMES.items():
        lines = [(arm, arm_of(world, arm)) for arm in (TUNED, LONG, SHORT)]
        flat = [(f"{arm}, all labels", records.mean(arm_of(world, arm), "accuracy", "100 %")) for arm in ALONE.values()]
        commonest = records.mean(arm_of(world, TUNED), "commonest", "100 %")
        flat = [(label, at) for label, at in [*flat, ("commonest answer", commonest)] if math.isfinite(at)]
        chart = setting_chart(
            records, f"{name}: accuracy", "accuracy", SHARES, lines, x="share of labels", y="accuracy, %", flat=flat
        )
        out.append(chart)
        few = [(f"{arm}, {part}", arm_of(world, arm), f"{part} loss", "10 %")
               for arm in (TUNED, LONG) for part in ("train", "validation")]  # fmt: skip
        style = {label: (place // 2, label.endswith("train")) for place, (label, *_) in enumerate(few)}
        out.append(
            curve_chart(records, f"{name}: over-fitting at 10 %", few, y="loss, nats", style=style, log=True,
                        note="Dashed: training rows. The best weights on validation rows are kept.")
        )  # fmt: skip
        before = arm_of(world, PRETRAIN)
        learned = [(m.removeprefix("train "), before, m, "") for m in records.curve_names(before)]
        out.append(curve_chart(records, f"{name}: pre-training", learned, y="loss of each objective, nats"))
    return [chart for chart in out if chart.lines]


def verdict(records: Records) -> list[str]:
    """What the gains say, world by world."""
    out = []
    for world, name in NAMES.items():
        gaps = {s: records.gap(arm_of(world, TUNED), arm_of(world, LONG), "accuracy", s) for s in SHARES}
        known = {share: gap for share, gap in gaps.items() if gap is not None}
        if not known:
            continue
        few = [share for share in FEW if share in known]
        sure = [share for share in few if known[share].verdict == "better"]
        lost = [share for share in known if known[share].verdict == "worse"]
        figures = "; ".join(f"{gap_words(gap)} with {share} of the labels" for share, gap in known.items())
        head = (
            f"On {name} pre-training without labels surely helps with {_and(sure)} of the labels"
            if sure
            else f"On {name} pre-training without labels does not surely help with few labels"
        )
        out.append(f"{head}, against the same total number of supervised steps: {figures}.")
        if few and len(sure) == len(few):
            out.append(f"The expected gain at 1 to 10 % is there on {name}.")
        elif few:
            missed = _and([share for share in few if share not in sure])
            out.append(f"The expected gain at 1 to 10 % is not there throughout on {name}: not at {missed}.")
        if lost:
            out.append(f"It surely loses on {name} with {_and(lost)} of the labels.")
        short = {s: records.gap(arm_of(world, TUNED), arm_of(world, SHORT), "accuracy", s) for s in SHARES}
        parts = [f"{gap_words(gap)} with {share}" for share, gap in short.items() if gap is not None]
        if parts:
            out.append(f"Against training from scratch with as many steps as the fine-tuning has: {'; '.join(parts)}.")
        enough = _equal_share(records, world)
        if enough:
            out.append(enough)
        best = {arm: records.mean(arm_of(world, arm), "accuracy", "100 %") for arm in ALONE.values()}
        best = {arm: value for arm, value in best.items() if math.isfinite(value)}
        both = max(records.mean(arm_of(world, arm), "accuracy", "100 %") for arm in (TUNED, LONG))
        if best and math.isfinite(both):
            arm = max(best, key=lambda key: best[key])
            whole = max((TUNED, LONG), key=lambda key: records.mean(arm_of(world, key), "accuracy", "100 %"))
            gap = records.gap(arm_of(world, whole), arm_of(world, arm), "accuracy", "100 %")
            worth = "" if gap is None else f": {gap_words(gap)}{', a tie' if gap.verdict == 'tied' else ''}"
            out.append(
                f"With all labels {name} are answered right {100 * both:.1f} % of the time, from {arm} "
                f"{100 * best[arm]:.1f} %{worth} for the second input."
            )
    return [text.replace(" -", " −") for text in out]


def _equal_share(records: Records, world: str) -> str:
    """How many labels the supervised arm needs to do as well as the pre-trained one does with few."""
    long = {share: records.mean(arm_of(world, LONG), "accuracy", share) for share in SHARES}
    for share in FEW:
        gap = records.gap(arm_of(world, TUNED), arm_of(world, LONG), "accuracy", share)
        if gap is None or gap.verdict != "better":
            continue
        mine = records.mean(arm_of(world, TUNED), "accuracy", share)
        above = [s for s in SHARES if SHARES[s] > SHARES[share] and math.isfinite(long[s]) and long[s] <= mine]
        if above:
            return (
                f"Pre-trained with {share} of the labels it does as well on {NAMES[world]} as supervised training does "
                f"with {above[-1]}."
            )
    return ""


def _and(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


_PROTOCOL = """
Scenes: drawn pictures of two or three objects, read as regions. Questions with answers by program are the labels, asked
about a third of the training scenes; captions of all training scenes are the plain rows.

Glyphs: 23,576 pictures of characters in six faces, split by character. Questions about letters (small or capital, which
script, which mark) are the labels, the Unicode names of all training characters the plain rows.

Emoji: 3,696 real drawings in two styles with English names, from which words that announce the class are taken out;
nine classes, split by concept. The plain rows are the training pictures with their names.

Pre-training mixes contrast, matching, masked words and masked regions (scenes: features and classes) or patches
(glyphs), one objective a step, drawn by weight; emoji have contrast alone. The last weights are kept.

Pre-trained: the whole model is fine-tuned for as many steps as “tuning steps”. From scratch, all steps: those of the
pre-training are added, so that the total is equal. A training on labels ends when five of its twelve evaluations in a
row bring nothing better; the table of costs says how far it went.

Labels are drawn by picture; the arms of a seed get the same, and the same learning rate; the best weights are chosen on
validation rows, which have all their labels, for every arm alike.

Words alone and picture alone: the model never sees the other, with all labels, until it gains no more.

Intervals: 95 %, the wider ends of Student's t over seeds and of test rows and seeds resampled together, paired. They
are not corrected for their number.
"""

SELFSUP = TaskStudy(
    name="selfsup",
    title="Pre-training without labels: what it is worth with few labels and with many",
    question="Does pre-training on pictures and their words help, when 1, 5, 10 or 100 % of the labels are there?",
    protocol=paragraphs(_PROTOCOL),
    jobs=jobs,
    tables=tables,
    charts=charts,
    verdict=verdict,
)
