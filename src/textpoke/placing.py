# SPDX-License-Identifier: Apache-2.0
"""Code of ours in one target: what is planned is mapped, filled, and remembered."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from textpoke import branch_stubs, modes, stubs, target
from textpoke._errors import AgentFailed, NotPatchable, TargetExited, UnsupportedTarget
from textpoke.agent_image import Probe, load_image
from textpoke.engine import run_request
from textpoke.holds import pairs
from textpoke.hooks import Copies
from textpoke.model import BranchSite
from textpoke.modes import Mode, require_holds
from textpoke.plan import (
    MERGED_NOP,
    PAD_BYTES,
    PAD_DISTANCE,
    Method,
    Plan,
    Planner,
    Space,
    stub_of,
)
from textpoke.poke import Poke, Request
from textpoke.unload import interior_sites, ranges_in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textpoke.agent import Agent
    from textpoke.model import Module, Site
    from textpoke.plan import SitePlan
    from textpoke.poke import Outcome

_LOOKS = 50
_LOOK_S = 0.002
_MAP_TRIES = 10
_APART = 64 << 20
_MOST_PACKED = 8


class Placing:
    """Plans sites and places what they need in the target.

    Args:
        agent: The connection.
        default: The probe that sites are led to when they are planned.

    Attributes:
        forget: Called when all code was planned anew: nothing that was known of it holds.
        planner: What is placed for sites.
        copies: The probes that it did not place.
    """

    def __init__(self, agent: Agent, default: Probe) -> None:
        self._agent = agent
        self._default = default
        self.forget: Callable[[], None] = lambda: None
        self._merged: set[int] = set()  # runs that are one instruction now
        self._settled: set[int] = set()  # those of them that no thread is inside of
        self._ways: dict[tuple[int, bytes], tuple[int, int]] = {}
        # All ways of some sites, packed, and the probes that there were then.
        self._packed: dict[int, tuple[Sequence[SitePlan], list[tuple[int, int]], bytes]] = {}
        self._begin()

    def _begin(self) -> None:
        self.planner = Planner(self._code(self._default, 0, 0), self._traps_are_out)
        self.copies = Copies(self._code)

    def _traps_are_out(self) -> bool:
        """Would threads have to be held for every change of a landing pad?"""
        return bool(self._agent.obstacle or modes.why_masking(self._agent))

    def _code(self, probe: Probe, at: int, after: int) -> bytes:
        return load_image().probe(self._agent.base, probe, at, after)

    def prepare(self, chosen: Sequence[Site], *, traps: bool = False) -> Plan:
        """Plan CALLs to the default probe at `chosen` sites and map the code that they need.

        Args:
            chosen: The sites.
            traps: An int3 may stay where nothing else is possible.

        Raises:
            NotPatchable: A site was refused by the planner and it was the only one.
            AgentFailed: The target has no room where it was planned.
        """
        plan = self._mapped(lambda space: self._plan(chosen, space, traps=traps))
        if not plan.sites and plan.refused:
            raise NotPatchable(*plan.refused[0])
        return plan

    def probes(self, wanted: Sequence[tuple[SitePlan, tuple[Probe, ...]]]) -> list[int]:
        """Map copies of the probes that sites shall come to: the address for each, 0 for no room.

        Raises:
            AgentFailed: The target has no room where it was planned.
        """
        found: list[int] = []

        def place(space: Space) -> Plan:
            plan = Plan()
            found[:] = [self.copies.near(planned, chain, space, plan) for planned, chain in wanted]
            return plan

        if wanted:
            self._mapped(place)
        return found

    def room(self, size: int, near: int) -> int:
        """Map `size` bytes of code of our own, somewhere below `near`; their address.

        Raises:
            AgentFailed: There is no room.
        """
        found = 0

        def place(space: Space) -> Plan:
            nonlocal found
            found = space.room_near(near, near, size) or 0
            return Plan(regions=[(found, size)] if found else [])

        self._mapped(place)
        if not found:
            raise AgentFailed(f"finding room for {size:#x} bytes of code", errno.ENOMEM)
        return found

    def _mapped(self, make: Callable[[Space], Plan]) -> Plan:
        for attempt in range(_MAP_TRIES):
            try:
                plan = make(self._space(attempt))
                self._map(plan)
            except AgentFailed as exc:
                # The program has mapped something there since we looked: look again.
                if exc.errno != errno.EEXIST or attempt == _MAP_TRIES - 1:
                    raise
            else:
                break
        return plan

    def _space(self, attempt: int) -> Space:
        head = self._agent.image()
        owned = [(r.start, r.bytes) for r in (head.regions[i] for i in range(head.region_count))]
        # What is mapped meanwhile, by our own planning in the own process, is near the rest.
        steps = attempt + (self._agent.pid == os.getpid())
        maps = target.read_maps(self._agent.pid)
        if not maps:  # memory goes first, the pidfd tells later
            raise TargetExited(self._agent.pid, "a look for room")
        return Space(maps, owned, _APART * steps)

    def _plan(self, chosen: Sequence[Site], space: Space, *, traps: bool) -> Plan:
        wanted, refused = self._without_windows(chosen)
        plan = self.planner.plan(wanted, space, traps=self._why_no_trap() if traps else None)
        plan.refused += refused
        return plan

    def _map(self, plan: Plan) -> None:
        try:
            for start, size in plan.regions:
                self._agent.map_code(start, size)
            for start, size in plan.data:
                self._agent.map_data(start, size)
            for start, size in plan.counters:
                self._agent.map_counters(start, size)
            self._agent.fill_code(plan.code)
        except BaseException:
            # We count on code that is not there: let the next plan begin anew.
            self._begin()
            self.forget()
            raise

    def _why_no_trap(self) -> Callable[[Site], str]:
        why = modes.why_no_trap_stays(self._agent)
        return lambda site: why(site.address)

    def _without_windows(
        self, chosen: Sequence[Site]
    ) -> tuple[Sequence[Site], list[tuple[Site, str]]]:
        """Leave out sites of several instructions where nobody can look who stands among them."""
        inside = [site for site in chosen if site.heads]
        if inside:
            try:
                require_holds(self._agent)
            except UnsupportedTarget as exc:
                return [s for s in chosen if not s.heads], [(s, exc.detail) for s in inside]
        return chosen, []

    def outlast(self, gone: Sequence[SitePlan]) -> None:
        """Wait until no thread is on a way of ours from sites that are switched off by now.

        It would come back behind a site's instructions: into the midst of others that are there by
        then.

        Raises:
            UnsupportedTarget: ("no-helper") Nobody can look at the threads of the own process.
            AgentFailed: A thread does not leave.
        """
        require_holds(self._agent)
        if self._agent.held is not None:
            return  # launched and not yet running
        ways = self.ways(gone)
        for _ in range(_LOOKS):
            if not ranges_in_use(self._agent, ways):
                return
            time.sleep(_LOOK_S)
        raise AgentFailed("waiting for a thread to leave code that it was led to", errno.EAGAIN)

    def ways(self, gone: Sequence[SitePlan]) -> bytes:
        """All code that threads go through from these sites and back, packed: see `outlast`."""
        probes = self._probe_ranges()
        kept, since, packed = self._packed.get(id(gone), ((), [], b""))
        if kept is not gone or since != probes:
            packed = pairs(sorted(probes + self._ways_of(gone)))
            if len(self._packed) >= _MOST_PACKED:
                self._packed.clear()
            self._packed[id(gone)] = gone, probes, packed
        return packed

    def _ways_of(self, gone: Sequence[SitePlan]) -> list[tuple[int, int]]:
        for planned in gone:
            key = planned.site.address, planned.on
            if key not in self._ways:
                self._ways[key] = _way_of(planned)
        ways = (self._ways[p.site.address, p.on] for p in gone)
        return [(start, end) for start, end in ways if start < end]

    def _probe_ranges(self) -> list[tuple[int, int]]:
        """All code that sites call: whoever is there may come back to a stub."""
        base, kinds = self._agent.base, load_image().probe_bytes
        default = kinds[self._default.kind]
        found = [(at, at + default) for at in self.planner.thunks]
        found += [(at, at + kinds[kind]) for at, kind in self.copies.placed]
        return [(base, base + load_image().head_offset), *found]

    def merge(
        self, plan: Plan, modules: Sequence[Module], mode: Mode = Mode.AUTO
    ) -> Outcome | None:
        """Make planned runs of NOPs one instruction, once, where a flip has no room.

        Every mix of the two is NOPs, so threads may be anywhere while it is written; but nobody
        may still be inside when a CALL comes, so look where everybody is and wait.

        Raises:
            UnsupportedTarget: ("no-helper") Nobody can look at the threads of the own process.
            AgentFailed: A thread does not leave a run.
        """
        self._forget_reloaded(plan, modules)
        fresh = [
            p
            for p in plan.sites
            if p.method is Method.MERGE and p.site.address not in self._settled
        ]
        if not fresh:
            return None
        require_holds(self._agent)
        pokes = [
            Poke(p.site.address, p.site.old, MERGED_NOP, 0, str(p.site))
            for p in fresh
            if p.site.address not in self._merged
        ]
        outcome = run_request(self._agent, Request.of(pokes), mode=mode)
        self._merged.update(poke.address for poke in pokes)
        self._wait_outside([p.site.address for p in fresh])
        self._settled.update(p.site.address for p in fresh)
        return outcome

    def _forget_reloaded(self, plan: Plan, modules: Sequence[Module]) -> None:
        """A module may have been closed and opened again: its runs are not merged any more."""
        main = {module.name for module in modules if module.is_main}
        for p in plan.sites:
            if p.method is Method.MERGE and p.site.module not in main:
                with contextlib.suppress(AgentFailed):
                    if self._agent.read(p.site.address, p.site.length) == p.site.old:
                        self._merged.discard(p.site.address)
                        self._settled.discard(p.site.address)

    def _wait_outside(self, addresses: list[int]) -> None:
        if self._agent.held is not None:
            return  # launched and not yet running: its one thread stands at the entry point
        for _ in range(_LOOKS):
            inside = interior_sites(self._agent, addresses, len(MERGED_NOP))
            if not inside:
                return
            addresses = sorted(inside)
            time.sleep(_LOOK_S)
        raise AgentFailed(f"waiting for a thread to leave {addresses[0]:#x}", 11)


def _way_of(planned: SitePlan) -> tuple[int, int]:
    """What a thread goes through between a site and the probe, and between that and the site."""
    if planned.method is Method.FLIP:
        start = planned.site.address - PAD_DISTANCE
        return start, start + PAD_BYTES
    if planned.method not in (Method.JMP, Method.PUN, Method.TRAP):
        return planned.site.address, planned.site.address  # a CALL to the probe
    start = stub_of(planned)
    if isinstance(planned.site, BranchSite):
        return start, start + branch_stubs.measure([planned.site])[1]
    return start, start + sum(size for _, size in stubs.measure([planned.site])[0])
