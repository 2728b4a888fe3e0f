"""Figures: escaped real text, unique identifiers, nothing where there are no numbers."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from polyfuse.report import figures, svg
from polyfuse.report.content import ReportData
from polyfuse.report.curves import drop_curve, forest, lines
from polyfuse.report.heat import Labels, heat_map
from polyfuse.report.records import Bin, CurvePoint, Reliability
from polyfuse.report.summary import summarise

Build = Callable[..., ReportData]


def texts(drawing: str) -> list[str]:
    root = ET.fromstring(drawing)  # noqa: S314 our own drawing
    return ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]


def test_text_stays_text() -> None:
    label = "$x^2$ <b>&amp;</b> id=\"q\" 3.14159 #010203 'é犬'"
    with svg.drawing():
        canvas = svg.Canvas(100, 50)
        canvas.text(5, 5, label)
        canvas.boxes([(1.23456, 2, 3, 4)], ["#ff0000"])
        drawing = canvas.svg("k", "t")
    assert texts(drawing) == [label]
    assert "<b>" not in drawing
    assert "1.23456" not in drawing.replace(label, "")
    assert svg.INK not in drawing.replace(label[-20:], "").split("<text")[0]
    assert "var(--ink)" in drawing
    assert "DejaVu" not in drawing


def test_drawing_leaves_no_state() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with svg.drawing():
        svg.Canvas(10, 10).svg("k", "t")
    assert dict(matplotlib.rcParams) == before


def test_reports_import_no_pyplot_and_matplotlib_only_when_drawing() -> None:
    code = (
        "import sys; import polyfuse.report.render as r; assert 'matplotlib' not in sys.modules; "
        "assert 'torch' not in sys.modules; from polyfuse.report import svg\n"
        "with svg.drawing(): svg.Canvas(9, 9).svg('k', 't')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)  # noqa: S603 our own code


def test_colours_read_on_the_ramp() -> None:
    def luminance(rgb: tuple[float, ...]) -> float:
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    shades = [luminance(svg.ramp(i / 50)) for i in range(51)]
    assert shades == sorted(shades, reverse=True)
    for i in range(51):
        text = svg.on_ramp(i / 50)
        ink = luminance(tuple(int(text[j : j + 2], 16) / 255 for j in (1, 3, 5)))
        low, high = sorted((ink, shades[i]))
        assert (high + 0.05) / (low + 0.05) > 4.5, i  # WCAG AA for small text


def test_missing_numbers_draw_nothing(make_data: Build) -> None:
    s = summarise(make_data(arms=1, seeds=1, parts=False))
    with svg.drawing():
        assert drop_curve(s) == figures.subset_heat(s) == figures.corruption_heat(s) == figures.headroom(s) == ""
        assert forest(s) == figures.weight_bars(s) == figures.reliability(s, "model") == []
        assert figures.subset_bars(s).startswith("<svg")


def test_heat_map_says_every_value_and_turns_when_wide(make_data: Build) -> None:
    s = summarise(make_data(arms=3, seeds=2, parts=False))
    with svg.drawing():
        found = texts(figures.subset_heat(s))
    for row in s.ranked:
        for subset in s.subsets:
            assert f"{100 * s.at(row.arm.name, subset):.1f}" in found
    values = [[float(i) for i in range(20)], [float("nan")] * 20]
    cells = [[f"v{i}" for i in range(20)], ["nan"] * 20]
    with svg.drawing():
        columns = Labels(texts=tuple(f"c{i}" for i in range(20)))
        canvas = heat_map(values, Labels(texts=("r0", "r1")), columns, cells, (0, 19))
        assert canvas.height > canvas.width
        assert {"c19", "r0", "v19", "–"} <= set(texts(canvas.svg("k", "t")))
        assert "nan" not in texts(canvas.svg("k", "t"))


def test_pick_keeps_the_telling_subsets() -> None:
    inputs = tuple("abcdefgh")
    every = [tuple(m for i, m in enumerate(inputs) if code >> i & 1) for code in range(1, 256)]
    every.sort(key=lambda c: -len(c))
    shown = figures.pick(every, inputs)
    assert len(shown) == figures.MAX_SUBSETS
    assert {c for c in every if len(c) in (1, 7, 8)} <= set(shown)
    assert figures.pick(every[:9], inputs) == tuple(every[:9])


def test_main_arms_look_the_same_everywhere(make_data: Build) -> None:
    s = summarise(make_data(seeds=2))
    chosen = lines(s)
    assert list(chosen)[:3] == ["reference", "default", "aecf"]
    assert len(chosen) == 6
    assert len({(look.colour, look.shape) for look in chosen.values()}) == 6


def test_curve_names_what_is_off_the_scale(make_data: Build) -> None:
    data = make_data(arms=12, seeds=2)
    data.curves = [CurvePoint(p.arm, p.seed, p.rate, 0.01) if p.arm == "presence_only" else p for p in data.curves]
    with svg.drawing():
        found = texts(drop_curve(summarise(data)))
    assert "off the scale: presence only" in found


def test_forest_says_wins_ties_and_losses(make_data: Build) -> None:
    data = make_data(arms=5, seeds=2)
    s = summarise(data)
    with svg.drawing():
        panels = forest(s)
    assert [head for head, _ in panels] == ["mean over subsets", "complete inputs", "worst subset"]
    for p in data.paired:
        if p.over == "mean":
            assert any(f"{100 * abs(p.mean):.1f}" in text for text in texts(panels[0][1]))


def test_reliability_pools_seeds(make_data: Build) -> None:
    data = make_data(arms=1, seeds=1)
    data.reliability = [
        Reliability("model", ("name",), "raw", (Bin(0.71, 1.0, 3), Bin(0.2, 0.2, 0))),
        Reliability("model", ("name",), "raw", (Bin(0.73, 0.0, 1),)),
    ]
    with svg.drawing():
        (panel,) = figures.reliability(summarise(data), "model")
    assert "mean gap 0.035" in texts(panel)  # |0.75 - 0.715|
    assert "name alone" in texts(panel)


@pytest.mark.parametrize("arms", [1, 3])
def test_broken_inputs_are_all_drawn(make_data: Build, arms: int) -> None:
    data = make_data(arms=arms, seeds=1)
    with svg.drawing():
        found = texts(figures.corruption_heat(summarise(data)))
    assert {"intact", "permuted", *data.modalities} <= set(found)
    name = data.primary.name
    for r in data.corruption:
        assert f"{100 * r.metrics[name]:.1f}" in found
        assert f"{100 * r.metrics[name + '_intact']:.1f}" in found


@pytest.mark.parametrize("text", ["", "x", "犬" * 50, "W" * 300])
def test_shorten_fits(text: str) -> None:
    short = svg.shorten(text, 60)
    assert svg.text_width(short) <= 61 or short == "…"
    assert text.startswith(short.rstrip("…"))


def test_identifiers_carry_the_figure(make_data: Build) -> None:
    with svg.drawing():
        drawing = drop_curve(summarise(make_data(arms=3, seeds=2)))
    names = re.findall(r' id="([^"]+)"', drawing)
    assert names
    assert all(n.startswith("curve-") for n in names)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing)) == set(names)
