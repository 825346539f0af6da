# SPDX-License-Identifier: Apache-2.0
"""The filter language: ftrace's globs, mod:, removal, numbers, notrace, files, threads."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import site

from textpoke import filters
from textpoke._errors import BadFilter, TextpokeError, UnknownFunction
from textpoke.filters import FilterSet, SiteNames, Threads, diff, parse_rule
from textpoke.patterns import name_test

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAIN = "redis-server"
SITES = [
    replace(found, address=0x1000 + 16 * i, entry=0x1000 + 16 * i - 4)
    for i, found in enumerate(
        [
            site("setCommand", MAIN),
            site("getCommand", MAIN),
            site("writeToClient", MAIN),
            site("readQueryFromClient", MAIN),
            site("mutex_trylock", "liblock.so.2"),
            site("spin_lock", "liblock.so.2"),
            site("mutex_lock", "liblock.so.2"),
            site("write", "libc.so.6"),
            site("writev", "libc.so.6"),
            site("shop::mod::add(int)", "libshop.so", "_ZN4shop3mod3addEi"),
            site("parse.constprop.0", "libshop.so"),
        ]
    )
]
SOURCES = {"writeToClient": "/src/redis/networking.c", "setCommand": "/src/redis/t_string.c"}


def files(sites: Sequence[object]) -> list[str]:
    return [SOURCES.get(found.function, "") for found in sites]


NAMES = SiteNames(SITES, main=MAIN, files=files)


def chosen(*texts: str, notrace: Sequence[str] = (), names: SiteNames = NAMES) -> list[str]:
    return [SITES[i].function for i in FilterSet.of(texts, notrace).select(names).indices]


# test_func_filter_glob of the kernel's selftests, and the shapes of glob(7).
@pytest.mark.parametrize(
    ("glob", "fits", "misses"),
    [
        ("schedule", ["schedule"], ["schedule2", "reschedule", ""]),
        ("*", ["schedule", ""], []),
        ("sched*", ["schedule", "sched"], ["xsched"]),
        ("*lock", ["spin_lock", "lock"], ["lock_it"]),
        ("*sched*", ["schedule", "resched_task"], ["sche"]),
        ("*pin*lock", ["spin_lock", "raw_spin_trylock", "pinlock"], ["spin_locked", "lockpin"]),
        ("mutex*try*", ["mutex_trylock", "mutextry"], ["mutex_lock", "xmutex_trylock"]),
        ("sch?dule", ["schedule", "schadule"], ["schdule", "scheedule"]),
        ("[Ss]y[Ss]_*", ["sys_read", "SyS_read", "SyS_"], ["syz_read", "xsys_read"]),
        ("[!s]ys", ["xys"], ["sys", "ys"]),
        ("[]x]a", ["]a", "xa"], ["a", "[a"]),
        ("[a-cx-z]", ["b", "z"], ["d", "-"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[z-a]", [], ["z", "a", "m"]),
        ("[!z-a]", ["z"], [""]),
        ("a[b", ["a[b"], ["ab"]),
        ("[]", ["[]"], ["[", "]"]),
        ("[!]", ["[!]"], ["!", "a"]),
        ("a\\*b", ["a*b"], ["axb"]),
        ("operator*", ["operator*", "operator*="], ["x::operator*"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_globs_as_in_the_kernel(glob: str, fits: list[str], misses: list[str]) -> None:
    test = name_test(glob)
    assert [name for name in fits if not test(name)] == []
    assert [name for name in misses if test(name)] == []


def kernel_glob(pattern: str, text: str) -> bool:
    """What lib/glob.c documents, by recursion: slow and plain, an opinion that is not ours."""
    if not pattern:
        return not text
    head, rest = pattern[0], pattern[1:]
    if head == "*":
        return kernel_glob(rest, text) or (bool(text) and kernel_glob(pattern, text[1:]))
    if head == "[":
        turned = rest[:1] == "!"
        end = rest.find("]", int(turned) + 1)
        if end > 0:
            inside, i, hit = rest[int(turned) : end], 0, False
            while i < len(inside):
                if inside[i + 1 : i + 2] == "-" and i + 2 < len(inside):
                    hit |= bool(text) and inside[i] <= text[0] <= inside[i + 2]
                    i += 3
                else:
                    hit |= text[:1] == inside[i]
                    i += 1
            return bool(text) and hit != turned and kernel_glob(rest[end + 1 :], text[1:])
    if head == "\\" and rest:
        head, rest = rest[0], rest[1:]
    elif head == "?":
        return bool(text) and kernel_glob(rest, text[1:])
    return text[:1] == head and kernel_glob(rest, text[1:])


@given(st.text("ab]-[!*?\\", max_size=8), st.text("ab]-[!*?\\", max_size=6))
def test_globs_agree_with_a_plain_matcher(pattern: str, text: str) -> None:
    wanted = kernel_glob(pattern, text) or pattern == text  # a name of C++ may be a wildcard
    assert bool(name_test(pattern)(text)) == wanted


def test_many_stars_take_no_time() -> None:
    test = name_test("*a" * 25 + "?b")
    started = time.process_time()
    assert not test("a" * 2000)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["setCommand"], ["setCommand"]),
        (["*pin*lock"], ["spin_lock"]),
        (["mutex*try*"], ["mutex_trylock"]),
        (["libc!write*"], ["write", "writev"]),
        (["write*:mod:libc"], ["write", "writev"]),
        (["write*:mod:libc*"], ["write", "writev"]),
        (["write*:mod:*"], ["write", "writev"]),
        (["write*:mod:"], ["write", "writev"]),
        (["*write*:mod:!*"], ["writeToClient"]),
        (["*write*:mod:!"], ["writeToClient"]),
        (["*Command:mod:redis*"], ["setCommand", "getCommand"]),
        ([":mod:libc"], ["write", "writev"]),
        (["write*:mod:!libc"], ["writeToClient"]),
        (["write*", "!writeT*"], ["write", "writev"]),
        (["write*", "!write*:mod:libc"], ["writeToClient"]),
        (["*", "!*:mod:*"], [s.function for s in SITES if s.module == MAIN]),
        (["*", "!*:mod:!libc"], ["write", "writev"]),
        (["!write", "write*"], ["writeToClient", "write", "writev"]),  # order counts
        (["1", "3"], ["setCommand", "writeToClient"]),
        (["write*", "!3"], ["write", "writev"]),
        (["0x1010"], ["getCommand"]),
        (["0x100C"], ["getCommand"]),  # the entry does as well as the site
        (["shop::mod::add"], ["shop::mod::add(int)"]),
        (["shop::mod::*"], ["shop::mod::add(int)"]),
        (["_ZN4shop*"], ["shop::mod::add(int)"]),
        (["parse"], ["parse.constprop.0"]),
        (["*:file:networking.c"], ["writeToClient"]),
        ([":file:t_*.c"], ["setCommand"]),
        ([":file:redis/*"], ["setCommand", "writeToClient"]),
        ([":file:!networking.c"], ["setCommand"]),
        (["*:mod:!*:file:*"], ["setCommand", "writeToClient"]),
        (["get*:file:networking.c", "set*"], None),
        (["nosuch"], None),
        (["12"], None),
        (["!nosuch"], None),
    ],
)
def test_expressions_choose(texts: list[str], names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(UnknownFunction):
            chosen(*texts)
    else:
        assert chosen(*texts) == names


def test_nothing_chosen_is_everything_as_in_ftrace() -> None:
    everything = [s.function for s in SITES]
    assert chosen() == everything
    assert chosen("write", "!write") == everything
    assert FilterSet.of("set*").select(NAMES).everything is False
    assert FilterSet.of(["set*", "!s*"]).select(NAMES).everything is True


def test_notrace_wins() -> None:
    assert chosen("write*", notrace=["writev"]) == ["writeToClient", "write"]
    assert chosen(notrace=[":mod:*"]) == [s.function for s in SITES if s.module == MAIN]
    assert chosen("write", notrace=["write"]) == ["writeToClient"] * 0


def test_replace_append_clear() -> None:
    first = FilterSet.of("set*")
    more = first.appended("get*")
    assert first.choose(NAMES) == [0]  # immutable
    assert more.choose(NAMES) == [0, 1]
    assert more.replaced("get*").choose(NAMES) == [1]
    assert more.replaced([]).select(NAMES).everything
    assert more.appended("set*", notrace=True).choose(NAMES) == [1]
    assert more.appended("set*", notrace=True).replaced((), notrace=True) == more


def test_reads_back_as_ftrace_does() -> None:
    assert FilterSet().read_back(NAMES) == ["#### all functions enabled ####"]
    assert FilterSet().read_back(NAMES, notrace=True) == ["#### no functions disabled ####"]
    one = FilterSet.of(["set*", "writev", "libx!foo"], "write")
    assert one.read_back(NAMES) == ["setCommand", "writev [libc.so.6]", "libx!foo"]
    assert one.read_back(NAMES, notrace=True) == ["write [libc.so.6]"]


def test_lines_say_everything_that_was_asked_for() -> None:
    full = FilterSet.of("a*", ["b"], threads=Threads(("7",), ("bio*",), follow=True), sample=10)
    assert full.lines() == [
        "a*",
        "notrace b",
        "thread 7",
        "notrace thread bio*",
        "follow new threads",
        "one of 10 calls",
    ]


def test_line_numbers_are_fixed_when_they_are_given() -> None:
    fixed = FilterSet.of(["3", "!1"], ["2"]).fixed(NAMES)
    later = SiteNames([site("early"), *SITES], main=MAIN)
    assert [later.sites[i].function for i in fixed.choose(later)] == ["writeToClient"]
    with pytest.raises(UnknownFunction):
        FilterSet.of("99").fixed(NAMES)


def test_a_name_without_a_module_looks_in_the_usual_ones_first() -> None:
    names = SiteNames(SITES, main=MAIN, usual={MAIN})
    assert chosen("write*", names=names) == ["writeToClient"]
    assert chosen("writev", names=names) == ["writev"]
    assert chosen("*!write*", names=names) == ["writeToClient", "write", "writev"]
    assert chosen(names=names) == [s.function for s in SITES if s.module == MAIN]


def test_modules_that_come_later() -> None:
    one = FilterSet.of(["libnew!*", "get*"])
    selection = one.select(NAMES)
    assert selection.indices == [1]
    assert selection.unheard == ("libnew!*",)
    new = SiteNames([site("fresh", "libnew.so.1"), site("other", "libold.so")])
    assert one.choose_more(new, everything=False) == [0]
    only = FilterSet.of("libnew!*").select(NAMES)  # as ftrace: not everything meanwhile
    assert (only.indices, only.everything) == ([], False)
    assert FilterSet.of((), "libnew!*").choose_more(new, everything=True) == [1]
    assert one.names_module("libnew.so.1")
    assert not one.names_module("libc.so.6")
    assert FilterSet.of("*:mod:!*").names_module("x", is_main=True)
    assert not FilterSet.of("*:mod:!*").names_module("x")


def test_what_is_gone_with_its_module_does_not_become_everything() -> None:
    selection = FilterSet.of("was_in_a_plugin").select(NAMES, strict=False)
    assert (selection.indices, selection.everything) == ([], False)
    assert selection.unheard == ("was_in_a_plugin",)


def test_unknown_functions_name_their_neighbours() -> None:
    with pytest.raises(UnknownFunction) as caught:
        chosen("setComand")
    assert caught.value.near == ["setCommand", "getCommand"]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 1),
        ("!", 2),
        ("f:modul:libc", 3),
        ("f:mod:a:mod:b", 9),
        ("f:file:", 8),
        ("f:traceoff", 3),
        ("f:traceoff:3", 3),
        ("17:mod:libc", 1),
        ("0", 1),
        ("!0x0", 2),
        ("!@file", 2),
    ],
)
def test_bad_expressions_say_where(text: str, column: int) -> None:
    with pytest.raises(BadFilter) as caught:
        parse_rule(text)
    assert (caught.value.text, caught.value.column) == (text, column)
    assert caught.value.caret.splitlines()[1].index("^") == column - 1
    assert caught.value.exit_code == 2


@given(st.text("a!*?[]:@0x9 \\modfile.", max_size=20))
def test_any_text_parses_or_says_why(text: str) -> None:
    with contextlib.suppress(TextpokeError):
        FilterSet.of([text.replace("@", "a")]).select(NAMES)


def test_a_file_of_patterns(tmp_path: Path) -> None:
    path = tmp_path / "hot"
    path.write_text("# what is hot\nset*\n\n  get*   # and this\nshop::{lambda(int)#1}::f\n")
    rules = filters.parse_rules([f"@{path}", "write"])
    assert [rule.text for rule in rules] == ["set*", "get*", "shop::{lambda(int)#1}::f", "write"]
    path.write_text("set*\nf:modul:x\n")
    with pytest.raises(BadFilter, match=f"{path}, line 2"):
        FilterSet.of(f"@{path}")
    with pytest.raises(FileNotFoundError):
        FilterSet.of(f"@{path}x")


def test_sources_that_nobody_can_look_up() -> None:
    with pytest.raises(BadFilter, match="source files"):
        FilterSet.of("*:file:a.c").choose(SITES)


THREADS = [(100, "redis-server"), (101, "bio_close"), (102, "bio_aof")]


@pytest.mark.parametrize(
    ("threads", "tids"),
    [
        (Threads(), {100, 101, 102}),
        (Threads(("101",)), {101}),
        (Threads(("bio*",)), {101, 102}),
        (Threads(("bio*",), ("102",)), {101}),
        (Threads((), ("bio*",)), {100}),
        (Threads(("100",), ("redis-server",)), set()),
        (Threads(("nobody",)), set()),
    ],
)
def test_thread_filters(threads: Threads, tids: set[int]) -> None:
    assert threads.choose(THREADS) == tids
    assert threads.everyone == (not threads.trace and not threads.notrace)


def test_threads_that_nobody_is_are_told() -> None:
    assert Threads(("100", "bio*")).unknown(THREADS) == []
    assert Threads(("99", "bio*", "nobody"), ("none",)).unknown(THREADS) == ["99", "nobody"]
    assert Threads((), ("none",)).unknown(THREADS) == []


def test_new_threads_are_followed_on_request() -> None:
    later = [*THREADS, (103, "io_thd_1"), (104, "bio_lazy")]
    before = {tid for tid, _ in THREADS}
    assert Threads(("100",)).choose(later, before) == {100}
    assert Threads(("100",), ("bio*",), follow=True).choose(later, before) == {100, 103}


def test_sampling_is_one_of_a_positive_number() -> None:
    assert FilterSet.of(sample=100).sample == 100
    with pytest.raises(BadFilter):
        FilterSet.of(sample=0)


def test_difference_of_two_selections() -> None:
    change = diff([1, 2, 5], [2, 3])
    assert (change.on, change.off) == ([3], [1, 5])


def test_300_000_names_take_about_a_second() -> None:
    words = ["alpha", "mutex", "spin", "write", "client", "lock"]
    many = [
        site(f"{words[i % 6]}_{i}_{words[i // 6 % 6]}", f"lib{i % 40}.so") for i in range(300_000)
    ]
    started = time.process_time()
    names = SiteNames(many)
    for texts in (["*pin*lock", "!mutex*"], ["[ms]*_9?_*"], ["*write*:mod:!lib1*"]):
        FilterSet.of(texts, ["*client"]).select(names)
    assert time.process_time() - started < 4  # some 0.9 s when the machine is ours
