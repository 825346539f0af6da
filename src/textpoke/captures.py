# SPDX-License-Identifier: Apache-2.0
"""What the calls of one recording carry: arguments as asked for, what libc's tracers need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke import call_notes, capturing, libc_calls, libc_programs
from textpoke.arguments import CaptureProgram
from textpoke.payload import enums_json, layouts_json
from textpoke.tracer_names import BLK, WAKEUP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Protocol

    from textpoke import arguments
    from textpoke.arguments import Spec
    from textpoke.libc_calls import Function
    from textpoke.model import Site
    from textpoke.plan import SitePlan
    from textpoke.ring_sets import RingSet
    from textpoke.tracers import Options

    class Resolves(Protocol):
        """The target, as far as it is needed here."""

        def captures(
            self, specs: Sequence[Spec], sites: Sequence[Site], *, strict: bool = True
        ) -> arguments.Captures:
            """The programs of `-A` and `-R`."""


_NOTHING = CaptureProgram()


class Captures:
    """The programs of one recording, by address of the site."""

    def __init__(self) -> None:
        self._arguments: dict[int, CaptureProgram] = {}
        self._asked: set[int] = set()  # sites that were looked at for them
        self._enums: dict[str, Mapping[int, str]] = {}
        self._libc: dict[str, dict[int, Function]] = {}
        self._uploaded: dict[int, dict[int, CaptureProgram]] = {}  # by number of the set
        # By number of the set and tracer: of which programs, and how many plans, that was found.
        self._checked: dict[tuple[int, str], tuple[Mapping[int, CaptureProgram], int]] = {}
        self._waiting = call_notes.Waiting()
        self._by_return: dict[int, Function] = {}
        self._programs: dict[str, dict[int, CaptureProgram]] = {}  # by tracer, as made last

    def of_arguments(
        self, target: Resolves, specs: Sequence[Spec], sites: Sequence[Site]
    ) -> list[str]:
        """What `-A` and `-R` ask for. Raises as `Resolver.programs`.

        Returns:
            What cannot be captured where, and why, a line each.
        """
        self._asked = {site.address for site in sites}
        self._uploaded.clear()  # another trace may have had these rings since
        self._checked.clear()
        if not specs:
            return []
        found = target.captures(specs, sites)
        self._arguments = dict(found.programs)
        self._enums = dict(found.enums)
        self._programs.clear()
        return list(found.notes)

    def of_more(
        self, target: Resolves, specs: Sequence[Spec], sites: Sequence[Site]
    ) -> tuple[list[int], list[str]]:
        """The same of functions that are chosen later; nothing found is no error.

        Returns:
            Addresses of the sites that have programs now and had none; lines as `of_arguments`.
        """
        fresh = [site for site in sites if site.address not in self._asked]
        if not specs or not fresh:
            return [], []
        found = target.captures(specs, fresh, strict=False)
        self._asked.update(site.address for site in fresh)
        self._arguments |= found.programs
        self._enums = dict(found.enums)
        self._programs.clear()
        return list(found.programs), list(found.notes)

    def forget(self, addresses: Iterable[int]) -> None:
        """Nothing is known of these sites any more."""
        for address in addresses:
            self._asked.discard(address)
            self._arguments.pop(address, None)
        self._programs.clear()

    def of_libc(self, tracer: str, found: Mapping[int, Function]) -> None:
        """The functions of libc that a tracer stands on, by address of the site."""
        self._libc[tracer] = dict(found)
        self._programs.clear()

    def libc(self, tracer: str) -> Mapping[int, Function]:
        """The same again; empty when there are none."""
        return self._libc.get(tracer, {})

    def programs(self, tracer: str) -> Mapping[int, CaptureProgram]:
        """What calls carry under a tracer, by address of the site."""
        known = self._programs.get(tracer)
        if known is not None:
            return known
        found = self._programs[tracer] = dict(self._arguments)
        for address, function in self.libc(tracer).items():
            program = libc_programs.program_of(function)
            more = found.get(address)
            found[address] = capturing.joined(program, more) if more else program
        return found

    def upload(self, rings: RingSet, tracer: str, plans: Mapping[int, SitePlan]) -> None:
        """Give the agent what its probes need, where it has not got it yet."""
        wanted, key = self.programs(tracer), (rings.number, tracer)
        checked = self._checked.get(key)
        if checked is not None and checked[0] is wanted and checked[1] == len(plans):
            return
        programs = {
            plans[address].return_address: program
            for address, program in wanted.items()
            if address in plans
        }
        there = self._uploaded.get(rings.number, {})
        if programs.items() <= there.items():
            self._checked[key] = wanted, len(plans)
            return
        self._checked.clear()
        # What other tracers' probes need stays, so that switching back and forth gives it once.
        together = {**there, **programs}
        if not (there.items() <= together.items() and capturing.fits(rings, together)):
            together = programs
        capturing.upload(rings, together)
        self._uploaded[rings.number] = together

    def notes(self, tracer: str, plans: Iterable[SitePlan], options: Options) -> dict[str, object]:
        """Fields of META, or of a SITES block, about sites."""
        programs, functions = self.programs(tracer), self.libc(tracer)
        is_timed = options.threshold_ticks > 0  # each exit then carries how long the call took
        carried = {
            p.return_address: programs.get(p.site.address, _NOTHING)
            for p in plans
            if is_timed or p.site.address in programs
        }
        self._by_return = {
            p.return_address: functions[p.site.address]
            for p in plans
            if p.site.address in functions
        }
        layouts = capturing.layouts_of(carried, threshold=is_timed)
        found: dict[str, object] = {}
        if layouts:
            found["layouts"] = layouts_json(layouts)
        if self._by_return:
            found["functions"] = libc_calls.function_names(self._by_return)
        if self._enums:
            found["enums"] = enums_json(self._enums)
        return found

    def at_start(self, pid: int, tracer: str) -> dict[str, object]:
        """Fields of META about the moment."""
        if not self.libc(tracer):
            return {}
        return call_notes.moment(pid, tracer)

    def when_on(self, pid: int, tracer: str) -> dict[str, object]:
        """Fields of a SITES block about the moment after the tracer was switched on."""
        return self._waiting.begin(pid) if tracer == WAKEUP else {}

    def later(self, pid: int, tracer: str) -> dict[str, object]:
        """What could not be told then, and can now; mostly nothing."""
        return self._waiting.more(pid) if tracer == WAKEUP else {}

    def at_end(self, pid: int, tracer: str) -> dict[str, object]:
        """Fields of END about the moment."""
        return call_notes.open_files(pid) if tracer == BLK else {}
