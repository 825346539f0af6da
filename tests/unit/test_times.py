# SPDX-License-Identifier: Apache-2.0
"""Durations in the table, in JSON and as a tree; names for callers."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

import captures
import numpy as np
import pytest
from captures import GET, INFLATE, SET, Recipe, Ring
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textpoke import elf, proc
from textpoke.callers import Callers
from textpoke.capture import Capture
from textpoke.report.counts import count
from textpoke.report.layout import time_text
from textpoke.report.records import times_records
from textpoke.report.summary import pair_notes, summary
from textpoke.report.table import times_table
from textpoke.report.times import Times, ordered, times
from textpoke.report.tree import Node, call_tree, tree, tree_records
from textpoke.symbols import addresses

if TYPE_CHECKING:
    from pathlib import Path

IN, OUT = 1, 2
US = 3_000
SLOW_OK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
RINGS = [
    Ring(
        [
            (0, SET, IN),
            (1 * US, GET, IN),
            (3 * US, GET, OUT),
            (4 * US, GET, IN),
            (8 * US, GET, OUT),
            (10 * US, SET, OUT),
            (20 * US, INFLATE, OUT),
        ]
    ),
    Ring([(0, GET, IN), (6 * US, GET, OUT), (7 * US, SET, IN)], tid=101, ring=1),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def opened(path: Path, *rings: Ring, **changes: object) -> Capture:
    path.unlink(missing_ok=True)
    meta = captures.meta(tracer="function_graph", **changes)
    return Capture(captures.write(path, Recipe(rings, meta=meta)))


def found(path: Path, *rings: Ring) -> Times:
    with opened(path, *rings) as capture:
        return times(capture)


def test_numbers_of_each_function(path: Path) -> None:
    result = found(path, *RINGS)
    by_site = {function.site: function for function in result.functions}
    get = by_site[1]
    assert (get.calls, get.unfinished, get.total_ns, get.self_ns) == (3, 0, 12_000, 12_000)
    assert (get.min_ns, get.max_ns, get.average_ns) == (2_000, 6_000, 4_000)
    assert get.stddev_ns == pytest.approx(np.std([2_000, 4_000, 6_000]))
    assert (get.p50_ns, get.p99_ns) == (4_000, 6_000)
    assert (by_site[0].calls, by_site[0].unfinished, by_site[0].self_ns) == (2, 1, 4_000)
    assert {tid: [f.calls for f in rows] for tid, rows in result.threads.items()} == {
        100: [1, 2],
        101: [1, 1],
    }
    assert (result.counts.orphans, result.counts.unfinished, result.calls) == (1, 1, 5)


@SLOW_OK
@given(
    st.lists(
        st.one_of(st.integers(0, 100), st.integers(0, 1 << 20), st.integers(0, 1 << 40)),
        min_size=1,
        max_size=60,
    )
)
def test_percentiles_are_exact(path: Path, durations: list[int]) -> None:
    rows, now = [], 0
    for took in durations:
        rows += [(3 * now, SET, IN), (3 * (now + took), SET, OUT)]
        now += took
    (function,) = found(path, Ring(rows)).functions
    kept = sorted(round((rows[2 * i + 1][0]) / 3) - round(rows[2 * i][0] / 3)
                  for i in range(len(durations)))  # fmt: skip
    for percent, value in ((50, function.p50_ns), (99, function.p99_ns)):
        exact = kept[max(-(-len(kept) * percent // 100) - 1, 0)]
        assert value == exact
    assert function.max_ns == kept[-1]
    assert function.average_ns == pytest.approx(sum(kept) / len(kept))


SPANS = st.lists(
    st.tuples(st.sampled_from([SET, GET, INFLATE]), st.integers(0, 1000), st.booleans()), max_size=6
)


@SLOW_OK
@given(st.lists(SPANS, max_size=5))
def test_threads_add_up(path: Path, threads: list[list[tuple[int, int, bool]]]) -> None:
    rings = []
    took: dict[int, list[int]] = {}
    open_calls: dict[int, int] = {}
    for tid, spans in enumerate(threads):
        rows, now = [], 0
        for address, ns, ends in spans:
            site = [SET, GET, INFLATE].index(address)
            rows.append((3 * now, address, IN))
            now += ns
            if ends:
                rows.append((3 * now, address, OUT))
                took.setdefault(site, []).append(ns)
            else:
                open_calls[site] = open_calls.get(site, 0) + 1
        rings.append(Ring(rows, tid=tid, ring=tid))
    result = found(path, *rings)
    assert {f.site for f in result.functions} == took.keys() | open_calls.keys()
    for function in result.functions:
        mine = took.get(function.site, [])
        assert function.unfinished == open_calls.get(function.site, 0)
        assert function.calls == len(mine) + open_calls.get(function.site, 0)
        assert function.min_ns <= function.p50_ns <= function.p99_ns <= function.max_ns
        if mine and not open_calls:
            assert (function.min_ns, function.max_ns) == (min(mine), max(mine))
            assert function.total_ns == function.self_ns == sum(mine)


@pytest.mark.parametrize(
    ("sort", "sites"),
    [
        ("total", [1, 0]),
        ("self", [1, 0]),
        ("calls", [1, 0]),
        ("avg", [0, 1]),
        ("p50", [0, 1]),
        ("p99", [0, 1]),
        ("max", [0, 1]),
    ],
)
def test_order(path: Path, sort: str, sites: list[int]) -> None:
    result = found(path, *RINGS)
    assert [function.site for function in ordered(result.functions, sort)] == sites
    assert len(ordered(result.functions, sort, 1)) == 1


def test_table(path: Path) -> None:
    with opened(path, *RINGS) as capture:
        result = times(capture)
        header, *rows = times_table(capture, result)
        by_thread = list(times_table(capture, result, by="thread", limit=1, sort="calls"))
        notes = pair_notes(result)
        facts = summary(capture, count(capture))
    assert " ".join(header.split()) == "CALLS TOTAL SELF AVG P50 P99 MAX STDDEV FUNCTION"
    assert rows[0].split()[:5] == ["3", "12.000", "us", "12.000", "us"]
    assert rows[1].split()[-1] == "redis-server!setCommand"
    assert [row.split()[0] for row in by_thread] == ["THREAD", "redis-server-100", "bio-101"]
    assert [note.partition(" calls")[0] for note in notes] == [
        "unfinished: 1",
        "orphans: 1 ends of",
    ]
    assert facts == [
        "redis-server (pid 100), tracer function_graph: 10 events in 2.000000 s, 0 lost"
    ]


def test_function_whose_calls_never_end_has_no_times(path: Path) -> None:
    with opened(path, Ring([(0, SET, IN), (3, GET, IN), (6, GET, OUT)])) as capture:
        rows = list(times_table(capture, times(capture)))
    assert rows[2].split() == ["1", *["-"] * 7, "redis-server!setCommand"]


def test_records(path: Path) -> None:
    with opened(path, *RINGS) as capture:
        data = json.loads(json.dumps(times_records(capture, count(capture), times(capture))))
        assert (
            len(times_records(capture, count(capture), times(capture), limit=1)["functions"]) == 1
        )
    assert (data["events"], data["calls"], data["unknown"], data["version"]) == (10, 5, 0, 1)
    assert data["pairs"] == {
        "finished": 4,
        "unfinished": 1,
        "orphans": 1,
        "long_calls": 0,
        "short_payloads": 0,
        "stray_data": 0,
        "without_exits": 0,
    }
    first = data["functions"][0]
    assert (first["function"], first["calls"], first["total_ns"]) == ("getCommand", 3, 12_000)
    assert first["threads"] == {"100": 2, "101": 1}
    assert first["share"] == 0.6


def flat(node: Node) -> dict[int, tuple]:
    return {
        site: (child.calls, child.total_ns, child.self_ns, flat(child))
        for site, child in node.children.items()
    }


def test_tree_adds_up_calls_by_their_callers(path: Path) -> None:
    with opened(path, *RINGS) as capture:
        root = call_tree(capture)
        lines = list(tree(capture, root, known=True))
        records = tree_records(capture, root)
        shallow = call_tree(capture, depth=1)
    assert flat(root) == {
        0: (2, 10_000, 4_000, {1: (2, 6_000, 6_000, {})}),
        1: (1, 6_000, 6_000, {}),
    }
    assert root.total_ns == 16_000
    assert [line.split()[-1] for line in lines] == [
        "FUNCTION",
        "setCommand",
        "+-getCommand",
        "getCommand",
    ]
    assert "62.5%" in lines[1]
    assert records[0]["children"][0]["function"] == "getCommand"
    assert not shallow.children[0].children


def test_tree_of_calls_that_never_end_counts_what_ended_in_them(path: Path) -> None:
    with opened(
        path, Ring([(0, SET, IN), (3, INFLATE, IN), (6, GET, IN), (36, GET, OUT)])
    ) as capture:
        root = call_tree(capture)
    assert flat(root) == {0: (1, 10, 0, {2: (1, 10, 0, {1: (1, 10, 10, {})})})}


def test_tree_ends_somewhere(path: Path) -> None:
    deep = 1_000
    rows = [(i, SET, IN) for i in range(deep)] + [(deep + i, SET, OUT) for i in range(deep)]
    with opened(path, Ring(rows)) as capture:
        assert len(list(tree(capture, call_tree(capture), known=True))) == 101
        assert len(list(tree(capture, call_tree(capture, deep), known=True))) == deep + 1


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0.000 us"), (999_999, "999.999 us"), (1_000_000, "1.000 ms"), (12.5e9, "12.500 s")],
)
def test_time_text(ns: float, text: str) -> None:
    assert time_text(ns) == text
    assert time_text(ns, known=False) == f"{ns:,.0f}"


def test_callers_have_names_where_the_file_is_as_it_was(path: Path) -> None:
    library = next(m.path for m in proc.read_maps(os.getpid()) if "/libc." in m.path)
    with elf.Image.open(library) as image:
        vaddr = addresses(image, ["getpid"])["getpid"]
    bias = 0x7F00_0000_0000
    now = {**captures.clock(), "realtime_ns": time.time_ns()}
    modules = [["libc", library, bias], ["gone", "/nowhere", 0], ["bad", sys.executable], 7]
    with opened(path, modules=modules, clock=now) as capture, Callers(capture) as callers:
        assert callers.name(bias + vaddr + 1) == "getpid+0x1"
        assert callers.name(0x10) is None
        assert callers.name((1 << 64) - 1) is None
    with opened(path, modules=modules) as capture, Callers(capture) as callers:
        assert callers.name(bias + vaddr + 1) is None
