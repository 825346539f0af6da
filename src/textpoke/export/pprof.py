# SPDX-License-Identifier: Apache-2.0
"""pprof's profile.proto, gzipped: calls and own time of every stack, with the thread as label."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from textpoke.export.protobuf import message, number, packed
from textpoke.export.stacks import stacks_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.export.source import Source
    from textpoke.export.stacks import Stacks

# Fields of Profile, by proto/profile.proto of github.com/google/pprof.
_SAMPLE_TYPE, _SAMPLE, _MAPPING, _LOCATION, _FUNCTION, _STRING = 1, 2, 3, 4, 5, 6
_TIME_NS, _DURATION_NS, _COMMENT, _DEFAULT_TYPE = 9, 10, 13, 14


class _Strings:
    # The table of strings; its first is "".

    def __init__(self) -> None:
        self._places = {"": 0}

    def place(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    def fields(self) -> Iterator[bytes]:
        for text in self._places:
            yield message(_STRING, text.encode("utf-8", "replace"))


def write(source: Source, file: BinaryIO) -> None:
    """Write all stacks.

    Raises:
        CaptureFormat: the capture changed while it was read.
        OSError: the file cannot be written.
    """
    stacks = stacks_of(source)
    strings = _Strings()
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as out:
        for fields in (
            _about(source, stacks, strings),
            _samples(stacks, strings),
            _functions(source, stacks, strings),
            strings.fields(),
        ):
            for field in fields:
                out.write(field)


def _about(source: Source, stacks: Stacks, strings: _Strings) -> Iterator[bytes]:
    types = [("calls", "count")]
    if stacks.has_times:
        unit = "nanoseconds" if source.decoder.clock.known else "ticks"
        types.append(("time", unit))
    for what, unit in types:
        kind, unit_place = strings.place(what), strings.place(unit)
        yield message(_SAMPLE_TYPE, number(1, kind), number(2, unit_place))
    yield number(_DEFAULT_TYPE, strings.place(types[-1][0]))
    yield number(_TIME_NS, source.capture.meta.clock.realtime_ns)
    yield number(_DURATION_NS, source.decoder.clock.end_ns)
    if source.lost:
        yield number(_COMMENT, strings.place(f"{source.lost} events were lost"))


def _samples(stacks: Stacks, strings: _Strings) -> Iterator[bytes]:
    key = strings.place("thread")
    above: list[int] = []  # locations, outermost first
    label = b""
    for node, depth in stacks.preorder():
        if depth == 1:
            above.clear()
            name = stacks.frames[stacks.frame[node]]
            label = message(3, number(1, key), number(2, strings.place(name)))
        if depth < 2:
            continue
        above[depth - 2 :] = [stacks.frame[node] + 1]
        values = [stacks.calls[node], *([stacks.self_ns[node]] if stacks.has_times else [])]
        if any(values):
            yield message(_SAMPLE, packed(1, reversed(above)), packed(2, values), label)


def _functions(source: Source, stacks: Stacks, strings: _Strings) -> Iterator[bytes]:
    # A location, and a function, for every frame that occurs; a mapping for every module.
    sites = source.capture.meta.sites
    modules: dict[str, int] = {}
    tops = {stacks.frame[node] for node, depth in stacks.preorder() if depth < 2}
    for frame in sorted(set(stacks.frame) - tops):
        label = strings.place(stacks.frames[frame])
        module, address = "", 0
        if frame < len(sites):
            module, address = sites[frame].module, sites[frame].address
        mapping = modules.setdefault(module, len(modules) + 1)
        place, file = frame + 1, strings.place(module)
        yield message(
            _FUNCTION, number(1, place), number(2, label), number(3, label), number(4, file)
        )
        line = message(4, number(1, place))
        yield message(_LOCATION, number(1, place), number(2, mapping), number(3, address), line)
    for module, mapping in modules.items():
        name = number(5, strings.place(module))
        yield message(_MAPPING, number(1, mapping), name, number(7, 1), number(8, 1))
