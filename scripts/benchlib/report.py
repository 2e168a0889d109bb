"""Shows results: the table, a chart of bars, JSON, and the chart as SVG. Ratios above 1: Hartbeat is the faster."""

import html
import math
import statistics
from typing import Any

from benchlib.results import NATIVE, OURS, QEMU, Results, geomean
from benchlib.rows import Row

LEFT, RIGHT = 16, 40  # characters of the chart on both sides of 1.0
BAR, STEP, WIDTH, LABELS = 16, 22, 720, 110  # SVG, in pixels
FASTER, SLOWER = "#2a7f62", "#b5493b"


def number(value: float | None, width: int, digits: int = 3) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def table(results: Results, rows: list[Row]) -> list[str]:
    head = f"{'row':10} {'':28}{'hartbeat s':>11}{'qemu s':>9}{'native s':>10}{'qemu/ours':>11}{'qemu/native':>12}"
    return [head, *(table_line(results, row) for row in rows), *mean_lines(results, rows)]


def table_line(results: Results, row: Row) -> str:
    seconds = number(results.median(row.name, OURS), 11) + number(results.median(row.name, QEMU), 9)
    native = number(results.median(row.name, NATIVE), 10, 4)
    ratios = number(results.ratio(row.name), 11, 2) + number(results.ratio(row.name, QEMU, NATIVE), 12, 1)
    return f"{row.name:10} {row.what:28}{seconds}{native}{ratios}"


def mean_lines(results: Results, rows: list[Row]) -> list[str]:
    mean = geomean(results.ratio(row.name) for row in rows)
    limit = geomean(results.ratio(row.name, QEMU, NATIVE) for row in rows)
    return [f"{'geomean':10} {'':28}{'':30}{number(mean, 11, 2)}{number(limit, 12, 1)}"]


def cost_lines(results: Results) -> list[str]:
    whats = dict.fromkeys(what for what, _ in results.costs)
    lines = [f"{'cost':39}{OURS:>11}{QEMU:>9}"] if whats else []
    for what in whats:
        values = [results.costs.get((what, machine)) for machine in (OURS, QEMU)]
        ours, qemu = (statistics.median(v) if v else None for v in values)
        lines.append(f"{what:39}{number(ours, 11, 2)}{number(qemu, 9, 2)}")
    return lines


def ratios(results: Results, rows: list[Row]) -> dict[str, float]:
    """The rows that have a ratio, and their mean."""
    found = {row.name: results.ratio(row.name) for row in rows}
    found["geomean"] = geomean(found.values())
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def scale(values: dict[str, float]) -> float:
    """Units of a logarithmic axis for a factor of 2 such that all of `values` fit, at most 8."""
    below = max([-math.log2(v) for v in values.values()] + [0.01])
    above = max([math.log2(v) for v in values.values()] + [0.01])
    return min(LEFT / below, RIGHT / above, 8)


def chart(values: dict[str, float]) -> list[str]:
    """A bar a row on a logarithmic axis, from 1.0 to the right where we are faster, to the left where slower."""
    unit = scale(values)
    lines = [f"{'':10}{'QEMU is faster':>{LEFT}}|Hartbeat is faster (QEMU seconds / Hartbeat seconds)"]
    for name, value in values.items():
        length = round(abs(math.log2(value)) * unit)
        left, right = ("", "=" * length) if value >= 1 else ("=" * length, "")
        lines.append(f"{name:10}{left:>{LEFT}}|{right} {value:.2f}")
    return lines


def svg(values: dict[str, float], title: str) -> str:
    """The same chart as a picture."""
    unit = scale(values) * (WIDTH - LABELS - 60) / (LEFT + RIGHT)
    zero = LABELS + LEFT * (WIDTH - LABELS - 60) / (LEFT + RIGHT)
    height = STEP * (len(values) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="{BAR}">{html.escape(title)}</text>',
    ]
    for index, (name, value) in enumerate(values.items(), 1):
        parts.append(svg_bar(name, value, index * STEP + 4, zero, unit))
    parts.append(f'<path d="M{zero:.1f} {STEP}V{height - 8}" stroke="black"/>')
    return "\n".join([*parts, "</svg>\n"])


def svg_bar(name: str, value: float, y: int, zero: float, unit: float) -> str:
    length = abs(math.log2(value)) * unit
    left = zero if value >= 1 else zero - length
    colour = FASTER if value >= 1 else SLOWER
    return (
        f'<text x="8" y="{y + 13}">{html.escape(name)}</text>'
        f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>'
        f'<text x="{max(left + length, zero) + 4:.1f}" y="{y + 13}">{value:.2f}</text>'
    )


def as_json(results: Results, rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, with what derives from it."""
    machines = (OURS, QEMU, NATIVE)
    return {
        "settings": settings,
        "rows": {
            row.name: {
                "seconds": {m: results.seconds[row.name, m] for m in machines if (row.name, m) in results.seconds},
                "qemu/hartbeat": results.ratio(row.name),
                "qemu/native": results.ratio(row.name, QEMU, NATIVE),
            }
            for row in rows
        },
        "costs": {
            what: {m: results.costs[what, m] for m in machines if (what, m) in results.costs}
            for what in dict.fromkeys(what for what, _ in results.costs)
        },
        "geomean": geomean(results.ratio(row.name) for row in rows),
        "errors": results.errors,
    }
