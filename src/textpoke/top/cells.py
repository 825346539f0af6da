# SPDX-License-Identifier: Apache-2.0
"""Numbers in few characters, a sparkline, and the columns that fit a width; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from textpoke.top.model import Function, Table
    from textpoke.top.view import View

_BARS = " ▁▂▃▄▅▆▇█"
_GAP = 1
_NUMBER, _SHARE = 6, 6
_NARROW, _WIDE = 6, 60  # of the sparkline
_LEAST_MODULE, _LEAST_FUNCTION = 8, 18
_COMFORT = 48  # for names, before the sparkline gets more
UNKNOWN = "-"
_TITLES = {
    "calls": "CALLS",
    "total": "TOTAL",
    "self": "SELF",
    "avg": "AVG",
    "p50": "P50",
    "p99": "P99",
    "function": "FUNCTION",
    "module": "MODULE",
}


@dataclass(frozen=True, slots=True)
class Widths:
    """Characters of the columns whose width depends on the screen."""

    spark: int
    function: int
    module: int

    @property
    def past(self) -> slice:
        """Where the sparkline stands in a line."""
        begin = _NUMBER + _GAP
        return slice(begin, begin + self.spark)


def widths(columns: int) -> Widths:
    """Share out a screen of so many columns."""
    fixed = 4 * _NUMBER + 2 * _SHARE + 8 * _GAP
    free = columns - fixed
    spark = min(max(free - _COMFORT, _NARROW), _WIDE)
    names = max(free - spark, _LEAST_FUNCTION)
    module = min(max(names // 4, _LEAST_MODULE), 24) if names >= 26 else 0
    return Widths(spark, names - module - (0 if module else -_GAP), module)


def header(width: Widths, view: View, history_s: float) -> str:
    """The line of titles, the one that is sorted by marked."""
    sort, arrow = view.sort, "^" if view.backwards else "v"
    past = f"LAST {history_s:.0f} S"
    past = past if len(past) <= width.spark else f"{history_s:.0f} S"
    marked = {**_TITLES, sort: f"{_TITLES[sort]}{arrow}"}
    numbers = [f"{marked['calls']:>{_NUMBER}}", f"{past:>{width.spark}}"]
    numbers += [f"{marked[name]:>{_SHARE}}" for name in ("total", "self", "avg", "p50", "p99")]
    return " ".join([*numbers, *_names(marked["function"], marked["module"], width)])


def line(table: Table, row: int, function: Function, width: Widths, *, on: bool = True) -> str:
    """One function's line."""
    spark = sparkline(table.history[row], width.spark) if on else "off".ljust(width.spark)
    cells = [
        f"{number(table.rate[row]):>{_NUMBER}}",
        spark,
        *(f"{spent(table, column, row):>{_SHARE}}" for column in (table.total, table.self)),
        *(f"{time(column[row]):>{_NUMBER}}" for column in (table.average, table.p50, table.p99)),
        *_names(function.name, function.module, width),
    ]
    return " ".join(cells)


def _names(function: str, module: str, width: Widths) -> list[str]:
    cells = [cut(function, width.function)]
    if width.module:
        cells = [cells[0].ljust(width.function), _short(module, width.module)]
    return cells


def _short(module: str, width: int) -> str:
    """A module without its version, as filters take it, where there is no room for it."""
    if len(module) > width:
        module = module.partition(".so")[0] or module
    return module if len(module) <= width else f"{module[: width - 1]}…"


def cut(text: str, width: int) -> str:
    """The text, its middle left out where it is too long: names differ at both ends."""
    if len(text) <= width:
        return text
    if width < 8:
        return text[: width - 1] + "…"
    tail = (width - 1) // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def sparkline(history: NDArray[np.float32], width: int) -> str:
    """The history in so many characters, the highest of it a full block; blank for nothing."""
    points = len(history)
    if width < points:
        edges = np.linspace(0, points, width + 1).astype(int)[:-1]
        history = np.maximum.reduceat(history, edges)
    most = float(history.max(initial=0.0))
    if most <= 0:
        return " " * width
    heights = np.ceil(history / most * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[h] for h in heights).rjust(width)


def number(value: float) -> str:
    """A count, or a count a second, in six characters."""
    if not value:
        return "0"
    if value < 10:
        return f"{value:.2g}"
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000
    return f"{value:.0f}{unit}" if value >= 99.95 or not unit else f"{value:.1f}{unit}"


def spent(table: Table, column: NDArray[np.float64], row: int) -> str:
    """A function's share of a core; "-" where it was called, but no call's time is known."""
    untimed = table.rate[row] > 0 and math.isnan(table.average[row])
    return UNKNOWN if untimed else share(column[row])


def share(value: float) -> str:
    """A share of a core in six characters."""
    percent = value * 100
    if not percent:
        return "0"
    if percent < 0.005:
        return "<0.01%"
    digits = 2 if percent < 9.995 else 1 if percent < 999.95 else 0
    return f"{percent:.{digits}f}%"


def time(ns: float) -> str:
    """A time in six characters; "-" where it is not known."""
    if math.isnan(ns):
        return UNKNOWN
    for unit in ("ns", "us", "ms", "s"):
        if ns < 999.5 or unit == "s":
            break
        ns /= 1000
    digits = 0 if unit == "ns" or ns >= 99.95 else 1 if ns >= 9.995 else 2
    return f"{ns:.{digits}f}{unit}"
