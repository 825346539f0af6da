# SPDX-License-Identifier: Apache-2.0
"""speedscope's own JSON: a profile per thread, of begins and ends of calls.

A capture without exits gives its calls by function, each with the weight 1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from textpoke._version import __version__
from textpoke.export.timeline import timelines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.calls import Calls
    from textpoke.export.source import Source
    from textpoke.export.timeline import Timeline

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write(source: Source, file: BinaryIO) -> None:
    """Write all calls.

    Raises:
        CaptureFormat: the capture changed while it was read.
        OSError: the file cannot be written.
    """
    lost = f", {source.lost:,} events lost" if source.lost else ""
    head = {
        "$schema": _SCHEMA,
        "exporter": f"textpoke {__version__}",
        "name": f"{source.program} ({source.pid}){lost}",
        "shared": {"frames": [{"name": label} for label in source.labels]},
    }
    file.write(f'{json.dumps(head)[:-1]}, "profiles": ['.encode())
    comma = ""
    for tid in source.tids():
        file.write(comma.encode())
        comma = ",\n"
        profile = _evented if source.has_exits else _counted
        file.writelines(text.encode() for text in profile(source, tid))
    file.write(b"]}\n")


def _head(source: Source, tid: int, kind: str, unit: str) -> str:
    name = f"{source.thread_name(tid)}-{tid}"
    return json.dumps({"type": kind, "name": name, "unit": unit})[:-1]


def _evented(source: Source, tid: int) -> Iterator[str]:
    unit = "nanoseconds" if source.decoder.clock.known else "none"
    yield f'{_head(source, tid, "evented", unit)}, "events": ['
    comma = ""
    bounds: list[int] = []
    for calls, line in timelines(source, tid):
        bounds += [int(line.time_ns[0]), int(line.time_ns[-1])]
        for text in _events(source, calls, line):
            yield comma + text
            comma = ",\n"
    start, end = (bounds[0], bounds[-1]) if bounds else (0, 0)
    yield f'], "startValue": {start}, "endValue": {end}}}'


def _events(source: Source, calls: Calls, line: Timeline) -> Iterator[str]:
    frame = _frames(source, calls)
    for part in source.parts(len(calls)):
        both = slice(2 * part.start, 2 * part.stop)
        kinds = np.where(line.is_end[both], "C", "O").tolist()
        frames, times = frame[line.row[both]].tolist(), line.time_ns[both].tolist()
        yield ",\n".join(
            f'{{"type":"{kind}","frame":{number},"at":{at}}}'
            for kind, number, at in zip(kinds, frames, times, strict=True)
        )


def _counted(source: Source, tid: int) -> Iterator[str]:
    counts = np.zeros(len(source.labels), np.int64)
    for calls in source.calls(tid):
        counts += np.bincount(_frames(source, calls), minlength=len(counts))
        source.wrote(len(calls))
    called = np.flatnonzero(counts).tolist()
    weights = counts[called].tolist()
    yield f'{_head(source, tid, "sampled", "none")}, "startValue": 0, "endValue": {sum(weights)}'
    yield f', "samples": {[[frame] for frame in called]}, "weights": {weights}}}'


def _frames(source: Source, calls: Calls) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    site = calls.site.astype(np.int64)
    return np.where(site < 0, len(source.labels) - 1, site)
