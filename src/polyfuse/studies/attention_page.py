"""What the study of attention says: tables, figures, and sentences that follow from them."""

from polyfuse.report.study_tables import Cell, Table
from polyfuse.report.task_page import Chart, ChartLine
from polyfuse.studies.task_records import (
    Column,
    Records,
    curve_chart,
    figure_table,
    gap_table,
    gap_words,
    show,
    stat_cell,
)

SPEED = "speed"
SIZES = (1, 64)
#: Maps, the one that is judged first; "readout" is what a model without cross-modal attention is judged by.
MAPS = ("words", "last", "readout")
NO_MAP = "no cross-modal map"
SHAPES = (("early", 4), ("co", 4))
REFERENCES = ("late", "early")


def arms_of(records: Records, world: str) -> list[str]:
    """Arms that were trained in a world."""
    return [arm for arm in records.arms if records.stat(arm, "accuracy", world)]


def plain_arms(records: Records, world: str) -> list[str]:
    """Without those of other heads and depths."""
    return [arm for arm in arms_of(records, world) if "," not in arm]


def main_map(records: Records, arm: str, world: str) -> str:
    """The map that an arm is judged by."""
    return MAPS[0] if records.stat(arm, f"{MAPS[0]} top probability", world) else "readout"


def label(records: Records, arm: str, world: str) -> str:
    """With a mark where there is no attention between modalities."""
    return arm if main_map(records, arm, world) == MAPS[0] else f"{arm} ({NO_MAP})"


def tables(records: Records) -> list[Table]:
    """Accuracy and cost, differences, heads and depth, faithfulness: per world."""
    out = []
    for world in records.settings:
        out += [accuracy_table(records, world), cost_table(records, world), difference_table(records, world)]
        out += [shape_table(records, world), faithful_table(records, world), map_table(records, world)]
        out.append(kind_table(records, world))
    return [table for table in out if table.rows]


def kinds_of(records: Records, world: str) -> list[str]:
    """Kinds of question of a world."""
    found = (m.removeprefix("accuracy ") for _, s, m in records.figures if s == world and m.startswith("accuracy "))
    return list(dict.fromkeys(found))


def accuracy_table(records: Records, world: str) -> Table:
    """By kind of question."""
    columns = [Column("accuracy", "all", "%", best="high", setting=world)]
    columns += [Column(f"accuracy {kind}", kind, "%", best="high", setting=world) for kind in kinds_of(records, world)]
    names = {arm: label(records, arm, world) for arm in arms_of(records, world)}
    return figure_table(records, f"{world}: right answers", columns, list(names), labels=names, keep=6)


def cost_table(records: Records, world: str) -> Table:
    """Accuracy beside what it costs; times are of all arms in turns, on one thread."""
    columns = [
        Column("accuracy", "right", "%", best="high", setting=world),
        Column("multiply_adds", "mult-adds", "a row", "count", "low", setting=world),
        Column("parameters", "params", "", "count", "low", setting=world),
        Column("seconds", "train", "s", "seconds", setting=world),
    ]
    found = figure_table(records, f"{world}: accuracy against cost", columns, arms_of(records, world))
    heads = tuple((f"batch {size}", "ms a row") for size in SIZES)
    rows = []
    for name, cells, style in found.rows:
        times = (records.stat(SPEED, f"{name} ms at {size}", world) for size in SIZES)
        rows.append((name, (*cells, *(stat_cell(stat, "number") for stat in times)), style))
    return Table(found.title, (*found.columns, *heads), tuple(rows), keep=6)


def difference_table(records: Records, world: str) -> Table:
    """Against no attention between modalities, and against joint attention."""
    arms = plain_arms(records, world)
    pairs = [(f"{arm} over {other}", arm, other) for other in REFERENCES for arm in arms if arm != other]
    columns = [Column("accuracy", "all", "points", setting=world)]
    columns += [Column(f"accuracy {kind}", kind, "points", setting=world) for kind in kinds_of(records, world)]
    return gap_table(records, f"{world}: differences, 95 % intervals over seeds and questions", pairs, columns)


def shape_pairs() -> list[tuple[str, str, str]]:
    """What more heads and more layers are compared with."""
    pairs = []
    for arm, count in SHAPES:
        pairs.append((f"{arm}: {count} heads over 1", arm, f"{arm}, 1 head"))
        pairs.append((f"{arm}: {count} layers over 2", arm, f"{arm}, 2 layers"))
    return pairs


def shape_table(records: Records, world: str) -> Table:
    """Heads and depth."""
    columns = [Column("accuracy", "all", "points", setting=world)]
    columns += [Column(f"accuracy {kind}", kind, "points", setting=world) for kind in kinds_of(records, world)]
    return gap_table(records, f"{world}: heads and depth, differences in right answers", shape_pairs(), columns)


def sure_seeds(records: Records, arm: str, world: str, sign: int = 1) -> tuple[int, int]:
    """In how many seeds the interval over pictures lies above zero (``sign=-1``: below), and of how many."""
    name = f"{main_map(records, arm, world)} gain probability"
    ends = records.values(arm, f"{name} {'low' if sign > 0 else 'high'}", world)
    return sum(sign * value > 0 for value in ends.values()), len(ends)


def faithful_table(records: Records, world: str) -> Table:
    """What removing the marked tokens costs, against random ones."""
    rows = []
    for arm in arms_of(records, world):
        name = main_map(records, arm, world)
        if records.stat(arm, f"{name} top probability", world) is None:
            continue
        above, seeds = sure_seeds(records, arm, world)
        below, _ = sure_seeds(records, arm, world, -1)
        mark = "better" if above == seeds else "worse" if below == seeds else ""
        parts = [f"{name} {which} probability" for which in ("top", "random", "least")] + ["best top probability"]
        cells = [stat_cell(records.stat(arm, f"{name} gain probability", world))]
        cells = [Cell(cells[0].text, cells[0].small, mark), Cell(f"{above} of {seeds}")]
        cells += [stat_cell(records.stat(arm, part, world)) for part in parts]
        cells += [stat_cell(records.stat(arm, f"{name} {which} accuracy", world)) for which in ("top", "random")]
        rows.append((label(records, arm, world), tuple(cells), ""))
    heads = (
        ("Arm", ""),
        ("gain", "points"),
        ("sure", "seeds"),
        ("top k", "points"),
        ("random k", "points"),
        ("least k", "points"),
        ("by trial", "points"),
        ("top k", "right"),
        ("random k", "right"),
    )
    title = (
        f"{world}: what the true answer's probability (last two: right answers) loses when visual tokens are removed"
    )
    return Table(title, heads, tuple(rows), keep=5)


def map_table(records: Records, world: str) -> Table:
    """The gain of other ways to read a map."""
    ways = {**{name: name for name in MAPS}, "best": "by trial"}
    columns = [Column(f"{name} gain probability", head, "points", setting=world) for name, head in ways.items()]
    names = {arm: label(records, arm, world) for arm in arms_of(records, world)}
    return figure_table(
        records, f"{world}: gain over random by way of reading the map", columns, list(names), labels=names
    )


def kind_table(records: Records, world: str) -> Table:
    """The gain by kind of question."""
    columns = [Column(f"gain {kind}", kind, "points", setting=world) for kind in kinds_of(records, world)]
    names = {arm: label(records, arm, world) for arm in arms_of(records, world)}
    title = f"{world}: gain over random by kind of question"
    return figure_table(records, title, columns, list(names), labels=names, keep=5)


def charts(records: Records) -> list[Chart]:
    """Accuracy over cost, and over the steps."""
    out = []
    for world in records.settings:
        lines = []
        for arm in plain_arms(records, world):
            stat, values = records.stat(arm, "accuracy", world), records.values(arm, "accuracy", world).values()
            if stat is not None:
                point = (records.mean(arm, "multiply_adds", world), stat.mean, min(values), max(values))
                lines.append(ChartLine(arm, (point,)))
        out.append(
            Chart(
                f"{world}: accuracy over cost",
                tuple(lines),
                "multiply-adds a row",
                "right, %",
                percent=True,
                note="Mean over seeds.",
            )
        )
        drawn = [(arm, arm, "validation accuracy", world) for arm in plain_arms(records, world)]
        out.append(
            curve_chart(
                records,
                f"{world}: learning",
                drawn,
                y="right on validation, %",
                percent=True,
                note="Mean over seeds, with a band from the lowest to the highest.",
            )
        )
    return out


def verdict(records: Records) -> list[str]:
    """Who is better, at which price; what heads and depth do; what maps are worth."""
    out = []
    for world in records.settings:
        arms = plain_arms(records, world)
        if len(arms) < 2:
            continue
        order = sorted(arms, key=lambda arm: -records.mean(arm, "accuracy", world))
        listed = ", ".join(f"{arm} {show(records.mean(arm, 'accuracy', world))} %" for arm in order)
        out.append(f"On {world}: {listed}.")
        for other in REFERENCES:
            out += over(records, world, other, [arm for arm in arms if arm != other])
        out += price(records, world, order)
        out += shapes(records, world)
        out += faithful(records, world)
    return out


def over(records: Records, world: str, other: str, arms: list[str]) -> list[str]:
    """All arms against one."""
    found = {arm: gap for arm in arms if (gap := records.gap(arm, other, "accuracy", world))}
    if not found:
        return []
    parts = []
    for word, verdicts in (("better", "better"), ("worse", "worse"), ("not sure to differ", "tied")):
        named = [f"{arm} ({gap_words(gap)})" for arm, gap in found.items() if gap.verdict == verdicts]
        if named:
            parts.append(f"{word}: {', '.join(named)}")
    name = f"{other} ({NO_MAP})" if other == "late" else other
    return [f"On {world} against {name}, {'; '.join(parts)}."] if parts else []


def price(records: Records, world: str, order: list[str]) -> list[str]:
    """What the best costs beside the cheapest that is not surely worse."""
    best = order[0]
    equal = [
        arm
        for arm in order
        if arm == best or ((gap := records.gap(best, arm, "accuracy", world)) and gap.verdict != "better")
    ]
    cheap = min(equal, key=lambda arm: records.mean(arm, "multiply_adds", world))
    work = show(records.mean(cheap, "multiply_adds", world), "count")
    if cheap == best:
        return [f"On {world} no cheaper strategy is level with {best} ({work} multiply-adds a row)."]
    ratio = records.mean(best, "multiply_adds", world) / records.mean(cheap, "multiply_adds", world)
    more = f"{best} needs {ratio:.2f} times as many"
    return [f"On {world} {cheap} is not surely worse than {best} and needs {work} multiply-adds a row; {more}."]


def shapes(records: Records, world: str) -> list[str]:
    """Heads and depth in words."""
    parts = []
    for name, arm, other in shape_pairs():
        gap = records.gap(arm, other, "accuracy", world)
        if gap is not None:
            parts.append(f"{name} {gap_words(gap)}{', not sure to differ' if gap.verdict == 'tied' else ''}")
    return [f"On {world}, {'; '.join(parts)}."] if parts else []


def faithful(records: Records, world: str) -> list[str]:
    """Which maps mark what the model needs."""
    groups: dict[str, list[str]] = {"more": [], "less": [], "unsure": []}
    for arm in arms_of(records, world):
        name = main_map(records, arm, world)
        gain = records.mean(arm, f"{name} gain probability", world)
        if gain != gain:
            continue
        (above, seeds), (below, _) = sure_seeds(records, arm, world), sure_seeds(records, arm, world, -1)
        most = records.mean(arm, "best gain probability", world)
        text = f"{label(records, arm, world)} ({show(gain)}, by trial {show(most)} points)"
        groups["more" if above == seeds else "less" if below == seeds else "unsure"].append(text)
    words = {
        "more": "removing what the map marks costs surely more than random ones (gain, and by trial)",
        "less": "it costs surely less, so the map misleads",
        "unsure": "seeds disagree or the interval holds zero",
    }
    parts = [f"{words[key]}: {', '.join(names)}" for key, names in groups.items() if names]
    return [f"On {world}, {'; '.join(parts)}."] if parts else []
