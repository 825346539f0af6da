# SPDX-License-Identifier: Apache-2.0
"""The small language of `record -A` and `-R`: which function, and what to capture of its calls.

    spec       := FUNC | FUNC "(" value {"," value} ")" | FUNC "/" format      (the last for -R)
    value      := expression ["/" format]
    expression := {"*" | "&"} postfix [("+" | "-") number]
    postfix    := (name | "(" expression ")") {"->" name | "." name | "[" number "]"}
    format     := s[N] | x | d | u | c | b | p | i8 i16 i32 i64 u8 u16 u32 u64 f32 f64

FUNC is a glob or MODULE!GLOB. Names are parameters, or `arg1`, `farg1`, `stack1`, `caller`,
`retval`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from textpoke._errors import ArgumentSpec

MOST_STRING_BYTES = 256
DEFAULT_STRING_BYTES = 32
INTEGER_FORMATS = {
    f"{sign}{bits}": (sign == "i", bits) for sign in "iu" for bits in (8, 16, 32, 64)
}
FLOAT_FORMATS = ("f32", "f64")
_FORMATS = frozenset((*"xdusbcp", *INTEGER_FORMATS, *FLOAT_FORMATS))
_MOST_CHARACTERS = 4096
_MOST_NESTED = 16
_MOST_VALUES = 32
_MOST_NUMBER = 0x7FFF_FFFF

_TOKEN = re.compile(
    r"\s*(?:(->|[()\[\].,*&/+\-])|(0[xX][0-9a-fA-F]+|[0-9]+)|([A-Za-z_$]\w*))", re.ASCII
)
_SPACES = re.compile(r"\s*")
# Names of C++ that hold what would end a name.
_OPERATOR = re.compile(r"operator\s*(?:\(\s*\)|/=?|\(\)/)")
_FORMAT = re.compile(r"\s*([A-Za-z0-9]*)", re.ASCII)
_STRING_FORMAT = re.compile(r"s([0-9]{1,6})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Name:
    """A parameter, or the name of a position."""

    column: int
    name: str


@dataclass(frozen=True, slots=True)
class Member:
    """`of.name`, or `of->name` when `arrow`."""

    column: int
    of: Expression
    name: str
    arrow: bool


@dataclass(frozen=True, slots=True)
class Index:
    """`of[index]`."""

    column: int
    of: Expression
    index: int


@dataclass(frozen=True, slots=True)
class Deref:
    """`*of`."""

    column: int
    of: Expression


@dataclass(frozen=True, slots=True)
class Address:
    """`&of`."""

    column: int
    of: Expression


@dataclass(frozen=True, slots=True)
class Plus:
    """`of + number`; a difference has a negative number."""

    column: int
    of: Expression
    number: int


Expression = Name | Member | Index | Deref | Address | Plus


@dataclass(frozen=True, slots=True)
class Format:
    """How a value is shown: one of the letters or casts; `bytes` of a string."""

    column: int
    name: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """One value to capture: `text` is its name in reports."""

    column: int
    text: str
    expression: Expression
    format: Format | None


@dataclass(frozen=True, slots=True)
class Spec:
    """What one -A or -R asks for.

    Attributes:
        text: As it was given.
        pattern: Which functions: GLOB or MODULE!GLOB.
        returns: True for -R.
        values: What to capture; None: all parameters, or the return value, by its type.
        format: Of -R FUNC/format.
    """

    text: str
    pattern: str
    returns: bool
    values: tuple[Value, ...] | None
    format: Format | None = None

    def error(self, column: int, problem: str) -> ArgumentSpec:
        """The error that points at a column (from 0) of the text."""
        return ArgumentSpec(self.text, column + 1, problem)


def parse(text: str, *, returns: bool = False) -> Spec:
    """Read what -A, or with `returns` -R, was given.

    Raises:
        ArgumentSpec: It makes no sense; `.column` says where.
    """
    return _Parser(text).spec(returns=returns)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nested = 0
        if len(text) > _MOST_CHARACTERS:
            self.fail(f"longer than {_MOST_CHARACTERS} characters", _MOST_CHARACTERS)

    def fail(self, problem: str, column: int | None = None) -> NoReturn:
        raise self.error(problem, self.at if column is None else column)

    def error(self, problem: str, column: int) -> ArgumentSpec:
        return ArgumentSpec(self.text, column + 1, problem)

    def spec(self, *, returns: bool) -> Spec:
        pattern = self.function()
        values = fmt = None
        if self.peek() == "(":
            values = self.values()
        elif self.peek() == "/":
            column = self.at
            fmt = self.format()
            if not returns:
                self.fail("a format stands behind a value: FUNC(value/format)", column)
        if self.rest():
            self.fail("nothing may follow here")
        return Spec(self.text, pattern, returns, values, fmt)

    def function(self) -> str:
        start = self.at = self.spaces(0)
        while self.at < len(self.text) and self.text[self.at] not in "(/":
            operator = _OPERATOR.match(self.text, self.at)
            self.at = operator.end() if operator else self.at + 1
        pattern = self.text[start : self.at].rstrip()
        if not pattern:
            self.fail("a function's name is missing", start)
        return pattern

    def values(self) -> tuple[Value, ...]:
        found: list[Value] = []
        self.take("(")
        while True:
            if self.peek() in (")", ",", ""):
                self.fail("a value is missing: name a parameter, or arg1 for the first position")
            if len(found) == _MOST_VALUES:
                self.fail(f"more than {_MOST_VALUES} values")
            found.append(self.value())
            if self.peek() != ",":
                break
            self.take(",")
        self.take(")")
        return tuple(found)

    def value(self) -> Value:
        start = self.at = self.spaces(self.at)
        expression = self.expression()
        text = "".join(self.text[start : self.at].split())
        fmt = self.format() if self.peek() == "/" else None
        return Value(start, text, expression, fmt)

    def expression(self) -> Expression:
        self.nested += 1
        column = self.at = self.spaces(self.at)
        if self.nested > _MOST_NESTED:
            self.fail("too many parentheses, * and &")
        of = self.unary()
        sign = self.peek()
        if sign in ("+", "-"):
            self.take(sign)
            number = self.number()
            of = Plus(column, of, number if sign == "+" else -number)
        self.nested -= 1
        return of

    def unary(self) -> Expression:
        column = self.at = self.spaces(self.at)
        sign = self.peek()
        if sign not in ("*", "&"):
            return self.postfix()
        self.nested += 1
        if self.nested > _MOST_NESTED:
            self.fail("too many parentheses, * and &")
        self.take(sign)
        of = self.unary()
        self.nested -= 1
        return Deref(column, of) if sign == "*" else Address(column, of)

    def postfix(self) -> Expression:
        column = self.at
        of: Expression
        if self.peek() == "(":
            self.take("(")
            of = self.expression()
            self.take(")")
        else:
            of = Name(column, self.name("a value"))
        for _ in range(_MOST_NESTED):
            column = self.at = self.spaces(self.at)
            sign = self.peek()
            if sign == "[":
                self.take("[")
                negative = self.peek() == "-"
                if negative:
                    self.take("-")
                number = self.number()
                self.take("]")
                of = Index(column, of, -number if negative else number)
            elif sign in ("->", "."):
                self.take(sign)
                of = Member(column, of, self.name("a member's name"), sign == "->")
            else:
                return of
        raise self.error("too many members and indexes", self.at)

    def format(self) -> Format:
        self.take("/")
        match = _FORMAT.match(self.text, self.at)
        column = match.start(1) if match else self.at
        name = match[1] if match else ""
        size = _STRING_FORMAT.match(name)
        if size:
            count = int(size[1])
            if not 1 <= count <= MOST_STRING_BYTES:
                self.fail(f"a string has 1 to {MOST_STRING_BYTES} bytes", column)
            self.at = column + len(name)
            return Format(column, "s", count)
        if name not in _FORMATS:
            self.fail("no such format: there are s sN x d u c b p i8..i64 u8..u64 f32 f64", column)
        self.at = column + len(name)
        return Format(column, name, DEFAULT_STRING_BYTES if name == "s" else 0)

    def name(self, what: str) -> str:
        token = _TOKEN.match(self.text, self.at)
        if not token or not token[3]:
            self.fail(f"{what} is missing", self.spaces(self.at))
        self.at = token.end()
        return token[3]

    def number(self) -> int:
        token = _TOKEN.match(self.text, self.at)
        if not token or not token[2]:
            self.fail("a number is missing", self.spaces(self.at))
        digits = token[2]
        value = int(digits, 16 if digits[:2] in ("0x", "0X") else 10)
        if value > _MOST_NUMBER:
            self.fail("the number is too large", token.start(2))
        self.at = token.end()
        return value

    def take(self, wanted: str) -> None:
        if self.peek() != wanted:
            self.fail(f"{wanted!r} is missing", self.spaces(self.at))
        self.at = self.spaces(self.at) + len(wanted)

    def peek(self) -> str:
        """The sign, number or name that comes next; "" when nothing does, or nothing known."""
        token = _TOKEN.match(self.text, self.at)
        return token[0].lstrip() if token else ""

    def rest(self) -> str:
        self.at = self.spaces(self.at)
        return self.text[self.at :]

    def spaces(self, at: int) -> int:
        match = _SPACES.match(self.text, at)
        return match.end() if match else at
