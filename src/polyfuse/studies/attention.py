"""Exercise 8.3: what attention between modalities buys, what it costs, and whether its maps mark what matters.

Strategies of one width and depth answer questions about drawn scenes; some also about easy-VQA. Of every trained model
the visual tokens that its map marks most are removed, and as a yardstick random ones.

Shapes: B rows, P visual tokens.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.keyed import uniform
from polyfuse.evaluate.attention_flow import attention_flow
from polyfuse.evaluate.faithfulness import Removal, faithfulness, removal
from polyfuse.report.task_page import Example
from polyfuse.studies.answering import (
    Questions,
    batches,
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
)
from polyfuse.studies.attention_page import MAPS, SIZES, SPEED, charts, tables, verdict
from polyfuse.studies.fusion_vqa import world_options
from polyfuse.studies.pool import one_thread
from polyfuse.studies.task_jobs import Outcome, TaskJob, TaskStudy
from polyfuse.tasks.backbones import MultimodalBackbone
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.model import TaskModel

STRATEGIES = ("late", "early", "cross", "co", "pairwise", "adaptive", "bottleneck")
#: Arguments of the backbone by arm.
ARMS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"fusion": name, "num_layers": 4, "num_heads": 4} for name in STRATEGIES},
    **{f"{name}, 1 head": {"fusion": name, "num_layers": 4, "num_heads": 1} for name in ("early", "co")},
    **{f"{name}, 2 layers": {"fusion": name, "num_layers": 2, "num_heads": 4} for name in ("early", "co")},
}

#: Per scale: seeds, random draws, rounds of timing, and per world its sizes, arms and k.
SCALES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "seeds": 1,
        "rounds": 1,
        "worlds": {
            "scenes": {"sizes": {"scenes": (60, 10, 12), "steps": 2, "dim": 16}, "arms": list(ARMS), "k": 1},
            "scene pixels": {
                "sizes": {"scenes": (60, 10, 12), "pixels": True, "steps": 2, "dim": 16},
                "arms": ["early", "co"],
                "k": 4,
            },
        },
    },
    "small": {
        "seeds": 3,
        "rounds": 15,
        "worlds": {
            "scenes": {"sizes": {"scenes": (6000, 250, 500), "steps": 1200}, "arms": list(ARMS), "k": 1},
            "easy-VQA": {"sizes": {"steps": 1200, "rows": 1000}, "arms": ["early", "cross"], "k": 4},
        },
    },
    "full": {
        "seeds": 5,
        "rounds": 40,
        "worlds": {
            "scenes": {"sizes": {"scenes": (12_000, 500, 1000), "steps": 6000, "dim": 96}, "arms": list(ARMS), "k": 1},
            "easy-VQA": {"sizes": {"steps": 4000, "dim": 96}, "arms": list(STRATEGIES), "k": 4},
        },
    },
}  # fmt: skip
RATE, DRAWS = 1e-3, 5
_MOST_BOXES = 8  # more are a grid: shown as a map


def jobs(scale: str) -> list[TaskJob]:
    """Every arm and seed of every world, and the arms timed in turns."""
    plan, made = SCALES[scale], []
    for world, sizes in plan["worlds"].items():
        common = world_options(world, **sizes["sizes"]) | {"k": sizes["k"], "rate": RATE, "draws": DRAWS}
        for seed in range(plan["seeds"]):
            for arm in sizes["arms"]:
                made.append(TaskJob(arm, seed, train_arm, world, options=common | {"backbone": dict(ARMS[arm])}))
            timed = common | {"arms": {arm: dict(ARMS[arm]) for arm in sizes["arms"]}, "rounds": plan["rounds"]}
            made.append(TaskJob(SPEED, seed, time_arms, world, options=timed))
    return made


def train_arm(job: TaskJob, folder: Path) -> Outcome:
    """Train, answer the test rows, follow the attention, remove what it marks."""
    questions = questions_of(job.options)
    model, fit = train_answers(questions, job.options, job.seed, lr=job.options["rate"])
    torch.save(model.state_dict(), folder / "weights.pt")
    right = hits(questions, shares(model, questions, "test"), "test")
    figures = by_kind(questions, right, "accuracy") | {"seconds": fit.seconds} | costs(model, questions)
    figures |= removed(model, questions, job.options["k"], job.options["draws"], job.seed)
    shown = examples(job.arm, model, questions, job.options["k"]) if job.seed == 0 and "," not in job.arm else []
    return Outcome(figures, {"validation accuracy": curve(fit)}, shown, rows_of_kinds(questions, right, "accuracy"))


def time_arms(job: TaskJob, folder: Path) -> Outcome:
    """Milliseconds per row of all arms, in turns; weights do not matter."""
    questions, options = questions_of(job.options), job.options
    models = {
        arm: new_model(questions, {"backbone": backbone, "dim": options["dim"], "patch": options["patch"]}, job.seed)
        for arm, backbone in options["arms"].items()
    }
    with one_thread():
        seconds = side_by_side(models, questions, SIZES, options["rounds"])
    return Outcome({f"{arm} ms at {size}": 1e3 * value / size for (arm, size), value in seconds.items()})


def maps_of(model: TaskModel, batch: TaskBatch) -> dict[str, Tensor]:
    """``{name of MAPS: (B, P)}``: what the attention of a pass says about the visual tokens.

    "words": rollout, the mean over the words. "last": the last map in which words read visual tokens, the mean over
    heads and words. "readout": rollout, the mean over words and visual tokens alike, as the answer is read. A model
    without attention between the modalities has "readout" alone, made by the picture's own layers.
    """
    backbone = model.backbone
    assert isinstance(backbone, MultimodalBackbone)  # noqa: S101 - all arms here are
    masks = {"image": model.stem(batch).mask, "text": batch.text_mask}
    flow = attention_flow(backbone.model, lambda: model.encode(batch), masks)
    found = {"words": flow.read_by("text", "image"), "readout": flow.read_out("image")}
    last = flow.last_read_by("text", "image")
    if last is not None:
        found["last"] = last
    if backbone.model.fusion == "late":
        del found["words"]
    return found


def answers_from(model: TaskModel, batch: TaskBatch, wanted: Tensor) -> Callable[[Tensor], Tensor]:
    """From the visual tokens that are left ``(B, P)`` to ``(B, 2)``: right, and the probability of the truth."""
    visual = model.stem(batch)

    def score(keep: Tensor) -> Tensor:
        left = visual._replace(states=visual.states.masked_fill(~keep[..., None], 0.0), mask=visual.mask & keep)
        pooled = model.backbone(left, batch.text, batch.text_mask).pooled
        found = model.heads["answer"](pooled).float().softmax(dim=1)
        share = found.gather(1, wanted.clamp(min=0)[:, None])[:, 0] * (wanted >= 0)
        return torch.stack([(found.argmax(dim=1) == wanted).float(), share], dim=1)

    return score


def removed(model: TaskModel, questions: Questions, k: int, draws: int, seed: int) -> dict[str, float]:
    """Figures of every map: drops without the k most, k random, and the k least marked tokens.

    "best": without the k tokens whose removal one by one costs the true answer most, the most that a map could mark
    where k is 1.
    """
    rows = questions.rows["test"]
    wanted = torch.from_numpy(truth(questions, "test"))
    parts: dict[str, list[Removal]] = {}
    start = 0
    model.eval()
    with torch.no_grad():
        for batch in batches(questions, rows):
            score = answers_from(model, batch, wanted[start : start + len(batch)])
            mask, maps = model.stem(batch).mask, maps_of(model, batch)
            tokens = mask.shape[1]
            random = uniform(seed, "random tokens", 0, batch.keys, draws * tokens).view(len(batch), draws, tokens)
            maps["best"] = -torch.stack([score(mask & ~one)[:, 1] for one in torch.eye(tokens).bool()], dim=1)
            for name, weights in maps.items():
                parts.setdefault(name, []).append(removal(score, weights, mask, k, random.float()))
            start += len(batch)
    kinds, pictures = np.array([questions.kind(row) for row in rows]), questions.data.image_of[rows]
    figures: dict[str, float] = {}
    for name, found in parts.items():
        whole = Removal.of(found)
        figures |= _drops(name, whole, pictures)
        if name == MAPS[0] or (name == "readout" and MAPS[0] not in parts):
            for kind in questions.kinds:
                here = torch.from_numpy(kinds == kind)
                one = Removal(*(part[here] for part in whole))
                figures[f"gain {kind}"] = faithfulness(one, 1).gain.mean if one.full.isfinite().any() else float("nan")
    return figures


def _drops(name: str, found: Removal, pictures: np.ndarray) -> dict[str, float]:
    """Figures of one map; intervals resample pictures."""
    figures: dict[str, float] = {}
    for column, what in enumerate(("accuracy", "probability")):
        one = faithfulness(found, column, groups=pictures)
        figures |= {
            f"{name} top {what}": one.top_drop.mean,
            f"{name} random {what}": one.random_drop.mean,
            f"{name} least {what}": one.least_drop.mean,
            f"{name} gain {what}": one.gain.mean,
            f"{name} gain {what} low": one.gain.low,
            f"{name} gain {what} high": one.gain.high,
        }
    return figures


def examples(arm: str, model: TaskModel, questions: Questions, k: int) -> list[Example]:
    """Two test questions, the same for all arms of a world, with the map, the answer, and the answer without its top.

    The pictures are those with most visual tokens; one question about an object's attribute, or the first kind there
    is, and one of the last kind.
    """
    rows = questions.rows["test"]
    counts = questions.collate(rows).region_mask
    many = np.ones(len(rows), bool) if counts is None else (counts.sum(dim=1) == counts.sum(dim=1).max()).numpy()
    first = "attribute" if "attribute" in questions.kinds else questions.kinds[0]
    shown = []
    for kind in (first, questions.kinds[-1]):
        place = next((i for i, row in enumerate(rows) if many[i] and questions.kind(row) == kind), None)
        if place is not None:
            shown.append(_example(arm, model, questions, int(rows[place]), k))
    return shown


def _example(arm: str, model: TaskModel, questions: Questions, row: int, k: int) -> Example:
    batch = questions.collate(np.array([row]))
    with torch.no_grad():
        maps = maps_of(model, batch)
        name = MAPS[0] if MAPS[0] in maps else "readout"
        weights, visual = maps[name][0], model.stem(batch)
        mask = visual.mask[0]
        top = torch.zeros_like(mask)
        top[weights.masked_fill(~mask, -1.0).topk(min(k, int(mask.sum()) - 1)).indices] = True
        said = [_said(model, batch, questions, keep) for keep in (mask, mask & ~top)]
    weights, places = weights[mask] / weights[mask].sum().clamp(min=1e-9), visual.boxes[0][mask]
    boxes: tuple[tuple[str, list[float]], ...] = ()
    if len(weights) <= _MOST_BOXES:  # the first box is drawn in another colour: the most attended
        order = weights.argsort(descending=True)
        weights, places = weights[order], places[order]
        boxes = tuple((f"{100 * float(w):.0f} %", box.tolist()) for w, box in zip(weights, places, strict=True))
    lines = (
        questions.data.texts[row],
        f"right: {questions.answer(row)}",
        f"says: {said[0]}",
        f"without the top {k}: {said[1]}",
        "map: rollout of the words" if name == MAPS[0] else "no cross-modal map: the picture's own layers",
    )
    return Example(questions.picture(row), lines, boxes, weights.numpy(), title=arm)


def _said(model: TaskModel, batch: TaskBatch, questions: Questions, keep: Tensor) -> str:
    visual = model.stem(batch)
    left = visual._replace(states=visual.states.masked_fill(~keep[None, :, None], 0.0), mask=visual.mask & keep)
    found = model.heads["answer"](model.backbone(left, batch.text, batch.text_mask).pooled)[0].softmax(dim=0)
    return f"{questions.answers[int(found.argmax())]} ({100 * float(found.max()):.0f} %)"


ATTENTION = TaskStudy(
    name="attention",
    title="Attention between modalities: what it buys, what it costs, what its maps are worth",
    question="Does attention between picture and question help, in which form, and do its maps mark what matters?",
    protocol=(
        "Four layers and four heads of width 64, if not said otherwise; where a strategy has towers, two of the four.",
        "'late' has no attention between modalities; in 'early', the joint reference, every token reads every other.",
        "Scenes: two or three objects of three shapes and four colours, as regions.",
        (
            "easy-VQA: 16 cells of each picture as features of a frozen EfficientNet-Lite0 "
            "(https://arxiv.org/abs/2001.03615), computed once and in no cost here."
        ),
        "Data, steps, batches of 64 and seeds are the same; one learning rate, 0.001, for all: no arm was tuned.",
        "Maps: attention rollout (https://arxiv.org/abs/2005.00928), heads and words averaged, residual one half.",
        "'last': the last map alone. 'readout': rollout, words and visual tokens averaged, as the answer is read.",
        "Removal: the k visual tokens of most weight are masked out: 1 of 2 or 3 regions, 4 of 16 cells.",
        "Gain: what that costs the true answer's probability more than removing k random ones does (five draws).",
        "'By trial' removes the k tokens that cost the truth most, each removed alone: for k = 1 the best possible.",
    ),
    jobs=jobs,
    tables=tables,
    verdict=verdict,
    charts=charts,
)
