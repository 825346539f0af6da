# SPDX-License-Identifier: Apache-2.0
"""The tracers by name, and which probe each puts at a function. As ftrace's `available_tracers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import UnknownTracer
from textpoke._native import lib
from textpoke.agent_image import ANY_DEPTH, Probe
from textpoke.hooks import BELOW_CALL, offset_of
from textpoke.records import Wanted, Wants
from textpoke.tracer_names import GRAPH, LIBC, NOP, PROFILE, TRACERS

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from textpoke.model import Site
    from textpoke.plan import SitePlan
    from textpoke.ring_sets import RingSet

REDIRECTING = frozenset({GRAPH, PROFILE, *LIBC})
"""Tracers that wait for returns."""
# Of the compiler's start files. No unwind entry says where they return, so all that follows would
# seem to be called by them.
_GLUE = frozenset(
    (
        *("_init", "_fini", "frame_dummy", "__do_global_dtors_aux"),
        *("register_tm_clones", "deregister_tm_clones"),
    )
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a tracer records.

    Attributes:
        depth: Calls below each other that function_graph follows; 0 for all.
        threshold_ticks: Shorter calls leave no event; 0: all do.
        sample: One of so many calls of a function is recorded, by each thread.
    """

    depth: int = 0
    threshold_ticks: int = 0
    sample: int = 1


def known(name: str) -> str:
    """The name of a tracer; raises UnknownTracer with the names that there are."""
    if name not in TRACERS:
        raise UnknownTracer(name, list(TRACERS))
    return name


class Wish:
    """Makes what a tracer wants at planned sites.

    Args:
        tracer: Its name.
        rings: Where its probes write.
        options: How.
        why_no_return: Tells of a site why its returns cannot be redirected, "" when they can.
    """

    def __init__(
        self,
        tracer: str,
        rings: RingSet,
        options: Options,
        why_no_return: Callable[[Site], str],
    ) -> None:
        self._tracer = tracer
        self._options = options
        self._why_no_return = why_no_return
        self._rings = rings
        self._probes: dict[tuple[int, int, bool], Probe] = {}

    def of(self, plans: Iterable[SitePlan], captured: Container[int]) -> Wants:
        """The probes for the sites; those whose addresses are `captured` tell of their calls."""
        if self._tracer == NOP:
            return Wants()
        wanted = ((p, self._probe(p, captured)) for p in plans)
        return Wants((p.site.address, Wanted(p, probe)) for p, probe in wanted if probe)

    def _probe(self, planned: SitePlan, captured: Container[int]) -> Probe | None:
        rich = planned.site.address in captured or self._options.sample > 1
        redirects = self._tracer in REDIRECTING
        waits = redirects and not self._why_no_return(planned.site)
        if redirects and not waits and planned.site.function in _GLUE:
            return None
        if not waits and (self._tracer == PROFILE or self._options.threshold_ticks):
            return None
        if self._tracer == PROFILE:
            return self._made(lib.TP_PROBE_PROFILE, planned, waits=True)
        if rich:
            return self._made(lib.TP_PROBE_RICH, planned, waits=waits)
        if waits:
            return self._made(lib.TP_PROBE_GRAPH, planned, waits=True)
        return self._made(lib.TP_PROBE_FUNCTION, planned, waits=False)

    def _made(self, kind: int, planned: SitePlan, *, waits: bool) -> Probe:
        plain = kind == lib.TP_PROBE_FUNCTION
        offset = BELOW_CALL if plain else offset_of(planned)
        key = kind, offset, waits
        if key not in self._probes:
            self._probes[key] = Probe(
                kind,
                self._rings.address,
                self._rings.gate,
                offset,
                0 if plain else self._options.threshold_ticks,
                ANY_DEPTH if plain else self._options.depth or ANY_DEPTH,
                argument=self._options.sample if kind == lib.TP_PROBE_RICH else 0,
                returns=waits or plain,
            )
        return self._probes[key]
