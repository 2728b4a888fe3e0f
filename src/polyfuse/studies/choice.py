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
from polyfuse.studies.study import Size, Study
from polyfuse.studies.tables import Questions

_HELD = 0.2

DISTILL: Mapping[str, Any] = {"passes": "sandwich", "distill": 1.0}
HEADS: Mapping[str, Any] = {"unimodal": 0.5}
CORRUPT: Mapping[str, Any] = {"corruption": CORRUPTION}
SOME: Mapping[str, Any] = {"slot_dropout": 0.2}
NONE: Mapping[str, Any] = {"slot_dropout": 0.0}

#: Name: label, fusion, recipe, further settings of the model.
CANDIDATES: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = {
    "concat_heads": ("concat + heads", "concat", HEADS, {}),
    "concat_distill": ("concat + distilling", "concat", DISTILL, {}),
    "concat_corrupt": ("concat + corruption", "concat", {}, CORRUPT),
    "concat_distill_corrupt": ("concat + distilling + corruption", "concat", DISTILL, CORRUPT),
    "slots_plain": ("slots", "slots", {}, {}),
    "slots_distill": ("slots + distilling", "slots", DISTILL, {}),
    "slots_heads_corrupt": ("slots + heads + corruption", "slots", HEADS, CORRUPT),
    "slots_distill_corrupt": ("slots + distilling + corruption", "slots", DISTILL, CORRUPT),
    "slots_some": ("slots (0.2) + distilling + corruption", "slots", DISTILL, {**CORRUPT, "fusion_args": SOME}),
    "slots_some_clean": ("slots (0.2) + distilling", "slots", DISTILL, {"fusion_args": SOME}),
    "slots_none": ("slots (0) + distilling + corruption", "slots", DISTILL, {**CORRUPT, "fusion_args": NONE}),
    "slots_all": ("slots + distilling + heads + corruption", "slots", {**DISTILL, **HEADS}, CORRUPT),
    "hybrid_distill_corrupt": ("hybrid + distilling + corruption", "hybrid", DISTILL, CORRUPT),
    "embracenet_corrupt": ("EmbraceNet + corruption", "embracenet", {}, CORRUPT),
    "product_distill_corrupt": ("product + distilling + corruption", "product_of_experts", DISTILL, CORRUPT),
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
        "small": Size(steps=300, tries=2, seeds=3, bootstrap=500),
        "full": Size(steps=800, tries=3, seeds=10, oracles=3),
    },
    questions=Questions(
        question="Which recipe is best in validation over all real data sets?",
        protocol=("Rows judged on are validation rows; test rows are not touched.",),
    ),
    load=load_for_choice,
)
