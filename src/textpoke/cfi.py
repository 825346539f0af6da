# SPDX-License-Identifier: Apache-2.0
"""Call frame information: read the program of an entry of .eh_frame, and write entries of our own.

Pure functions of bytes. Layouts and opcodes are from the DWARF standard, version 5, 6.4 and 7.24,
and the LSB core specification, 10.6. What is read may be a stranger's: an entry that is damaged, or
that says what we cannot say again at another place, is "odd" and gives nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RSP, RETURN_ADDRESS = 7, 16
"""DWARF's numbers of registers."""
_WORD = 8
_MOST_REMEMBERED = 16
_MOST_LEB_BYTES = 10
_PCREL, _DATAREL_MASK = 0x10, 0xF0
_POINTER = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


class OddError(ValueError):
    """An entry that is damaged, or that we cannot say again."""


@dataclass(frozen=True, slots=True)
class Row:
    """Where a caller's frame is, at one instruction.

    Attributes:
        register: The CFA (canonical frame address: rsp before the CALL) is this register's value...
        offset: ...plus so many bytes.
        rules: Where registers of the caller are: number to ("offset", bytes from the CFA),
            ("val_offset", bytes), ("register", number), ("undefined", 0) or ("same", 0).
    """

    register: int = RSP
    offset: int = _WORD
    rules: Mapping[int, tuple[str, int]] = field(
        default_factory=lambda: {RETURN_ADDRESS: ("offset", -_WORD)}
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


class _Reader:
    """Takes numbers off bytes; raises OddError at their end."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise OddError
        self.at += 1
        return self.data[self.at - 1]

    def number(self, layout: str) -> int:
        size = struct.calcsize(layout)
        if self.at + size > len(self.data):
            raise OddError
        self.at += size
        return int(struct.unpack_from(layout, self.data, self.at - size)[0])

    def uleb(self) -> int:
        value, _, _ = self._leb()
        return value

    def sleb(self) -> int:
        value, bits, negative = self._leb()
        return value - (1 << bits) if negative else value

    def _leb(self) -> tuple[int, int, bool]:
        value = 0
        for count in range(_MOST_LEB_BYTES):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * count
            if not byte & 0x80:
                return value, 7 * (count + 1), bool(byte & 0x40)
        raise OddError

    def text(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise OddError
        start, self.at = self.at, end + 1
        return self.data[start:end]


@dataclass(frozen=True, slots=True)
class Common:
    """A common entry (CIE): what many entries share."""

    code_align: int
    data_align: int
    encoding: int  # of the addresses in its entries
    augmented: bool
    program: bytes


def read_common(body: bytes) -> Common:
    """The CIE whose bytes behind length and id are `body`.

    Raises OddError for signal frames, and for what compilers for x86-64 do not write.
    """
    reader = _Reader(body)
    version = reader.byte()
    letters = reader.text()
    if version not in (1, 3) or (letters and letters[:1] != b"z"):
        raise OddError
    code_align, data_align = reader.uleb(), reader.sleb()
    if (reader.byte() if version == 1 else reader.uleb()) != RETURN_ADDRESS:
        raise OddError
    encoding = 0
    if letters:
        encoding = _read_augmentation(reader, letters[1:])
    return Common(code_align, data_align, encoding, bool(letters), body[reader.at :])


def _read_augmentation(reader: _Reader, letters: bytes) -> int:
    size = reader.uleb()
    end = reader.at + size
    if end > len(reader.data):
        raise OddError
    encoding = 0
    for letter in letters:
        if letter == ord("R"):
            encoding = reader.byte()
        elif letter == ord("L"):
            reader.byte()
        elif letter == ord("P"):
            reader.number(_layout(reader.byte()))
        else:  # "S": a signal's frame; others: nobody knows
            raise OddError
    reader.at = end
    return encoding


def _layout(encoding: int) -> str:
    layout = _POINTER.get(encoding & 0x0F)
    if layout is None:
        raise OddError
    return layout


def read_entry(body: bytes, vaddr: int, common: Common) -> tuple[int, int, bytes]:
    """Address, size and program of the FDE whose bytes behind length and id are `body`, at `vaddr`.

    Raises OddError.
    """
    reader = _Reader(body)
    base = {0: 0, _PCREL: vaddr}.get(common.encoding & _DATAREL_MASK)
    if base is None:
        raise OddError
    start = reader.number(_layout(common.encoding)) + base
    size = reader.number(_layout(common.encoding & 0x07))
    if common.augmented:
        skip = reader.uleb()  # where the function's landing pads are listed
        reader.at += skip
        if reader.at > len(body):
            raise OddError
    return start & (1 << 64) - 1, size, body[reader.at :]


def run(common: Common, program: bytes, start: int, end: int) -> Rows:
    """Rows at the addresses of [start, end] of a function that begins at `start`.

    Raises OddError where a rule is an expression, or no compiler's.
    """
    machine = _Machine(common, start)
    machine.run(common.program, end)
    machine.initial = dict(machine.rules)
    machine.run(program, end)
    machine.note()
    return tuple(machine.rows)


class _Machine:
    """Runs call frame instructions; `rows` has what held where, once the location has moved on."""

    def __init__(self, common: Common, start: int) -> None:
        self.common = common
        self.location = start
        self.register = -1
        self.offset = 0
        self.rules: dict[int, tuple[str, int]] = {}
        self.initial: dict[int, tuple[str, int]] = {}
        self.remembered: list[tuple[int, int, dict[int, tuple[str, int]]]] = []
        self.rows: list[tuple[int, Row]] = []

    def note(self) -> None:
        """Keep the row that is done."""
        if self.register < 0 or self.offset < 0 or RETURN_ADDRESS not in self.rules:
            raise OddError
        row = Row(self.register, self.offset, dict(self.rules))
        if self.rows and self.rows[-1][0] == self.location:
            self.rows.pop()
        if not self.rows or self.rows[-1][1] != row:
            self.rows.append((self.location, row))

    def run(self, program: bytes, end: int) -> None:
        """Run a program until the location is behind `end`."""
        reader = _Reader(program)
        while reader.more:
            opcode = reader.byte()
            step = self._advance(opcode, reader)
            if step is None:
                self._define(opcode, reader)
            elif step:
                self.note()
                if self.location + step > end:
                    break
                self.location += step

    def _advance(self, opcode: int, reader: _Reader) -> int | None:
        if opcode & 0xC0 == 0x40:
            return (opcode & 0x3F) * self.common.code_align
        layout = {0x02: "<B", 0x03: "<H", 0x04: "<I"}.get(opcode)
        return None if layout is None else reader.number(layout) * self.common.code_align

    def _define(self, opcode: int, reader: _Reader) -> None:
        align = self.common.data_align
        if opcode & 0xC0 == 0x80:
            self._set(opcode & 0x3F, "offset", reader.uleb() * align)
        elif opcode & 0xC0 == 0xC0:
            self._restore(opcode & 0x3F)
        elif opcode in (0x05, 0x11):  # offset_extended, .._sf
            register = reader.uleb()
            factor = reader.uleb() if opcode == 0x05 else reader.sleb()
            self._set(register, "offset", factor * align)
        elif opcode in (0x14, 0x15):  # val_offset, .._sf
            register = reader.uleb()
            factor = reader.uleb() if opcode == 0x14 else reader.sleb()
            self._set(register, "val_offset", factor * align)
        elif opcode == 0x06:
            self._restore(reader.uleb())
        elif opcode == 0x07:
            self._set(reader.uleb(), "undefined", 0)
        elif opcode == 0x08:
            self._set(reader.uleb(), "same", 0)
        elif opcode == 0x09:
            self._set(reader.uleb(), "register", reader.uleb())
        else:
            self._define_cfa(opcode, reader)

    def _define_cfa(self, opcode: int, reader: _Reader) -> None:
        align = self.common.data_align
        if opcode in (0x0C, 0x12):  # def_cfa, .._sf
            self.register = reader.uleb()
            self.offset = reader.uleb() if opcode == 0x0C else reader.sleb() * align
        elif opcode == 0x0D:
            self.register = reader.uleb()
        elif opcode == 0x0E:
            self.offset = reader.uleb()
        elif opcode == 0x13:
            self.offset = reader.sleb() * align
        elif opcode == 0x0A and len(self.remembered) < _MOST_REMEMBERED:
            self.remembered.append((self.register, self.offset, dict(self.rules)))
        elif opcode == 0x0B and self.remembered:
            self.register, self.offset, self.rules = self.remembered.pop()
        elif opcode == 0x2E:  # GNU_args_size: for landing pads only
            reader.uleb()
        elif opcode:  # expressions, and what nobody knows
            raise OddError

    def _set(self, register: int, kind: str, value: int) -> None:
        if kind.endswith("offset") and value % _WORD:
            raise OddError
        self.rules[register] = kind, value

    def _restore(self, register: int) -> None:
        if register in self.initial:
            self.rules[register] = self.initial[register]
        else:
            self.rules.pop(register, None)


def write_section(frames: Sequence[Frame]) -> bytes:
    """An .eh_frame section with absolute addresses, good wherever it lies."""
    common = bytes((1, *b"zR\0", 1, 0x78, RETURN_ADDRESS, 1, 0, 0x0C, RSP, _WORD, 0x90, 1))
    section = bytearray(_entry(0, common))
    for frame in frames:
        body = struct.pack("<QQB", frame.start, frame.size, 0) + _program(frame.rows)
        section += _entry(len(section) + 4, body)
    return bytes(section) + bytes(4)


def _entry(identity: int, body: bytes) -> bytes:
    body += bytes(-(len(body) + 8) % _WORD)  # 0 is the opcode of a NOP
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
    if distance == 0:
        return b""
    if distance < 0x40:
        return bytes((0x40 | distance,))
    return struct.pack("<BI", 0x04, distance)


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


def _rule(register: int, kind: str, value: int) -> bytes:
    number = uleb(register)
    factor = value // -_WORD
    match kind:
        case "offset" if factor >= 0:
            return b"\x05" + number + uleb(factor)
        case "offset":
            return b"\x11" + number + sleb(factor)
        case "val_offset":
            return b"\x15" + number + sleb(factor)
        case "register":
            return b"\x09" + number + uleb(value)
        case "same":
            return b"\x08" + number
        case _:
            return b"\x07" + number


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
