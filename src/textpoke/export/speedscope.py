# SPDX-License-Identifier: Apache-2.0
"""speedscope's own JSON: a profile per thread, of begins and ends of calls.

A capture without exits gives its calls by function, each with the weight 1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from textpoke._version import __version__
from textpoke.export.timeline import timeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.calls import Calls
    from textpoke.export.source import Source

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


def _head(source: Source, tid: int, kind: str, unit: str, start: int, end: int) -> str:
    return json.dumps(
        {
            "type": kind,
            "name": f"{source.thread_name(tid)}-{tid}",
            "unit": unit,
            "startValue": start,
            "endValue": end,
        }
    )[:-1]


def _evented(source: Source, tid: int) -> Iterator[str]:
    for calls in source.calls(tid):  # with exits it is one
        line = timeline(calls)
        start, end = (int(line.time_ns[i]) if len(calls) else 0 for i in (0, -1))
        unit = "nanoseconds" if source.decoder.clock.known else "none"
        yield _head(source, tid, "evented", unit, start, end)
        yield ', "events": ['
        frame = _frames(source, calls)
        comma = ""
        for part in source.parts(len(calls)):
            both = slice(2 * part.start, 2 * part.stop)
            kinds = np.where(line.is_end[both], "C", "O").tolist()
            frames, times = frame[line.row[both]].tolist(), line.time_ns[both].tolist()
            yield comma + ",\n".join(
                f'{{"type":"{kind}","frame":{number},"at":{at}}}'
                for kind, number, at in zip(kinds, frames, times, strict=True)
            )
            comma = ",\n"
        yield "]}"


def _counted(source: Source, tid: int) -> Iterator[str]:
    counts = np.zeros(len(source.labels), np.int64)
    for calls in source.calls(tid):
        counts += np.bincount(_frames(source, calls), minlength=len(counts))
        source.wrote(len(calls))
    called = np.flatnonzero(counts).tolist()
    weights = counts[called].tolist()
    yield _head(source, tid, "sampled", "none", 0, sum(weights))
    yield f', "samples": {[[frame] for frame in called]}, "weights": {weights}}}'


def _frames(source: Source, calls: Calls) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    site = calls.site.astype(np.int64)
    return np.where(site < 0, len(source.labels) - 1, site)
