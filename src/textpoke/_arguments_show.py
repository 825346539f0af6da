# SPDX-License-Identifier: Apache-2.0
"""How an operand is captured and shown.

That takes one struct tp_capture_op (native/include/wire.h), and the kind that tells readers what
its words hold (docs/formats.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from textpoke._arguments_parse import (
    DEFAULT_STRING_BYTES,
    FLOAT_FORMATS,
    INTEGER_FORMATS,
    MOST_STRING_BYTES,
)
from textpoke._arguments_value import WORD, At, In, Operand, choice_of
from textpoke._native import lib
from textpoke.dwarf_types import Kind, Type, find_member

if TYPE_CHECKING:
    from textpoke._arguments_parse import Format, Value
    from textpoke._arguments_value import Scope

_OP = struct.Struct("<8BHH5i")
_SIZES = (1, 2, 4, 8)
_STRING_DATA = ("_M_dataplus", "_M_p")
"""Where libstdc++'s basic_string has its pointer."""
_LETTERS = {"x": "ptr", "p": "ptr", "c": "char", "b": "bool"}
_CALLER = At(lib.TP_CAPTURE_CALLER, 0, address=True)
_ONE_VALUE = frozenset(
    (Kind.INTEGER, Kind.BOOL, Kind.CHAR, Kind.FLOAT, Kind.POINTER, Kind.ENUM, Kind.ARRAY)
)


@dataclass(frozen=True, slots=True)
class Field:
    """One captured value: its name and kind in a layout, its operation, its enumeration."""

    name: str
    kind: str
    op: bytes
    words: int = 1
    labels: Type | None = None


def field_of(scope: Scope, value: Value) -> Field:
    """What captures a value.

    Raises:
        ArgumentSpec: It cannot be captured at this function.
        BadElf: The DWARF makes no sense.
    """
    operand = scope.operand(value.expression, value.format)
    return shown(scope, operand, value.text, value.format, value.column)


def shown(scope: Scope, of: Operand, name: str, fmt: Format | None, column: int) -> Field:
    """The field that shows an operand."""
    if of.place == _CALLER and fmt is None:
        return Field(name, "caller", _op(scope, of, 64, column))
    if fmt is None:
        return _by_type(scope, of, name, column)
    if fmt.name == "s":
        return _string(scope, of, name, fmt.bytes, fmt.column)
    return _cast(scope, of, name, fmt)


def _by_type(scope: Scope, of: Operand, name: str, column: int) -> Field:
    kind = of.type.kind
    if of.typed and _is_text(of):
        return _string(scope, of, name, DEFAULT_STRING_BYTES, column)
    if kind is Kind.ARRAY and isinstance(of.place, At):
        of = replace(of, place=replace(of.place, address=True))
    elif of.typed and kind is not Kind.POINTER:
        shown_as = _scalar(of.type)
        if not shown_as:
            _refuse(scope, of, column)
        signed = of.type.signed and kind is not Kind.CHAR
        op = _op(scope, of, 8 * of.type.size, column, signed=signed)
        return Field(name, shown_as, op, labels=of.type if kind is Kind.ENUM else None)
    return Field(name, "ptr", _op(scope, of, 64, column))


def _scalar(kind: Type) -> str:
    """The kind of field that shows a type, "" for none; of an enumeration without its name."""
    bits = 8 * kind.size
    if kind.size not in _SIZES or (kind.kind is Kind.FLOAT and bits < 32):
        return ""
    integer = f"{'i' if kind.signed else 'u'}{bits}"
    kinds = {
        Kind.INTEGER: integer,
        Kind.BOOL: "bool",
        Kind.CHAR: "char",
        Kind.FLOAT: f"f{bits}",
        Kind.ENUM: f"enum::{bits}",
    }
    return kinds.get(kind.kind, "")


def _refuse(scope: Scope, of: Operand, column: int) -> NoReturn:
    if of.type.kind is Kind.RECORD:
        scope.fail(column, f"{of.type} is no single value: name a member{choice_of(of.type)}")
    size = f" of {of.type.size} bytes" if of.type.size else ""
    scope.fail(column, f"{of.type}{size} cannot be shown")


def _cast(scope: Scope, of: Operand, name: str, fmt: Format) -> Field:
    kind, column = of.type.kind, fmt.column
    if of.typed and kind not in _ONE_VALUE:
        scope.fail(column, f"{of.type} has no single value to cast")
    if kind is Kind.ARRAY:
        if not isinstance(of.place, At):
            scope.fail(column, "an array in registers: name an element")
        of = Operand(WORD, replace(of.place, address=True))
    whole = 8 * min(of.type.size, 8)
    if fmt.name in FLOAT_FORMATS:
        bits = int(fmt.name[1:])
        if of.typed and whole != bits:
            scope.fail(column, f"{of.type} has {whole} bits")
        return Field(name, fmt.name, _op(scope, of, bits, column))
    if fmt.name in _LETTERS:
        bits = 8 if fmt.name == "c" else whole
        return Field(name, _LETTERS[fmt.name], _op(scope, of, bits, column))
    signed, bits = fmt.name == "d", whole if whole // 8 in _SIZES else 64
    signed, bits = INTEGER_FORMATS.get(fmt.name, (signed, bits))
    # What becomes wider keeps the sign of its type, a narrower one takes the format's.
    wider = bits > (of.bits or whole)
    op = _op(scope, of, bits, column, signed=of.type.signed if wider else signed)
    return Field(name, f"{'i' if signed else 'u'}{bits}", op)


def _string(scope: Scope, of: Operand, name: str, most: int, column: int) -> Field:
    kind = of.type.kind
    if of.typed and kind is Kind.RECORD and _is_string(of.type):
        for part in _STRING_DATA:
            of = scope.member(of, part, column)
        kind = of.type.kind
    if kind is Kind.ARRAY and isinstance(of.place, At) and not of.place.address:
        place = of.place
        most = min(most, of.type.size or most)
    elif (
        not of.typed
        or kind is Kind.POINTER
        or (kind is Kind.INTEGER and of.type.size == 8 and not of.bits)
    ):
        place = scope.followed(of, column)
    else:
        scope.fail(column, f"{of.type} is no address of a string")
    most = min(most, MOST_STRING_BYTES)
    words = -(-most // 8)
    op = _packed(place, lib.TP_CAPTURE_STRING, size=0, shift=0, width=0, most=most)
    return Field(name, f"str:{words}", op, words)


def _op(scope: Scope, of: Operand, wanted: int, column: int, *, signed: bool = False) -> bytes:
    """The operation for the lowest `wanted` bits of a value, or for all that it has."""
    size = of.type.size if of.typed and of.type.size in _SIZES else 8
    width = min(of.bits or 8 * size, wanted)
    if not of.typed:
        size = max(wanted // 8, 1)
    shift, place = of.bit, of.place
    if isinstance(place, In):
        piece = scope.piece(place, column)
        shift += 8 * (place.byte % 8)
        if shift + width > 64:
            scope.fail(column, "it is split between registers")
        return _packed(At(*piece), lib.TP_CAPTURE_VALUE, size, shift, width, signed=signed)
    if place.address:
        return _packed(place, lib.TP_CAPTURE_VALUE, 8, 0, width, signed=signed)
    if of.bits:  # the bytes that hold them, not the ones around
        needed = (shift + width + 7) // 8
        size = next((s for s in _SIZES if s >= needed), 0)
        if not size:
            scope.fail(column, "a bit-field across nine bytes")
    return _packed(place, lib.TP_CAPTURE_LOAD, size, shift, width, signed=signed)


def _packed(
    place: At,
    what: int,
    size: int,
    shift: int,
    width: int,
    *,
    most: int = 0,
    signed: bool = False,
) -> bytes:
    offsets = [*place.loads, place.offset]
    offsets += [0] * (lib.TP_CAPTURE_MOST_LOADS + 1 - len(offsets))
    flags = lib.TP_CAPTURE_SIGNED if signed else 0
    loads = len(place.loads)
    return _OP.pack(
        place.source, place.number, loads, what, size, shift, width, flags, most, 0, *offsets
    )


def _is_text(of: Operand) -> bool:
    kind = of.type.kind
    if kind is Kind.POINTER or (kind is Kind.ARRAY and isinstance(of.place, At)):
        return of.type.target.kind is Kind.CHAR
    return kind is Kind.RECORD and _is_string(of.type)


def _is_string(kind: Type) -> bool:
    return kind.own_name.startswith("basic_string<char,") and bool(
        find_member(kind, _STRING_DATA[0])
    )
