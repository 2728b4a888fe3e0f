"""The study that chose the default recipe: candidates judged on validation rows; no test row is touched.

What is judged on here are the validation rows of every data set; a fifth of the training rows takes their place for
calibration and the choice of weights. Only real data decide.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from polyfuse.data.keyed import key_of, uniform
from polyfuse.datasets import DataSet, load_dataset
from polyfuse.studies.arms import Plan
from polyfuse.studies.arms_aecf import CORRUPTION, make
from polyfuse.studies.bench import Size, Study
from polyfuse.studies.tables import Questions

_HELD = 0.2

#: Name: label, fusion, recipe, further settings of the model.
CANDIDATES: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = {
    "concat_heads": ("concat + heads", "concat", {"unimodal": 0.5}, {}),
    "concat_distill": ("concat + distilling", "concat", {"passes": "sandwich", "distill": 1.0}, {}),
    "concat_corrupt": ("concat + corruption", "concat", {}, {"corruption": CORRUPTION}),
    "slots_plain": ("slots", "slots", {}, {}),
    "slots_corrupt": ("slots + corruption", "slots", {}, {"corruption": CORRUPTION}),
    "slots_heads": ("slots + heads", "slots", {"unimodal": 0.5}, {}),
    "slots_heads_corrupt": ("slots + heads + corruption", "slots", {"unimodal": 0.5}, {"corruption": CORRUPTION}),
    "slots_distill_corrupt": (
        "slots + distilling + corruption",
        "slots",
        {"passes": "sandwich", "distill": 1.0},
        {"corruption": CORRUPTION},
    ),
    "slots_all": (
        "slots + distilling + heads + corruption",
        "slots",
        {"passes": "sandwich", "distill": 1.0, "unimodal": 0.5},
        {"corruption": CORRUPTION},
    ),
    "slots_distill_corrupt_more": (
        "slots + distilling + 30 % corruption",
        "slots",
        {"passes": "sandwich", "distill": 1.0},
        {"corruption": 2 * CORRUPTION},
    ),
    "slots_distill_more_corrupt": (
        "slots + distilling x 2 + corruption",
        "slots",
        {"passes": "sandwich", "distill": 2.0},
        {"corruption": CORRUPTION},
    ),
    "hybrid_distill_corrupt": (
        "hybrid + distilling + corruption",
        "hybrid",
        {"passes": "sandwich", "distill": 1.0},
        {"corruption": CORRUPTION},
    ),
    "concat_distill_corrupt": (
        "concat + distilling + corruption",
        "concat",
        {"passes": "sandwich", "distill": 1.0},
        {"corruption": CORRUPTION},
    ),
    "embracenet_corrupt": ("EmbraceNet + corruption", "embracenet", {}, {"corruption": CORRUPTION}),
    "hybrid_corrupt": ("hybrid + corruption", "hybrid", {}, {"corruption": CORRUPTION}),
    "product_corrupt": ("product of experts + corruption", "product_of_experts", {}, {"corruption": CORRUPTION}),
}


def load_for_choice(name: str, split: int) -> DataSet:
    """A data set whose test rows are its validation rows, with validation rows held out of training."""
    data = load_dataset(name, split)
    groups = None if data.groups is None else data.groups["train"]
    keys = data.train.keys if groups is None else key_of(list(groups))
    unique, member = keys.unique(return_inverse=True)
    order = uniform(0, "choice of the default", split, unique, 1)[:, 0].argsort(stable=True)
    held = torch.isin(member, order[: math.ceil(_HELD * len(unique))])
    rows = {"train": (~held).nonzero()[:, 0], "validation": held.nonzero()[:, 0]}
    moved = None
    if data.groups is not None and groups is not None:
        moved = {part: [groups[i] for i in index.tolist()] for part, index in rows.items()}
        moved["test"] = list(data.groups["validation"])
    train, validation = (data.train.rows(rows[part]) for part in ("train", "validation"))
    return replace(data, train=train, validation=validation, test=data.validation, groups=moved, broken={})


def arms(data: DataSet, size: Size) -> list[Plan]:
    """The reference, and every candidate."""
    found = [make(data, size, "reference", "concat + dropout (ref)", "The method to beat.", kind="reference")]
    for name, (label, fusion, recipe, model) in CANDIDATES.items():
        found.append(make(data, size, name, label, "", recipe=recipe, fusion=fusion, **model))
    return found


REAL = (
    "emoji",
    "av_digits_degraded",
    "htad",
    "mfeat_hard",
    "mfeat",
    "watch",
    "miniacc",
    "tuxpaint",
    "tabler",
)

CHOICE = Study(
    "choice",
    "Candidates for the default recipe, on validation rows",
    REAL,
    arms,
    {
        "smoke": Size(steps=40, seeds=2, bootstrap=200, datasets=("htad",)),
        "small": Size(steps=400, seeds=3, bootstrap=500),
        "full": Size(steps=800, seeds=10, oracles=3),
    },
    questions=Questions(
        question="Which recipe is best in validation over all real data sets?",
        protocol=("Rows judged on are validation rows; test rows are not touched.",),
    ),
    load=load_for_choice,
)
