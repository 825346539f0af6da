# SPDX-License-Identifier: Apache-2.0
"""Where arguments and return values are at a call: System V ABI, AMD64 Supplement, section 3.2.3.

Integers and pointers take rdi, rsi, rdx, rcx, r8, r9 in their order, floats and doubles xmm0 to
xmm7; structs of up to 16 bytes are split into eightbytes, each with a class of its own, and go to
registers as a whole or not at all; everything else is on the stack, in words behind the return
address. A function whose return value lies in memory gets the address of that in rdi, before all
parameters, `this` of C++ included, and returns it in rax. C++ passes what has a destructor, or
a constructor that copies it, by a hidden pointer (Itanium C++ ABI, section 3.1.1).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._native import lib
from textpoke.dwarf_types import Kind, Type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.dwarf_functions import Function

RAX, RDX, RCX, RSI, RDI = 0, 1, 2, 4, 5
"""Registers as DWARF counts them."""
INTEGER_REGISTERS = (RDI, RSI, RDX, RCX, 8, 9)
FLOAT_REGISTERS = 8
FIRST_XMM = 17
"""xmm0 as DWARF counts it."""
_RETURN_INTEGERS = (RAX, RDX)
_RETURN_FLOATS = 2
_MOST_STACK_WORDS = 256
_EIGHTBYTE = 8
_LARGEST_IN_REGISTERS = 16
_X87_NAMES = frozenset(("long double", "__float80", "_Float64x", "real(kind=10)"))
_DEEPEST = 16
_MOST_LEAVES = 64


@dataclass(frozen=True, slots=True)
class Registers:
    """A value in registers: which one each of its eightbytes is in.

    A piece is (source, number) as struct tp_capture_op has them; None for padding, and for upper
    halves of vector registers.
    """

    pieces: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """A value in memory: start with the source, load at each offset, add the last offset."""

    source: int
    number: int
    loads: tuple[int, ...] = ()
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Nowhere:
    """A value that cannot be had."""

    reason: str


Place = Registers | Memory | Nowhere


class Class(enum.Enum):
    """Of an eightbyte."""

    NONE = 0
    INTEGER = 1
    SSE = 2
    SSE_UP = 3
    X87 = 4
    X87_UP = 5
    MEMORY = 6


_IN_MEMORY = (Class.MEMORY,)


def gpr(number: int) -> tuple[int, int]:
    """The piece that a general register is."""
    return lib.TP_CAPTURE_GPR, number


def xmm(number: int) -> tuple[int, int]:
    """The piece that the lower half of a vector register is."""
    return lib.TP_CAPTURE_XMM, number


def classify(kind: Type) -> tuple[Class, ...]:
    """The classes of a type's eightbytes; (MEMORY,) for all of it, () for what has no bytes."""
    if kind.size > _LARGEST_IN_REGISTERS:
        vector = (Class.SSE, *[Class.SSE_UP] * (kind.size // _EIGHTBYTE - 1))
        return vector if kind.kind is Kind.VECTOR else _IN_MEMORY
    classes = [Class.NONE] * -(-kind.size // _EIGHTBYTE)
    for count, leaf in enumerate(_leaves(kind, 0, 0) if kind.size else ()):
        if leaf is None or count == _MOST_LEAVES:
            return _IN_MEMORY
        offset, found = leaf
        for index, one in enumerate(found, offset // _EIGHTBYTE):
            if index >= len(classes):
                return _IN_MEMORY
            classes[index] = _merge(classes[index], one)
    return _cleaned(classes) if any(one is not Class.NONE for one in classes) else ()


def _cleaned(classes: list[Class]) -> tuple[Class, ...]:
    """Section 3.2.3, "classification", 5: what the eightbytes' classes mean together."""
    for index, one in enumerate(classes):
        before = classes[index - 1] if index else Class.NONE
        if one is Class.MEMORY or (one is Class.X87_UP and before is not Class.X87):
            return _IN_MEMORY
        if one is Class.SSE_UP and before is not Class.SSE:
            classes[index] = Class.SSE
    return tuple(classes)


def _leaves(kind: Type, offset: int, depth: int) -> Iterator[tuple[int, list[Class]] | None]:
    """Offset and classes of everything that a type consists of; None: it goes to memory."""
    if kind.kind is Kind.RECORD and depth < _DEEPEST:
        for member in kind.members:
            if member.bits:
                first = 8 * offset + member.bit_offset
                yield first // 8, [Class.INTEGER]
                yield (first + member.bits - 1) // 8, [Class.INTEGER]
            else:
                yield from _leaves(member.type, offset + member.offset, depth + 1)
    elif kind.kind is Kind.ARRAY and depth < _DEEPEST:
        for index in range(min(kind.count, _MOST_LEAVES)):
            yield from _leaves(kind.target, offset + index * kind.target.size, depth + 1)
    elif kind.kind is Kind.COMPLEX:
        yield offset, [Class.SSE]
        yield offset + kind.size // 2, [Class.SSE]
    elif offset % kind.alignment or kind.kind is Kind.UNKNOWN or depth == _DEEPEST:
        yield None
    else:
        yield offset, _classes_of_scalar(kind)


def _classes_of_scalar(kind: Type) -> list[Class]:
    if kind.kind is Kind.FLOAT:
        if kind.own_name.lower() in _X87_NAMES:
            return [Class.X87, Class.X87_UP]
        return [Class.SSE, Class.SSE_UP][: max(1, kind.size // _EIGHTBYTE)]
    if kind.kind is Kind.VECTOR:
        return [Class.SSE, Class.SSE_UP][: max(1, kind.size // _EIGHTBYTE)]
    return [Class.INTEGER] * max(1, kind.size // _EIGHTBYTE)


def _merge(one: Class, other: Class) -> Class:
    if one is other or other is Class.NONE:
        return one
    if one is Class.NONE:
        return other
    if Class.MEMORY in (one, other):
        return Class.MEMORY
    if Class.INTEGER in (one, other):
        return Class.INTEGER
    if {one, other} & {Class.X87, Class.X87_UP}:
        return Class.MEMORY
    return Class.SSE


def returns_in_memory(kind: Type) -> bool:
    """Whether a return value of this type lies where rdi pointed to at the call."""
    return kind.by_reference or classify(kind) == _IN_MEMORY


def places_of_parameters(function: Function) -> list[Place]:
    """Where each parameter is at the entry of a function."""
    if not function.like_c:
        reason = "its language does not pass arguments as C does; name positions: arg1, stack1"
        return [Nowhere(reason)] * len(function.parameters)
    if function.changed:
        return [_place_of_register(p.register, p.type) for p in function.parameters]
    state = _Allocation(1 if returns_in_memory(function.returns) else 0)
    return [state.place(p.type) for p in function.parameters]


def place_of_return(kind: Type, *, like_c: bool = True) -> Place:
    """Where the return value is when a function has returned."""
    if not like_c:
        return Nowhere("its language does not return values as C does; give a format: FUNC/x")
    if returns_in_memory(kind):
        return Memory(*gpr(RAX))
    classes = classify(kind)
    if Class.X87 in classes:
        return Nowhere("it is in the x87 unit's register, which is not captured")
    integers, floats = iter(_RETURN_INTEGERS), iter(range(_RETURN_FLOATS))
    return Registers(tuple(_piece(one, integers, floats) for one in classes))


def _piece(one: Class, integers: Iterator[int], floats: Iterator[int]) -> tuple[int, int] | None:
    if one is Class.INTEGER:
        return gpr(next(integers))
    return xmm(next(floats)) if one is Class.SSE else None


def _place_of_register(register: int | None, kind: Type) -> Place:
    if register is not None and classify(kind) != _IN_MEMORY:
        if register < 16:
            return Registers((gpr(register),))
        if FIRST_XMM <= register < FIRST_XMM + FLOAT_REGISTERS:
            return Registers((xmm(register - FIRST_XMM),))
    return Nowhere("the compiler has changed how this function is called, and left it out")


class _Allocation:
    """Hands out registers and stack words in the order of parameters."""

    def __init__(self, integers: int) -> None:
        self.integers = integers
        self.floats = 0
        self.words = 0
        self.unsure = ""  # floats and what is on the stack
        self.lost = ""

    def place(self, kind: Type) -> Place:
        """Where a parameter of this type is, given those before it."""
        if kind.kind is Kind.UNKNOWN:
            self.lost = f"behind a parameter that is {kind}"
        if self.lost:
            return Nowhere(self.lost)
        return self._by_pointer() if kind.by_reference else self._by_value(kind)

    def _by_value(self, kind: Type) -> Place:
        classes = classify(kind)
        if classes == _IN_MEMORY or Class.X87 in classes:
            return self._on_stack(kind)
        if kind.kind is Kind.VECTOR and kind.size > _LARGEST_IN_REGISTERS:
            self.unsure = "behind a vector whose place depends on the processor"
            return Nowhere("its place depends on the processor that it was compiled for")
        return self._in_registers(kind, classes) if classes else Nowhere("it is empty")

    def _in_registers(self, kind: Type, classes: tuple[Class, ...]) -> Place:
        integers = sum(one is Class.INTEGER for one in classes)
        floats = sum(one is Class.SSE for one in classes)
        if floats and self.unsure:
            return Nowhere(self.unsure)
        if (
            self.integers + integers > len(INTEGER_REGISTERS)
            or self.floats + floats > FLOAT_REGISTERS
        ):
            return self._on_stack(kind)
        rest = iter(INTEGER_REGISTERS[self.integers :])
        vectors = iter(range(self.floats, FLOAT_REGISTERS))
        place = Registers(tuple(_piece(one, rest, vectors) for one in classes))
        self.integers += integers
        self.floats += floats
        return place

    def _by_pointer(self) -> Place:
        if self.integers < len(INTEGER_REGISTERS):
            self.integers += 1
            return Memory(*gpr(INTEGER_REGISTERS[self.integers - 1]))
        word = self._take_words(1, 1)
        if isinstance(word, Nowhere):
            return word
        return Memory(lib.TP_CAPTURE_STACK, word, (0,))

    def _on_stack(self, kind: Type) -> Place:
        if kind.alignment > 16:
            self.unsure = "behind a parameter with an alignment of its own"
            return Nowhere(f"it is aligned to {kind.alignment} bytes on the stack")
        word = self._take_words(-(-kind.size // _EIGHTBYTE), kind.alignment // _EIGHTBYTE)
        return word if isinstance(word, Nowhere) else Memory(lib.TP_CAPTURE_STACK, word)

    def _take_words(self, count: int, step: int) -> int | Nowhere:
        """The first of `count` words of the stack; a multiple of `step`."""
        if self.unsure:
            return Nowhere(self.unsure)
        # The word behind the return address is aligned to 16 bytes.
        first = self.words + (self.words % 2 if step == 2 else 0)
        self.words = first + count
        if first >= _MOST_STACK_WORDS:
            return Nowhere("too far down the stack")
        return first
