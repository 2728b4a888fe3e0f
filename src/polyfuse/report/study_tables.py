"""The tables of a study as headings and cells, printed alike on the page and in the console, and all numbers as CSV."""

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from polyfuse.report.format import number
from polyfuse.report.study_figures import compared_arms, shown_stages
from polyfuse.report.study_records import IN_NATS, QUANTITIES, DataTable, Difference, Situation, Stat, StudyReport
from polyfuse.report.study_words import amount
from polyfuse.report.table import csv_safe

SCORES = {
    "complete": ("complete", "%"),
    "mean": ("mean", "%"),
    "worst": ("worst", "%"),
    "regret": ("regret", "points"),
    "nll": ("NLL", "nats"),
    "ece": ("ECE", ""),
    "coverage": ("coverage", "%"),
    "worst_coverage": ("lowest", "%"),
    "noise": ("noise", "%"),
    "broken": ("held out", "%"),
}
COSTS = {
    "parameters": ("params", ""),
    "multiply_adds": ("mult-adds", "a row"),
    "passes": ("passes", "a step"),
    "seconds": ("train", "s"),
    "ms": ("per row", "ms"),
    "peak_mb": ("memory", "MB"),
}
HELP = (
    "complete: every input given; mean and worst: over all subsets of inputs; regret: largest shortfall from a model "
    "trained for one subset, on seed means, less what two sets of such models differ by (left out where they differ by "
    "more than 5 points); NLL and ECE: mean over subsets after a temperature per subset, where there is one; coverage "
    "and lowest: conformal sets per subset that promise 90 %, mean and worst over subsets; noise and held out: score "
    "with the worst input broken and not flagged, with noise or another row's input as in training, and with kinds "
    "that training never shows."
)
_NATS = ("nll", "ece")


@dataclass(frozen=True)
class Cell:
    """One cell: its text, its spread, and ``better``, ``worse`` or nothing.

    Attributes:
        text: What it says.
        small: What follows in small type; may be empty.
        mark: ``better``, ``worse``, ``best`` or empty.
    """

    text: str
    small: str = ""
    mark: str = ""

    @property
    def plain(self) -> str:
        """In one line of a terminal."""
        return f"{self.text} {self.small}".strip() + {"better": " ▲", "worse": " ▼"}.get(self.mark, "")


@dataclass(frozen=True)
class Table:
    """Headings and rows.

    Attributes:
        title: Heading.
        columns: ``(head, unit)``; the first is that of the names.
        rows: ``(name, cells, class)``; the class is ``default``, ``break`` or empty.
        words: Columns (by number of cell) that hold text and are set left.
        keep: Columns that a narrow terminal shows first; the others go from the right.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...], str], ...]
    words: frozenset[int] = frozenset()
    keep: int = 4

    def lines(self, width: int = 120) -> list[str]:
        """For a terminal: columns that do not fit go from the right, then spreads, then names are cut."""
        if not self.rows:
            return []
        if self.words:
            return self._listed(width)
        count, spread = len(self.columns) - 1, True
        while True:
            cells = [[c.plain if spread else Cell(c.text, "", c.mark).plain for c in r[1][:count]] for r in self.rows]
            heads = [f"{h} {u}".strip() for h, u in self.columns[1 : count + 1]]
            widths = [max(len(h), *(len(r[i]) for r in cells)) for i, h in enumerate(heads)]
            names = max(len(r[0]) for r in self.rows)
            least = min(names, max(16, width * 3 // 10))
            room = width - sum(w + 2 for w in widths)
            if room >= least or (count <= self.keep and not spread):
                break
            if count > self.keep:
                count -= 1
            else:
                spread = False
        names = max(min(names, room), 8)
        head = " " * names + "".join(f"  {h:>{w}}" for h, w in zip(heads, widths, strict=True))
        out = [head.rstrip()]
        for (name, _, _), row in zip(self.rows, cells, strict=True):
            shown = name if len(name) <= names else name[: names - 1] + "…"
            out.append(f"{shown:<{names}}" + "".join(f"  {c:>{w}}" for c, w in zip(row, widths, strict=True)))
        return [line.rstrip() for line in out]

    def _listed(self, width: int) -> list[str]:
        out: list[str] = []
        for name, cells, _ in self.rows:
            text = "; ".join(c.plain for c in cells if c.text)
            out += textwrap.wrap(f"{name} {text}", width, subsequent_indent="    ")
        return out


def stat_cell(key: str, stat: Stat | None, *, best: bool = False) -> Cell:
    """Print one number of a main table.

    Example:
        >>> stat_cell("mean", Stat(0.7123, 0.004, 5)).plain, stat_cell("parameters", Stat(12345.0)).plain
        ('71.2 ±0.4', '12 k')
    """
    if stat is None:
        return Cell("–")
    mark, sd = "best" if best else "", stat.sd if math.isfinite(stat.sd) else None
    if key in COSTS:
        return Cell(cost(key, stat.mean), mark=mark)
    if key in _NATS:
        return Cell(f"{stat.mean:.3f}", "" if sd is None else f"±{sd:.3f}", mark)
    text = f"{100 * stat.mean:.1f}".replace("-", "−")
    return Cell("0.0" if text == "−0.0" else text, "" if sd is None else f"±{100 * sd:.1f}", mark)


def cost(key: str, value: float) -> str:
    """Print a cost."""
    if key in ("parameters", "multiply_adds"):
        if value < 10_000:
            return f"{value:,.0f}"
        return f"{value / 1e3:,.0f} k" if value < 999_500 else f"{value / 1e6:,.1f} M"
    return f"{value:.3g}" if key == "passes" else number(value)


def goal_table(report: StudyReport) -> Table:
    """Goal, met or missed, and the figure."""
    words = {(True, True): "met", (False, True): "missed", (False, False): "not measured"}
    rows = tuple(
        (f"{'●' if g.met else '○'} {words[g.met, g.measured]}: {g.text}", (Cell(f"{g.figure}."),), "")
        for g in report.goals
    )
    return Table("Goals", (("Goal", ""), ("figure", "")), rows, frozenset({0}))


def data_table(report: StudyReport, data: str) -> Table:
    """The main table of one data set; the best arm of a column is marked."""
    table = report.table(data)
    keys = [k for k in (*SCORES, *COSTS) if any(k in r.values for r in table.rows)]
    best = {k: _best(report, table, k) for k in keys if k in SCORES and "coverage" not in k}
    kinds = {a.name: a.kind for a in report.arms}
    rows = []
    for i, row in enumerate(table.rows):
        if "mean" not in row.values:
            continue
        cells = tuple(stat_cell(k, row.values.get(k), best=best.get(k) == row.arm) for k in keys)
        new = kinds.get(row.arm) in ("baseline", None) and i and kinds.get(table.rows[i - 1].arm) == "arm"
        rows.append((report.label(row.arm), cells, _class(report, row.arm, bool(new))))
    columns = (("Arm", ""), *((SCORES | COSTS)[k] for k in keys))
    return Table(data, columns, tuple(rows))


def main_table(report: StudyReport) -> Table:
    """Across data sets: means over the real ones, and on how many each arm is surely better and worse."""
    judged = [d.name for d in report.judged] or [d.name for d in report.data]
    tables = [report.table(d) for d in judged]
    arms = [a.name for a in report.arms if any("mean" in r.values for t in tables if (r := t.row(a.name)))]
    keys = [k for k in (*SCORES, "passes", "seconds") if any(k in r.values for t in tables for r in t.rows)]
    rows = []
    for arm in arms:
        cells = []
        for key in keys:
            values = [r.values[key].mean for t in tables if (r := t.row(arm)) and key in r.values]
            text = stat_cell(key, Stat(statistics.fmean(values)) if values else None).text
            partial = f"of {len(values)}" if 0 < len(values) < len(tables) else ""
            cells.append(Cell(text, partial))
        claim = next((c for c in report.claims if (c.arm, c.quantity) == (arm, "mean")), None)
        better = Cell("–") if claim is None else Cell(f"{len(claim.better)} / {len(claim.worse)}")
        mark = (
            "" if claim is None else "better" if claim.stands else "worse" if claim.worse and not claim.better else ""
        )
        rows.append((report.label(arm), (Cell(better.text, mark=mark), *cells), _class(report, arm)))
    columns = (("Arm", ""), ("+ / −", "sets"), *((SCORES | COSTS)[k] for k in keys))
    return Table(
        f"Mean of {len(tables)} {report.pool}" if len(tables) > 1 else tables[0].data, columns, tuple(rows), keep=5
    )


def difference_table(report: StudyReport) -> Table:
    """Pooled differences to the reference, one column a quantity."""
    keys = [q for q in QUANTITIES if any(d.quantity == q and not d.data for d in report.differences)]
    rows = []
    for arm in compared_arms(report):
        found = [report.difference(arm, q) for q in keys]
        rows.append((report.label(arm), tuple(difference_cell(d) for d in found), _class(report, arm)))
    columns = (("Arm", ""), *_gain_heads(keys))
    return Table(f"Gain over {report.label(report.reference)}, pooled", columns, tuple(rows), keep=2)


def _gain_heads(keys: Sequence[str]) -> list[tuple[str, str]]:
    return [(SCORES[q][0], "nats" if q in IN_NATS else "points") for q in keys]


def difference_cell(d: Difference | None) -> Cell:
    """A gain, its interval, and whether it is sure; a dagger where Holm's correction takes it back."""
    if d is None:
        return Cell("–")
    dagger = "†" if d.verdict != "tied" and not d.sure and math.isfinite(d.p_holm) else ""
    ends = " to ".join(amount(v, d.quantity, unit=False) for v in (d.low, d.high))
    return Cell(amount(d.mean, d.quantity, unit=False) + dagger, f"({ends})", d.verdict if d.verdict != "tied" else "")


def ingredient_table(report: StudyReport) -> Table:
    """What each ingredient buys, pooled."""
    keys = [q for q in QUANTITIES if any(e.quantity == q for one in report.ingredients for e in one.effects)]
    rows = []
    for one in report.ingredients:
        found = {e.quantity: e for e in one.effects if not e.data}
        sets = max((e.sets for e in found.values()), default=0)
        pair = f"{one.label}: {report.label(one.arm_with)} against {report.label(one.arm_without)}, {sets} sets"
        rows.append((pair, tuple(difference_cell(found.get(q)) for q in keys), ""))
    columns = (("Ingredient", ""), *_gain_heads(keys))
    return Table("What the ingredients buy", columns, tuple(rows), keep=2)


def situation_table(report: StudyReport, s: Situation) -> Table:
    """Before and after for every technique of one situation."""
    inputs = list(dict.fromkeys(m for t in s.techniques for m in t.alone))
    shares = list(dict.fromkeys(m for t in s.techniques for m in t.shapley))
    keys = [k for k in ("worst", "complete", "mean", "ece", "nll") if any(k in t.values for t in s.techniques)]
    rows = []
    if s.techniques:
        first = s.techniques[0]
        base = [_share(first.alone.get(m)) for m in inputs]
        base += [_share(first.shapley.get(m)) for m in shares]
        base += [stat_cell(k, Stat(first.values[k][0]) if k in first.values else None) for k in keys]
        rows.append((f"before: {report.label(s.before)}", tuple(base), ""))
    for t in s.techniques:
        gains = {d.quantity: d for d in t.gains}
        cells = [_share(t.alone.get(m), 1, gains.get(f"alone: {m}")) for m in inputs]
        cells += [_share(t.shapley.get(m), 1) for m in shares]
        for k in keys:
            text = stat_cell(k, Stat(t.values[k][1]) if k in t.values else None).text
            d = gains.get(k)
            cells.append(Cell(text, "" if d is None else difference_cell(d).text, "" if d is None else _mark(d)))
        rows.append((report.label(t.arm), tuple(cells), "default" if t.arm == s.best else ""))
    columns = (("Technique", ""), *((f"{m} alone", "%") for m in inputs), *((f"{m} share", "%") for m in shares))
    return Table(s.data, (*columns, *(SCORES[k] for k in keys)), tuple(rows))


def _share(pair: tuple[float, float] | None, which: int = 0, gain: Difference | None = None) -> Cell:
    if pair is None or not math.isfinite(pair[which]):
        return Cell("–")
    small = "" if gain is None else amount(gain.mean, "mean", unit=False)
    return Cell(f"{100 * pair[which]:.1f}", small, "" if gain is None else _mark(gain))


def _mark(d: Difference) -> str:
    return "" if d.verdict == "tied" else d.verdict


def family_table(report: StudyReport) -> Table:
    """Early, late and hybrid fusion: scores, costs, and words that follow from them."""
    keys = [k for k in ("complete", "mean", "worst", "broken", *COSTS) if any(k in f.values for f in report.families)]
    rows = []
    for f in report.families:
        cells = [stat_cell(k, Stat(f.values[k]) if k in f.values else None) for k in keys]
        words = [Cell("; ".join(w) or "none") for w in (f.strengths, f.weaknesses)]
        rows.append((f"{f.label}: {report.label(f.arm)}", (*cells, *words), ""))
    columns = (("Fusion", ""), *((SCORES | COSTS)[k] for k in keys), ("strengths", ""), ("weaknesses", ""))
    return Table("Early, late and hybrid", columns, tuple(rows), frozenset({len(keys), len(keys) + 1}))


def calibration_table(report: StudyReport, arms: Sequence[str]) -> Table:
    """ECE and NLL at every stage, coverage of the sets mean and worst, per data set and arm."""
    temperatures = [s for s in ("raw", "full", "pooled", "mask") if any(r.stage == s for r in report.calibration)]
    sets = shown_stages([r.stage for r in report.calibration if r.stage not in temperatures])
    rows = []
    for data in report.data:
        for arm in arms:
            found = {r.stage: r.values for r in report.calibration if (r.data, r.arm) == (data.name, arm)}
            if not found:
                continue
            cells = [stat_cell(k, found.get(s, {}).get(k)) for k in ("ece", "nll") for s in temperatures]
            cells = [Cell(c.text) for c in cells]
            for s in sets:
                mean, worst = (stat_cell("coverage", found.get(s, {}).get(k)) for k in ("coverage", "worst_coverage"))
                cells.append(Cell(mean.text, worst.text))
            rows.append((f"{data.name}, {report.label(arm)}" if len(arms) > 1 else data.name, tuple(cells), ""))
    columns = [
        ("Data set", ""),
        *((f"ECE {s}", "") for s in temperatures),
        *((f"NLL {s}", "nats") for s in temperatures),
    ]
    upper = [s.replace("lac", "LAC").replace("aps", "APS") for s in sets]
    return Table("Calibration, stage by stage", (*columns, *((s, "mean, lowest %") for s in upper)), tuple(rows))


def cost_table(report: StudyReport) -> Table:
    """What each arm costs, and as a multiple of the reference."""
    keys = [k for k in COSTS if any(k in c.values for c in report.costs)]
    rows = []
    for c in report.costs:
        cells = tuple(_cost(k, c.values, c.ratios) for k in keys)
        rows.append((report.label(c.arm), cells, _class(report, c.arm)))
    return Table("Cost", (("Arm", ""), *(COSTS[k] for k in keys)), tuple(rows))


def _cost(key: str, values: Mapping[str, float], ratios: Mapping[str, float]) -> Cell:
    if key not in values:
        return Cell("–")
    return Cell(cost(key, values[key]), f"×{ratios[key]:.2f}" if key in ratios else "")


def _class(report: StudyReport, arm: str, new: bool = False) -> str:
    return " ".join(["default"] * (arm == report.default) + ["break"] * new)


def _best(report: StudyReport, table: DataTable, key: str) -> str:
    """The best arm of a column; what is computed from the posterior is no arm."""
    kinds = {a.name: a.kind for a in report.arms}
    found = {
        r.arm: r.values[key].mean for r in table.rows if key in r.values and kinds.get(r.arm) in ("arm", "reference")
    }
    lower = key in ("nll", "ece", "regret")
    if len(found) < 2:
        return ""
    return (min if lower else max)(found, key=lambda a: found[a])


def csv_text(report: StudyReport) -> str:
    """Every number as one long table: ``table, data, arm, detail, metric, value, sd, low, high``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = ("table", "data", "arm", "detail", "metric", "value", "sd", "low", "high")
    writer.writerow(keys)
    for record in _long(report):
        writer.writerow([csv_safe(record.get(k, "")) for k in keys])
    return out.getvalue()


def _long(report: StudyReport) -> Iterator[dict[str, object]]:
    for g in report.goals:
        yield {"table": "goal", "detail": g.text, "metric": g.figure, "value": int(g.met)}
    for t in report.tables:
        for s, v in t.oracle.items():
            yield {"table": "oracle", "data": t.data, "detail": s, "metric": report.info(t.data).metric, "value": v}
        yield {"table": "oracle", "data": t.data, "detail": "noise floor", "metric": "regret", "value": t.floor}
        for row in t.rows:
            base = {"data": t.data, "arm": row.arm}
            for k, stat in row.values.items():
                yield {"table": "main", **base, "metric": k, "value": stat.mean, "sd": stat.sd}
            for s, v in row.subsets.items():
                yield {"table": "subset", **base, "detail": s, "metric": report.info(t.data).metric, "value": v}
    effects = [(f"ingredient: {one.label}", e) for one in report.ingredients for e in one.effects]
    techniques = [("situation", d) for s in report.situations for t in s.techniques for d in t.gains]
    for name, d in [*(("difference", d) for d in report.differences), *effects, *techniques]:
        base = {"table": name, "data": d.data or "pooled", "arm": d.arm, "detail": f"minus {d.reference}"}
        yield {**base, "metric": d.quantity, "value": d.mean, "low": d.low, "high": d.high}
        yield {**base, "metric": f"{d.quantity}, p after Holm", "value": d.p_holm}
    for c in report.calibration:
        base = {"table": "calibration", "data": c.data, "arm": c.arm, "detail": c.stage}
        yield from ({**base, "metric": k, "value": s.mean, "sd": s.sd} for k, s in c.values.items())
    for b in report.broken:
        base = {"table": "broken", "data": b.data, "arm": b.arm, "detail": f"{b.corruption} of {b.modality}"}
        yield {**base, "metric": report.info(b.data).metric, "value": b.value}
    for x in report.costs:
        yield from ({"table": "cost", "arm": x.arm, "metric": k, "value": v} for k, v in x.values.items())
        yield from ({"table": "cost", "arm": x.arm, "metric": f"{k}, ratio", "value": v} for k, v in x.ratios.items())
