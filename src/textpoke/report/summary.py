# SPDX-License-Identifier: Apache-2.0
"""The lines above every table: what was recorded, and everything that is missing from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.calls import tracers_of
from textpoke.report.names import escape, program_name, thread_label
from textpoke.tracer_names import FUNCTION, NOP
from textpoke.trigger_notes import left_out

if TYPE_CHECKING:
    from textpoke.capture import Capture
    from textpoke.report.counts import Counts
    from textpoke.report.times import Times


def summary(capture: Capture, counts: Counts) -> list[str]:
    """One line of facts that is always there, and one for each thing that is amiss."""
    meta = capture.meta
    unit = "s" if counts.time_known else "billion TSC ticks"
    facts = (
        f"{program_name(capture)} (pid {meta.pid}), tracer {escape(meta.tracer)}: "
        f"{counts.events:,} events in {counts.duration_ns / 1e9:.6f} {unit}, "
        f"{counts.lost + counts.lost_no_ring:,} lost"
    )
    return [facts, *notes(capture, counts)]


def pair_notes(times: Times) -> list[str]:
    """What could not be paired, one line each."""
    counts = times.counts
    lines: list[str] = []
    if counts.without_exits:
        lines.append(
            f"not in the table: {counts.without_exits:,} events of the tracer {FUNCTION}, which "
            "sees no ends of calls; --text shows them"
        )
    if counts.unfinished:
        lines.append(
            f"unfinished: {counts.unfinished:,} calls have no end here (still open, left by "
            "longjmp or an exception, or lost); they count as calls, but in no time"
        )
    if counts.orphans:
        lines.append(f"orphans: {counts.orphans:,} ends of calls whose begin is not here")
    if counts.short_payloads or counts.stray_data:
        lines.append(f"payloads: {counts.short_payloads:,} are not whole and were left out")
    return lines


def cut_off_note(capture: Capture) -> list[str]:
    """One line where the capture has no end; else none."""
    if not capture.cut_off:
        return []
    return [f"incomplete: {capture.cut_off}; everything before that is here"]


def table_notes(capture: Capture) -> list[str]:
    """What a reader of a table must know that a recording writes when it ends."""
    if capture.end is None:
        text = "the counts are written when a recording ends, and this one has not"
        return [f"incomplete: {text}: it goes on, or its tool was killed"]
    return [*map(escape, left_out(capture)), *_overruns(capture)]


def _overruns(capture: Capture) -> list[str]:
    overruns = capture.end.raw.get("overruns") if capture.end else None
    if type(overruns) is not int or overruns <= 0:
        return []
    why = (
        "more than 1,023 were open in their thread, or they were made on a stack that is not the "
        "thread's own (coroutines, alternate signal stacks), or their caller is code that its "
        "runtime walks by itself (a JIT's, OCaml's)"
    )
    return [f"not followed: {overruns:,} calls are not here: {why}"]


def notes(capture: Capture, counts: Counts) -> list[str]:
    """What a reader has to know before trusting the numbers; empty for a perfect capture."""
    lines: list[str] = []
    if counts.lost:
        per_thread = ", ".join(
            f"{thread_label(capture, thread.tid)} {thread.lost:,}"
            for thread in counts.threads
            if thread.lost
        )
        full = "old events were overwritten" if capture.meta.mode == "overwrite" else "rings full"
        lines.append(f"lost: {counts.lost:,}, {full}{f' ({per_thread})' if per_thread else ''}")
        if tracers_of(capture) - {FUNCTION, NOP}:
            lines.append("callers and depths behind a loss may be wrong: ends of calls are missing")
    lines += [*map(escape, left_out(capture)), *_overruns(capture)]
    if counts.lost_no_ring:
        lines.append(f"lost: {counts.lost_no_ring:,} of threads that had no ring")
    if counts.unknown:
        lines.append(f"unknown: {counts.unknown:,} with an address that no site has")
    lines += cut_off_note(capture)
    if not counts.time_known:
        lines.append("no time scale: the capture holds one clock point only, times are TSC ticks")
    return lines
