"""Records with planted answers: rows whose losses are chosen, not measured."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from polyfuse.studies.arms import Plan
from polyfuse.studies.results import Records

INPUTS = ("audio", "motion")
SUBSETS = ("audio", "motion", "audio+motion")
BASE = {"audio": 0.7, "motion": 0.6, "audio+motion": 0.9}
ROWS, SEEDS = 240, 3

Rate = Callable[[str, str, str], float]
"""From data set, arm and subset to an accuracy."""

PLANS = (
    Plan("reference", "concat + dropout", kind="reference"),
    Plan("default", "the default recipe"),
    Plan("bad", "a bad idea", note="It is bad."),
    Plan("audio only", "audio only", kind="unimodal", uses=("audio",)),
)


def right(accuracy: float, seed: int, rows: int = ROWS) -> np.ndarray:
    """``(N,)`` which rows are right: exactly that share, the same rows first, so that arms are paired."""
    order = np.random.default_rng(7).permutation(rows)
    out = np.zeros(rows)
    out[order[: round(accuracy * rows)]] = 1.0
    return np.roll(out, seed)


def study_records(
    datasets: Sequence[str] = ("htad", "mfeat"),
    gain: Mapping[str, float] | None = None,
    *,
    nll_gain: float = 0.05,
    broken_gain: float = 0.06,
    coverage: float = 0.9,
    oracle_gain: float = 0.02,
    groups: int = ROWS,
    row_broken: bool = True,
    variant: str = "",
    gain_on: Sequence[str] = SUBSETS,
) -> pa.Table:
    """A study of ``PLANS``: ``gain`` of each arm in accuracy on ``gain_on``, over ``BASE``."""
    gains = {"reference": 0.0, "default": 0.03, "bad": -0.04, **(gain or {})}
    tables = []
    for data in datasets:
        keys = np.arange(ROWS) * 3 + 1
        facts = Records(data, variant, 0, "", 0)
        facts.add("data", "train_rows", 700)
        facts.add("data", "validation_rows", 300)
        facts.add("data", "test_rows", ROWS)
        facts.add("data", "note", None, stage="Rows were made up.")
        facts.add("data", "groups", groups, values=np.arange(ROWS) % groups, keys=keys)
        tables.append(facts.table())
        for plan in PLANS:
            for seed in range(SEEDS):
                out = Records(data, variant, 0, plan.name, seed)
                for metric, value in (("train_seconds", 2.0), ("parameters", 1000), ("passes", 1), ("ms_per_row", 0.1)):
                    out.add("job", metric, value * (2 if plan.name == "default" else 1))
                own = {s: gains.get(plan.name, 0.0) * (s in gain_on) for s in SUBSETS}
                _arm(out, plan, own, seed, keys, nll_gain, broken_gain, coverage, row_broken)
                tables.append(out.table())
        for name, shift in (("oracle", 0.0), ("oracle reseeded", 0.004)):
            for seed in range(SEEDS):
                out = Records(data, variant, 0, name, seed)
                for subset in SUBSETS:
                    sign = -1 if subset == "audio" else 1
                    out.add("oracle", "accuracy", BASE[subset] + oracle_gain + sign * shift, ROWS, subset=subset)
                tables.append(out.table())
    return pa.concat_tables(tables)


def _arm(
    out: Records,
    plan: Plan,
    gain: Mapping[str, float],
    seed: int,
    keys: np.ndarray,
    nll_gain: float,
    broken_gain: float,
    coverage: float,
    row_broken: bool,
) -> None:
    default = plan.name == "default"
    for subset in plan.uses or SUBSETS:
        hits = right(BASE[subset] + gain[subset], seed)
        out.add("subset", "accuracy", hits.mean(), ROWS, subset=subset, stage="raw")
        out.add("row", "loss", 1 - hits.mean(), ROWS, subset=subset, values=1 - hits, keys=keys)
        for stage, ece in (("raw", 0.10), ("full", 0.12), ("pooled", 0.06), ("mask", 0.04)):
            out.add("subset", "ece", ece, ROWS, subset=subset, stage=stage)
            out.add("subset", "nll", 0.5 + ece - nll_gain * default, ROWS, subset=subset, stage=stage)
        for stage, value in (("lac full", 0.7), ("lac pooled", 0.86), ("lac mask", coverage), ("aps mask", 0.91)):
            out.add("subset", "coverage", value, ROWS, subset=subset, stage=stage)
            out.add("subset", "set_size", 1.2, ROWS, subset=subset, stage=stage)
    nll = 0.5 + 0.3 * np.sin(np.arange(ROWS)) - nll_gain * default
    out.add("row", "nll", nll.mean(), ROWS, stage="raw", values=nll, keys=keys)
    if plan.uses:
        return
    for m, modality in enumerate(INPUTS):
        out.add("seed", "shapley", 0.3 + 0.1 * m * (1 + default), modality=modality)
        for corruption, base in (("noise 1", 0.8), ("noise 3", 0.6), ("stuck", 0.5), ("scaled 4", 0.7)):
            held = corruption in ("stuck", "scaled 4")
            hits = right(base - 0.1 * m + (broken_gain if default and held else 0.0), seed)
            where = {"corruption": corruption, "modality": modality}
            out.add("broken", "accuracy", hits.mean(), ROWS, stage="raw", **where)
            if row_broken:
                out.add("row", "loss", 1 - hits.mean(), ROWS, values=1 - hits, keys=keys, **where)


def plans(datasets: Sequence[str] = ("htad", "mfeat")) -> dict[str, list[Plan]]:
    """The arms, by data set."""
    return {data: list(PLANS) for data in datasets}
