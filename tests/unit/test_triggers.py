# SPDX-License-Identifier: Apache-2.0
"""The trigger language: commands, counts, thresholds, removal as in ftrace."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import site

from textpoke._errors import BadTrigger, TextpokeError, UnknownFunction
from textpoke.filters import SiteNames
from textpoke.triggers import Command, TriggerSet, parse_trigger

NAMES = SiteNames(
    [
        site("spin_lock", "prog"),
        site("mutex_lock", "prog"),
        site("handle", "prog"),
        site("shop::total<int>", "libshop.so"),
    ],
    main="prog",
)


def listed(*lines: str) -> list[str]:
    return TriggerSet.of(lines).read_back(NAMES)


@pytest.mark.parametrize(
    ("line", "back"),
    [
        ("handle:traceoff", "handle:traceoff:unlimited"),
        ("handle:traceon:unlimited", "handle:traceon:unlimited"),
        ("handle:traceoff:3", "handle:traceoff:count=3"),
        ("handle:traceoff:count=3", "handle:traceoff:count=3"),
        ("handle:snapshot:1", "handle:snapshot:count=1"),
        ("handle:stacktrace", "handle:stacktrace:unlimited"),
        ("handle:dump:1", "handle:dump:count=1"),
        ("handle>5ms:snapshot", "handle>5ms:snapshot:unlimited"),
        ("handle>1.5ms:dump:2", "handle>1500us:dump:count=2"),
        ("handle>5ms:keep=200ms", "handle>5ms:keep=200ms:unlimited"),
        ("handle>5ms:keep=200ms+50ms:3", "handle>5ms:keep=200ms+50ms:count=3"),
        ("handle:keep=1s", "handle:keep=1s:unlimited"),
        ("shop::total<int>:traceoff", "shop::total<int> [libshop.so]:traceoff:unlimited"),
        ("shop::total<int>>1us:traceoff", "shop::total<int> [libshop.so]>1us:traceoff:unlimited"),
        ("libshop!*:dump", "shop::total<int> [libshop.so]:dump:unlimited"),
        ("*:mod:libshop:dump", "shop::total<int> [libshop.so]:dump:unlimited"),
    ],
)
def test_lines_read_back(line: str, back: str) -> None:
    assert listed(line) == [back]


def test_triggers_add_up_and_the_same_one_again_replaces() -> None:
    assert listed("handle:traceoff", "handle:traceon", "handle:traceoff:3") == [
        "handle:traceoff:unlimited",
        "handle:traceon:unlimited",
        "handle:traceoff:count=3",
    ]
    assert listed("handle:traceoff:3", "handle:traceoff:5") == ["handle:traceoff:count=5"]


def test_removal_takes_the_one_with_or_without_a_count() -> None:
    both = ("*lock:traceoff", "*lock:traceoff:3")
    assert listed(*both, "!spin_lock:traceoff") == [
        "spin_lock:traceoff:count=3",
        "mutex_lock:traceoff:unlimited",
        "mutex_lock:traceoff:count=3",
    ]
    assert listed(*both, "!*:traceoff:0") == [
        "spin_lock:traceoff:unlimited",
        "mutex_lock:traceoff:unlimited",
    ]
    assert listed("handle>5ms:keep=1s", "!handle>5ms:keep") == []
    assert listed("handle>5ms:dump", "!handle>6ms:dump") == ["handle>5ms:dump:unlimited"]


def test_nothing_to_remove_is_an_error() -> None:
    with pytest.raises(BadTrigger, match="no such trigger"):
        TriggerSet.of(["handle:traceoff:3", "!handle:traceoff"]).place(NAMES)
    with pytest.raises(UnknownFunction):
        TriggerSet.of("handel:traceoff").place(NAMES)
    assert TriggerSet.of("libnew!f:traceoff").place(NAMES) == []  # it may come


def test_modules_that_triggers_name() -> None:
    one = TriggerSet.of(["libnew!f:traceoff", "g:dump", "!libold!f:dump"])
    assert one.names_module("libnew.so")
    assert not one.names_module("libold.so")


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("handle", 7),
        ("handle:", 8),
        ("handle:traceof", 8),
        ("handle:traceoff:", 17),
        ("handle:traceoff:x", 17),
        ("handle:traceoff:0", 17),
        ("handle:traceoff=3", 16),
        ("handle:keep", 12),
        ("handle:keep=5", 13),
        ("handle:keep=5ms+1ms+1ms", 13),
        (":traceoff", 1),
        ("!:traceoff", 2),
        ("!!handle:traceoff", 2),
        ("handle>0ms:traceoff", 8),
        ("handle>5:traceoff", 8),
        ("!handle>-5ms:traceoff", 9),
        ("f:modul:x:traceoff", 3),
    ],
)
def test_bad_lines_say_where(line: str, column: int) -> None:
    with pytest.raises(BadTrigger) as caught:
        parse_trigger(line)
    assert caught.value.column == column


def test_fields() -> None:
    one = parse_trigger("handle>5ms:keep=200ms+50us:7")
    assert (one.command, one.count, one.over_ns) == (Command.KEEP, 7, 5_000_000)
    assert (one.before_ns, one.after_ns, one.remove) == (200_000_000, 50_000, False)


@given(st.text("f:!>5ms=trackeonf*0", max_size=24))
def test_any_text_parses_or_says_why(text: str) -> None:
    with contextlib.suppress(TextpokeError):
        parse_trigger(text)
