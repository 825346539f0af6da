# SPDX-License-Identifier: Apache-2.0
"""Small captures made by hand, for the tests of everything that reads one."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke._capture_format import Block, BlockType
from textpoke.capture import CaptureWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from textpoke.packing import Packer

START_TSC = 3_000_000_000
START_NS = 12_345_000_000_000
SET, GET, INFLATE = 0x401005, 0x401105, 0x7F0000002005
UNKNOWN = 0x500000
packer: Packer | None = None
"""Packs the events of all captures that are written; None: they stay as they are."""
SITES = [
    [SET, "redis-server", "setCommand"],
    [GET, "redis-server", "getCommand"],
    [INFLATE, "libz.so.1", "inflate"],
]
NAMES = {100: "redis-server", 101: "bio"}


@dataclass
class Ring:
    """One EVENTS block to be: rows are (ticks since the start, address) or (..., type)."""

    rows: Sequence[tuple[int, ...]]
    tid: int = 100
    ring: int = 0
    lost: int = 0
    generation: int = 1
    sequence: int = 0


def pack_events(rows: Sequence[tuple[int, ...]]) -> bytes:
    """Events as the agent writes them; laps are there to be ignored."""
    words = []
    for index, (ticks, address, *kind) in enumerate(rows):
        word = address << 16 | (index & 0xFFF) << 4 | (kind[0] if kind else 1)
        words += [START_TSC + ticks & (1 << 64) - 1, word]
    return struct.pack(f"<{len(words)}Q", *words)


def clock(ticks: int = 0) -> dict[str, int]:
    """A clock point; three ticks are a nanosecond."""
    return {
        "tsc": START_TSC + ticks,
        "monotonic_ns": START_NS + ticks // 3,
        "realtime_ns": 1_700_000_000_000_000_000 + ticks // 3,
    }


def meta(**changes: object) -> dict[str, object]:
    return {
        "pid": 100,
        "exe": "/usr/bin/redis-server",
        "command": ["redis-server", "--port", "7777"],
        "tracer": "function",
        "mode": "drop",
        "clock": clock(),
        "target_start": 4711,
        "sites": SITES,
        "modules": [["redis-server", "/usr/bin/redis-server", 0]],
        "cpus": 2,
        "textpoke": "0.1.0",
        **changes,
    }


def end(ticks: int = 6_000_000_000, **changes: object) -> dict[str, object]:
    return {
        "clock": clock(ticks),
        "events": 0,
        "lost": 0,
        "lost_no_ring": 0,
        "reason": "duration",
        "on": {"syncs": 2},
        "off": {"syncs": 2},
        "hold_ns": 400_000,
        **changes,
    }


@dataclass
class Recipe:
    """What `write` puts into a capture; None leaves a block out."""

    rings: Sequence[Ring] = ()
    meta: dict[str, object] | None = field(default_factory=meta)
    threads: dict[int, str] | None = field(default_factory=lambda: dict(NAMES))
    clocks: Sequence[dict[str, int]] = ()
    end: dict[str, object] | None = field(default_factory=end)


def write(path: Path, recipe: Recipe) -> Path:
    with CaptureWriter(path) as writer:
        if recipe.meta is not None:
            writer.meta(recipe.meta)
        for ring in recipe.rings:
            os.write(writer.fd, events_block(ring))
        if recipe.threads is not None:
            writer.threads(recipe.threads)
        for point in recipe.clocks:
            writer.clock(point)
        if recipe.end is not None:
            writer.end(recipe.end)
    return path


def events_block(ring: Ring) -> bytes:
    payload, kind = pack_events(ring.rows), BlockType.EVENTS
    if packer is not None and ring.rows:
        payload = bytes(packer.pack(memoryview(payload), len(ring.rows)))
        kind = BlockType.PACKED
    header = Block(
        kind,
        offset=0,
        payload_bytes=len(payload),
        lost=ring.lost,
        tid=ring.tid,
        generation=ring.generation,
        sequence=ring.sequence,
        ring=ring.ring,
    ).header()
    return header + payload


SMALL = Recipe(
    rings=[
        Ring([(3_000, SET), (6_000, GET), (9_000, SET)]),
        Ring([(4_500, INFLATE)], tid=101, ring=1),
        Ring([(3_000_000_000, SET)], sequence=3),
    ],
)
"""Two threads, five events, one second and a bit."""


def data(owner_is_exit: bool, words: Sequence[int]) -> list[tuple[int, int, int]]:
    """Rows of the payload behind an ENTRY or EXIT."""
    return [
        (
            word - START_TSC,
            int(owner_is_exit) << 16 | len(words) << 8 | index,
            3,
        )
        for index, word in enumerate(words)
    ]
