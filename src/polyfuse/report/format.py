"""Numbers as a reader sees them: shares times 100, three digits for the rest, a real minus sign."""

import math

from polyfuse.report.records import Metric


def format_value(metric: Metric, value: float, *, unit: bool = False, like: float | None = None) -> str:
    """Print a value of the primary metric, with as many decimals as ``like`` has (its own when None).

    Example:
        >>> format_value(Metric("accuracy", "accuracy"), 0.7123, unit=True)
        '71.2 %'
        >>> format_value(Metric("mae", "error", False, percent=False, unit="EUR"), 1234.5, unit=True)
        '1,234 EUR'
    """
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:.1f}" if metric.percent else number(value, like)
    tail = "%" if metric.percent else metric.unit
    return f"{text} {tail}".rstrip().replace("-", "−") if unit else text.replace("-", "−")


def format_difference(metric: Metric, value: float, *, signed: bool = True, unit: bool = True) -> str:
    """Print a difference of two values of the primary metric.

    Example:
        >>> format_difference(Metric("accuracy", "accuracy"), -0.0123)
        '−1.2 points'
    """
    if not math.isfinite(value):
        return "–"
    size = f"{100 * abs(value):.1f}" if metric.percent else number(abs(value))
    lead = "" if not signed or float(size.replace(",", "")) == 0 else "−" if value < 0 else "+"
    tail = "points" if metric.percent else metric.unit
    return f"{lead}{size} {tail}".rstrip() if unit else f"{lead}{size}"


def number(value: float, like: float | None = None) -> str:
    """Print a number that is no share with about three digits, or with the decimals of ``like``.

    Example:
        >>> [number(v) for v in (0.01234, 1.2345, 56.789, 1234.5, 0.0)]
        ['0.012', '1.23', '56.8', '1,234', '0.000']
    """
    size = abs(value if like is None else like)
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{digits}f}"
