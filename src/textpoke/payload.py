# SPDX-License-Identifier: Apache-2.0
"""What the words of a call's payload mean: arguments and return values as text and as JSON values.

A layout names the words that a site's ENTRY and EXIT carry; `docs/formats.md` lists the kinds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Value = int | float | bool | str | None
    """What JSON holds for a field."""
    Enums = Mapping[str, Mapping[int, str]]
    """Name of an enumeration to value to label."""

CALLER = "caller"
DURATION = "duration"
FAULT = "<fault>"
MOST_WORDS = 255
"""Of one ENTRY or EXIT: a DATA event counts them in eight bits."""

_INTEGERS = {f"{sign}{bits}": (sign == "i", bits) for sign in "ui" for bits in (8, 16, 32, 64)}
_PLAIN = frozenset([*_INTEGERS, "bool", "char", "ptr", "f64", "f32", CALLER, DURATION])
_ENUM_BITS = (8, 16, 32, 64)
_MASK = (1 << 64) - 1
_FIRST_ERROR = (1 << 64) - 4095
"""From here up a word is a negated errno, as in the kernel."""
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a payload: `kind` says how many words it takes and how to read them."""

    name: str
    kind: str

    @property
    def words(self) -> int:
        """Words that it takes.

        Raises:
            ValueError: the kind is not one that there is.
        """
        return words_of(self.kind)


@dataclass(frozen=True, slots=True)
class Layout:
    """The words behind every ENTRY, and every EXIT, of one site."""

    entry: tuple[Field, ...] = ()
    exit: tuple[Field, ...] = ()

    @property
    def is_threshold(self) -> bool:
        """Whether an EXIT makes a call by itself, without ENTRY: its first word is a duration."""
        return bool(self.exit) and self.exit[0].kind == DURATION

    def entry_at(self, name: str) -> int | None:
        """Index of an ENTRY field's first word; None when there is no such field."""
        return _place(self.entry, name)

    def exit_at(self, name: str) -> int | None:
        """Index of an EXIT field's first word; None when there is no such field."""
        return _place(self.exit, name)


def layouts_json(layouts: Mapping[int, Layout]) -> dict[str, object]:
    """Layouts by return address, as META and SITES hold them."""
    return {
        str(address): {
            "entry": [[field.name, field.kind] for field in layout.entry],
            "exit": [[field.name, field.kind] for field in layout.exit],
        }
        for address, layout in layouts.items()
    }


def enums_json(enums: Enums) -> dict[str, object]:
    """Enumerations as META and SITES hold them."""
    return {
        name: {str(value): label for value, label in labels.items()}
        for name, labels in enums.items()
    }


def words_of(kind: str) -> int:
    """How many words a value of this kind takes.

    Raises:
        ValueError: there is no such kind.
    """
    if kind in _PLAIN:
        return 1
    name, _, rest = kind.partition(":")
    if name == "str" and rest.isascii() and rest.isdecimal() and len(rest) < 4:
        words = int(rest)
        if 1 <= words <= MOST_WORDS:
            return words
    if name == "enum" and _enum(kind)[1] in _ENUM_BITS:
        return 1
    raise ValueError(f"no kind of payload: {kind!r}")


def count_words(fields: Sequence[Field]) -> int:
    """How many words all of the fields take.

    Raises:
        ValueError: a kind is unknown, or they are more than a DATA event can count.
    """
    words = sum(field.words for field in fields)
    if words > MOST_WORDS:
        raise ValueError(f"a payload of {words} words, {MOST_WORDS} at most")
    return words


class Formatter:
    """Reads payloads.

    Args:
        enums: The capture's enumerations.
        symbol: Gives a name for the address of a caller, or None; hexadecimal without it.
        ns_per_tick: Rate of the time stamp counter; durations stay ticks without it.
    """

    def __init__(
        self,
        enums: Enums | None = None,
        symbol: Callable[[int], str | None] | None = None,
        ns_per_tick: float | None = None,
    ) -> None:
        self._enums: Enums = enums or {}
        self._symbol = symbol
        self._ns_per_tick = ns_per_tick
        self._readers: dict[str, Callable[[str, int], Value]] = {
            "ptr": self._pointer,
            CALLER: self._pointer,
            "f64": _real,
            "f32": _real,
            "bool": lambda _, word: bool(word & 0xFF),
            "char": lambda _, word: chr(word & 0xFF),
            "enum": self._label,
            DURATION: self._duration,
        }

    def text(self, kind: str, words: Sequence[int]) -> str:
        """One value for a person.

        Args:
            kind: Of the field.
            words: Its words, unsigned, as many as the kind takes.

        Raises:
            ValueError: there is no such kind.
        """
        if kind.startswith("str:"):
            return _quoted(words)
        if kind == DURATION and self._ns_per_tick is not None:
            return f"{words[0] * self._ns_per_tick / 1000:.3f} us"
        value = self.value(kind, words)
        if kind == "char":
            return f"'{_escaped(str(value), quote=chr(39))}'"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return f"{value:.7g}" if kind == "f32" else f"{value:.12g}"
        return _escaped(str(value))

    def value(self, kind: str, words: Sequence[int]) -> Value:
        """One value for JSON: pointers are text in hexadecimal, a string that faulted is None.

        Args:
            kind: Of the field.
            words: Its words, unsigned, as many as the kind takes.

        Raises:
            ValueError: there is no such kind.
        """
        if kind in _INTEGERS:
            signed, bits = _INTEGERS[kind]
            return _integer(words[0], signed=signed, bits=bits)
        head = kind.partition(":")[0]
        if words_of(kind) == 1 and head in self._readers:
            return self._readers[head](kind, words[0])
        text, _ = _string(words)
        return None if text == FAULT else text

    def texts(self, fields: Sequence[Field], words: Sequence[int]) -> str:
        """All fields of a payload as `name=value, name=value`; of a short payload what is there."""
        return self.joined(split(fields, words))

    def joined(self, parts: Iterable[tuple[Field, Sequence[int]]]) -> str:
        """Some fields with their words, as `texts` writes them."""
        return ", ".join(
            f"{_escaped(field.name)}={self.text(field.kind, words)}" for field, words in parts
        )

    def values(self, fields: Sequence[Field], words: Sequence[int]) -> dict[str, Value]:
        """All fields of a payload by name."""
        return {field.name: self.value(field.kind, part) for field, part in split(fields, words)}

    def _duration(self, _: str, word: int) -> int:
        return word if self._ns_per_tick is None else round(word * self._ns_per_tick)

    def _pointer(self, kind: str, word: int) -> str:
        if kind == CALLER:
            return (self._symbol(word) if self._symbol else None) or f"{word:#x}"
        return str(word - (1 << 64)) if word >= _FIRST_ERROR else f"{word:#x}"

    def _label(self, kind: str, word: int) -> Value:
        name, bits = _enum(kind)
        labels = self._enums.get(name, {})
        signed = _integer(word, signed=True, bits=bits)
        if signed in labels:
            return labels[signed]
        return labels.get(_integer(word, signed=False, bits=bits), signed)


def split(fields: Sequence[Field], words: Sequence[int]) -> Iterator[tuple[Field, Sequence[int]]]:
    """Each field with its words; ends where the words do."""
    start = 0
    for field in fields:
        stop = start + field.words
        if stop > len(words):
            return
        yield field, words[start:stop]
        start = stop


def _place(fields: Sequence[Field], name: str) -> int | None:
    start = 0
    for field in fields:
        if field.name == name:
            return start
        start += field.words
    return None


def _enum(kind: str) -> tuple[str, int]:
    # "enum:NAME:BITS"; names may hold colons themselves, as C++'s do.
    name, _, bits = kind.removeprefix("enum:").rpartition(":")
    return name, int(bits) if bits in ("8", "16", "32", "64") and name else 0


def _integer(word: int, *, signed: bool, bits: int) -> int:
    value = word & (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _real(kind: str, word: int) -> Value:
    data = struct.pack("<Q", word & _MASK)
    number: float
    (number,) = struct.unpack_from("<d" if kind == "f64" else "<f", data)
    return number if math.isfinite(number) else str(number)  # JSON has no word for the others


def _string(words: Sequence[int]) -> tuple[str, bool]:
    # The text up to its NUL, and whether there was one.
    data = b"".join(word.to_bytes(8, "little") for word in words)
    text, nul, _ = data.partition(b"\0")
    return text.decode("utf-8", "backslashreplace"), bool(nul)


def _quoted(words: Sequence[int]) -> str:
    text, is_whole = _string(words)
    if text == FAULT:
        return text
    return f'"{_escaped(text)}"' + ("" if is_whole else "...")


def _escaped(text: str, quote: str = '"') -> str:
    if text.isprintable() and quote not in text and "\\" not in text:
        return text
    escapes = {**_ESCAPES, quote: f"\\{quote}"}
    return "".join(
        escapes.get(char) or (char if char.isprintable() else _numbered(char)) for char in text
    )


def _numbered(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
