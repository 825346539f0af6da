# SPDX-License-Identifier: Apache-2.0
"""Drained events made by hand, for the tests of what stands between the rings and the capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from textpoke._capture_format import HEAD_BYTES, BlockType, parse_header
from textpoke.packing import Unpacker
from textpoke.streams import DATA, ENTRY, EXIT, RawBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

F, G, H, LOCK = 0x401005, 0x401105, 0x401205, 0x7F0000002005
NAMES = {F: "f", G: "g", H: "h", LOCK: "lock"}


def entry(tsc: int, address: int = F) -> tuple[int, int]:
    return tsc, address << 16 | ENTRY


def leave(tsc: int, address: int = F) -> tuple[int, int]:
    return tsc, address << 16 | EXIT


def data(payload: int, index: int = 0, count: int = 1) -> tuple[int, int]:
    return payload, (index | count << 8) << 16 | DATA


def block(rows: Sequence[tuple[int, int]], ring: int = 0, **fields: int) -> RawBlock:
    array = np.array(rows, np.uint64).reshape(-1, 2)
    return RawBlock(array, fields.pop("tid", 100 + ring), ring, **fields)


def times(blocks: Iterable[RawBlock]) -> list[int]:
    """First words, in the order of the blocks."""
    return [tsc for one in blocks for tsc in one.rows[:, 0].tolist()]


def read_blocks(data: bytes) -> list[RawBlock]:
    """The blocks of events of a capture, without what stands before them."""
    found, offset, unpacker = [], 0, Unpacker()
    while offset < len(data):
        head = parse_header(offset, data[offset : offset + HEAD_BYTES])
        assert not isinstance(head, str), head
        rows = np.zeros((head.events, 2), np.uint64)
        if head.type is BlockType.PACKED:
            unpacker.payload(head.payload_bytes)[:] = data[head.offset : head.end]
            room = rows.reshape(-1).view(np.uint8).data
            assert unpacker.unpack(head.payload_bytes, room, head.events)
        found.append(RawBlock(rows, head.tid, head.ring, head.generation, head.sequence, head.lost))
        offset = head.end
    return found
