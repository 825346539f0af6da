# SPDX-License-Identifier: Apache-2.0
"""What a trace of the own process has found: counts, tables for data frames, and HTML."""

from __future__ import annotations

import contextlib
import html
import linecache
import os
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from textpoke._errors import UnknownFunction
from textpoke.calls import all_calls
from textpoke.capture import Capture
from textpoke.decode import Clock
from textpoke.optional import needed
from textpoke.patterns import Pattern
from textpoke.python_lines import NOWHERE, Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from textpoke.model import Site
    from textpoke.python_lines import LineNotes, Noted

_SHOWN = 20
_FOR_EVER = (1 << 63) - 1
_UNKNOWN = ("", "[unknown]")


class LineRow(NamedTuple):
    """Calls of one native function that one line of Python led to.

    Attributes:
        where: The line; `NOWHERE` where it is not known.
        module: Shared object of the function.
        function: Its name.
        calls: How many, direct or through other native functions.
        total_ns: Of them, without those that the function itself called.
        self_ns: Of all, without the traced functions inside of them.
    """

    where: Line
    module: str
    function: str
    calls: int
    total_ns: int
    self_ns: int


@dataclass(slots=True)
class _Result:
    """The calls of the block: columns, a row a call; see `OwnCalls.columns`."""

    functions: list[tuple[str, str]]  # by site: module and function; the last is of site -1
    threads: dict[int, str]
    lines: list[Line]  # the last is of line -1
    lost: int
    tid: NDArray[np.uint32]
    site: NDArray[np.int64]
    caller: NDArray[np.int64]  # site of the caller; -2: none that is traced
    line: NDArray[np.int64]  # index into `lines`
    start_ns: NDArray[np.int64]
    duration_ns: NDArray[np.int64]
    self_ns: NDArray[np.int64]
    depth: NDArray[np.uint32]


class OwnCalls:
    """Results of `textpoke.trace`.

    Attributes:
        refused: (site, reason) of functions that could not be traced.
    """

    def __init__(self) -> None:
        self.refused: list[tuple[Site, str]] = []
        self._file = ""
        self._since, self._until = 0, _FOR_EVER  # of the block, in TSC ticks
        self._result: _Result | None = None
        self._remark = ""  # on lines of Python

    def _look(self) -> None:
        """Read what there is while it is recorded; nothing to do afterwards."""

    def _take(self, lost: int, notes: LineNotes | None) -> None:
        with Capture(self._file) as capture:
            noted = notes.noted() if notes else {}
            self._remark = notes.remark if notes else ""
            self._result = _read(capture, lost, noted, (self._since, self._until))

    def _forget_file(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file)

    def _found(self) -> _Result:
        self._look()
        if self._result is None:
            raise RuntimeError("nothing was traced yet: enter the block first")
        return self._result

    @property
    def lost(self) -> int:
        """Events that did not fit into the rings: every number here is too small by them."""
        return self._found().lost

    def __len__(self) -> int:
        return len(self._found().site)

    def calls(self, pattern: str = "*") -> int:
        """How many calls there were of the functions that 'GLOB' or 'MODULE!GLOB' chooses.

        Raises:
            UnknownFunction: It chooses none of those that were traced; 0 calls would be no answer.
        """
        found = self._found()
        wanted = Pattern(pattern)
        sites = [i for i, (m, f) in enumerate(found.functions) if wanted.chooses(m, f, f)]
        if not sites and pattern != "*":
            names = [f"{m}!{f}" for m, f in found.functions]
            raise UnknownFunction(pattern, get_close_matches(pattern, names), "was traced")
        return int(np.isin(found.site % len(found.functions), sites).sum())

    def columns(self) -> dict[str, NDArray[Any]]:
        """A row a call, in order of start within a thread.

        Returns:
            tid (uint32), thread, module, function (str), start_ns (int64, since the trace began),
            duration_ns (int64, -1 where the end is not known), self_ns (int64), depth (uint32),
            caller (str, "" for none that is traced); file, python (str) and line (int64): the line
            of Python that led to it, "" and 0 without `lines`.
        """
        found = self._found()
        names = [name for _, name in found.functions]
        functions, modules = _texts(names), _texts([module for module, _ in found.functions])
        where = found.lines
        return {
            "tid": found.tid,
            "thread": _texts([found.threads.get(tid, "") for tid in found.tid.tolist()]),
            "module": modules[found.site],
            "function": functions[found.site],
            "start_ns": found.start_ns,
            "duration_ns": found.duration_ns,
            "self_ns": found.self_ns,
            "depth": found.depth,
            "caller": _texts([*names, ""])[np.where(found.caller == -2, -1, found.caller)],
            "file": _texts([line.file for line in where])[found.line],
            "line": np.array([line.line for line in where], np.int64)[found.line],
            "python": _texts([line.function for line in where])[found.line],
        }

    def to_arrow(self) -> pa.Table:
        """`columns` as an Arrow table; an end that is not known is null. Needs pyarrow."""
        arrow = needed("pyarrow", "parquet")
        columns = dict(self.columns())
        ends = columns.pop("duration_ns")
        table = arrow.table({name: arrow.array(column) for name, column in columns.items()})
        durations = arrow.array(ends, mask=ends < 0)
        return table.add_column(table.column_names.index("self_ns"), "duration_ns", durations)

    def to_pandas(self) -> pd.DataFrame:
        """`columns` as a data frame. Needs pandas."""
        return needed("pandas", "pandas").DataFrame(self.columns())

    def lines(self) -> list[LineRow]:
        """Which line of Python led to which native function, the longest self time first."""
        found = self._found()
        pairs, index = np.unique(np.stack((found.line, found.site)), axis=1, return_inverse=True)
        outer = np.where(found.caller == found.site, 0, np.maximum(found.duration_ns, 0))
        sums = [
            np.bincount(index.reshape(-1), weights, len(pairs[0])).astype(np.int64).tolist()
            for weights in (None, outer, found.self_ns)
        ]
        rows = [
            LineRow(found.lines[line], *found.functions[site], *numbers)
            for line, site, *numbers in zip(*pairs.tolist(), *sums, strict=True)
        ]
        return sorted(rows, key=lambda row: (-row.self_ns, -row.calls, row.function))

    def __repr__(self) -> str:
        if self._result is None:
            return "<OwnTrace, nothing traced yet>"
        rows = self.lines()
        most = ", ".join(f"{row.function} {row.calls:,}" for row in rows[:3])
        return f"<OwnTrace, {len(self):,} calls of native functions ({most}), {self.lost:,} lost>"

    def _repr_html_(self) -> str:
        """A table for notebooks: the lines, or the functions, that took the most time."""
        if self._result is None:
            return "<p>Nothing traced yet.</p>"
        rows = self.lines()
        has_lines = any(row.where is not NOWHERE for row in rows)
        head = ("line", "code") if has_lines else ()
        titles = (*head, "native function", "calls", "total ms", "self ms")
        body = "".join(_html_row(row, has_lines=has_lines) for row in rows[:_SHOWN])
        more = f" The first {_SHOWN} of {len(rows)} rows." if len(rows) > _SHOWN else ""
        lost = f" <b>{self.lost:,} events lost: all numbers are too small.</b>" if self.lost else ""
        remark = f"<p>{html.escape(self._remark)}</p>" if self._remark else ""
        cells = "".join(f"<th>{title}</th>" for title in titles)
        return (
            f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>{len(self):,} calls of native functions.{more}{lost}</p>{remark}"
        )


def _read(capture: Capture, lost: int, noted: dict[int, Noted], block: tuple[int, int]) -> _Result:
    """Decode the calls that began within `block`, in TSC ticks: the others are ours."""
    calls, clock = all_calls(capture), Clock(capture)
    since, until = clock.ns(np.array(block, np.uint64)).tolist()
    kept = np.flatnonzero((calls.start_ns >= since) & (calls.start_ns <= until))
    lines: dict[Line, int] = {}
    line = np.full(len(kept), -1, np.int64)
    for tid, notes in noted.items():
        mine = np.flatnonzero(calls.tid[kept] == tid)
        numbers = [lines.setdefault(where, len(lines)) for where in notes.lines]
        places = _at(notes, clock.ns(notes.tsc), calls.start_ns[kept][mine])
        line[mine] = np.array([*numbers, -1], np.int64)[places]
    parent = calls.parent[kept]
    return _Result(
        [*((site.module, site.function) for site in capture.meta.sites), _UNKNOWN],
        dict(capture.threads),
        [*lines, NOWHERE],
        lost,
        calls.tid[kept],
        calls.site[kept].astype(np.int64),
        np.where(parent >= 0, calls.site[parent], -2),
        line,
        calls.start_ns[kept],
        calls.duration_ns()[kept],
        calls.self_ns[kept],
        calls.depth[kept],
    )


def _at(noted: Noted, at_ns: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the thread was at these times: indices into its lines, -1 before the first."""
    place = np.searchsorted(at_ns, starts, side="right") - 1
    if not len(at_ns):
        return np.full(len(starts), -1, np.int64)
    return np.where(place >= 0, noted.index[np.maximum(place, 0)], -1).astype(np.int64)


def _texts(words: Sequence[str]) -> NDArray[Any]:
    return np.array(words, object)


def _html_row(row: LineRow, *, has_lines: bool) -> str:
    where: Sequence[str] = ()
    if has_lines:
        place = f"{os.path.basename(row.where.file)}:{row.where.line}" if row.where.line else ""
        code = linecache.getline(row.where.file, row.where.line).strip()
        where = (place, f"<code>{html.escape(code)}</code>")
    texts: Iterable[str] = (
        *((html.escape(where[0]), where[1]) if where else ()),
        f"<code>{html.escape(row.function)}</code> <small>{html.escape(row.module)}</small>",
        f"{row.calls:,}",
        f"{row.total_ns / 1e6:,.3f}",
        f"{row.self_ns / 1e6:,.3f}",
    )
    cells = "".join(f'<td style="text-align:left">{text}</td>' for text in texts)
    return f"<tr>{cells}</tr>"
