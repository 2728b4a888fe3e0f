"""Paired differences between arms: bootstrap over groups of rows and over seeds, Holm's correction, pooling.

All arms of a data set are resampled with the same draws, so any two of them can be compared afterwards. Quantities are
scores: minus a mean loss, so that more is better, NLL included.

Shapes: R runs (split, seed), S subsets, N rows, G groups, D draws. Draw 0 is the data as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.keyed import seed_of
from polyfuse.evaluate.intervals import holm, p_value
from polyfuse.report.study_records import Claim, Difference
from polyfuse.studies.ledger import Ledger, Run

Floats = NDArray[np.float64]
Draws = dict[str, Floats]
"""Quantity to its draws ``(1 + D,)``."""

Row = tuple[str, str, str, str]
"""Metric, subset, corruption, modality."""
Losses = tuple[NDArray[np.int64], Floats]
"""Keys of rows and their losses."""

DRAWS = 2000
IN_FAMILY = ("noise", "permuted", "swap")
"""First words of the corruptions that the training augmentation shows; all others are held out."""


@dataclass(frozen=True)
class Compared:
    """A difference and the draws it was read from."""

    difference: Difference
    samples: Floats


def held_out(corruption: str) -> bool:
    """Whether training never shows this kind of corruption.

    Example:
        >>> [held_out(name) for name in ("noise 3", "permuted", "stuck", "blur 2")]
        [False, False, True, True]
    """
    return corruption.split(" ")[0] not in IN_FAMILY


def worst_modality(values: Mapping[tuple[str, str], Floats]) -> Floats | None:
    """Score with the worst input broken: the mean over kinds for each input, then the worst input.

    Args:
        values: ``{(modality, corruption): scores (D,)}``.
    """
    by: dict[str, list[Floats]] = {}
    for (modality, _), value in values.items():
        by.setdefault(modality, []).append(value)
    return _lowest([_mean(v) for v in by.values()]) if by else None


def _mean(values: Sequence[Floats]) -> Floats:
    """Mean over the first axis of what is there; NaN where nothing is."""
    table = np.stack(values)
    known = np.isfinite(table)
    total, count = np.where(known, table, 0.0).sum(axis=0), known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _lowest(values: Sequence[Floats]) -> Floats:
    """Minimum over the first axis of what is there; NaN where nothing is."""
    table = np.stack(values)
    low = np.where(np.isfinite(table), table, np.inf).min(axis=0)
    return np.where(np.isfinite(low), low, np.nan)


class Sampled:
    """Every arm's quantities on one data set, resampled alike.

    The groups of a run's test rows are resampled among themselves: runs that are tested on the same rows share their
    draws, runs of other splits have their own. A subset whose rows are in none of a sample is left out of that sample.

    Args:
        ledger: The records.
        data: Name of the data set.
        draws: Bootstrap samples.
        alone: Also ``"alone: audio"``: every input alone.
    """

    def __init__(self, ledger: Ledger, data: str, draws: int = DRAWS, *, alone: bool = False) -> None:
        self.data, self.draws = data, draws
        self._cluster_of = ledger.clusters(data)
        self._runs: dict[int, Floats] = {}
        self._every: frozenset[str] = frozenset()
        found: dict[tuple[str, Run], dict[Row, Losses]] = {}
        stages = {e.stage for e in ledger.entries(data, "row", "nll")}
        nll_stage = next((s for s in ("mask", "", "pooled", "full", "raw") if s in stages), "mask")
        for metric in ("loss", "nll"):
            for e in ledger.entries(data, "row", metric):
                if metric == "loss" or e.stage == nll_stage:
                    keys, values = ledger.lists(e)
                    known = np.isfinite(values)
                    row = (metric, e.subset, e.corruption, e.modality)
                    if known.any():
                        found.setdefault((e.arm, e.run), {})[row] = keys[known], values[known]
        tested: dict[Run, list[NDArray[np.int64]]] = {}
        for (_, run), rows in found.items():
            tested.setdefault(run, []).extend(keys for keys, _ in rows.values())
        known_rows = {run: np.unique(np.concatenate(keys)) for run, keys in tested.items()}
        drawn: dict[bytes, TestRows] = {}
        for rows_of_run in known_rows.values():
            name = rows_of_run.tobytes()
            drawn[name] = drawn.get(name) or self._draw(rows_of_run, len(drawn))
        self._every = frozenset(k[1] for rows in found.values() for k in rows if k[0] == "loss" and not k[2])
        self.arms: dict[str, dict[Run, Draws]] = {}
        for (arm, run), rows in found.items():
            scores = _scores(rows, drawn[known_rows[run].tobytes()])
            self.arms.setdefault(arm, {})[run] = self._quantities(scores, alone)
        self.seeds_only: dict[str, dict[Run, dict[str, float]]] = broken_scores(ledger, data)

    def _draw(self, keys: NDArray[np.int64], number: int) -> "TestRows":
        """Number the clusters of some test rows, and draw how often each is in every sample."""
        clusters = np.array([self._cluster_of.get(key, key) for key in keys.tolist()], np.int64)
        names, place = np.unique(clusters, return_inverse=True)
        count = len(names)
        rng = np.random.default_rng(seed_of(number, f"study {self.data}"))
        weights = np.ones((count, self.draws + 1))
        for d in range(1, self.draws + 1) if count else ():
            weights[:, d] = np.bincount(rng.integers(0, count, count), minlength=count)
        return TestRows(keys, place, weights)

    def _quantities(self, found: Mapping[Row, Floats], alone: bool) -> Draws:
        scores: dict[str, Floats] = {}
        broken: dict[tuple[str, str], Floats] = {}
        nll: dict[str, Floats] = {}
        for (metric, subset, corruption, modality), value in found.items():
            if metric == "nll":
                if not corruption:
                    nll[subset] = value
            elif corruption:
                broken[modality, corruption] = value
            elif subset:
                scores[subset] = value
        out: Draws = {}
        if scores and set(scores) == self._every:  # an arm of one input has neither complete nor mean
            sizes = {subset: subset.count("+") for subset in scores}
            largest = [subset for subset, size in sizes.items() if size == max(sizes.values())]
            if len(largest) == 1:
                out["complete"] = scores[largest[0]]
            out["mean"], out["worst"] = _mean(list(scores.values())), _lowest(list(scores.values()))
            if alone:
                out |= {f"alone: {subset}": scores[subset] for subset, size in sizes.items() if size == 0}
        if nll:
            out["nll"] = nll[""] if "" in nll else _mean(list(nll.values()))
        for name, wanted in (("broken", True), ("noise", False)):
            worst = worst_modality({k: v for k, v in broken.items() if held_out(k[1]) is wanted})
            if worst is not None:
                out[name] = worst
        return out

    def compare(self, arm: str, reference: str) -> list[Compared]:
        """The gain of an arm over another, on the runs that both have.

        An arm with one run of a split (a baseline) stands beside every run of the other on that split.
        """
        out = []
        ours, theirs = self.arms.get(arm, {}), self.arms.get(reference, {})
        pairs = [(match, run) for run in theirs if (match := _match(run, ours)) is not None]
        names = [q for q in theirs[pairs[0][1]] if q in ours[pairs[0][0]]] if pairs else []
        picked = self._picked(len(pairs))
        for quantity in names:
            # Rounded: arms that answer alike differ by nothing, not by the order of a sum.
            gaps = np.stack([(ours[a][quantity] - theirs[b][quantity]).round(9) for a, b in pairs])
            known = np.isfinite(gaps)
            weight = (picked * known).sum(axis=0)
            total = (np.where(known, gaps, 0.0) * picked).sum(axis=0)
            samples = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan).round(9)
            out.append(self._compared(arm, reference, quantity, samples, "rows and seeds"))
        for quantity in ("broken", "noise"):
            if quantity not in names:
                out += self._by_seeds(arm, reference, quantity)
        return out

    def _picked(self, runs: int) -> Floats:
        """``(R, 1 + D)`` weight of every run; the same for every pair of arms with as many runs."""
        if runs in self._runs:
            return self._runs[runs]
        rng = np.random.default_rng(seed_of(runs, f"seeds {self.data}"))
        out = np.full((runs, self.draws + 1), 1.0 / max(runs, 1))
        for d in range(1, self.draws + 1) if runs > 1 else ():
            out[:, d] = np.bincount(rng.integers(0, runs, runs), minlength=runs) / runs
        self._runs[runs] = out
        return out

    def _by_seeds(self, arm: str, reference: str, quantity: str) -> list[Compared]:
        """Where no losses of rows were kept: Student's t over seeds."""
        ours, theirs = self.seeds_only.get(arm, {}), self.seeds_only.get(reference, {})
        gaps = [
            ours[a][quantity] - theirs[b][quantity]
            for b in theirs
            if (a := _match(b, ours)) is not None and quantity in ours[a] and quantity in theirs[b]
        ]
        if len(gaps) < 2:
            return []
        rng = np.random.default_rng(seed_of(len(gaps), f"t {self.data} {arm} {quantity}"))
        error = np.std(gaps, ddof=1) / np.sqrt(len(gaps))
        samples = np.mean(gaps) + error * rng.standard_t(len(gaps) - 1, self.draws + 1)
        samples[0] = np.mean(gaps)
        return [self._compared(arm, reference, quantity, samples, "seeds")]

    def _compared(self, arm: str, reference: str, quantity: str, samples: Floats, basis: str) -> Compared:
        return Compared(_read(Difference(self.data, arm, reference, quantity, 0, 0, 0, basis=basis), samples), samples)


@dataclass(frozen=True)
class TestRows:
    """The test rows of a run and how often their groups are in every sample.

    Attributes:
        keys: ``(N,)`` of the rows, ascending.
        place: ``(N,)``, the number of each row's group.
        weights: ``(G, 1 + D)``.
    """

    __test__ = False  # no test of pytest's

    keys: NDArray[np.int64]
    place: NDArray[np.int64]
    weights: Floats


def _scores(rows: Mapping[Row, Losses], tested: TestRows) -> dict[Row, Floats]:
    """``(1 + D,)`` minus the mean loss, of every set of rows; NaN in samples that hold none of them."""
    groups = len(tested.weights)
    counts: dict[bytes, Floats] = {}
    totals, asked = [], []
    for keys, losses in rows.values():
        place = tested.place[np.searchsorted(tested.keys, keys)]
        count = np.bincount(place, minlength=groups).astype(np.float64)
        asked.append(count.tobytes())
        if asked[-1] not in counts:
            drawn = count @ tested.weights
            counts[asked[-1]] = np.where(drawn > 0, drawn, np.nan)
        totals.append(np.bincount(place, losses, minlength=groups))
    means = np.stack(totals) @ tested.weights if totals else np.zeros((0, 0))
    return {row: -mean / counts[key] for row, mean, key in zip(rows, means, asked, strict=True)}


def _match(run: Run, runs: Mapping[Run, object]) -> Run | None:
    if run in runs:
        return run
    same = [other for other in runs if other[0] == run[0]]
    return same[0] if len(same) == 1 else None


def broken_scores(ledger: Ledger, data: str) -> dict[str, dict[Run, dict[str, float]]]:
    """Worst modality by arm, run and family of corruption, from the scores."""
    metric = ledger.metric(data)
    cells: dict[str, dict[Run, dict[tuple[str, str], Floats]]] = {}
    stages = {e.stage for e in ledger.entries(data, "broken", metric)}
    stage = next((s for s in ("raw", "", "mask") if s in stages), "raw")
    for e in ledger.entries(data, "broken", metric):
        if e.stage == stage:
            cells.setdefault(e.arm, {}).setdefault(e.run, {})[e.modality, e.corruption] = np.array(e.value)
    out: dict[str, dict[Run, dict[str, float]]] = {}
    for arm, runs in cells.items():
        for run, values in runs.items():
            for name, wanted in (("broken", True), ("noise", False)):
                worst = worst_modality({k: v for k, v in values.items() if held_out(k[1]) is wanted})
                if worst is not None:
                    out.setdefault(arm, {}).setdefault(run, {})[name] = float(worst)
    return out


def _read(difference: Difference, samples: Floats) -> Difference:
    """Mean, interval and p-value from draws; draw 0 is the estimate."""
    drawn = samples[1:][np.isfinite(samples[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = p_value(drawn)
    return replace(difference, mean=float(samples[0]), low=float(low), high=float(high), p=p, p_holm=p)


def pooled(compared: Sequence[Compared]) -> list[Compared]:
    """Mean over data sets of each arm, reference and quantity: these data sets, each counting the same."""
    by: dict[tuple[str, str, str], list[Compared]] = {}
    for c in compared:
        d = c.difference
        by.setdefault((d.arm, d.reference, d.quantity), []).append(c)
    out = []
    for (arm, reference, quantity), members in by.items():
        samples = _mean([m.samples for m in members])
        bases = sorted({m.difference.basis for m in members})
        empty = Difference("", arm, reference, quantity, 0, 0, 0, basis=bases[0], sets=len(members))
        out.append(Compared(_read(empty, samples), samples))
    return out


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Holm's correction over the methods of each data set and quantity."""
    families: dict[tuple[str, str], list[int]] = {}
    for i, d in enumerate(differences):
        families.setdefault((d.data, d.quantity), []).append(i)
    out = list(differences)
    for places in families.values():
        for i, p in zip(places, holm([differences[i].p for i in places]), strict=True):
            out[i] = replace(differences[i], p_holm=float(p))
    return out


def claims(differences: Sequence[Difference], judged: Sequence[str]) -> list[Claim]:
    """What may be claimed of every arm and quantity, from the differences on the judged data sets."""
    by: dict[tuple[str, str], list[Difference]] = {}
    for d in differences:
        if d.data in judged:
            by.setdefault((d.arm, d.quantity), []).append(d)
    out = []
    for (arm, quantity), members in by.items():
        named = {v: tuple(d.data for d in members if d.verdict == v) for v in ("better", "worse", "tied")}
        after = tuple(d.data for d in members if d.verdict == "better" and d.sure)
        out.append(Claim(arm, quantity, named["better"], named["worse"], named["tied"], after))
    return out
