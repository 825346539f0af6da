# SPDX-License-Identifier: Apache-2.0
"""Perfetto's own format: a track per thread with a slice per call, counters beside them.

Times are CLOCK_MONOTONIC. A capture without exits gives instants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from textpoke.export.protobuf import double, message, number, padded, text
from textpoke.export.timeline import timelines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.export.source import Source
    from textpoke.export.timeline import Timeline

# Fields, by protos/perfetto/trace/perfetto_trace.proto.
_PACKET = 1
_TIMESTAMP, _SEQUENCE, _EVENT, _INTERNED, _FLAGS, _DESCRIPTOR = 8, 10, 11, 12, 13, 60
_TYPE, _TRACK, _NAME, _ANNOTATION, _COUNTER_VALUE, _DOUBLE_VALUE = 9, 11, 10, 4, 30, 44
_CLEARED, _NEEDED = 1, 2  # of the interned names
_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4
_IS_OPEN = message(_ANNOTATION, text(10, "unfinished"), number(2, 1))
_SEQUENCE_1 = number(_SEQUENCE, 1)
_PROCESS, _RATE, _LOST, _FIRST_THREAD = 1, 2, 3, 4  # tracks
_MOST_TRACKS = 1 << 28
_MS = 1_000_000
_MOST_RATES = 100_000


def write(source: Source, file: BinaryIO) -> None:
    """Write all calls.

    Raises:
        CaptureFormat: the capture changed while it was read.
        OSError: the file cannot be written.
    """
    file.writelines(_tracks(source))
    file.write(_names(source))
    rates = _Rates(source.decoder.clock.end_ns)
    for track, tid in enumerate(source.tids(), _FIRST_THREAD):
        for calls, line in timelines(source, tid):
            rates.add(calls.start_ns)
            file.writelines(_slices(source, calls, line, track))
    start_ns = source.decoder.clock.start_ns
    file.writelines(
        _counter(_RATE, start_ns + ts_ns, double(_DOUBLE_VALUE, rate))
        for ts_ns, rate in rates.changes()
    )
    lost = 0
    file.write(_counter(_LOST, start_ns, number(_COUNTER_VALUE, 0)))
    for ts_ns, count in source.losses():
        lost += count
        file.write(_counter(_LOST, start_ns + ts_ns, number(_COUNTER_VALUE, lost)))


def _tracks(source: Source) -> Iterator[bytes]:
    words = [text(2, word) for word in source.capture.meta.command]
    process = message(3, number(1, source.pid), *words, text(6, source.program))
    yield _track(_PROCESS, process)
    for track, name, unit in ((_RATE, "calls", "calls/ms"), (_LOST, "events lost", "events")):
        yield _track(track, number(5, _PROCESS), text(2, name), message(8, text(6, unit)))
    for track, tid in enumerate(source.tids(), _FIRST_THREAD):
        thread = (number(1, source.pid), number(2, tid), text(5, source.thread_name(tid)))
        yield _track(track, number(5, _PROCESS), message(4, *thread))


def _track(track: int, *fields: bytes) -> bytes:
    return message(_PACKET, _SEQUENCE_1, message(_DESCRIPTOR, number(1, track), *fields))


def _names(source: Source) -> bytes:
    # Names are told once; slices have their number.
    names = (
        message(2, number(1, index), text(2, label)) for index, label in enumerate(source.labels, 1)
    )
    return message(_PACKET, _SEQUENCE_1, number(_FLAGS, _CLEARED), message(_INTERNED, *names))


def _counter(track: int, ts_ns: int, value: bytes) -> bytes:
    event = message(_EVENT, number(_TYPE, _COUNTER), number(_TRACK, track), value)
    return message(_PACKET, number(_TIMESTAMP, max(ts_ns, 0)), _SEQUENCE_1, event)


def _slices(source: Source, calls: Calls, line: Timeline, track: int) -> Iterator[bytes]:
    site = calls.site.astype(np.int64)
    name = np.where(site < 0, len(source.labels), site + 1)
    start_ns = source.decoder.clock.start_ns
    for part in source.parts(len(calls)):
        if not source.has_exits:
            kind = np.full(part.stop - part.start, _INSTANT)
            yield _packets(kind, start_ns + line.begin_ns[part], name[part], track)
            continue
        both = slice(2 * part.start, 2 * part.stop)
        rows, is_end = line.row[both], line.is_end[both]
        kind = np.where(is_end, _END, _BEGIN)
        is_open = line.is_open[rows] & ~is_end
        yield _packets(kind, start_ns + line.time_ns[both], name[rows], track, is_open)


def _packets(
    kind: NDArray[np.int64],
    ts_ns: NDArray[np.int64],
    name: NDArray[np.int64],
    track: int,
    is_open: NDArray[np.bool_] | None = None,
) -> bytes:
    # A row of bytes for each, all fields of one width; what a packet has not is cut out.
    count = len(kind)
    has_name = kind != _END
    if is_open is None:
        is_open = np.zeros(count, bool)
    event_bytes = 7 + 5 * has_name + len(_IS_OPEN) * is_open
    event = (
        _fixed(count, bytes([_EVENT << 3 | 2])),
        padded(event_bytes, 1),
        _fixed(count, bytes([_TYPE << 3])),
        padded(kind, 1),
        _fixed(count, bytes([_TRACK << 3])),
        padded(np.full(count, track % _MOST_TRACKS), 4),
        _fixed(count, bytes([_NAME << 3])),
        padded(name, 4),
        _fixed(count, _IS_OPEN),
    )
    packet = (
        _fixed(count, bytes([_TIMESTAMP << 3])),
        padded(np.maximum(ts_ns, 0), 9),
        _fixed(count, _SEQUENCE_1 + number(_FLAGS, _NEEDED)),
    )
    body_bytes = sum(column.shape[1] for column in packet) + 2 + event_bytes
    head = (_fixed(count, bytes([_PACKET << 3 | 2])), padded(body_bytes, 1))
    rows = np.hstack([*head, *packet, *event])
    keep = np.ones(rows.shape, bool)
    annotation = rows.shape[1] - len(_IS_OPEN)
    keep[:, annotation - 5 : annotation] = has_name[:, np.newaxis]
    keep[:, annotation:] = is_open[:, np.newaxis]
    return rows[keep].tobytes()


def _fixed(count: int, data: bytes) -> NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(data, np.uint8), (count, len(data)))


class _Rates:
    # Calls per millisecond, in steps of one or, of a long recording, of more.

    def __init__(self, end_ns: int) -> None:
        self._step_ns = max(_MS, -(-end_ns // _MOST_RATES))
        self._calls = np.zeros(0, np.int64)

    def add(self, start_ns: NDArray[np.int64]) -> None:
        step = np.clip(start_ns // self._step_ns, 0, _MOST_RATES)
        found = np.bincount(step, minlength=len(self._calls))
        found[: len(self._calls)] += self._calls
        self._calls = found

    def changes(self) -> Iterator[tuple[int, float]]:
        calls = np.append(self._calls, 0)
        places = np.flatnonzero(np.diff(calls, prepend=-1))
        for place, count in zip(places.tolist(), calls[places].tolist(), strict=True):
            yield place * self._step_ns, count * _MS / self._step_ns
