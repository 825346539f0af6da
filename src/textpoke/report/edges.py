# SPDX-License-Identifier: Apache-2.0
"""Who calls a function and what it calls: calls added up by caller and callee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from textpoke.calls import UNFINISHED, Pairing
from textpoke.report.layout import columns, time_text
from textpoke.report.names import site_label

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.capture import Capture

EdgeSort = Literal["total", "self", "calls", "avg"]
EDGE_SORTS: tuple[EdgeSort, ...] = ("total", "self", "calls", "avg")
NOBODY = -2
"""The caller of calls that were made by no recorded function."""
FORMAT_VERSION = 1


@dataclass(slots=True)
class Edge:
    """The calls that one function makes to another; times in nanoseconds, of finished calls.

    Attributes:
        caller: Index into the capture's sites; -1 for an address that no site has, `NOBODY`.
        callee: Likewise.
        calls: Finished or not.
        unfinished: Those without an end.
        total_ns: From entry to exit of the callee.
        self_ns: Without the time in other recorded functions.
    """

    caller: int
    callee: int
    calls: int = 0
    unfinished: int = 0
    total_ns: int = 0
    self_ns: int = 0

    @property
    def average_ns(self) -> float:
        """Of a finished call; 0 when there is none."""
        return self.total_ns / max(self.calls - self.unfinished, 1)


_SORTERS: dict[str, Callable[[Edge], float]] = {
    "total": lambda edge: edge.total_ns,
    "self": lambda edge: edge.self_ns,
    "calls": lambda edge: edge.calls,
    "avg": lambda edge: edge.average_ns,
}


def callers(capture: Capture, sites: Collection[int]) -> list[Edge]:
    """Who calls these sites. The calls of one thread at a time are in memory (60 bytes each).

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    return _edges(capture, lambda calls: _is_one_of(calls.site, sites))


def callees(capture: Capture, sites: Collection[int]) -> list[Edge]:
    """What these sites call, as `callers` does it."""
    return _edges(
        capture, lambda calls: (calls.parent >= 0) & _is_one_of(calls.site, sites)[calls.parent]
    )


def ordered(edges: list[Edge], sort: EdgeSort = "total", limit: int | None = None) -> list[Edge]:
    """Edges by one of their numbers, the largest first; at most `limit` of them."""
    key = _SORTERS[sort]
    return sorted(edges, key=lambda e: (-key(e), -e.calls, e.caller, e.callee))[:limit]


def edge_table(capture: Capture, edges: list[Edge], *, known: bool) -> Iterator[str]:
    """The lines of the table, the header first; a caller that was not recorded is so called.

    Args:
        capture: Gives the names.
        edges: In the order of the rows.
        known: Whether times are nanoseconds, not ticks.
    """
    rows = [
        [
            f"{edge.calls:,}",
            *(
                time_text(ns, known=known) if edge.calls > edge.unfinished else "-"
                for ns in (edge.total_ns, edge.self_ns, edge.average_ns)
            ),
            "[not recorded]" if edge.caller == NOBODY else site_label(capture, edge.caller),
            site_label(capture, edge.callee),
        ]
        for edge in edges
    ]
    titles = ["CALLS", "TOTAL", "SELF", "AVG", "CALLER", "CALLEE"]
    return columns(titles, rows, left=["CALLER", "CALLEE"])


def edge_records(capture: Capture, edges: list[Edge]) -> list[dict[str, object]]:
    """The same as plain data, for JSON; `caller` is null where nobody was recorded."""
    return [
        {
            "caller": None if edge.caller == NOBODY else _name(capture, edge.caller),
            "callee": _name(capture, edge.callee),
            "calls": edge.calls,
            "unfinished": edge.unfinished,
            "total_ns": edge.total_ns,
            "self_ns": edge.self_ns,
            "average_ns": edge.average_ns,
        }
        for edge in edges
    ]


def _name(capture: Capture, site: int) -> dict[str, object]:
    if site < 0:
        return {"module": None, "function": None}
    name = capture.meta.sites[site]
    return {"module": name.module, "function": name.function}


def _is_one_of(site: NDArray[np.int32], sites: Collection[int]) -> NDArray[np.bool_]:
    return np.isin(site, np.array(sorted(sites), np.int32))


def _edges(capture: Capture, choose: Callable[[Calls], NDArray[np.bool_]]) -> list[Edge]:
    found: dict[tuple[int, int], Edge] = {}
    pairing = Pairing(capture)
    for tid in pairing.decoder.tids:
        calls = Pairing(capture, pairing.decoder).columns([tid])
        if len(calls):
            _add(found, calls, np.flatnonzero(choose(calls)))
    return list(found.values())


def _add(found: dict[tuple[int, int], Edge], calls: Calls, rows: NDArray[np.intp]) -> None:
    parents = calls.parent[rows]
    above = np.where(parents < 0, NOBODY, calls.site[parents]).astype(np.int64)
    keys = np.stack([above, calls.site[rows].astype(np.int64)])
    pairs, inverse, count = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    is_open = calls.end_ns[rows] == UNFINISHED
    took = np.where(is_open, 0, calls.end_ns[rows] - calls.start_ns[rows])
    sums = []
    for column in (is_open.astype(np.int64), took, calls.self_ns[rows]):
        sums.append(np.zeros(len(count), np.int64))
        np.add.at(sums[-1], inverse, column)
    for caller, callee, *numbers in zip(
        *(column.tolist() for column in (*pairs, count, *sums)), strict=True
    ):
        edge = found.setdefault((caller, callee), Edge(caller, callee))
        edge.calls += numbers[0]
        edge.unfinished += numbers[1]
        edge.total_ns += numbers[2]
        edge.self_ns += numbers[3]
