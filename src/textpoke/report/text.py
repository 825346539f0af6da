# SPDX-License-Identifier: Apache-2.0
"""A capture as lines of text in the manner of ftrace's `trace` file, oldest event first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from textpoke._capture_format import EVENT_BYTES
from textpoke.decode import Decoder
from textpoke.report.names import escape, program_name, thread_label

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.capture import Capture
    from textpoke.decode import Events

_NAME_WIDTH = 16
_TID_WIDTH = 7
_SECONDS_WIDTH = 6
_PREFIX_WIDTH = _NAME_WIDTH + 1 + _TID_WIDTH + 1
_STAMP_WIDTH = _SECONDS_WIDTH + len(".123456: ")
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1_000


def text(capture: Capture) -> Iterator[str]:
    """The header and the events, many lines at a time, in bounded memory.

    As in the kernel: `TASK-TID  SECONDS.MICROSECONDS: FUNCTION`, seconds of CLOCK_MONOTONIC,
    functions outside of the main program with their module in brackets, losses in their place.
    The CPU and the caller are not recorded, so their columns are left out.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    decoder = Decoder(capture)
    yield "".join(f"{line}\n" for line in _header(capture, decoder))
    labels = {tid: _padded_label(capture, tid) for tid in decoder.tids}
    main = program_name(capture)
    functions = [
        escape(site.function if site.module == main else f"{site.function} [{site.module}]")
        for site in capture.meta.sites
    ]
    functions.append("[unknown]")  # what index -1 finds
    for events in decoder.merged():
        yield _chunk(events, labels, functions, decoder.clock.start_ns)


def _header(capture: Capture, decoder: Decoder) -> Iterator[str]:
    held = sum(block.payload_bytes for block in capture.events) // EVENT_BYTES
    lost = sum(block.lost for block in capture.events)
    no_ring = 0
    if capture.end:
        lost, no_ring = max(lost, capture.end.lost), capture.end.lost_no_ring
    cpus = f"   #P:{capture.meta.cpus}" if capture.meta.cpus else ""
    yield f"# tracer: {escape(capture.meta.tracer)}"
    yield "#"
    yield f"# entries-in-buffer/entries-written: {held}/{held + lost + no_ring}{cpus}"
    if no_ring:
        yield f"# lost by threads without a ring: {no_ring}"
    if capture.cut_off:
        yield f"# incomplete: {capture.cut_off}"
    if not decoder.clock.known:
        yield "# no time scale: times are TSC ticks"
    yield "#"
    name = "#" + "TASK-PID".rjust(_NAME_WIDTH + 3)
    bars = "#" + "| |".rjust(_NAME_WIDTH + 1)
    yield f"{name:<{_PREFIX_WIDTH}}{'TIMESTAMP':^{_STAMP_WIDTH}}FUNCTION"
    yield f"{bars:<{_PREFIX_WIDTH}}{'|':^{_STAMP_WIDTH}}   |"


def _padded_label(capture: Capture, tid: int) -> str:
    name, _, number = thread_label(capture, tid).rpartition("-")
    return f"{name:>{_NAME_WIDTH}}-{number:<{_TID_WIDTH}} "


def _chunk(events: Events, labels: dict[int, str], functions: list[str], start_ns: int) -> str:
    lines = _lines(events, labels, functions, start_ns)
    for loss in reversed(events.losses):
        row = int(np.searchsorted(events.ts_ns, loss.ts_ns))
        lines.insert(row, f"{labels[loss.tid]}[LOST {loss.count} EVENTS]\n")
    return "".join(lines)


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
