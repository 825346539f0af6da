# SPDX-License-Identifier: Apache-2.0
"""What the reports of blk, wakeup_rt and irqsoff share: a capture's calls, names and gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke.calls import all_calls
from textpoke.decode import Clock
from textpoke.libc_calls import known
from textpoke.report.names import escape, program_name, thread_label
from textpoke.report.summary import cut_off_note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.callers import Callers
    from textpoke.calls import Calls
    from textpoke.capture import Capture
    from textpoke.libc_calls import Function

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Analysed:
    """A capture with its calls paired.

    Attributes:
        capture: Open.
        calls: All calls.
        functions: The function of libc that each site is.
        names: Finds names for callers and locks.
        clock: The time scale.
    """

    capture: Capture
    calls: Calls
    functions: list[Function]
    names: Callers
    clock: Clock

    @classmethod
    def of(cls, capture: Capture, names: Callers) -> Analysed:
        """Read the events and pair them.

        Args:
            capture: Open.
            names: Of the same capture; must stay open.

        Raises:
            CaptureFormat: the file changed while it was read.
        """
        functions = known(capture.meta.sites, capture.notes, capture.meta.tracer)
        return cls(capture, all_calls(capture), functions, names, Clock(capture))

    def label(self, tid: int) -> str:
        """A thread as `NAME-TID`."""
        return thread_label(self.capture, tid)

    def function(self, row: int) -> str:
        """The function of a call; with its module when that is not the program."""
        site = int(self.calls.site[row])
        if site < 0:
            return "[unknown]"
        name = self.capture.meta.sites[site]
        known_as = self.functions[site].name or name.function
        main = program_name(self.capture)
        return escape(known_as if name.module == main else f"{known_as} [{name.module}]")

    def caller(self, row: int) -> str:
        """The function that made a call, as well as it is known."""
        parent = int(self.calls.parent[row])
        site = int(self.calls.site[row])
        layout = self.calls.layouts.get(site)
        at = layout.entry_at("caller") if layout else None
        data = int(self.calls.entry_data[row])
        if at is not None and data >= 0:
            return self.address(int(self.calls.words[data + at]))
        return self.function(parent) if parent >= 0 else "?"

    def address(self, return_address: int) -> str:
        """The function that a return address is in, or a number, or "?" for 0."""
        name = self.names.function(return_address) if return_address else "?"
        return escape(name) if name else f"{return_address:#x}"

    def variable(self, address: int) -> str | None:
        """The variable at an address: of a lock, for instance."""
        name = self.names.variable(address)
        return escape(name) if name else None

    def head(self, what: str) -> list[str]:
        """One line of facts that is always there, and one for each thing that is amiss."""
        meta, counts = self.capture.meta, self.calls.counts
        facts = f"{program_name(self.capture)} (pid {meta.pid}), tracer {escape(meta.tracer)}: "
        return [f"{facts}{what}, {self.lost:,} events lost", *self._amiss(counts.orphans)]

    @property
    def lost(self) -> int:
        """Events that are missing: of full rings, and of threads without one."""
        lost = self.calls.counts.lost
        end = self.capture.end
        return max(lost, end.lost) + end.lost_no_ring if end else lost

    def _amiss(self, orphans: int) -> Iterator[str]:
        if self.lost:
            yield "what was lost may have hidden releases and wakes: longest times may be too long"
        if orphans:
            yield f"begun before the capture: {orphans:,} calls, which are left out"
        yield from cut_off_note(self.capture)
        if not self.clock.known:
            yield "no time scale: the capture holds one clock point only, times are TSC ticks"

    def facts(self) -> dict[str, object]:
        """What every JSON report of a capture begins with."""
        meta, end, counts = self.capture.meta, self.capture.end, self.calls.counts
        return {
            "version": FORMAT_VERSION,
            "capture": self.capture.path,
            "pid": meta.pid,
            "exe": meta.exe,
            "command": meta.command,
            "tracer": meta.tracer,
            "mode": meta.mode,
            "reason": end.reason if end else None,
            "cut_off": self.capture.cut_off,
            "start_realtime_ns": meta.clock.realtime_ns,
            "duration_ns": self.clock.end_ns,
            "time_known": self.clock.known,
            "calls": len(self.calls),
            "unfinished": counts.unfinished,
            "orphans": counts.orphans,
            "lost": self.lost,
        }


def us(ns: int) -> str:
    """Microseconds with three decimals."""
    return f"{ns / 1000:,.3f}"


def spread_record(row: tuple[int, int, int, int, int]) -> dict[str, object]:
    """Count, total, median, 99th percentile and maximum for JSON."""
    count, total, p50, p99, largest = row
    return {
        "count": count,
        "total_ns": total,
        "p50_ns": p50,
        "p99_ns": p99,
        "max_ns": largest,
    }
