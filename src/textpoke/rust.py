# SPDX-License-Identifier: Apache-2.0
"""Rust's symbol names: the legacy form (a C++ name that ends in a hash) and v0 (RFC 2603).

Both are written the way `rustc-demangle` prints its alternate form: no hashes, no crate
disambiguators, no types behind constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Back-references can grow a damaged name exponentially, or without end.
_MAX_STEPS = 4000
_MAX_DEPTH = 200
_MAX_REREAD = 64 * 1024  # characters that back-references lead to
_BASE62 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEX = frozenset("0123456789abcdef")
_HASH_LENGTH = len("h0123456789abcdef")
_LEGACY_ESCAPES = {
    "SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ",",
}  # fmt: skip
_BASIC_TYPES = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8",
    "i": "isize", "j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_",
    "s": "i16", "t": "u16", "u": "()", "v": "...", "x": "i64", "y": "u64", "z": "!",
}  # fmt: skip
_NAMED_NAMESPACES = {"C": "closure", "S": "shim"}


def demangle_legacy(name: str) -> str:
    """Decode `_ZN`, length-prefixed parts, `17h` and 16 hex digits, `E`; "" when it is not that."""
    parts: list[str] = []
    position = 3 if name.startswith("_ZN") else len(name)
    while name[position : position + 1].isdecimal():
        end = position
        while name[end : end + 1].isdecimal():
            end += 1
        length = int(name[position:end][:9])
        parts.append(name[end : end + length])
        position = end + length
    digest = parts.pop() if parts else ""
    if len(digest) != _HASH_LENGTH or digest[0] != "h" or not _HEX.issuperset(digest[1:]):
        return ""
    return "::".join(map(_unescape, parts)) if name[position : position + 1] == "E" else ""


def _unescape(part: str) -> str:
    # "_$LT$impl$u20$Foo$GT$": every second piece between dollars is an escape.
    pieces = part.removeprefix("_" if part.startswith("_$") else "").split("$")
    if len(pieces) % 2 == 0:
        return part
    pieces[::2] = [text.replace("..", "::") for text in pieces[::2]]
    pieces[1::2] = map(_escape, pieces[1::2])
    return "".join(pieces)


def _escape(code: str) -> str:
    digits = code[1:]
    if code[:1] == "u" and 0 < len(digits) < 6 and _HEX.issuperset(digits):
        return chr(int(digits, 16)).encode("utf-8", "replace").decode()
    return _LEGACY_ESCAPES.get(code, f"${code}$")


def demangle_v0(name: str) -> str:
    """Decode a `_R` name; "" when it is not one, or damaged."""
    if not name.startswith("_R"):
        return ""
    parser = _V0(name[2:].partition(".")[0])
    try:
        return parser.path(in_value=True)
    except (IndexError, ValueError, OverflowError, RecursionError):
        return ""


class _V0:
    """A recursive-descent reader of v0 names, one method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.steps = 0
        self.reread = 0
        self.depth = 0
        self.lifetimes = 0

    def next(self) -> str:
        character = self.text[self.position]
        self.position += 1
        return character

    def eat(self, character: str) -> bool:
        found = self.text.startswith(character, self.position)
        self.position += found
        return found

    def decimal(self) -> int:
        if self.eat("0"):
            return 0
        start = self.position
        while self.text[self.position].isdecimal():
            self.position += 1
        return int(self.text[start : self.position])

    def base62(self) -> int:
        if self.eat("_"):
            return 0
        value = 0
        while not self.eat("_"):
            value = value * 62 + _BASE62.index(self.next())
        return value + 1

    def optional_base62(self, tag: str) -> int:
        return self.base62() + 1 if self.eat(tag) else 0

    def backref(self, rule: Callable[[], str]) -> str:
        target = self.base62()
        back = self.position
        if target >= back:
            raise ValueError
        self.position = target
        text = rule()
        self.reread += self.position - target
        if self.reread > _MAX_REREAD:
            raise ValueError
        self.position = back
        return text

    def enter(self) -> None:
        self.steps += 1
        self.depth += 1
        if self.steps > _MAX_STEPS or self.depth > _MAX_DEPTH:
            raise ValueError

    def identifier(self) -> str:
        encoded = self.eat("u")
        length = self.decimal()
        self.eat("_")
        start = self.position
        self.position += length
        text = self.text[start : self.position]
        if len(text) != length:
            raise ValueError
        if not encoded:
            return text
        basic, _, rest = text.rpartition("_")
        return f"{basic}-{rest}".encode().decode("punycode")

    def path(self, *, in_value: bool = False) -> str:
        self.enter()
        text = self.path_of(self.next(), in_value=in_value)
        self.depth -= 1
        return text

    def path_of(self, tag: str, *, in_value: bool) -> str:
        if tag == "C":
            self.optional_base62("s")
            return self.identifier()
        if tag == "N":
            return self.nested(in_value=in_value)
        if tag == "I":
            text = self.path(in_value=in_value)
            arguments = ", ".join(self.until_e(self.generic_argument))
            return f"{text}{'::' if in_value else ''}<{arguments}>"
        if tag == "B":
            return self.backref(lambda: self.path(in_value=in_value))
        if tag in "MX":
            self.optional_base62("s")
            self.path()
        elif tag != "Y":
            raise ValueError
        text = self.type()
        return f"<{text}>" if tag == "M" else f"<{text} as {self.path()}>"

    def nested(self, *, in_value: bool) -> str:
        namespace = self.next()
        text = self.path(in_value=in_value)
        number = self.optional_base62("s")
        name = self.identifier()
        if namespace.islower():
            return f"{text}::{name}" if name else text
        kind = _NAMED_NAMESPACES.get(namespace, namespace)
        return f"{text}::{{{kind}{':' if name else ''}{name}#{number}}}"

    def until_e(self, rule: Callable[[], str]) -> list[str]:
        items: list[str] = []
        while not self.eat("E"):
            items.append(rule())
        return items

    def generic_argument(self) -> str:
        if self.eat("L"):
            return self.lifetime(self.base62())
        return self.constant() if self.eat("K") else self.type()

    def lifetime(self, index: int) -> str:
        if not index:
            return "'_"
        depth = self.lifetimes - index
        if depth < 0:
            raise ValueError
        return f"'{chr(ord('a') + depth)}" if depth < 26 else f"'_{depth}"

    def type(self) -> str:
        self.enter()
        tag = self.next()
        basic = _BASIC_TYPES.get(tag)
        text = basic if basic is not None else self.type_of(tag)
        self.depth -= 1
        return text

    def type_of(self, tag: str) -> str:
        rules: dict[str, Callable[[], str]] = {
            "A": lambda: f"[{self.type()}; {self.constant()}]",
            "S": lambda: f"[{self.type()}]",
            "T": self.tuple,
            "R": lambda: self.reference(""),
            "Q": lambda: self.reference("mut "),
            "P": lambda: f"*const {self.type()}",
            "O": lambda: f"*mut {self.type()}",
            "F": lambda: self.with_binder(self.function),
            "D": self.dynamic,
            "B": lambda: self.backref(self.type),
        }
        rule = rules.get(tag)
        return rule() if rule else self.path_of(tag, in_value=False)

    def tuple(self) -> str:
        items = self.until_e(self.type)
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"

    def reference(self, mutable: str) -> str:
        index = self.base62() if self.eat("L") else 0
        return f"&{self.lifetime(index) + ' ' if index else ''}{mutable}{self.type()}"

    def with_binder(self, rule: Callable[[], str]) -> str:
        count = self.optional_base62("G")
        if count > _MAX_DEPTH:
            raise ValueError
        self.lifetimes += count
        names = ", ".join(self.lifetime(i) for i in range(count, 0, -1))
        text = f"for<{names}> {rule()}" if count else rule()
        self.lifetimes -= count
        return text

    def function(self) -> str:
        unsafe = "unsafe " if self.eat("U") else ""
        abi = ""
        if self.eat("K"):
            abi = "C" if self.eat("C") else self.identifier().replace("_", "-")
            abi = f'extern "{abi}" '
        arguments = ", ".join(self.until_e(self.type))
        result = self.type()
        return f"{unsafe}{abi}fn({arguments}){'' if result == '()' else f' -> {result}'}"

    def dynamic(self) -> str:
        bounds = self.with_binder(lambda: " + ".join(self.until_e(self.dynamic_trait)))
        if not self.eat("L"):
            raise ValueError
        index = self.base62()
        return f"dyn {bounds}{f' + {self.lifetime(index)}' if index else ''}"

    def dynamic_trait(self) -> str:
        text = self.path()
        bindings: list[str] = []
        while self.eat("p"):
            bindings.append(f"{self.identifier()} = {self.type()}")
        if not bindings:
            return text
        joined = ", ".join(bindings)
        return f"{text[:-1]}, {joined}>" if text.endswith(">") else f"{text}<{joined}>"

    def constant(self) -> str:
        self.enter()
        tag = self.next()
        if tag == "B":
            text = self.backref(self.constant)
        elif tag == "p":
            text = "_"
        else:
            text = self.constant_of(tag)
        self.depth -= 1
        return text

    def constant_of(self, tag: str) -> str:
        if tag not in "abchijlmnostxy":
            raise ValueError
        sign = "-" if self.eat("n") else ""
        end = self.text.index("_", self.position)
        value = int(self.text[self.position : end] or "0", 16)
        self.position = end + 1
        if tag == "b":
            return ("false", "true")[value]
        return repr(chr(value)) if tag == "c" else f"{sign}{value}"
