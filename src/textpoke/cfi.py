# SPDX-License-Identifier: Apache-2.0
"""Call frame information: the rows that lead from an instruction to its caller, and their section.

Pure functions of bytes. Layouts and opcodes are from the DWARF standard, version 5, 6.4 and 7.24,
and the LSB core specification, 10.6. `cfi_read` reads what others have written.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RSP, RETURN_ADDRESS = 7, 16
"""DWARF's numbers of registers."""
WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Where a caller's frame is, at one instruction.

    Attributes:
        register: The CFA (canonical frame address: rsp before the CALL) is this register's value...
        offset: ...plus so many bytes.
        rules: Where registers of the caller are: number to ("offset", bytes from the CFA),
            ("val_offset", bytes), ("register", number), ("undefined", 0), ("same", 0) or
            ("expression", DWARF operations that give the address).
    """

    register: int = RSP
    offset: int = WORD_BYTES
    rules: Mapping[int, tuple[str, int | bytes]] = field(
        default_factory=lambda: {RETURN_ADDRESS: ("offset", -WORD_BYTES)}
    )

    def lowered(self, size: int) -> Row:
        """The row when rsp has gone down by `size` bytes."""
        moved = self.offset + size if self.register == RSP else self.offset
        return Row(self.register, moved, self.rules)


AT_ENTRY = Row()
"""The row at a function's first instruction, behind the CALL."""
Rows = tuple[tuple[int, Row], ...]
"""(address or offset, row that holds from there on), ascending; the first one opens it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry (FDE): code, and the rows of it; `start` is absolute, the rows count from it."""

    start: int
    size: int
    rows: Rows


def write_section(frames: Sequence[Frame]) -> bytes:
    """An .eh_frame section with absolute addresses, good wherever it lies."""
    common = bytes((1, *b"zR\0", 1, 0x78, RETURN_ADDRESS, 1, 0, 0x0C, RSP, WORD_BYTES, 0x90, 1))
    section = bytearray(_entry(0, common))
    for frame in frames:
        body = struct.pack("<QQB", frame.start, frame.size, 0) + _program(frame.rows)
        section += _entry(len(section) + 4, body)
    return bytes(section) + bytes(4)


def _entry(identity: int, body: bytes) -> bytes:
    body += bytes(-(len(body) + 8) % WORD_BYTES)  # 0 is the opcode of a NOP
    return struct.pack("<II", len(body) + 4, identity) + body


def _program(rows: Rows) -> bytes:
    """What leads from the first row of our common entry through `rows`."""
    program = bytearray()
    at, before = 0, AT_ENTRY
    for offset, row in rows:
        program += _steps(offset - at) + _changes(before, row)
        at, before = offset, row
    return bytes(program)


def _steps(distance: int) -> bytes:
    most = (1 << 32) - 1
    far = struct.pack("<BI", 0x04, most) * (distance // most)
    near = distance % most
    if near < 0x40:
        return far + (bytes((0x40 | near,)) if near else b"")
    return far + struct.pack("<BI", 0x04, near)


def _changes(old: Row, new: Row) -> bytes:
    program = bytearray()
    if (old.register, old.offset) != (new.register, new.offset):
        program += b"\x0c" + uleb(new.register) + uleb(new.offset)
    for register in sorted(old.rules.keys() - new.rules.keys()):
        program += b"\x06" + uleb(register)
    for register, (kind, value) in sorted(new.rules.items()):
        if old.rules.get(register) != (kind, value):
            program += _rule(register, kind, value)
    return bytes(program)


def _rule(register: int, kind: str, value: int | bytes) -> bytes:
    number = uleb(register)
    if isinstance(value, bytes):
        return b"\x10" + number + uleb(len(value)) + value
    factor = value // -WORD_BYTES
    codes = {
        "val_offset": (b"\x15", sleb(factor)),
        "register": (b"\x09", uleb(max(value, 0))),
        "same": (b"\x08", b""),
        "offset": (b"\x05", uleb(factor)) if factor >= 0 else (b"\x11", sleb(factor)),
    }
    code, operand = codes.get(kind, (b"\x07", b""))
    return code + number + operand


def uleb(value: int) -> bytes:
    """An unsigned number in LEB128."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def sleb(value: int) -> bytes:
    """A signed number in LEB128."""
    encoded = bytearray()
    while not -0x40 <= value < 0x40:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value & 0x7F))
