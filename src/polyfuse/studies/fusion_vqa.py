"""Exercise 8.1: early, late and hybrid fusion inside a model that answers questions about pictures.

Two worlds: drawn scenes, whose objects come as regions, and easy-VQA, whose pictures come as features of cells. The
three have four transformer layers each, only joined differently, so that they have about as many parameters; each gets
the learning rate that does best on validation out of the same few.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyfuse.files import read_json, write_json
from polyfuse.report.task_page import Example
from polyfuse.studies.answering import (
    SCENES,
    Questions,
    by_kind,
    costs,
    curve,
    hits,
    new_model,
    questions_of,
    rows_of_kinds,
    shares,
    side_by_side,
    train_answers,
    truth,
    words_alone,
)
from polyfuse.studies.fusion_vqa_page import COUNTED, PICTURE, SIZES, TOGETHER, WORDS, charts, tables, verdict
from polyfuse.studies.pool import one_thread
from polyfuse.studies.task_jobs import Outcome, TaskJob, TaskStudy
from polyfuse.tasks.model import TaskModel

#: Arguments of the backbone: where the layers stand decides how many there are, four sets of weights in each.
FUSIONS: Mapping[str, Mapping[str, Any]] = {
    "early": {"fusion": "early", "num_layers": 4},
    "late": {"fusion": "late", "num_layers": 2},
    "hybrid": {"fusion": "hybrid", "num_layers": 3, "fusion_depth": 1},
}
HIDDEN = {WORDS: "image", PICTURE: "text"}

#: Per scale: seeds, rates, and worlds by name.
SCALES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "seeds": 1,
        "rates": [1e-3, 2e-3],
        "rounds": 1,
        "worlds": {
            "scenes": {"scenes": (60, 10, 20), "steps": 4, "dim": 16},
            "scene pixels": {"scenes": (60, 10, 20), "pixels": True, "steps": 3, "dim": 16},
        },
    },
    "small": {
        "seeds": 3,
        "rates": [5e-4, 1e-3, 2e-3],
        "rounds": 25,
        "worlds": {"scenes": {"scenes": (6000, 250, 500), "steps": 1200}, "easy-VQA": {"steps": 1600}},
    },
    "full": {
        "seeds": 5,
        "rates": [2.5e-4, 5e-4, 1e-3, 2e-3],
        "rounds": 50,
        "worlds": {
            "scenes": {"scenes": (12_000, 500, 1000), "steps": 6000, "dim": 96},
            "easy-VQA": {"steps": 4000, "dim": 96},
        },
    },
}


def jobs(scale: str) -> list[TaskJob]:
    """Rates of seed 0, then every seed at the best one; models of one modality; the three side by side."""
    plan, made = SCALES[scale], []
    for world, sizes in plan["worlds"].items():
        common = world_options(world, **sizes)
        first = common | {"rate": plan["rates"][len(plan["rates"]) // 2]}
        made.append(TaskJob(COUNTED, 0, count_words, world, options=common))
        for fusion, backbone in FUSIONS.items():
            options = common | {"backbone": {**backbone, "num_heads": 4}}
            tries = [(f"{fusion} at rate {rate:g}", 0, world) for rate in plan["rates"]]
            for (arm, seed, _), rate in zip(tries, plan["rates"], strict=True):
                made.append(TaskJob(arm, seed, try_rate, world, options=options | {"rate": rate}))
            for seed in range(plan["seeds"]):
                made.append(
                    TaskJob(fusion, seed, train_fusion, world, tuple(tries), options | {"tries": [t[0] for t in tries]})
                )
        for arm, hidden in HIDDEN.items():
            backbone = {**FUSIONS["early"], "num_heads": 4}
            for seed in range(plan["seeds"]):
                made.append(
                    TaskJob(arm, seed, train_alone, world, options=first | {"backbone": backbone, "hide": hidden})
                )
        for seed in range(plan["seeds"]):
            needs = tuple((fusion, seed, world) for fusion in FUSIONS)
            made.append(
                TaskJob(TOGETHER, seed, put_together, world, needs, common | {"rounds": plan["rounds"], "shown": 8})
            )
    return made


def world_options(
    world: str,
    *,
    steps: int,
    scenes: tuple[int, int, int] = (0, 0, 0),
    pixels: bool = False,
    dim: int = 64,
    rows: int = 2000,
) -> dict[str, Any]:
    """Plain options of a world."""
    frame = {
        "steps": steps,
        "dim": dim,
        "batch_size": 64,
        "evaluations": 5,
        "patch": 16,
        "validation_rows": rows // 2,
        "test_rows": rows,
    }
    if world == "easy-VQA":
        return frame | {"source": "easy_vqa", "data": {"regions": True}}
    train, validation, test = scenes
    data = {"train": train, "validation": validation, "test": test, "per_scene": 4, "regions": not pixels, **SCENES}
    return frame | {"source": "scene_questions", "data": data}


def count_words(job: TaskJob, folder: Path) -> Outcome:
    """What the words give away."""
    found = words_alone(questions_of(job.options))
    return Outcome({"accuracy" if kind == "all" else f"accuracy {kind}": value for kind, value in found.items()})


def try_rate(job: TaskJob, folder: Path) -> Outcome:
    """One learning rate; its weights are kept for the arm that takes it."""
    questions, rate = questions_of(job.options), job.options["rate"]
    model, fit = train_answers(questions, job.options, job.seed, lr=rate)
    torch.save(model.state_dict(), folder / "weights.pt")
    note = {"rate": rate, "validation": fit.best_metric, "seconds": fit.seconds, "curve": curve(fit)}
    write_json(folder / "fit.json", note)
    return Outcome({"validation": fit.best_metric, "rate": rate})


def train_fusion(job: TaskJob, folder: Path) -> Outcome:
    """The rate that did best on validation; seed 0 has been trained at it already."""
    questions = questions_of(job.options)
    tried = {arm: read_json(job.folder_of(arm, 0, job.setting) / "fit.json") for arm in job.options["tries"]}
    best = max(tried, key=lambda arm: tried[arm]["validation"])
    note = tried[best]
    if job.seed == 0:
        model = new_model(questions, job.options, job.seed)
        path = job.folder_of(best, 0, job.setting) / "weights.pt"
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        model, fit = train_answers(questions, job.options, job.seed, lr=note["rate"])
        note = {**note, "validation": fit.best_metric, "seconds": fit.seconds, "curve": curve(fit)}
    figures = {"rate": note["rate"], "validation": note["validation"], "seconds": note["seconds"]}
    found = judged(model, questions, folder)
    curves = {"validation accuracy": [(float(step), float(value)) for step, value in note["curve"]]}
    return Outcome({**found.figures, **figures, **costs(model, questions)}, curves, rows=found.rows)


def train_alone(job: TaskJob, folder: Path) -> Outcome:
    """A model that never has one of the modalities, in the layout of early fusion."""
    questions, hide = questions_of(job.options), job.options["hide"]
    model, fit = train_answers(questions, job.options, job.seed, lr=job.options["rate"], hide=hide)
    right = hits(questions, shares(model, questions, "test", hide), "test")
    figures = by_kind(questions, right, "accuracy") | {"seconds": fit.seconds}
    return Outcome(figures, {"validation accuracy": curve(fit)}, rows=rows_of_kinds(questions, right, "accuracy"))


def judged(model: TaskModel, questions: Questions, folder: Path) -> Outcome:
    """Accuracy with both inputs and without each; what it said is kept."""
    found = shares(model, questions, "test")
    np.save(folder / "shares.npy", found.numpy())
    right = hits(questions, found, "test")
    figures, rows = by_kind(questions, right, "accuracy"), rows_of_kinds(questions, right, "accuracy")
    for name, hide in (("without picture", "image"), ("without words", "text")):
        rows[name] = hits(questions, shares(model, questions, "test", hide), "test")
        figures[name] = float(rows[name].mean())
    return Outcome(figures, rows=rows)


def put_together(job: TaskJob, folder: Path) -> Outcome:
    """How often the three agree, how fast they are in turns, and questions on which they differ."""
    questions = questions_of(job.options)
    said = {f: torch.from_numpy(np.load(job.folder_of(f, job.seed, job.setting) / "shares.npy")) for f in FUSIONS}
    right = np.stack([hits(questions, said[fusion], "test") for fusion in FUSIONS])
    best = np.stack([said[fusion].argmax(dim=1).numpy() for fusion in FUSIONS])
    count = right.sum(axis=0)
    figures = {
        "same answer": float((best == best[0]).all(axis=0).mean()),
        "all right": float((count == len(FUSIONS)).mean()),
        "none right": float((count == 0).mean()),
    }
    for number, fusion in enumerate(FUSIONS):
        figures[f"only {fusion} right"] = float(((count == 1) & (right[number] == 1)).mean())
        figures[f"only {fusion} wrong"] = float(((count == len(FUSIONS) - 1) & (right[number] == 0)).mean())
    frame = {"dim": job.options["dim"], "patch": job.options["patch"]}
    models = {
        fusion: new_model(questions, frame | {"backbone": {**backbone, "num_heads": 4}}, job.seed)
        for fusion, backbone in FUSIONS.items()
    }
    with one_thread():
        seconds = side_by_side(models, questions, SIZES, job.options["rounds"])
    figures |= {f"{name} questions/s at {size}": size / value for (name, size), value in seconds.items()}
    shown = differing(questions, said, job.setting, job.options["shown"]) if job.seed == 0 else []
    return Outcome(figures, examples=shown)


def differing(questions: Questions, said: Mapping[str, torch.Tensor], world: str, most: int) -> list[Example]:
    """Test questions on which the models do not agree: three different answers first, then one of them alone right."""
    right = np.stack([hits(questions, found, "test") for found in said.values()])
    best = np.stack([found.argmax(dim=1).numpy() for found in said.values()])
    different = np.array([len(set(column)) for column in best.T])
    known = truth(questions, "test") >= 0
    order = np.lexsort((np.arange(len(known)), ~right.any(axis=0), -different))
    picked: list[int] = []
    seen: set[tuple[Any, ...]] = set()
    for row in order:  # as many stories as possible: who is right, on which kind of question
        story = (questions.kind(questions.rows["test"][row]), *right[:, row])
        if different[row] > 1 and known[row] and story not in seen and len(picked) < most:
            seen.add(story)
            picked.append(int(row))
    shown = []
    for place in picked:
        row = int(questions.rows["test"][place])
        lines = [questions.data.texts[row], f"right: {questions.answer(row)}"]
        for name, found in said.items():
            share, column = found[place].max(dim=0)
            answer = questions.answers[int(column)]
            mark = "✓" if answer == questions.answer(row) else "✗"
            lines.append(f"{name}: {answer} ({100 * float(share):.0f} %) {mark}")
        shown.append(Example(questions.picture(row), tuple(lines), title=f"{world}, {questions.kind(row)}"))
    return shown


FUSION_VQA = TaskStudy(
    name="fusion-vqa",
    title="Early, late and hybrid fusion in a model that answers questions",
    question="Where should picture and question meet, and what does it cost?",
    protocol=(
        "Early: four joint layers. Late: two layers per modality, means concatenated.",
        "Hybrid: one layer per modality, two joint ones, and the concatenated means of the modalities' own layers.",
        "Width, heads, batches of 64, steps, data and seeds are the same, parameters nearly so.",
        "Scenes: two or three objects of three shapes and four colours, as regions; 4 questions a scene.",
        (
            "easy-VQA: 16 cells of each picture as features of a frozen EfficientNet-Lite0 "
            "(https://arxiv.org/abs/2001.03615), computed once and in no cost here; "
            "500 of its training pictures choose, 2,000 of its test questions judge."
        ),
        "Each strategy has the same learning rates tried on seed 0; the best on validation is taken for all seeds.",
        "That run is seed 0. The weights of the best of five evaluations on validation are kept.",
        "Models of one modality have the layout of early fusion, the middle rate, and never see the other modality.",
        "'Counted' is no model: the most frequent training answer to the very same question.",
        (
            "Intervals: the wider ends of Student's t over seeds and of seeds and test questions resampled together, "
            "paired; not corrected for their number."
        ),
        "Speed: passes of the three in turns in one process of one thread, medians; the other core works meanwhile.",
    ),
    jobs=jobs,
    tables=tables,
    verdict=verdict,
    charts=charts,
)
