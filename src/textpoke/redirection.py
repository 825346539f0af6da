# SPDX-License-Identifier: Apache-2.0
"""What one target needs before returns are redirected: shadow stacks, trampolines, guards."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from textpoke import proc, returns
from textpoke._errors import UnsupportedTarget
from textpoke._native import ffi, lib
from textpoke.agent_image import Probe, load_image
from textpoke.hooks import offset_of
from textpoke.plan import PAGE
from textpoke.records import Wanted, Wants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke.agent import Agent
    from textpoke.model import Module, Site
    from textpoke.modes import Mode
    from textpoke.placing import Placing
    from textpoke.process_sites import Finder
    from textpoke.records import Records

_USER = "guards"
_MOST_STACKS = 1024
_MOST_CALLERS = int(lib.TP_MOST_CALLERS)
_CALLER = struct.Struct("<QQ")


class Redirection:
    """Makes ready, once, what redirected returns need; and once more when modules come.

    Args:
        agent: The connection.
        placing: Where code goes.
        records: Who wants what.

    Attributes:
        unguarded: (site, reason) of functions that unwind and could not be given a guard.
    """

    def __init__(self, agent: Agent, placing: Placing, records: Records) -> None:
        self._agent = agent
        self._placing = placing
        self._records = records
        self._wants = Wants()
        self._ready_for: Sequence[Module] | None = None  # the very list: another one is looked at
        self._seen: set[tuple[str, int, int]] = set()
        self._names: dict[int, str] = {}  # of functions that need a guard, by entry
        self.unguarded: list[tuple[Site, str]] = []
        # By module: its code whose calls can be followed; and all of it, as the agent was told.
        self._callers: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
        self._told = b""

    def make_ready(self, modules: Sequence[Module], finder: Finder, mode: Mode) -> None:
        """Shadow stacks and guards for what is mapped now.

        Raises:
            UnsupportedTarget: ("returns") No return of this process can be redirected.
            BatchRefused, BatchFailed: A guard could not be written; none was.
        """
        if modules is self._ready_for:
            return
        fresh = [module for module in modules if module.key not in self._seen]
        why = returns.why_no_returns(self._agent.pid, fresh) if fresh else ""
        if why:
            raise UnsupportedTarget(self._agent.pid, "returns", why)
        self._make_stacks(modules)
        self._tell_callers(modules)
        self._guard(fresh, finder, mode)
        why = returns.why_unguarded(self._names, self._guarded())
        if why:
            raise UnsupportedTarget(self._agent.pid, "returns", why)
        self._ready_for = modules

    def _guarded(self) -> set[int]:
        """Entries of the functions that have their guard."""
        open_ = {site.entry for site, _ in self.unguarded}
        return {wanted.planned.site.entry for wanted in self._wants.values()} - open_

    def _make_stacks(self, modules: Sequence[Module]) -> None:
        agent = self._agent
        head, layout = agent.image(), agent.layout
        if head.shadow_count or layout is None or agent.wire is None:
            return
        count = min(layout.ring_count, _MOST_STACKS)
        before = load_image().returns_bytes
        entries = count * lib.TP_SHADOW_DEPTH
        size = -(-(before + entries * lib.TP_RETURN_BYTES) // PAGE) * PAGE
        start = self._placing.room(size, modules[0].mappings[0].start)
        action = "making shadow stacks"
        main_stack = proc.start_of_main_stack(agent.pid)
        agent.require(action, lib.TP_CMD_SHADOW, count, start + before, main_stack)
        heads, frames = int(agent.wire.args[0]), int(agent.wire.args[1])
        code = ffi.new("uint8_t[]", entries * lib.TP_RETURN_BYTES)
        lib.tp_make_returns(code, entries, before)
        first = load_image().returns(heads, frames).ljust(before, b"\xcc")
        agent.fill_code([(start, first + bytes(ffi.buffer(code)))])

    def _tell_callers(self, modules: Sequence[Module]) -> None:
        """Let the agent know whose calls' returns may be redirected (callers.c)."""
        agent = self._agent
        first: list[tuple[int, int]] = []
        rest: list[tuple[int, int]] = []
        known = {
            module.key: self._callers.get(module.key) or returns.callers(self._agent.pid, module)
            for module in modules
        }
        self._callers = known  # not of what is gone
        for module in modules:
            (first if module.is_main else rest).extend(known[module.key])
        first.sort(key=_size, reverse=True)
        head = agent.image()
        returns_end = head.shadow_returns + (
            head.shadow_count * lib.TP_SHADOW_DEPTH * lib.TP_RETURN_BYTES
        )
        # Functions that end in a jump return to each other's trampolines.
        own = [(int(head.shadow_returns), int(returns_end))]
        found = [*first[:1], *own, *first[1:], *sorted(rest, key=_size, reverse=True)]
        table = b"".join(_CALLER.pack(start, end - start) for start, end in found[:_MOST_CALLERS])
        if table == self._told or agent.shared is None or agent.layout is None:
            return
        agent.shared[lib.TP_PAGE_BYTES : lib.TP_PAGE_BYTES + len(table)] = table
        count = len(table) // _CALLER.size
        agent.require("telling whose calls are followed", lib.TP_CMD_CALLERS, count)
        self._told = table

    def _guard(self, fresh: Sequence[Module], finder: Finder, mode: Mode) -> None:
        addresses = returns.guards(self._agent.pid, fresh)
        self._names |= addresses
        if addresses:
            self._place_guards(addresses, fresh, finder, mode)
        self._seen.update(module.key for module in fresh)

    def _place_guards(
        self, addresses: dict[int, str], fresh: Sequence[Module], finder: Finder, mode: Mode
    ) -> None:
        sites = [
            site
            for module in fresh
            if any(_holds(module, address) for address in addresses)
            for site in finder.of_module(module)
            if site.entry in addresses
        ]
        self.unguarded += [(site, site.reason or "") for site in sites if not site.patchable]
        good = [site for site in sites if site.patchable]
        if not good:
            return
        plan = self._placing.prepare(good)
        self._placing.merge(plan, fresh, mode)
        self.unguarded += plan.refused
        wants = Wants(self._wants)
        for planned in plan.sites:
            what = returns.GUARDED[addresses[planned.site.entry]]
            probe = Probe(lib.TP_PROBE_UNWIND, offset=offset_of(planned), argument=what)
            wants[planned.site.address] = Wanted(planned, probe)
        switched = self._records.switch(_USER, wants, mode, guards=True)
        self.unguarded += switched.refused
        self._wants = wants


def _size(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]


def _holds(module: Module, address: int) -> bool:
    return module.mappings[0].start <= address < module.mappings[-1].end
