# SPDX-License-Identifier: Apache-2.0
"""Fuzzers of captures, with every report made of them, and of what proc says."""

from __future__ import annotations

import functools
import json
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from mutate import mutate, text

from textpoke import proc
from textpoke._capture_format import (
    HEADER_BYTES,
    PACKED_HEADER,
    POKES_HEADER,
    WITH_EVENTS,
    Block,
    BlockType,
    fnv1a32,
)
from textpoke.calls import has_exits
from textpoke.capture import Capture
from textpoke.packing import Packer
from textpoke.payload import Field, Layout, layouts_json
from textpoke.poke import Poke, Request
from textpoke.report import pokes
from textpoke.report.counts import count
from textpoke.report.diff import diff_notes, diff_records, diff_table
from textpoke.report.difference import difference
from textpoke.report.edges import callees, callers, edge_records, edge_table
from textpoke.report.graph import GraphOptions, graph
from textpoke.report.html import html
from textpoke.report.measured import measured
from textpoke.report.names import escape
from textpoke.report.records import records, times_records
from textpoke.report.summary import pair_notes, summary
from textpoke.report.table import table, times_table
from textpoke.report.text import text as text_report
from textpoke.report.times import times
from textpoke.report.tree import call_tree, tree

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

import captures

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

Seed = tuple[bytes, list[tuple[int, int]]]
_MAGIC = struct.pack("<I", 0x4B425054)


def _graph_recipe() -> captures.Recipe:
    layouts = {
        captures.SET: Layout(
            (Field("key", "str:2"), Field("at", "caller")),
            (Field("ret", "enum:e:32"), Field("x", "f64")),
        ),
        captures.INFLATE: Layout((), (Field("took", "duration"),)),
    }
    rows = [
        (0, captures.SET, 1),
        *captures.data(False, [1, 2, 3]),
        (30, captures.GET, 1),
        (60, captures.GET, 2),
        (70, captures.INFLATE, 2),
        *captures.data(True, [20]),
        (90, captures.SET, 2),
        *captures.data(True, [1, 2]),
    ]
    meta = captures.meta(
        tracer="function_graph", layouts=layouts_json(layouts), enums={"e": {"1": "ONE"}}
    )
    return captures.Recipe([captures.Ring(rows), captures.Ring(rows, tid=101, ring=1)], meta=meta)


@functools.cache
def seeds() -> list[Seed]:
    """Small captures, each with the places of its block headers and events."""
    recipes = (
        captures.SMALL,
        captures.Recipe(meta=captures.meta(mode="overwrite", sites=[]), clocks=[captures.clock(9)]),
        captures.Recipe([captures.Ring([(5, captures.SET)], lost=3)], end=None),
        _graph_recipe(),
        _graph_recipe(),
    )
    return [seed(data) for recipe in recipes for data in written(recipe)]


def written(recipe: captures.Recipe) -> Iterator[bytes]:
    """The bytes of a capture, with its events as they are and packed, and with a batch's pokes."""
    rows = Request.of([Poke(captures.SET - 5, b"\x90" * 5, b"\xe8\x90\x90\x90\x90")]).data
    payload = POKES_HEADER.pack(captures.START_TSC, captures.START_TSC + 9, 1, 0)
    payload += zlib.compress(rows)
    block = Block(BlockType.POKES, 0, len(payload)).header() + payload
    with tempfile.TemporaryDirectory() as directory:
        for packer in (None, Packer()):
            with mock.patch.object(captures, "packer", packer):
                data = captures.write(Path(directory) / str(packer), recipe).read_bytes()
            yield data
        yield data.replace(_second_head(data), block + _second_head(data), 1)


def _second_head(data: bytes) -> bytes:
    at = heads(data)[1]
    return data[at : at + HEADER_BYTES]


def seed(data: bytes) -> Seed:
    """A capture with the places of its block headers and events."""
    hot = [(at, at + HEADER_BYTES) for at in heads(data)]
    return data, [*hot, *_events(data) * 6, (0, len(data))]


def _events(data: bytes) -> list[tuple[int, int]]:
    blocks = [at for at in heads(data) if data[at + 4] in (*WITH_EVENTS, BlockType.POKES)]
    sizes = [int.from_bytes(data[at + 8 : at + 16], "little") for at in blocks]
    return [(at, at + HEADER_BYTES + size) for at, size in zip(blocks, sizes, strict=True)]


def heads(data: bytes) -> list[int]:
    """Offsets of everything that has the magic of a block header."""
    found, at = [], data.find(_MAGIC)
    while at >= 0:
        found.append(at)
        at = data.find(_MAGIC, at + 1)
    return found


@functools.cache
def scratch() -> int:
    """A file in memory to hold a case."""
    return os.memfd_create("case", os.MFD_CLOEXEC)


def damaged(rng: random.Random, of: list[Seed]) -> bytes:
    """A damaged capture, mostly with the checks of its block headers made right again."""
    whole, hot = rng.choice(of)
    data = mutate(rng, whole, hot)
    if rng.random() < 0.3:
        data = _other_number(rng, data)
    if rng.random() < 0.8:
        for at in heads(data):
            if at + HEADER_BYTES <= len(data):
                check = fnv1a32(bytes(data[at : at + HEADER_BYTES - 4]))
                struct.pack_into("<I", data, at + HEADER_BYTES - 4, check)
                _sign_packed(data, at)
    return bytes(data)


def _sign_packed(data: bytearray, at: int) -> None:
    """What is packed has a check of its own."""
    size = int.from_bytes(data[at + 8 : at + 16], "little")
    start, end = at + HEADER_BYTES, at + HEADER_BYTES + size
    if data[at + 4] != BlockType.PACKED or size < PACKED_HEADER.size or end > len(data):
        return
    covered = bytes(data[start : start + 16] + data[start + PACKED_HEADER.size : end])
    covered += bytes(8 - len(covered) % 8)
    value = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", covered):
        value = (value ^ word) * 0x100000001B3 & (1 << 64) - 1
    struct.pack_into("<Q", data, start + 16, value)


def _other_number(rng: random.Random, data: bytearray) -> bytearray:
    # A digit of a JSON number, in its place: the lengths stay right.
    digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    for _ in range(min(rng.randrange(1, 8), len(digits))):
        data[rng.choice(digits)] = rng.choice(b'0123456789-.e"[{tn\\\x1b')
    return data


def open_capture(data: bytes) -> Capture:
    """The case as a capture, opened."""
    fd = scratch()
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    return Capture(f"/proc/self/fd/{fd}")


def fuzz_capture(rng: random.Random) -> None:
    """Open a damaged capture: every header and all JSON."""
    open_capture(damaged(rng, seeds())).close()


def fuzz_report(rng: random.Random) -> None:
    """Make every report of a damaged capture."""
    with open_capture(damaged(rng, seeds())) as capture:
        counts = count(capture)
        lines = summary(capture, counts)
        for by in ("function", "thread"):
            lines += table(capture, counts, by=by, limit=5)
        for line in lines:
            assert line.isprintable(), line
        json.dumps(records(capture, counts), allow_nan=False)
        for chunk in text_report(capture):
            assert chunk.replace("\n", "").isprintable()
        for line in pokes.lines(capture, limit=3):
            assert line.isprintable(), line
        json.dumps(pokes.records(capture), allow_nan=False)
        _report_calls(rng, capture)
        _report_more(rng, capture)


def _report_calls(rng: random.Random, capture: Capture) -> None:
    options = GraphOptions(
        depth=rng.choice([None, 1, 2]),
        threshold_ns=rng.choice([0, 0, 10]),
        below=rng.choice([None, frozenset([0])]),
        abstime=rng.random() < 0.5,
        flat=rng.random() < 0.3,
    )
    for chunk in graph(capture, options):
        assert chunk.replace("\n", "").isprintable()
    found = times(capture)
    lines = [*pair_notes(found), *times_table(capture, found, by="thread")]
    lines += tree(capture, call_tree(capture), known=found.known)
    for line in lines:
        assert line.isprintable(), line
    json.dumps(times_records(capture, count(capture), found), allow_nan=False)


def _report_more(rng: random.Random, capture: Capture) -> None:
    counts = count(capture)
    for find in (callers, callees):
        edges = find(capture, frozenset([rng.choice([0, 1])]))
        for line in edge_table(capture, edges, known=True):
            assert line.isprintable(), line
        json.dumps(edge_records(capture, edges), allow_nan=False)
    mine = measured(capture, counts)
    with open_capture(damaged(rng, seeds())) as other:
        found = difference(mine, measured(other, count(other)))
    for line in [*diff_notes(found), *diff_table(found)]:
        assert line.isprintable(), line
    json.dumps(diff_records(found), allow_nan=False)
    text = "".join(html(capture, counts, times(capture) if has_exits(capture) else None))
    assert text.replace("\n", "").isprintable()
    assert text.count("</script>") == 1


def fuzz_maps(rng: random.Random) -> None:
    """Paths with anything in them in proc/PID/maps, names with anything in status."""
    path = "/" + text(rng).replace("\0", "").replace("\\", "")
    raw = path.encode("utf-8", "surrogateescape") if _encodes(path) else b"/x"
    row = b"55550000-55551000 r-xp 00001000 fe:01 42" + b" " * rng.choice((1, 20))
    content = b"1000-2000 rw-p 00000000 00:00 0 \n" + row + raw.replace(b"\n", b"\\012") + b"\n"
    with (
        mock.patch.object(proc, "read_file", return_value=content),
        mock.patch.object(proc, "living_task", return_value=""),
    ):
        found = proc.read_maps(1)
    assert len(found) == 2
    assert found[1].path == os.fsdecode(raw)
    assert escape(found[1].path).isprintable()
    name = rng.randbytes(rng.randrange(16)).replace(b"\0", b"").replace(b"\n", b"\\n")
    status = b"Name:\t" + name + b"\nState:\tS (sleeping)\nTracerPid:\t7\nSigBlk:\t0010\n"
    with mock.patch.object(proc, "read_file", return_value=status):
        thread = proc.thread_of(1, proc.read_status(1))
    assert thread.tracer_pid == 7
    assert thread.sig_blocked == 0x10


def _encodes(path: str) -> bool:
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
