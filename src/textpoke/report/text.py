# SPDX-License-Identifier: Apache-2.0
"""A capture as lines of text in the manner of ftrace's `trace` file, oldest event first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from textpoke.calls import layouts_by_site
from textpoke.decode import DATA, ENTRY, Decoder
from textpoke.payload import Formatter, Layout, count_words
from textpoke.report.names import NAME_WIDTH, TID_WIDTH, escape, function_labels, padded_label
from textpoke.report.stacks import Stacks
from textpoke.trigger_notes import left_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from textpoke.capture import Capture
    from textpoke.decode import Events, Loss
    from textpoke.report.stacks import ShownStack

_SECONDS_WIDTH = 6
_PREFIX_WIDTH = NAME_WIDTH + 1 + TID_WIDTH + 1
_STAMP_WIDTH = _SECONDS_WIDTH + len(".123456: ")
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1_000


def text(capture: Capture, *, symbol: Callable[[int], str | None] | None = None) -> Iterator[str]:
    """The header and the events, many lines at a time, in bounded memory.

    As in the kernel: `TASK-TID  SECONDS.MICROSECONDS: FUNCTION`, seconds of CLOCK_MONOTONIC,
    functions outside of the main program with their module in brackets, losses in their place.
    The CPU is not recorded, so its column is left out. Arguments stand behind the name
    where they were recorded. What `stacktrace` triggers noted stands behind its event.

    Args:
        capture: Open.
        symbol: Gives names for callers' addresses in payloads.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    decoder = Decoder(capture)
    yield "".join(f"{line}\n" for line in [*header(capture, decoder), *_titles()])
    labels = {tid: padded_label(capture, tid) for tid in decoder.tids}
    functions = function_labels(capture)
    payloads = _Payloads(capture, decoder, symbol)
    stacks = Stacks(capture, decoder.clock, symbol)
    start_ns = decoder.clock.start_ns
    for events in decoder.merged():
        lines = _chunk(events, labels, functions, start_ns, payloads)
        inserted = [
            *((_row(events, loss), _lost(labels, loss)) for loss in events.losses),
            *((row, _stack(capture, one, start_ns)) for row, one in stacks.before_end_of(events)),
        ]
        # From the last one on, so that rows stay; of one row, the first comes to stand first.
        for row, line in sorted(inserted, key=lambda place: place[0])[::-1]:
            lines.insert(row, line)
        yield "".join(lines)
    yield "".join(_stack(capture, one, start_ns) for one in stacks.rest())


class _Payloads:
    # Arguments behind the functions' names.

    def __init__(
        self, capture: Capture, decoder: Decoder, symbol: Callable[[int], str | None] | None
    ) -> None:
        self._layouts = layouts_by_site(capture)
        clock = decoder.clock
        self._formatter = Formatter(
            capture.meta.enums, symbol, ns_per_tick=clock.ns_per_tick if clock.known else None
        )

    def add(self, events: Events, lines: list[str]) -> None:
        """Put them into the lines, and empty those of DATA."""
        found: dict[int, list[int]] = {}
        owners: dict[int, int] = {}
        columns = (events.tid, events.type, events.words)
        for row, (tid, kind, word) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            if kind != DATA:
                owners[tid] = row
                continue
            lines[row] = ""
            found.setdefault(owners.get(tid, -1), []).append(word)
        found.pop(-1, None)
        for row, words in found.items():
            layout = self._layouts.get(int(events.site[row]), Layout())
            fields = layout.entry if events.type[row] == ENTRY else layout.exit
            if count_words(fields) == len(words):
                lines[row] = f"{lines[row][:-1]}({self._formatter.texts(fields, words)})\n"


def header(capture: Capture, decoder: Decoder) -> Iterator[str]:
    """The lines on top: what was recorded, and what of it is here."""
    held = sum(block.events for block in capture.events)
    lost = sum(block.lost for block in capture.events)
    no_ring = 0
    if capture.end:
        lost, no_ring = max(lost, capture.end.lost), capture.end.lost_no_ring
    cpus = f"   #P:{capture.meta.cpus}" if capture.meta.cpus else ""
    yield f"# tracer: {escape(capture.meta.tracer)}"
    yield "#"
    yield f"# entries-in-buffer/entries-written: {held}/{held + lost + no_ring}{cpus}"
    if capture.end and capture.end.overruns:
        overruns = capture.end.overruns
        yield f"# overruns, calls too deep, on other stacks or from a runtime: {overruns}"
    yield from (f"# {escape(line)}" for line in left_out(capture))
    if no_ring:
        yield f"# lost by threads without a ring: {no_ring}"
    if capture.cut_off:
        yield f"# incomplete: {capture.cut_off}"
    if not decoder.clock.known:
        yield "# no time scale: times are TSC ticks"
    yield "#"


def _titles() -> Iterator[str]:
    name = "#" + "TASK-PID".rjust(NAME_WIDTH + 3)
    bars = "#" + "| |".rjust(NAME_WIDTH + 1)
    yield f"{name:<{_PREFIX_WIDTH}}{'TIMESTAMP':^{_STAMP_WIDTH}}FUNCTION"
    yield f"{bars:<{_PREFIX_WIDTH}}{'|':^{_STAMP_WIDTH}}   |"


def _chunk(
    events: Events,
    labels: dict[int, str],
    functions: list[str],
    start_ns: int,
    payloads: _Payloads,
) -> list[str]:
    lines = _lines(events, labels, functions, start_ns)
    if events.has_data:
        payloads.add(events, lines)
    return lines


def _row(events: Events, loss: Loss) -> int:
    return int(np.searchsorted(events.ts_ns, loss.ts_ns))


def _lost(labels: dict[int, str], loss: Loss) -> str:
    return f"{labels[loss.tid]}[LOST {loss.count} EVENTS]\n"


def _stack(capture: Capture, stack: ShownStack, start_ns: int) -> str:
    seconds, rest_ns = divmod(stack.ts_ns + start_ns, _NS_PER_S)
    time = f"{seconds:>{_SECONDS_WIDTH}}.{rest_ns // _NS_PER_US:06d}"
    head = f"{padded_label(capture, stack.tid)}{time}: {stack.title}"
    return "".join(f"{line}\n" for line in (head, *stack.frames))


def _lines(
    events: Events, labels: dict[int, str], functions: list[str], start_ns: int
) -> list[str]:
    seconds, rest_ns = np.divmod(events.ts_ns + np.int64(start_ns), _NS_PER_S)
    columns = (events.tid, seconds, rest_ns // _NS_PER_US, events.site)
    width = _SECONDS_WIDTH
    return [
        f"{labels[tid]}{second:>{width}}.{us:06d}: {functions[site]}\n"
        for tid, second, us, site in zip(*(c.tolist() for c in columns), strict=True)
    ]
