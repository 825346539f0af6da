# SPDX-License-Identifier: Apache-2.0
"""Trace Event JSON, as Chrome's tracing, Perfetto and many others read it.

A call is a complete event ("X"), a call of a capture without exits an instant ("i"); times are
microseconds since the capture began.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from textpoke.export.timeline import timelines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.calls import Calls
    from textpoke.export.source import Source
    from textpoke.export.timeline import Timeline

_OPEN = ',"args":{"unfinished":true}'


def write(source: Source, file: BinaryIO) -> None:
    """Write all calls.

    Raises:
        CaptureFormat: the capture changed while it was read.
        OSError: the file cannot be written.
    """
    meta = source.capture.meta
    about = {
        "capture": source.capture.path,
        "command": meta.command,
        "tracer": meta.tracer,
        "start_monotonic_ns": source.decoder.clock.start_ns,
        "events_lost": source.lost,
        "time_known": source.decoder.clock.known,
    }
    file.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(about)},"traceEvents":['.encode())
    file.write(",\n".join(_names(source)).encode())
    file.writelines(b",\n" + lines.encode() for lines in _events(source))
    file.write(b"\n]}\n")


def _names(source: Source) -> Iterator[str]:
    yield _metadata(source.pid, source.pid, "process_name", source.program)
    for tid in source.tids():
        yield _metadata(source.pid, tid, "thread_name", source.thread_name(tid))


def _metadata(pid: int, tid: int, what: str, name: str) -> str:
    row = {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}
    return json.dumps(row, separators=(",", ":"))


def _events(source: Source) -> Iterator[str]:
    names = [json.dumps(label) for label in source.labels]
    for tid in source.tids():
        for calls, line in timelines(source, tid):
            yield from _calls(source, calls, line, names)
    for ts_ns, count in source.losses():
        yield json.dumps(
            {"ph": "i", "s": "p", "pid": source.pid, "tid": source.pid, "ts": ts_ns / 1e3,
             "name": f"{count:,} events lost"},
        )  # fmt: skip


def _calls(source: Source, calls: Calls, line: Timeline, names: list[str]) -> Iterator[str]:
    kind = '"ph":"X"' if source.has_exits else '"ph":"i","s":"t"'
    head = f'{{{kind},"pid":{source.pid},"tid":{calls.tid[0]},"ts":'
    for part in source.parts(len(calls)):
        sites = calls.site[part].tolist()
        starts = (line.begin_ns[part] / 1e3).tolist()
        if not source.has_exits:
            rows = zip(starts, sites, strict=True)
            yield ",\n".join(f'{head}{ts:.3f},"name":{names[site]}}}' for ts, site in rows)
            continue
        took = ((line.end_ns[part] - line.begin_ns[part]) / 1e3).tolist()
        more = np.where(line.is_open[part], _OPEN, "").tolist()
        yield ",\n".join(
            f'{head}{ts:.3f},"dur":{dur:.3f},"name":{names[site]}{args}}}'
            for ts, dur, site, args in zip(starts, took, sites, more, strict=True)
        )
