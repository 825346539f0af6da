# SPDX-License-Identifier: Apache-2.0
"""Who calls a function, and whom it calls, in a short capture of function_graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke.calls import UNFINISHED, Pairing
from textpoke.capture import Capture
from textpoke.report.names import function_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from textpoke.calls import Calls

OUTERMOST = "(nothing that is traced)"
_NOBODY = np.int32(-2)


@dataclass(slots=True)
class Share:
    """Calls on one edge of the call graph.

    Attributes:
        name: The function at its other end.
        calls: How many.
        total_ns: Time of those that have returned.
    """

    name: str
    calls: int = 0
    total_ns: int = 0


@dataclass(slots=True)
class Neighbours:
    """What a stretch showed of one function; most calls first.

    Attributes:
        seconds: Length of the stretch.
        calls: Calls of the function in it.
        callers: By whom; `OUTERMOST` where no traced function was open.
        callees: Whom its calls have called.
        lost: Events that the stretch has lost.
    """

    seconds: float = 0.0
    calls: int = 0
    callers: list[Share] = field(default_factory=list)
    callees: list[Share] = field(default_factory=list)
    lost: int = 0


def neighbours(path: str, address: int) -> Neighbours:
    """Read them from a capture.

    Args:
        path: The capture.
        address: Return address of the function's site.

    Raises:
        CaptureFormat: It is none.
    """
    with Capture(path) as capture:
        site = next(i for i, s in enumerate(capture.meta.sites) if s.address == address)
        edges = _Edges(site, function_labels(capture))
        pairing = Pairing(capture)
        for tid in pairing.decoder.tids:
            edges.add(Pairing(capture, pairing.decoder).columns([tid]))
        return edges.result(capture.end.lost if capture.end else 0)


@dataclass(slots=True)
class _Edges:
    """The edges of the call graph at a site, thread by thread."""

    site: int
    names: list[str]
    calls: int = 0
    times: list[int] = field(default_factory=list)
    callers: dict[int, Share] = field(default_factory=dict)
    callees: dict[int, Share] = field(default_factory=dict)

    def add(self, calls: Calls) -> None:
        """Add a thread's calls."""
        if not len(calls):
            return
        self.times += [int(calls.start_ns[0]), int(calls.start_ns[-1])]
        rows = calls.of(self.site)
        self.calls += len(rows)
        sites = np.append(calls.site, _NOBODY)  # parent -1 finds the last one
        self._add(self.callers, sites[calls.parent[rows]], calls, rows)
        below = np.flatnonzero(np.isin(calls.parent, rows))
        self._add(self.callees, calls.site[below], calls, below)

    def result(self, lost: int) -> Neighbours:
        """All of it."""
        seconds = (max(self.times) - min(self.times)) / 1e9 if self.times else 0.0
        callers, callees = _ordered(self.callers), _ordered(self.callees)
        return Neighbours(seconds, self.calls, callers, callees, lost)

    def _add(
        self,
        shares: dict[int, Share],
        ends: NDArray[np.int32],
        calls: Calls,
        rows: NDArray[np.intp],
    ) -> None:
        """Add the calls of some rows by the site at the other end."""
        times = calls.duration_ns()[rows]
        times = np.where(times == UNFINISHED, 0, times)
        for end in np.unique(ends).tolist():
            chosen = ends == end
            name = OUTERMOST if end == _NOBODY else self.names[end]
            share = shares.setdefault(end, Share(name))
            share.calls += int(chosen.sum())
            share.total_ns += int(times[chosen].sum())


def _ordered(shares: dict[int, Share]) -> list[Share]:
    return sorted(shares.values(), key=lambda share: (-share.calls, -share.total_ns, share.name))
