"""A made-up report of realistic shape: test data, not results of anything."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from polyfuse.report.content import DataSummary, ModalitySummary, Problem, ReportData
from polyfuse.report.records import (
    Arm,
    Bin,
    CorruptionRecord,
    CurvePoint,
    InputRecord,
    Metric,
    Oracle,
    Paired,
    Reliability,
    SeedRecord,
    SubsetRecord,
    Weights,
)
from polyfuse.report.summary import summarise

# name, label, kind, ability, loss per missing input, overconfidence
_ARMS = [
    ("reference", "concat + dropout (reference)", "reference", 1.00, 1.00, 0.05),
    ("default", "default recipe", "arm", 1.02, 0.96, 0.04),
    ("concat", "concat, no dropout", "arm", 1.03, 1.75, 0.14),
    ("late_mean", "late (mean of logits)", "arm", 0.93, 1.05, 0.06),
    ("late_sum", "late (sum of logits)", "arm", 0.94, 1.10, 0.11),
    ("hybrid", "hybrid", "arm", 1.01, 1.02, 0.06),
    ("gated", "gated", "arm", 0.98, 1.06, 0.06),
    ("attention_pool", "attention pool", "arm", 0.96, 1.08, 0.07),
    ("aecf", "AECF", "arm", 0.96, 1.06, 0.07),
    ("embracenet", "EmbraceNet", "arm", 1.01, 0.98, 0.03),
    ("low_rank", "low rank", "arm", 0.90, 1.30, 0.12),
    ("presence_only", "presence only", "baseline", 0.0, 0.0, 0.0),
    ("boosting", "gradient boosting", "baseline", 0.92, 1.15, 0.08),
]


def _subsets(modalities: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [s for k in range(1, len(modalities) + 1) for s in itertools.combinations(modalities, k)]


def _reliability(arm: str, subset: tuple[str, ...], over: float) -> list[Reliability]:
    out = []
    for stage, gap in (("raw", over), ("calibrated", over / 5)):
        bins = [Bin(0.15 + 0.1 * i, max(0.0, 0.15 + 0.1 * i - gap * math.sin(0.35 * i)), 7 + 11 * i) for i in range(9)]
        out.append(Reliability(arm, subset, stage, tuple(bins)))
    return out


def build_data(
    task: str = "classification",
    modalities: tuple[str, ...] = ("picture", "name", "name_es"),
    *,
    arms: int = len(_ARMS),
    seeds: int = 5,
    parts: bool = True,
    max_subsets: int = 63,
) -> ReportData:
    """Make a report: ``parts=False`` leaves everything out but arms and subset records."""
    draw = random.Random(5)
    metric = Metric.of_task(task) if task != "regression" else Metric("mae", "mean absolute error", False, False, "kWh")
    chosen = _ARMS[:arms] if arms > 1 else [("model", "", "arm", 1.0, 1.0, 0.06)]
    subsets = _subsets(modalities)
    if len(subsets) > max_subsets:
        keep = [s for s in subsets if len(s) in (1, len(modalities) - 1, len(modalities))]
        rest = [s for s in subsets if s not in keep]
        subsets = keep + draw.sample(rest, max_subsets - len(keep))
    value_of = {m: (0.6, 0.85, 0.8, 0.5, 0.7, 0.4, 0.3, 0.2)[i] for i, m in enumerate(modalities)}

    def score(ability: float, loss: float, subset: tuple[str, ...], noise: float) -> float:
        info = 1 - math.prod(1 - 0.62 * value_of[m] for m in subset)
        drop = (len(modalities) - len(subset)) / max(len(modalities) - 1, 1)
        share = min(max(0.24 + ability * 0.66 * info - 0.11 * (loss - 0.4) * drop + noise, 0.03), 0.99)
        return share if metric.higher_is_better else 41.0 * (1.15 - share)

    data = ReportData(
        title="emoji: nine groups from a picture and two names",
        task=task,
        modalities=modalities,
        metric=metric,
        arms=[
            Arm(
                name,
                label,
                kind,
                tuple(range(seeds)),
                None if kind == "baseline" else 20_000 + 1_733 * i,
                tuple(3.1 + i / 7 + draw.gauss(0, 0.1) for _ in range(seeds)),
                0.011 + i / 900,
                0.497 if loss < 1.3 else None,
            )
            for i, (name, label, kind, _, loss, _) in enumerate(chosen)
        ],
    )
    for name, _, _, ability, loss, over in chosen:
        for seed in range(seeds):
            for subset in subsets:
                size = len(modalities) - len(subset)
                ece = max(0.012, over * (1 + 0.5 * size) + draw.gauss(0, 0.006))
                metrics = {
                    metric.name: score(ability, loss, subset, draw.gauss(0, 0.006)),
                    "nll": 0.9 + 0.3 * size + over,
                    "brier": 0.3 + 0.07 * size,
                    "ece": ece,
                    "ece_calibrated": 0.02 + 0.2 * ece,
                    "coverage": 0.9 + draw.gauss(0, 0.012),
                    "set_size": 1.4 + 0.8 * size,
                    "aurc": 0.1 + 0.05 * size,
                    "augrc": 0.06 + 0.03 * size,
                }
                data.subset_records.append(SubsetRecord(name, seed, subset, 419, metrics))
    if parts:
        _add_parts(data, chosen, subsets, score, draw)
    return data


def _add_parts(data: ReportData, chosen: list[Any], subsets: list[Any], score: Any, draw: random.Random) -> None:
    names, metric = data.modalities, data.primary
    seeds = data.arms[0].seeds
    data.created = "1 April 2031, 12:00"
    data.seconds, data.machine = 161.0, "2 threads of a test machine"
    data.nominal_coverage = 0.9
    data.protocol = [
        "Three small encoders were trained once, frozen and their features cached; the spread covers heads only.",
        "Every arm was trained on the same splits, flags and steps; early stopping on validation NLL over subsets.",
    ]
    data.data = DataSummary(
        name="emoji (made-up test numbers)",
        rows={"train": 1873, "validation": 402, "test": 419},
        target="group",
        classes=tuple(f"group {i}" for i in range(9)),
        class_counts={f"group {i}": 300 - 23 * i for i in range(9)},
        modalities=tuple(
            ModalitySummary(
                m, "image" if i == 0 else "text", (f"{m}_column",), {"train": 0.21, "test": 0.2}, "image_cnn, 64 wide"
            )
            for i, m in enumerate(names)
        ),
        patterns=(*tuple((s, 901 // (1 + i)) for i, s in enumerate(reversed(subsets[:12]))), ((), 3)),
        problems=(
            Problem(names[0], "missing file", 12),
            Problem(names[0], "truncated image", 2),
            Problem("", "no target", 1),
        ),
        examples=tuple(f"row {17 * i}: {names[0]} '{i:04d}.png' is missing" for i in range(1, 16)),
        missing_rule="Each cell of a row is removed with probability 0.2, keyed by row; one always survives.",
        grouping="concept",
        licence="Fluent Emoji (MIT), Twemoji (CC BY 4.0)",
    )
    for name, _, _, ability, loss, over in chosen:
        for seed in seeds:
            for rate in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
                value = 0.81 * (0.5 + ability / 2) - 0.28 * rate * max(loss, 0.2) + draw.gauss(0, 0.004)
                data.curves.append(CurvePoint(name, seed, rate, value if metric.higher_is_better else 60 * (1 - value)))
            data.seed_records.append(SeedRecord(name, seed, {"violation_rate": 0.09 + over, "violation_mean": 0.01}))
            for m in names[:4]:
                for kind_of in ("noise 1", "noise 3", "permuted", "stuck", "scaled 4"):
                    value = score(ability, loss, names, -0.1 * draw.random() * (1 if name == "default" else 2.3))
                    clean = score(ability, loss, names, 0.0)
                    scores = {metric.name: value, f"{metric.name}_intact": clean}
                    data.corruption.append(CorruptionRecord(name, seed, kind_of, m, scores))
        gain = {"n": 97.0, "gain": 0.12, "gain_low": 0.1, "gain_high": 0.15, "nll": 0.3, "share": 0.4}
        data.inputs += [InputRecord(name, 0, m, way, gain) for m in names for way in ("added", "other row")]
        for subset in [names, *subsets[: len(names)]]:
            data.reliability += _reliability(name, subset, over)
        if name in ("aecf", "attention_pool", "gated", "model", "concat"):
            for subset in subsets:
                raw = {m: 1 + 0.3 * i + (0.5 if name == "aecf" else 0) * (i == 1) for i, m in enumerate(subset)}
                data.weights.append(Weights(name, subset, {m: w / sum(raw.values()) for m, w in raw.items()}))
    _add_paired(data, draw)
    data.oracles = [Oracle(s, k, score(1.03, 0.9, s, draw.gauss(0, 0.005))) for s in subsets for k in seeds]
    if len(chosen) > 1:
        data.default, data.watch = "default", tuple(n for n in ("aecf",) if n in {c[0] for c in chosen})
        for m in names:
            data.arms.append(Arm(f"only_{m}", f"{m} alone", "unimodal", seeds, 9_001, uses=(m,)))
            data.subset_records += [
                SubsetRecord(f"only_{m}", k, (m,), 419, {metric.name: score(1.0, 1.0, (m,), draw.gauss(0, 0.004))})
                for k in seeds
            ]
    data.headroom = ["All inputs beat the best pair by 4.1 points (95 % interval 2.2 to 6.0)."]
    data.abstention = ["Abstention flags 25.0 % of the 60 test rows as too unsure."]
    data.commands = ["polyfuse demo --seeds 5", "polyfuse predict runs/demo table.csv -o predictions.parquet"]
    data.versions = {"polyfuse": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.0"}
    data.notes = ["These numbers are made up."]


def _add_paired(data: ReportData, draw: random.Random) -> None:
    """Differences that agree with the subset records, with made-up widths."""
    summary = summarise(data)
    for row in summary.ranked:
        for key in ("mean", "complete", "worst"):
            if len(summary.ranked) > 1 and row.arm.name != "reference":
                gap = row.mean(key) - summary.of("reference").mean(key)
                half = (0.006 + draw.random() * 0.008) * (1 if data.primary.higher_is_better else 41)
                data.paired.append(
                    Paired(row.arm.name, "reference", data.primary.name, gap, gap - half, gap + half, key)
                )


HOSTILE = "<script>alert(1)</script>&amp;\"'$\\frac{a$ ]]> {{ 7*7 }} \x00\udc80 é 犬 😀 =cmd|' /C calc'!A0"


def hostile_data() -> ReportData:
    """Make a report whose user strings all try to break out."""
    names = (HOSTILE, "b" * 400, "</svg><img src=x onerror=alert(1)>")
    data = build_data(modalities=names, arms=4, seeds=2)
    data.title, data.commands, data.notes = HOSTILE, [HOSTILE], [HOSTILE]
    data.arms = [Arm(a.name, HOSTILE + a.name, a.kind, a.seeds, uses=a.uses) for a in data.arms]
    data.data = DataSummary(HOSTILE, {HOSTILE: 3}, HOSTILE, (HOSTILE,), {HOSTILE: 3}, examples=(HOSTILE,) * 2)
    return data


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ReportData]:
    """Builder of made-up reports."""
    return build_data


@pytest.fixture
def hostile() -> ReportData:
    """A report made of hostile strings."""
    return hostile_data()


@pytest.fixture
def hostile_text() -> str:
    """The hostile string itself."""
    return HOSTILE
