# SPDX-License-Identifier: Apache-2.0
"""The bytes of a capture file: file header, block headers and their checks; no JSON, no events."""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_MAGIC = b"TPTRACE\n"
FILE_VERSION = 2
READABLE_VERSIONS = (1, 2)
FILE_HEADER = struct.Struct("<8sII")
FILE_HEADER_BYTES = FILE_HEADER.size
EVENT_BYTES = 16
BLOCK_MAGIC = 0x4B425054  # "TPBK"
HEADER_BYTES = 48
PACKED_HEADER = struct.Struct("<IHHQQ")
"""Before packed events: how many, how many of them are a rest, 0, ticks of the first, a check."""
MOST_PACKED_EVENTS = 16384

POKES_HEADER = struct.Struct("<QQII")
"""Before a batch's pokes: ticks before it and behind it, how many, and bits: 1 = it failed."""
POKES_FAILED = 1

_HEADER = struct.Struct("<IIQQIIQI")
_CHECK = struct.Struct("<I")
_HASHED_BYTES = _HEADER.size
_FNV_BASIS = 0x811C9DC5
_FNV_PRIME = 0x01000193
_MAX_PAYLOAD_BYTES = 1 << 40
"""More than that in one block is garbage, not a capture that was cut off."""
_MAX_PACKED_BYTES = PACKED_HEADER.size + 17 * MOST_PACKED_EVENTS
_MAX_POKES_BYTES = 1 << 28
"""More than four million pokes take, packed."""
_MAX_JSON_BYTES = 64 << 20
"""Room for a million sites; parsed JSON takes up to twenty times its size in memory."""


class BlockType(enum.IntEnum):
    """What a block's payload is."""

    META = 1
    EVENTS = 2
    THREADS = 3
    END = 4
    CLOCK = 5
    SITES = 6
    PACKED = 7
    POKES = 8


WITH_EVENTS = (BlockType.EVENTS, BlockType.PACKED)
HEAD_BYTES = HEADER_BYTES + PACKED_HEADER.size
_MOST_BYTES = {
    BlockType.EVENTS: _MAX_PAYLOAD_BYTES,
    BlockType.PACKED: _MAX_PACKED_BYTES,
    BlockType.POKES: _MAX_POKES_BYTES,
}

KEPT = "kept"
"""META's mode of a capture that holds stretches of time: what is between them is not lost."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a capture; the payload stays in the file.

    Attributes:
        type: What the payload is.
        offset: File offset of the payload, in bytes.
        payload_bytes: Its length.
        lost: Events lost in this ring since the ring's block before this one: newer than this
            block's events in mode "drop", older in mode "overwrite".
        tid: Thread that wrote the ring.
        generation: Of the ring: it grows when a ring passes to another thread.
        sequence: Index in its ring of the block's first event.
        ring: Number of the ring.
        events: How many events it holds.
        rest: Of PACKED: how many DATA it begins with, of an event in the ring's block before.
        first_tsc: Of PACKED: ticks of the first event behind those.
    """

    type: BlockType
    offset: int
    payload_bytes: int
    lost: int = 0
    tid: int = 0
    generation: int = 0
    sequence: int = 0
    ring: int = 0
    events: int = 0
    rest: int = 0
    first_tsc: int = 0

    @property
    def end(self) -> int:
        """File offset of the first byte after the payload."""
        return self.offset + self.payload_bytes

    def header(self) -> bytes:
        """The 48 bytes that stand before the payload in the file."""
        head = _HEADER.pack(
            BLOCK_MAGIC,
            self.type,
            self.payload_bytes,
            self.lost,
            self.tid,
            self.generation,
            self.sequence,
            self.ring,
        )
        return head + _CHECK.pack(fnv1a32(head))


def fnv1a32(data: bytes) -> int:
    """The 32-bit FNV-1a hash of `data` (Fowler, Noll, Vo), the check of a block header."""
    value = _FNV_BASIS
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def parse_header(offset: int, head: bytes) -> Block | str:
    """A block from the bytes at a file offset, or what is wrong (magic and check aside).

    Args:
        offset: Where they are.
        head: A block's header, and of PACKED what its payload begins with.
    """
    _, number, payload_bytes, lost, tid, generation, sequence, ring = _HEADER.unpack_from(head)
    if number not in BlockType.__members__.values():
        return f"a block of unknown type {number}"
    kind = BlockType(number)
    if payload_bytes > _MOST_BYTES.get(kind, _MAX_JSON_BYTES):
        return f"an impossible length of {payload_bytes} bytes for a block of {kind.name}"
    if kind is BlockType.EVENTS and payload_bytes % EVENT_BYTES:
        return f"{payload_bytes} bytes are not a whole number of events"
    events, rest, first_tsc = payload_bytes // EVENT_BYTES, 0, 0
    if kind is BlockType.PACKED:
        if payload_bytes < PACKED_HEADER.size:
            return f"a length of {payload_bytes} bytes for a block of PACKED"
        if len(head) < HEAD_BYTES:  # the file ends there
            events = 0
        else:
            events, rest, zero, first_tsc, _ = PACKED_HEADER.unpack_from(head, HEADER_BYTES)
            if not (events and rest <= events <= MOST_PACKED_EVENTS) or zero:
                return f"a damaged header of packed events ({events}, {rest}, {zero})"
    start = offset + HEADER_BYTES
    return Block(
        *(kind, start, payload_bytes, lost, tid, generation, sequence, ring),
        *(events if kind in WITH_EVENTS else 0, rest, first_tsc),
    )


@dataclass(slots=True)
class Scan:
    """What a walk along the block headers of a file found.

    Attributes:
        blocks: All whole blocks, in file order.
        heads: Offset and bytes of everything with the magic of a block header.
        problem: Offset and text of the damage that ended the walk, if any.
        cut_off: Where the file stops in the middle of a block, if it does.
    """

    blocks: list[Block]
    heads: list[tuple[int, bytes]]
    problem: tuple[int, str] | None = None
    cut_off: str | None = None

    @property
    def whole_bytes(self) -> int:
        """File offset after the last whole block."""
        return self.blocks[-1].end if self.blocks else FILE_HEADER_BYTES


def scan(fd: int, size: int) -> Scan:
    """Walk along the blocks of an open file of `size` bytes; reads headers only."""
    found = Scan([], [])
    for offset, head in _heads(fd, size):
        if len(head) < HEADER_BYTES:
            found.cut_off = f"cut off within a block header at byte {offset}"
            break
        if int.from_bytes(head[:4], "little") != BLOCK_MAGIC:
            found.problem = (offset, f"no block starts here (found {head[:4]!r})")
            break
        found.heads.append((offset, head[:HEADER_BYTES]))
        block = parse_header(offset, head)
        if isinstance(block, str):
            found.problem = (offset, block)
            break
        if block.end > size:
            found.cut_off = f"cut off within a block at byte {offset}"
            break
        found.blocks.append(block)
    return found


def _heads(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    # The caller stops at the first header that it does not like, so lengths here are checked.
    offset = FILE_HEADER_BYTES
    while offset < size:
        head = os.pread(fd, HEAD_BYTES, offset)
        yield offset, head
        offset += HEADER_BYTES + int.from_bytes(head[8:16], "little")


def first_bad_check(heads: list[tuple[int, bytes]]) -> tuple[int, str] | None:
    """Offset and text for the first header whose check is wrong; all are hashed side by side."""
    import numpy as np  # costs 100 ms, and writing a capture does not need it

    table = np.frombuffer(b"".join(head for _, head in heads), np.uint8)
    table = table.reshape(-1, HEADER_BYTES)
    value = np.full(len(table), _FNV_BASIS, np.uint32)
    for column in range(_HASHED_BYTES):
        value = (value ^ table[:, column]) * np.uint32(_FNV_PRIME)
    stored = table[:, _HASHED_BYTES:].copy().view("<u4")[:, 0]
    wrong = np.flatnonzero(stored != value)
    if not len(wrong):
        return None
    first = int(wrong[0])
    text = f"check {int(stored[first]):#010x}, expected {int(value[first]):#010x}"
    return heads[first][0], f"a damaged block header ({text})"
