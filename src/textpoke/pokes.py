# SPDX-License-Identifier: Apache-2.0
"""What a capture tells of the target's code: every poke of it, batch by batch."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._capture_format import POKES_FAILED, POKES_HEADER
from textpoke._errors import CaptureFormat
from textpoke.poke import RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke._capture_format import Block
    from textpoke.capture import Capture

_MOST_POKES = 1 << 22
_LONGEST = 15


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes of the target's code that gave way to others.

    Attributes:
        address: Where.
        old: What was there; b"" where nobody looked.
        new: What came.
    """

    address: int
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch.

    Attributes:
        from_tsc: Ticks before its first byte was written.
        to_tsc: Ticks behind its last one.
        failed: It was given up on the way: some of its pokes may have been written, or none.
        pokes: What was written.
    """

    from_tsc: int
    to_tsc: int
    failed: bool
    pokes: list[Written]


def read(capture: Capture) -> Iterator[Batch]:
    """The batches of a capture in their order.

    Raises:
        CaptureFormat: one is damaged.
    """
    for block in capture.pokes:
        data = bytearray(block.payload_bytes)
        capture.read_into(block.offset, memoryview(data))
        try:
            yield _batch(bytes(data))
        except (ValueError, zlib.error) as exc:
            text = f"a damaged block of pokes ({exc})"
            raise CaptureFormat(capture.path, block.offset, text) from None


def count(capture: Capture) -> int:
    """How many pokes there are, without a look at each.

    Raises:
        CaptureFormat: a block is too short.
    """
    return sum(_head(capture, block) for block in capture.pokes)


def _head(capture: Capture, block: Block) -> int:
    if block.payload_bytes < POKES_HEADER.size:
        raise CaptureFormat(capture.path, block.offset, "a damaged block of pokes (no header)")
    data = bytearray(POKES_HEADER.size)
    capture.read_into(block.offset, memoryview(data))
    return int(POKES_HEADER.unpack(data)[2])


def _batch(data: bytes) -> Batch:
    if len(data) < POKES_HEADER.size:
        raise ValueError("no header")
    from_tsc, to_tsc, number, bits = POKES_HEADER.unpack_from(data)
    if number > _MOST_POKES or bits & ~POKES_FAILED:
        raise ValueError(f"{number} pokes, bits {bits:#x}")
    size = number * RECORD.size
    unpacker = zlib.decompressobj()
    rows = unpacker.decompress(data[POKES_HEADER.size :], size + 1)
    if len(rows) != size or not unpacker.eof:
        raise ValueError(f"{len(rows)} bytes for {number} pokes")
    return Batch(from_tsc, to_tsc, bool(bits), [_written(row) for row in RECORD.iter_unpack(rows)])


def _written(row: tuple[int, int, int, int, int, int, int, int, bytes, bytes]) -> Written:
    address, length, old, new = row[0], row[4], row[8], row[9]
    if length > _LONGEST:
        raise ValueError(f"{length} bytes at {address:#x}")
    no_old = row[5] & 1
    return Written(address, b"" if no_old else old[:length], new[:length])
