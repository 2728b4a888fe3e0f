"""What the study of fusion strategies says: tables, curves, and sentences that follow from them."""

from polyfuse.report.study_tables import Table
from polyfuse.report.task_page import Chart
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

FUSIONS = ("early", "late", "hybrid")
WORDS, PICTURE, COUNTED, TOGETHER = "words alone", "picture alone", "words alone, counted", "side by side"
LABELS = {
    WORDS: "trained on words alone",
    PICTURE: "trained on pictures alone",
    COUNTED: "best by the words, counted",
}
PAIRS = (("early", "late"), ("hybrid", "late"), ("hybrid", "early"))
SIZES = (1, 64)
_ASKED = 0.15  # lead over one modality alone that a set needing both should show
AGREEMENT = (
    "same answer",
    "all right",
    "none right",
    *(f"only {fusion} {word}" for word in ("right", "wrong") for fusion in FUSIONS),
)


def tables(records: Records) -> list[Table]:
    """Accuracy, differences, robustness, costs, agreement: per world."""
    out = []
    for world in records.settings:
        out += [accuracy_table(records, world), difference_table(records, world), unplugged_table(records, world)]
        out += [cost_table(records, world), agreement_table(records, world)]
    return [table for table in out if table.rows]


def kinds_of(records: Records, world: str) -> list[str]:
    """Kinds of question of a world."""
    return [m.removeprefix("accuracy ") for a, s, m in records.figures if (a, s) == (COUNTED, world) and " " in m]


def accuracy_table(records: Records, world: str) -> Table:
    """By kind of question."""
    columns = [Column("accuracy", "all", "%", best="high", setting=world)]
    columns += [Column(f"accuracy {kind}", kind, "%", best="high", setting=world) for kind in kinds_of(records, world)]
    title = f"{world}: right answers by kind of question, and what one modality reaches"
    return figure_table(records, title, columns, [*FUSIONS, WORDS, PICTURE, COUNTED], labels=LABELS, keep=6)


def difference_table(records: Records, world: str) -> Table:
    """Paired by row and seed."""
    columns = [Column("accuracy", "all", "points", setting=world)]
    columns += [Column(f"accuracy {kind}", kind, "points", setting=world) for kind in kinds_of(records, world)]
    pairs = [(f"{one} over {other}", one, other) for one, other in PAIRS]
    pairs += [(f"{one} over words alone", one, WORDS) for one in FUSIONS]
    pairs += [(f"{one} over pictures alone", one, PICTURE) for one in FUSIONS]
    return gap_table(records, f"{world}: differences, 95 % intervals over seeds and questions", pairs, columns)


def unplugged_table(records: Records, world: str) -> Table:
    """A trained model without one input."""
    columns = [
        Column("accuracy", "both", "%", best="high", setting=world),
        Column("without picture", "no picture", "%", best="high", setting=world),
        Column("without words", "no words", "%", best="high", setting=world),
    ]
    title = f"{world}: the same models with an input taken away (none was trained for it)"
    return figure_table(records, title, columns, list(FUSIONS))


def cost_table(records: Records, world: str) -> Table:
    """Parameters, operations, seconds, speed."""
    columns = [
        Column("parameters", "params", "", "count", setting=world),
        Column("multiply_adds", "mult-adds", "a question", "count", "low", setting=world),
        Column("seconds", "train", "s", "seconds", "low", setting=world),
        Column("rate", "learning rate", "", "number", setting=world),
    ]
    found = figure_table(records, f"{world}: costs (one thread)", columns, list(FUSIONS))
    speeds = speed_table(records, world)
    if not speeds.rows or not found.rows:
        return found
    cells = {name: cells for name, cells, _ in speeds.rows}
    rows = tuple((name, (*own, *cells.get(name, ())), style) for name, own, style in found.rows)
    return Table(found.title, (*found.columns, *speeds.columns[1:]), rows, keep=6)


def speed_table(records: Records, world: str) -> Table:
    """Questions a second, as measured in turns."""
    stats = {f: [records.stat(TOGETHER, f"{f} questions/s at {size}", world) for size in SIZES] for f in FUSIONS}
    tops = [max((s.mean for found in stats.values() if (s := found[i])), default=0.0) for i in range(len(SIZES))]
    rows = []
    for fusion, found in stats.items():
        marked = zip(found, tops, strict=True)
        cells = tuple(stat_cell(s, "count", best=s is not None and s.mean == top) for s, top in marked)
        if all(found):
            rows.append((fusion, cells, ""))
    heads = (("Arm", ""), *((f"batch {size}", "questions/s") for size in SIZES))
    return Table(f"{world}: speed", heads, tuple(rows), keep=len(SIZES))


def agreement_table(records: Records, world: str) -> Table:
    """Who is right where."""
    rows = []
    for name in AGREEMENT:
        stat = records.stat(TOGETHER, name, world)
        if stat is not None:
            rows.append((name, (stat_cell(stat),), ""))
    title = f"{world}: where the three differ"
    return Table(title, (("Of the test questions", ""), ("share", "%")), tuple(rows), keep=1)


def charts(records: Records) -> list[Chart]:
    """Validation accuracy over the steps."""
    return [
        curve_chart(
            records,
            f"{world}: learning",
            [(arm, arm, "validation accuracy", world) for arm in (*FUSIONS, WORDS, PICTURE)],
            y="right on validation, %",
            percent=True,
            note="Mean over seeds, with a band from the lowest to the highest.",
        )
        for world in records.settings
    ]


def verdict(records: Records) -> list[str]:
    """Strengths and weaknesses, as the tables have them."""
    out = []
    for world in records.settings:
        means = {f: records.mean(f, "accuracy", world) for f in FUSIONS if records.stat(f, "accuracy", world)}
        if not means:
            continue
        first = max(means, key=lambda f: means[f])
        listed = ", ".join(f"{f} {show(value)} %" for f, value in means.items())
        out.append(f"On {world}: {listed}. {against_others(records, world, first)}")
        out += both_needed(records, world, first)
        out += strengths(records, world, list(means))
    return out


def against_others(records: Records, world: str, first: str) -> str:
    """The best against the others: by how much, and whether that is sure."""
    words = []
    for other in FUSIONS:
        gap = records.gap(first, other, "accuracy", world) if other != first else None
        if gap is not None:
            sure = {"better": "", "tied": ", which may be chance"}.get(gap.verdict, ", without an interval")
            words.append(f"{gap_words(gap)} over {other}{sure}")
    return f"{first.capitalize()} is ahead by {' and '.join(words)}." if words else ""


def both_needed(records: Records, world: str, first: str) -> list[str]:
    """Whether the best model uses both modalities: its lead over the best that one alone was seen to give."""
    alone = {arm: records.mean(arm, "accuracy", world) for arm in (WORDS, PICTURE, COUNTED)}
    alone = {arm: value for arm, value in alone.items() if value == value}
    if not alone:
        return []
    better = max(alone, key=lambda arm: alone[arm])
    counted = better == COUNTED  # from the training rows, without a model: it has no seeds
    gap = records.over(first, alone[better], "accuracy", world) if counted else None
    gap = gap or records.gap(first, better, "accuracy", world)
    if gap is None:
        return []
    uses = "uses both modalities" if gap.verdict == "better" else "is not sure to use more than one modality"
    short = "" if gap.mean >= _ASKED else f", less than {show(_ASKED)} points"
    others = "; ".join(f"{LABELS[arm]} {show(value)} %" for arm, value in alone.items() if arm != better)
    best = f"{LABELS[better]}, {show(alone[better])} %{f'; {others}' if others else ''}"
    return [f"On {world} {first} {uses}: {gap_words(gap)} over the best single one ({best}){short}."]


def strengths(records: Records, world: str, arms: list[str]) -> list[str]:
    """Who wins at which price: each line is read off a table."""
    out = []
    sure, tied = [], []
    for kind in kinds_of(records, world):
        means = {f: records.mean(f, f"accuracy {kind}", world) for f in arms}
        best, *others = sorted(means, key=lambda f: -means[f])
        gaps = {f: records.gap(best, f, f"accuracy {kind}", world) for f in others}
        beaten = [f"{f} by {show(gap.mean)}" for f, gap in gaps.items() if gap and gap.verdict == "better"]
        if beaten:
            sure.append(f"{best} at {kind} (over {' and '.join(beaten)})")
        else:
            tied.append(kind)
    if sure:
        out.append(f"On {world}, surely better by kind of question, in points: {'; '.join(sure)}.")
    if tied and len(arms) > 1:
        out.append(f"On {world}, the best is not sure to differ from the others at {', '.join(tied)}.")
    for size in SIZES:
        speed = {f: records.mean(TOGETHER, f"{f} questions/s at {size}", world) for f in arms}
        if all(value == value for value in speed.values()) and len(speed) > 1:
            quick, slow = max(speed, key=lambda f: speed[f]), min(speed, key=lambda f: speed[f])
            out.append(
                f"On {world} at batch {size}, {quick} answers {show(speed[quick], 'count')} questions a second, "
                f"{speed[quick] / speed[slow]:.2f} times as many as {slow}."
            )
    for name in ("without picture", "without words"):
        drop = {f: records.mean(f, "accuracy", world) - records.mean(f, name, world) for f in arms}
        ceiling = WORDS if name == "without picture" else PICTURE
        if all(value == value for value in drop.values()):
            least, most = min(drop, key=lambda f: drop[f]), max(drop, key=lambda f: drop[f])
            kept = {f: show(records.mean(f, name, world)) for f in (least, most)}
            out.append(
                f"On {world} {name}, {least} loses least ({show(drop[least])} points, {kept[least]} % are left) and "
                f"{most} most ({show(drop[most])}, {kept[most]} %); a model trained for it has "
                f"{show(records.mean(ceiling, 'accuracy', world))} %."
            )
    return out
