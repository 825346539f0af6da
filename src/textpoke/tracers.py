# SPDX-License-Identifier: Apache-2.0
"""The tracers by name, and which probe each puts at a function. As ftrace's `available_tracers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import UnknownTracer
from textpoke._native import lib
from textpoke.agent_image import ANY_DEPTH, Probe
from textpoke.hooks import offset_of
from textpoke.records import Wanted, Wants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from textpoke.model import Site
    from textpoke.plan import SitePlan
    from textpoke.ring_sets import RingSet

FUNCTION, GRAPH, PROFILE, NOP = "function", "function_graph", "profile", "nop"
TRACERS = {
    FUNCTION: "the entry of every chosen function",
    GRAPH: "entry and return, as a tree with durations",
    PROFILE: "calls, times and a histogram of each function, counted in the target; no events",
    NOP: "nothing",
}
"""Names of the tracers, with what each records."""
REDIRECTING = frozenset({GRAPH, PROFILE})
"""Tracers that wait for returns."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a tracer records.

    Attributes:
        depth: Calls below each other that function_graph follows; 0 for all.
        threshold_ticks: Shorter calls leave no event; 0: all do.
    """

    depth: int = 0
    threshold_ticks: int = 0


def known(name: str) -> str:
    """The name of a tracer; raises UnknownTracer with the names that there are."""
    if name not in TRACERS:
        raise UnknownTracer(name, list(TRACERS))
    return name


def wants(
    tracer: str,
    plans: Iterable[SitePlan],
    ring_set: RingSet,
    options: Options,
    why_no_return: Callable[[Site], str],
) -> Wants:
    """What a tracer wants at planned sites."""
    if tracer == NOP:
        return Wants()
    entry = Probe(lib.TP_PROBE_FUNCTION, ring_set.address, ring_set.gate)
    if tracer == FUNCTION:
        return Wants((p.site.address, Wanted(p, entry)) for p in plans)
    kind = lib.TP_PROBE_PROFILE if tracer == PROFILE else lib.TP_PROBE_GRAPH
    depth = options.depth or ANY_DEPTH
    by_offset: dict[int, Probe] = {}
    found = Wants()
    for planned in plans:
        offset = offset_of(planned)
        if offset not in by_offset:
            by_offset[offset] = Probe(
                kind, ring_set.address, ring_set.gate, offset, options.threshold_ticks, depth
            )
        if not why_no_return(planned.site):
            found[planned.site.address] = Wanted(planned, by_offset[offset])
        elif tracer == GRAPH and not options.threshold_ticks:
            found[planned.site.address] = Wanted(planned, entry)
    return found
