# SPDX-License-Identifier: Apache-2.0
"""Payloads: every kind as text and as a JSON value, and words that end too early."""

from __future__ import annotations

import json
import math
import struct

import pytest

from textpoke.payload import Field, Formatter, Layout, count_words, split, words_of

MINUS_ONE = (1 << 64) - 1


def words_of_text(data: bytes, words: int) -> list[int]:
    return list(struct.unpack(f"<{words}Q", data.ljust(words * 8, b"\0")))


def bits_of(number: float) -> int:
    return struct.unpack("<Q", struct.pack("<d", number))[0]


PLAIN = Formatter(
    {"ns::color": {0: "RED", -1: "NONE", 200: "FAR"}},
    {0x401234: "main+0x34"}.get,
    ns_per_tick=0.5,
)


@pytest.mark.parametrize(
    ("kind", "word", "text", "value"),
    [
        ("u64", MINUS_ONE, "18446744073709551615", MINUS_ONE),
        ("i64", MINUS_ONE, "-1", -1),
        ("u32", MINUS_ONE, "4294967295", 0xFFFFFFFF),
        ("i32", 0xFFFFFFFF, "-1", -1),
        ("i32", 0xAAAA_0000_0007, "7", 7),
        ("u16", 0x12345, "9029", 0x2345),
        ("i16", 0x8000, "-32768", -32768),
        ("u8", 0x1FF, "255", 255),
        ("i8", 0x80, "-128", -128),
        ("bool", 0x100, "false", False),
        ("bool", 1, "true", True),
        ("char", ord("a"), "'a'", "a"),
        ("char", 0x127, "'\\''", "'"),
        ("char", 0, "'\\x00'", "\0"),
        ("ptr", 0, "0x0", "0x0"),
        ("ptr", 0x7F00_0000_1000, "0x7f0000001000", "0x7f0000001000"),
        ("ptr", MINUS_ONE - 1, "-2", "-2"),
        ("caller", 0x401234, "main+0x34", "main+0x34"),
        ("caller", 0x401235, "0x401235", "0x401235"),
        ("f64", bits_of(1.5), "1.5", 1.5),
        ("f64", bits_of(math.inf), "inf", "inf"),
        ("f32", 0xFFFF_FFFF_3FC0_0000, "1.5", 1.5),
        ("duration", 25, "0.013 us", 12),
        ("enum:ns::color:32", 0, "RED", "RED"),
        ("enum:ns::color:32", 0xFFFFFFFF, "NONE", "NONE"),
        ("enum:ns::color:8", 200, "FAR", "FAR"),
        ("enum:ns::color:32", 7, "7", 7),
        ("enum:other:64", MINUS_ONE, "-1", -1),
    ],
)
def test_word_as_text_and_as_value(kind: str, word: int, text: str, value: object) -> None:
    assert PLAIN.text(kind, [word]) == text
    found = PLAIN.value(kind, [word])
    assert (found, type(found)) == (value, type(value))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("data", "words", "text", "value"),
    [
        (b"", 1, '""', ""),
        (b"GET", 1, '"GET"', "GET"),
        (b"GET\0junk", 1, '"GET"', "GET"),
        (b"12345678", 1, '"12345678"...', "12345678"),
        (b'say "x"\n\x1b\\', 2, '"say \\"x\\"\\n\\x1b\\\\"', 'say "x"\n\x1b\\'),
        (b"\xff\xfe", 1, '"\\\\xff\\\\xfe"', "\\xff\\xfe"),
        (b"<fault>", 3, "<fault>", None),
    ],
)
def test_string(data: bytes, words: int, text: str, value: str | None) -> None:
    found = words_of_text(data, words)
    assert Formatter().text(f"str:{words}", found) == text
    assert Formatter().value(f"str:{words}", found) == value


def test_without_help_pointers_are_hexadecimal_and_durations_ticks() -> None:
    assert Formatter().text("caller", [0x401234]) == "0x401234"
    assert Formatter().text("duration", [25]) == "25"
    assert Formatter().value("enum:x:32", [3]) == 3


LAYOUT = Layout(
    (Field("id", "u32"), Field("name", "str:2"), Field("at", "ptr")), (Field("ret", "i32"),)
)
WORDS = [7, *words_of_text(b"hello, world", 2), 0x10]


def test_layout_tells_places() -> None:
    assert count_words(LAYOUT.entry) == 4
    assert [LAYOUT.entry_at(name) for name in ("id", "name", "at", "ret")] == [0, 1, 3, None]
    assert LAYOUT.exit_at("ret") == 0
    assert not LAYOUT.is_threshold
    assert Layout((), (Field("took", "duration"),)).is_threshold


def test_fields_by_name() -> None:
    assert PLAIN.texts(LAYOUT.entry, WORDS) == 'id=7, name="hello, world", at=0x10'
    assert PLAIN.values(LAYOUT.entry, WORDS) == {"id": 7, "name": "hello, world", "at": "0x10"}


@pytest.mark.parametrize("count", range(4))
def test_short_payload_gives_what_is_there(count: int) -> None:
    names = [field.name for field, _ in split(LAYOUT.entry, WORDS[:count])]
    assert names == [["id", "name", "at"][i] for i in range({0: 0, 1: 1, 2: 1, 3: 2}[count])]


STRANGE = (
    " u u128 str str: str:0 str:256 str:-1 str:1:2 str:9999 str:\u0663"
    " enum enum:x enum::32 enum:x:31 enum:32 Ptr ptr: PTR"
)


@pytest.mark.parametrize("kind", STRANGE.split(" "))
def test_unknown_kinds_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="no kind of payload"):
        words_of(kind)


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="256 words"):
        count_words([Field("a", "str:255"), Field("b", "u8")])
