# SPDX-License-Identifier: Apache-2.0
"""A flame graph as one HTML file that needs nothing else: no network, no library.

The page is `flamegraph.html` beside this file; the data stand in it as JSON.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from textpoke.export.stacks import Stacks, stacks_of

if TYPE_CHECKING:
    from typing import BinaryIO

    from textpoke.export.source import Source

_DATA = "{{DATA}}"
_TITLE = "{{TITLE}}"


def write(source: Source, file: BinaryIO) -> None:
    """Write the flame graph of a capture.

    Raises:
        CaptureFormat: the capture changed while it was read.
        OSError: the file cannot be written.
    """
    _write(_data(source, stacks_of(source)), file)


def write_difference(source: Source, other: Source, file: BinaryIO) -> None:
    """Write the flame graph of a capture, with what changed since another one.

    Raises:
        CaptureFormat: a capture changed while it was read.
        OSError: the file cannot be written.
    """
    stacks, before = stacks_of(source), stacks_of(other)
    has_times = stacks.has_times and before.has_times
    stacks.has_times = before.has_times = has_times
    calls, weights = joined(stacks, before)
    data = _data(source, stacks)
    order = [node for node, _ in stacks.preorder()]
    data["before"] = {
        "capture": os.path.basename(other.capture.path),
        "lost": other.lost,
        "calls": [calls[node] for node in order],
        "weight": [weights[node] for node in order],
    }
    _write(data, file)


def joined(stacks: Stacks, other: Stacks) -> tuple[list[int], list[int]]:
    """Calls and weights of another tree by the nodes of this one, which gets what it lacks."""
    frames: dict[str, int] = {}
    for number, label in enumerate(stacks.frames):
        frames.setdefault(label, number)
    first = [stacks.frame[0], *(frames[stacks.frames[f]] for f in stacks.frame[1:])]
    # Functions of one name are one here, as they are to who looks at both.
    index = {key: node for node, key in enumerate(zip(stacks.parent, first, strict=True))}
    place = [0]
    for node in range(1, len(other)):
        label = other.frames[other.frame[node]]
        frame = frames.get(label)
        if frame is None:
            frame = frames[label] = stacks.extra_frame(label)
        key = (place[other.parent[node]], frame)
        if key not in index:
            index[key] = stacks.node(*key)
        place.append(index[key])
    calls, weights = [0] * len(stacks), [0] * len(stacks)
    for node, target in enumerate(place):
        calls[target] += other.calls[node]
        weights[target] += other.weights[node]
    return calls, weights


def _data(source: Source, stacks: Stacks) -> dict[str, object]:
    # Nodes in preorder with their depth are a tree; names are numbers.
    order = list(stacks.preorder())
    frames = sorted({stacks.frame[node] for node, depth in order if depth})
    number = {frame: i for i, frame in enumerate(frames)}
    meta = source.capture.meta
    return {
        "version": 1,
        "program": source.program,
        "pid": meta.pid,
        "capture": os.path.basename(source.capture.path),
        "tracer": meta.tracer,
        "unit": _unit(source, stacks),
        "lost": source.lost,
        "names": [stacks.frames[frame] for frame in frames],
        "depth": [depth for _, depth in order],
        "name": [number.get(stacks.frame[node], -1) for node, _ in order],
        "calls": [stacks.calls[node] for node, _ in order],
        "weight": [stacks.weights[node] for node, _ in order],
    }


def _unit(source: Source, stacks: Stacks) -> str:
    if not stacks.has_times:
        return "calls"
    return "ns" if source.decoder.clock.known else "ticks"


def _write(data: dict[str, object], file: BinaryIO) -> None:
    directory = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(directory, "flamegraph.html"), encoding="utf-8") as template:
        page = template.read()
    # Names are anybody's: nothing of them may end the element that they stand in.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    title = f"{data['program']} ({data['pid']}), {data['capture']}"
    for char, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot")):
        title = title.replace(char, f"&{name};")
    file.write(page.replace(_TITLE, title).replace(_DATA, text).encode("utf-8", "replace"))
