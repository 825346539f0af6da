# SPDX-License-Identifier: Apache-2.0
"""What an expression of -A or -R means at one function.

An operand is a type and a place: registers, memory behind a chain of pointers, or the address of
such memory. An expression walks from operand to operand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from textpoke._arguments_parse import (
    FLOAT_FORMATS,
    Deref,
    Index,
    Member,
    Name,
    Plus,
)
from textpoke._native import lib
from textpoke.calling import (
    FLOAT_REGISTERS,
    INTEGER_REGISTERS,
    RAX,
    Memory,
    Nowhere,
    Registers,
    gpr,
    place_of_return,
    places_of_parameters,
    xmm,
)
from textpoke.dwarf_types import Kind, Type, find_member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke._arguments_parse import Expression, Format, Spec
    from textpoke.calling import Place
    from textpoke.dwarf_functions import Function

_FARTHEST = 0x7FFF_FFFF
_POSITION = re.compile(r"(arg|farg|stack)([1-9][0-9]{0,2})\Z", re.ASCII)
_MOST_STACK = 250
WORD = Type(Kind.INTEGER, "a word", 8)
_FEW = 8


@dataclass(frozen=True, slots=True)
class At:
    """Memory at an address, or (`address` only) the address itself."""

    source: int
    number: int
    loads: tuple[int, ...] = ()
    offset: int = 0
    address: bool = False


@dataclass(frozen=True, slots=True)
class In:
    """Bytes from `byte` on of a value in registers."""

    pieces: tuple[tuple[int, int] | None, ...]
    byte: int = 0


@dataclass(frozen=True, slots=True)
class Operand:
    """A value: `typed` says whether DWARF knows its type; `bits` of a bit-field, from `bit` on."""

    type: Type
    place: At | In
    typed: bool = True
    bit: int = 0
    bits: int = 0


class Scope:
    """The names that expressions may use at one function, at its entry or at its return.

    Args:
        spec: What was asked for: errors quote it.
        function: By DWARF; None without.
        why_untyped: Why there is no `function`.
    """

    def __init__(self, spec: Spec, function: Function | None, why_untyped: str = "") -> None:
        self.spec = spec
        self.function = function
        self.why_untyped = why_untyped
        self._places: Sequence[Place] = ()
        if function and not spec.returns:
            self._places = places_of_parameters(function)

    def fail(self, column: int, problem: str) -> NoReturn:
        """Raise the error that points at a column."""
        raise self.spec.error(column, problem)

    def operand(self, expression: Expression, fmt: Format | None = None) -> Operand:
        """The operand that an expression is."""
        column = expression.column
        if isinstance(expression, Name):
            return self._dereferenced(self._named(expression.name, column, fmt), column)
        of = self.operand(expression.of)
        if isinstance(expression, Member):
            return self._dereferenced(self._member(of, expression), column)
        if isinstance(expression, Index):
            return self._dereferenced(self._element(of, expression), column)
        if isinstance(expression, Deref):
            return self._dereferenced(self._pointed_to(of, column, 0), column)
        if isinstance(expression, Plus):
            return self._sum(of, expression)
        return self._address(of, column)

    def parameter(self, index: int, column: int) -> Operand:
        """A parameter by its number from 0, whatever its name."""
        assert self.function  # noqa: S101 - who counts parameters has some
        found = self.function.parameters[index]
        place = self._places[index]
        if isinstance(place, Nowhere):
            self.fail(column, f"{found.name} cannot be captured: {place.reason}")
        return self._dereferenced(Operand(found.type, _placed(place)), column)

    def returned(self, column: int, fmt: Format | None) -> Operand:
        """The return value; its format tells the register where no type does."""
        function = self.function
        if function and (function.returns.kind is not Kind.VOID or fmt is None):
            if function.returns.kind is Kind.VOID:
                self.fail(column, f"{function.name} returns nothing")
            place = place_of_return(function.returns, like_c=function.like_c)
            if not isinstance(place, Nowhere):
                return self._dereferenced(Operand(function.returns, _placed(place)), column)
            if fmt is None:
                self.fail(column, f"the return value cannot be captured: {place.reason}")
        piece = xmm(0) if fmt and fmt.name in FLOAT_FORMATS else gpr(RAX)
        return Operand(WORD, In((piece,)), typed=False)

    def _named(self, name: str, column: int, fmt: Format | None) -> Operand:
        if self.spec.returns:
            if name != "retval":
                self.fail(column, "at a return there is nothing but retval; parameters are for -A")
            return self.returned(column, fmt)
        names = [p.name for p in self.function.parameters] if self.function else []
        if name in names:
            return self.parameter(names.index(name), column)
        if name == "caller":
            return Operand(WORD, At(lib.TP_CAPTURE_CALLER, 0, address=True), typed=False)
        position = _POSITION.match(name)
        if position:
            return self._position(position[1], int(position[2]), column)
        if name == "retval":
            self.fail(column, "the return value is there at the return only: ask for it with -R")
        if self.function is None:
            why = self.why_untyped or "there is no debug information"
            self.fail(column, f"{name} is not known, since {why}: use arg1, farg1 or stack1")
        choice = f"it has {', '.join(names)}" if names else "it has no parameters"
        raise self.spec.error(column, f"{self.function.name} has no parameter {name}: {choice}")

    def _position(self, what: str, number: int, column: int) -> Operand:
        if what == "arg":
            if number > len(INTEGER_REGISTERS):
                self.fail(column, "arg1 to arg6 are in registers; those behind them are stack1 ...")
            place: At | In = In((gpr(INTEGER_REGISTERS[number - 1]),))
        elif what == "farg":
            if number > FLOAT_REGISTERS:
                self.fail(
                    column, "farg1 to farg8 are in registers; those behind them are stack1 ..."
                )
            place = In((xmm(number - 1),))
        else:
            if number > _MOST_STACK:
                self.fail(column, f"no more than stack{_MOST_STACK}")
            place = At(lib.TP_CAPTURE_STACK, number - 1)
        return Operand(WORD, place, typed=False)

    def _dereferenced(self, of: Operand, column: int) -> Operand:
        """What a reference stands for: C++ never shows the reference itself."""
        return self._pointed_to(of, column, 0) if of.type.kind is Kind.REFERENCE else of

    def _pointed_to(self, of: Operand, column: int, index: int) -> Operand:
        """The element that stands so many behind the one that a pointer leads to."""
        target, typed = WORD, of.typed
        if typed:
            if of.type.kind not in (Kind.POINTER, Kind.REFERENCE, Kind.ARRAY):
                self.fail(column, f"{of.type} leads nowhere")
            target = of.type.target
            if target.kind is Kind.FUNCTION:
                self.fail(column, "it leads to a function, not to a value")
            if target.kind is Kind.VOID:
                target, typed = WORD, False
        step = index * self._step(target, column, index)
        if of.type.kind is Kind.ARRAY and isinstance(of.place, In):
            place: At | In = replace(of.place, byte=of.place.byte + step)
            if not 0 <= index < max(of.type.count, 1):
                self.fail(column, f"the array has {of.type.count} elements")
        elif of.type.kind is Kind.ARRAY and isinstance(of.place, At) and not of.place.address:
            place = self.moved(of.place, step, column)
        else:
            place = self.moved(self.followed(of, column), step, column)
        return Operand(target, place, typed)

    def _step(self, target: Type, column: int, index: int) -> int:
        if not target.size and index:
            self.fail(column, f"how large {target} is, is not known")
        return target.size

    def followed(self, of: Operand, column: int) -> At:
        """The memory at the address that an operand is."""
        place = of.place
        if isinstance(place, In):
            piece = self.piece(place, column)
            if place.byte % 8:
                self.fail(column, "a pointer in half a register")
            return At(*piece)
        if place.address:
            return replace(place, address=False)
        if len(place.loads) == lib.TP_CAPTURE_MOST_LOADS:
            self.fail(column, f"more than {lib.TP_CAPTURE_MOST_LOADS} pointers in a row")
        return At(place.source, place.number, (*place.loads, place.offset))

    def moved(self, place: At, step: int, column: int) -> At:
        """Memory so many bytes further on."""
        if abs(place.offset + step) > _FARTHEST:
            self.fail(column, "too far away")
        return replace(place, offset=place.offset + step)

    def piece(self, place: In, column: int) -> tuple[int, int]:
        """The register that holds an operand."""
        index = place.byte // 8
        piece = place.pieces[index] if 0 <= index < len(place.pieces) else None
        if piece is None:
            self.fail(column, "it is in a part of a register that is not captured")
        return piece

    def _member(self, of: Operand, expression: Member) -> Operand:
        column, name = expression.column, expression.name
        if not of.typed:
            self.fail(column, "its type is not known: write *(arg1 + OFFSET)")
        if expression.arrow:
            if of.type.kind is Kind.RECORD:
                self.fail(column, f"{of.type} takes a point: .{name}")
            if of.type.kind not in (Kind.POINTER, Kind.ARRAY):
                self.fail(column, f"{of.type} has no members")
            of = self._pointed_to(of, column, 0)
        elif of.type.kind is Kind.POINTER:
            self.fail(column, f"{of.type} takes an arrow: ->{name}")
        return self.member(of, name, column)

    def member(self, of: Operand, name: str, column: int) -> Operand:
        """A member of a struct."""
        if not of.typed or of.type.kind is not Kind.RECORD:
            self.fail(column, f"{of.type} has no members")
        found = find_member(of.type, name)
        if found is None:
            self.fail(column, f"{of.type} has no member {name}{choice_of(of.type)}")
        # Of a bit-field, the byte with its lowest bit.
        offset = found.bit_offset // 8 if found.bits else found.offset
        if isinstance(of.place, In):
            place: At | In = replace(of.place, byte=of.place.byte + offset)
        elif of.place.address:
            self.fail(column, "the address of a struct has no members")
        else:
            place = self.moved(of.place, offset, column)
        return Operand(found.type, place, bit=found.bit_offset % 8, bits=found.bits)

    def _element(self, of: Operand, expression: Index) -> Operand:
        if of.typed and of.type.kind not in (Kind.POINTER, Kind.ARRAY):
            self.fail(expression.column, f"{of.type} has no elements")
        return self._pointed_to(of, expression.column, expression.index)

    def _sum(self, of: Operand, expression: Plus) -> Operand:
        column = expression.column
        if of.typed and of.type.kind not in (Kind.POINTER, Kind.ARRAY):
            self.fail(column, f"{of.type} cannot be added to: only addresses can")
        if not of.typed:  # bytes, whatever they lead to
            return replace(of, place=self._as_address(of, expression.number, column))
        target = of.type.target
        if of.type.kind is Kind.ARRAY:
            of = self._address(self._pointed_to(of, column, 0), column)
        step = expression.number * (target.size or 1)
        return replace(of, place=self._as_address(of, step, column))

    def _as_address(self, of: Operand, step: int, column: int) -> At:
        return replace(self.moved(self.followed(of, column), step, column), address=True)

    def _address(self, of: Operand, column: int) -> Operand:
        if not isinstance(of.place, At) or of.place.address or of.bits:
            self.fail(column, "it has no address: it is not in memory")
        kind = Type(Kind.POINTER, f"{of.type.name} *", 8)
        kind.target = of.type
        return Operand(kind, replace(of.place, address=True), of.typed)


def _placed(place: Memory | Registers) -> At | In:
    if isinstance(place, Registers):
        return In(place.pieces)
    return At(place.source, place.number, place.loads, place.offset)


def choice_of(kind: Type) -> str:
    """The names of some members, for a message."""
    names = [member.name for member in kind.members if member.name]
    if not names:
        return "; its members are not known" if not kind.size else ""
    more = ", ..." if len(names) > _FEW else ""
    return f"; it has {', '.join(names[:_FEW])}{more}"
