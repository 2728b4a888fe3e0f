"""Post-hoc stages: each equals its plain definition, and the order of full, pooled and per mask is as it should be."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from polyfuse.calibrate import Calibration
from polyfuse.calibrate.stages import coverage_check, fit_stages, stage_records
from polyfuse.calibrate.temperature import halves
from polyfuse.data.keyed import uniform
from polyfuse.evaluate.metrics import probabilities, score
from polyfuse.evaluate.records import records
from polyfuse.evaluate.subsets import all_subsets, mask_codes, subset_name
from polyfuse.evaluate.sweep import Sweep

NAMES, C = ("image", "text", "sound"), 5
SUBSETS = all_subsets(3)


def make_sweep(n: int, seed: int, holes: float = 0.0, task: str = "classification") -> Sweep:
    """Answers that are right less often, and more sure of it, where more is missing."""
    rng = np.random.default_rng(seed)
    present = rng.random((n, 3)) >= holes
    size = SUBSETS.sum(axis=1)[:, None, None]
    sure = np.exp(0.5 * (3 - size))
    y = rng.integers(0, C, n)
    if task == "classification":
        z = 1.5 * sure * (0.8 * size * np.eye(C)[y] + rng.normal(size=(len(SUBSETS), n, C)))
    elif task == "multilabel":
        y = (rng.random((n, C)) < 0.4).astype(np.float64)
        z = sure * (2 * size * (y - 0.5) + rng.normal(size=(len(SUBSETS), n, C)))
    else:
        y = rng.normal(size=n)
        z = np.stack([y + rng.normal(size=(len(SUBSETS), n)), -np.log(sure[..., 0]) + np.zeros((len(SUBSETS), n))], -1)
    valid = (~SUBSETS[:, None] | present[None]).all(axis=2)
    z = np.where(valid[..., None], z, np.nan).astype(np.float32)
    keys = np.arange(n) + 100_000 * seed
    return Sweep(NAMES, SUBSETS, z, valid, z[-1], np.ones(n, bool), present, y, keys)


def table(found: list[dict], stage: str, metric: str) -> dict[str, float]:
    return {r["subset"]: r["value"] for r in found if r["stage"] == stage and r["metric"] == metric}


def test_full_fit_loses_coverage_on_subsets_and_per_mask_keeps_it() -> None:
    stages = fit_stages(make_sweep(1201, 100), "classification", 0.1)
    found = stage_records(stages, make_sweep(3001, 101))
    for kind in ("lac", "aps", "aps whole"):
        full, pooled, mask = (table(found, f"{kind} {fit}", "coverage") for fit in ("full", "pooled", "mask"))
        rows = {subset_name(m, NAMES): stages.rows[int(c)] for m, c in zip(SUBSETS, mask_codes(SUBSETS), strict=True)}
        assert all(r["passed"] for r in coverage_check(found, rows, 0.1, stage=f"{kind} mask"))
        if kind == "lac":  # once the temperature fits every mask, APS is nearly right with any threshold
            assert min(full.values()) < min(pooled.values()) < min(mask.values())
            failed = [r["subset"] for r in coverage_check(found, rows, 0.1, stage="lac full") if not r["passed"]]
            assert set(failed) >= set(NAMES)  # each input alone
        assert full["image+text+sound"] == mask["image+text+sound"]
    nll = {stage: np.mean(list(table(found, stage, "nll").values())) for stage in ("raw", "full", "pooled", "mask")}
    assert nll["mask"] < nll["pooled"] < min(nll["raw"], nll["full"])
    assert table(found, "mask", "accuracy") == table(found, "raw", "accuracy")
    randomised, whole = (sum(table(found, f"{kind} mask", "set_size").values()) for kind in ("aps", "aps whole"))
    assert randomised < whole
    risk = table(found, "abstain mask", "risk_accepted")
    assert max(risk.values()) < 0.12
    assert table(found, "abstain full", "risk_accepted")["image"] > 0.2


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_scores_equal_those_of_the_bundle_subset_by_subset(task: str) -> None:
    """With holes, ties (a third of the rows twice) and one subset that nobody has."""
    validation, test = make_sweep(307, 3, 0.2, task), make_sweep(211, 4, 0.2, task)
    again = np.r_[np.arange(211), np.arange(70)]
    test = replace(
        test,
        logits=test.logits[:, again],
        valid=test.valid[:, again],
        own=test.own[again],
        scored=test.scored[again],
        present=test.present[again],
        target=test.target[again],
        keys=test.keys[again],
    )
    test.valid[1] = False
    stages = fit_stages(validation, task, 0.2, risk=0.1)
    found = stage_records(stages, test, scale=3.0, bins=7)
    bundle = Calibration.fit(validation, task, alpha=0.2)
    names = {"ace": "ece_equal_mass"}
    seen = 0
    for r in records(test, task, bundle, scale=3.0, bins=7):
        if r["n"] == 0:
            assert not any(f["subset"] == r["subset"] for f in found)
            continue
        for metric in ("nll", "brier", "crps", "ece", "ace", "aurc", "augrc", "accuracy"):
            key = names.get(metric, metric)
            if key in r:
                assert table(found, "raw", metric)[r["subset"]] == pytest.approx(r[key], abs=1e-9), metric
                seen += 1
            if f"{key}_calibrated" in r:
                got = table(found, "mask", metric)[r["subset"]]
                assert got == pytest.approx(r[f"{key}_calibrated"], abs=1e-9), metric
        sets = {"classification": "lac mask", "regression": "residual mask"}.get(task)
        if sets:
            for metric in ("coverage", "set_size"):
                assert table(found, sets, metric)[r["subset"]] == pytest.approx(r[metric], abs=1e-9)
        assert table(found, "abstain mask", "abstained")[r["subset"]] == pytest.approx(r["abstained"])
        if r["risk_accepted"] is not None:
            got = table(found, "abstain mask", "risk_accepted")[r["subset"]]
            assert got == pytest.approx(r["risk_accepted"]), r["subset"]
    assert seen >= 36
    assert any(f["stage"].startswith("aps") for f in found) == (task == "classification")
    assert any("coverage" in f["metric"] for f in found) == (task != "multilabel")


def test_full_and_pooled_temperatures_are_the_optimum() -> None:
    swept = make_sweep(401, 5)
    stages = fit_stages(swept, "classification")
    first, _ = halves(swept.keys)
    for name, which in (("full", [len(SUBSETS) - 1]), ("pooled", range(len(SUBSETS)))):

        def loss(log_t: float, which: object = which) -> float:
            z = swept.logits[list(which)][:, first] / math.exp(log_t)
            rows = z.reshape(-1, C)
            y = np.tile(swept.target[first], len(z))
            nll = score("classification", probabilities("classification", rows), y)["nll"]
            return nll + 0.5 * log_t**2 / first.sum()  # the prior, worth one row

        best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
        assert stages.temperatures[name].scale[0] == pytest.approx(best, abs=1e-4), name
        assert not any(stages.temperatures[name].modality)
    assert stages.temperatures["full"].scale[0] < stages.temperatures["pooled"].scale[0]


def test_aps_by_hand_and_in_loops() -> None:
    swept, test = make_sweep(83, 6), make_sweep(31, 7)
    stages = fit_stages(swept, "classification", 0.2)
    found = stage_records(stages, test)
    _, second = halves(swept.keys)

    def scores(sweep: Sweep, s: int, n: int, whole: bool) -> list[float]:
        present = np.broadcast_to(SUBSETS[s], (1, 3))
        z = stages.temperatures["mask"].apply(sweep.logits[s, n][None], present)
        p = probabilities("classification", z)[0]
        u = 1.0 if whole else float(uniform(0, "adaptive prediction sets", 0, torch.tensor([sweep.keys[n]]), 1))
        return [sum(q for q in p if q > mine) + u * mine for mine in p]

    for kind, whole in (("aps", False), ("aps whole", True)):
        for s in (0, 6):
            own = sorted(scores(swept, s, n, whole)[swept.target[n]] for n in np.flatnonzero(second))
            threshold = own[math.ceil((len(own) + 1) * 0.8) - 1]
            sets = [[k for k, v in enumerate(scores(test, s, n, whole)) if v <= threshold + 1e-12] for n in range(31)]
            name = subset_name(SUBSETS[s], NAMES)
            covered = np.mean([y in chosen for y, chosen in zip(test.target, sets, strict=True)])
            assert table(found, f"{kind} mask", "coverage")[name] == pytest.approx(covered)
            assert table(found, f"{kind} mask", "set_size")[name] == pytest.approx(np.mean([len(x) for x in sets]))


def test_without_complete_rows_the_full_fit_says_nothing() -> None:
    swept = make_sweep(61, 8)
    swept.valid[-1] = False
    stages = fit_stages(swept, "classification")
    assert stages.temperatures["full"].scale == (0.0,)
    found = stage_records(stages, make_sweep(29, 9))
    assert set(table(found, "lac full", "set_size").values()) == {float(C)}
    assert set(table(found, "abstain full", "abstained").values()) == {1.0}
    assert not table(found, "abstain full", "risk_accepted")
    with pytest.raises(ValueError, match=r"got 1\.5"):
        fit_stages(swept, "classification", 1.5)


def test_coverage_check_rejects_at_the_nominal_rate_and_finds_the_wrong_mask() -> None:
    rng = np.random.default_rng(10)
    rejected, wrong = 0, 0
    for _ in range(300):
        right, shifted = [], []
        for mask in ("a", "b", "a+b"):
            threshold = np.sort(rng.random(149))[math.ceil(150 * 0.9) - 1]
            made = {"kind": "subset", "subset": mask, "stage": "lac mask", "metric": "coverage", "n": 211}
            covered = (rng.random(211) <= threshold).mean()
            right.append({**made, "value": covered})
            shifted.append({**made, "value": covered if mask == "a" else (rng.random(211) <= threshold - 0.15).mean()})
        rejected += not all(r["passed"] for r in coverage_check(right, 149, 0.1))
        checked = coverage_check(shifted, {"a": 149, "b": 149, "a+b": 149}, 0.1)
        wrong += not checked[1]["passed"] and not checked[2]["passed"]
    assert 0.005 <= rejected / 300 <= 0.08  # at most 5 %: counts are whole numbers and Holm is careful
    assert wrong / 300 > 0.8
    few = [{"subset": "a", "stage": "lac mask", "metric": "coverage", "n": 7, "value": 1.0}]
    assert coverage_check(few, 5, 0.1)[0]["passed"]  # no threshold: the full set
    assert not coverage_check([{**few[0], "value": 6 / 7}], 5, 0.1)[0]["passed"]
    with pytest.raises(ValueError, match="'aps mask'; known"):
        coverage_check(few, 5, 0.1, stage="aps mask")
