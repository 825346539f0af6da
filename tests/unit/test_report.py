# SPDX-License-Identifier: Apache-2.0
"""Reports: the exact lines, the exact numbers, and every loss on show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import captures
import pytest
from captures import GET, INFLATE, SET, UNKNOWN, Recipe, Ring
from hypothesis import given
from hypothesis import strategies as st

from textpoke.capture import Capture
from textpoke.report.counts import count
from textpoke.report.layout import columns
from textpoke.report.names import escape
from textpoke.report.records import records
from textpoke.report.summary import summary
from textpoke.report.table import table
from textpoke.report.text import text

if TYPE_CHECKING:
    from pathlib import Path

LOSSY = Recipe(
    rings=[
        Ring([(3_000, SET), (6_000, SET)], lost=23),
        Ring([(9_000, UNKNOWN)], tid=102, ring=1),
        Ring([(12_000, GET)], sequence=25),
    ],
    end=captures.end(lost=24, lost_no_ring=5),
)
HEADER = """\
# tracer: function
#
# entries-in-buffer/entries-written: {held}/{written}   #P:2
{notes}#
#           TASK-PID        TIMESTAMP   FUNCTION
#              | |              |          |
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def text_of(path: Path, recipe: Recipe) -> str:
    with Capture(captures.write(path, recipe)) as capture:
        return "".join(text(capture))


def table_of(path: Path, recipe: Recipe, **options: object) -> list[str]:
    with Capture(captures.write(path, recipe)) as capture:
        return list(table(capture, count(capture), **options))


def summary_of(path: Path, recipe: Recipe) -> list[str]:
    with Capture(captures.write(path, recipe)) as capture:
        return summary(capture, count(capture))


def test_text_is_in_the_manner_of_ftrace(path: Path) -> None:
    assert text_of(path, captures.SMALL) == HEADER.format(held=5, written=5, notes="") + (
        "    redis-server-100      12345.000001: setCommand\n"
        "             bio-101      12345.000001: inflate [libz.so.1]\n"
        "    redis-server-100      12345.000002: getCommand\n"
        "    redis-server-100      12345.000003: setCommand\n"
        "    redis-server-100      12346.000000: setCommand\n"
    )


def test_text_shows_losses_in_their_place(path: Path) -> None:
    notes = "# lost by threads without a ring: 5\n"
    assert text_of(path, LOSSY) == HEADER.format(held=4, written=33, notes=notes) + (
        "    redis-server-100      12345.000001: setCommand\n"
        "    redis-server-100      12345.000002: setCommand\n"
        "    redis-server-100     [LOST 23 EVENTS]\n"
        "           <...>-102      12345.000003: [unknown]\n"
        "    redis-server-100      12345.000004: getCommand\n"
    )


def test_text_of_a_capture_cut_off_says_so(path: Path) -> None:
    found = text_of(path, Recipe(captures.SMALL.rings, end=None))
    assert "\n# incomplete: cut off after " in found
    assert "\n# no time scale: times are TSC ticks\n" in found


def test_text_without_events_is_the_header(path: Path) -> None:
    assert text_of(path, Recipe()) == HEADER.format(held=0, written=0, notes="")


def test_text_without_the_number_of_cpus_leaves_it_out(path: Path) -> None:
    assert "entries-written: 0/0\n" in text_of(path, Recipe(meta=captures.meta(cpus=0)))


def test_text_escapes_names(path: Path) -> None:
    meta = captures.meta(sites=[[SET, "redis-server", "a\x1b[2J\nb"]])
    found = text_of(path, Recipe([Ring([(0, SET)])], meta=meta, threads={100: "x\r"}))
    assert found.endswith("x\\x0d-100      12345.000000: a\\x1b[2J\\x0ab\n")


def test_table_has_a_column_per_thread_when_few(path: Path) -> None:
    found = table_of(path, captures.SMALL)
    numbers = "CALLS   SHARE  CALLS/S     FIRST      LAST  redis-server-100  bio-101  "
    assert found[0] == f"{numbers}FUNCTION"
    assert [line.split() for line in found[1:]] == [
        ["3", "60.00%", "1.5", "0.000001", "1.000000", "3", "0", "redis-server!setCommand"],
        ["1", "20.00%", "0.5", "0.000002", "0.000002", "1", "0", "redis-server!getCommand"],
        ["1", "20.00%", "0.5", "0.000002", "0.000002", "0", "1", "libz.so.1!inflate"],
    ]
    assert {line.index("libz") for line in found if "libz" in line} == {len(numbers)}


def test_table_of_one_thread_has_no_thread_column(path: Path) -> None:
    header, *lines = table_of(path, Recipe([Ring([(0, INFLATE)] * 1_234)]))
    assert header.split() == ["CALLS", "SHARE", "CALLS/S", "FIRST", "LAST", "FUNCTION"]
    assert [line.split() for line in lines] == [
        ["1,234", "100.00%", "617", "0.000000", "0.000000", "libz.so.1!inflate"]
    ]


def test_table_of_many_threads_has_no_thread_columns(path: Path) -> None:
    rings = [Ring([(0, SET)], tid=tid, ring=tid) for tid in range(5)]
    header, line = table_of(path, Recipe(rings))
    assert "-4" not in header
    assert line.split()[0] == "5"


def test_table_by_thread(path: Path) -> None:
    lines = table_of(path, captures.SMALL, by="thread")
    assert [line.split()[:2] + line.split()[-1:] for line in lines] == [
        ["THREAD", "CALLS", "FUNCTION"],
        ["redis-server-100", "3", "redis-server!setCommand"],
        ["redis-server-100", "1", "redis-server!getCommand"],
        ["bio-101", "1", "libz.so.1!inflate"],
    ]
    assert len(table_of(path.with_name("y"), captures.SMALL, by="thread", limit=1)) == 3


def test_table_with_a_limit(path: Path) -> None:
    assert [line.split()[-1] for line in table_of(path, captures.SMALL, limit=1)] == [
        "FUNCTION",
        "redis-server!setCommand",
    ]


def test_table_without_calls_is_its_header(path: Path) -> None:
    assert len(table_of(path, Recipe([Ring([(0, UNKNOWN)])]))) == 1


def test_summary_of_a_perfect_capture_is_one_line(path: Path) -> None:
    assert summary_of(path, captures.SMALL) == [
        "redis-server (pid 100), tracer function: 5 events in 2.000000 s, 0 lost"
    ]


def test_summary_shows_everything_that_is_missing(path: Path) -> None:
    assert summary_of(path, LOSSY) == [
        "redis-server (pid 100), tracer function: 4 events in 2.000000 s, 29 lost",
        "lost: 24, rings full (redis-server-100 23)",
        "lost: 5 of threads that had no ring",
        "unknown: 1 with an address that no site has",
    ]


def test_summary_of_a_capture_cut_off(path: Path) -> None:
    first, *notes = summary_of(path, Recipe(captures.SMALL.rings, end=None))
    assert first.endswith(": 5 events in 3.000000 billion TSC ticks, 0 lost")
    assert notes[0].startswith("incomplete: cut off after ")
    assert notes[1].startswith("no time scale: ")


def test_overwritten_events_are_called_so(path: Path) -> None:
    recipe = Recipe([Ring([(0, SET)], lost=2)], meta=captures.meta(mode="overwrite"))
    assert "lost: 2, old events were overwritten (redis-server-100 2)" in summary_of(path, recipe)


def test_records_hold_what_the_table_shows(path: Path) -> None:
    with Capture(captures.write(path, LOSSY)) as capture:
        data = json.loads(json.dumps(records(capture, count(capture))))
    assert {
        name: data[name] for name in ("events", "calls", "unknown", "lost", "lost_no_ring")
    } == {
        "events": 4,
        "calls": 3,
        "unknown": 1,
        "lost": 24,
        "lost_no_ring": 5,
    }
    assert data["threads"] == [
        {"tid": 100, "name": "redis-server", "calls": 3, "unknown": 0, "lost": 23},
        {"tid": 102, "name": None, "calls": 0, "unknown": 1, "lost": 0},
    ]
    assert data["functions"][0] == {
        "module": "redis-server",
        "function": "setCommand",
        "address": SET,
        "calls": 2,
        "share": pytest.approx(2 / 3),
        "calls_per_s": 1.0,
        "first_ns": 1_000,
        "last_ns": 2_000,
        "threads": {"100": 2},
    }
    assert [row["function"] for row in data["functions"]] == ["setCommand", "getCommand"]
    assert data["duration_ns"] == 2_000_000_000
    assert data["reason"] == "duration"


def test_counts_add_up_over_rings_and_blocks(path: Path) -> None:
    rings = [
        Ring([(9_000, SET), (12_000, GET)], tid=100, ring=0),
        Ring([(3_000, SET)], tid=100, ring=1),
        Ring([(6_000, SET), (15_000, SET)], tid=101, ring=2),
    ]
    with Capture(captures.write(path, Recipe(rings))) as capture:
        counts = count(capture)
    assert list(counts.everyone.rows()) == [(0, 4, 1_000, 5_000), (1, 1, 4_000, 4_000)]
    assert [(t.tid, t.calls.by_site()) for t in counts.threads] == [
        (100, {0: 2, 1: 1}),
        (101, {0: 2}),
    ]


def test_functions_of_the_same_name_stay_apart(path: Path) -> None:
    meta = captures.meta(sites=[[SET, "a", "init"], [GET, "a", "init"]])
    lines = table_of(path, Recipe([Ring([(0, SET), (0, GET)])], meta=meta))
    assert [line.split()[-1] for line in lines[1:]] == ["a!init", "a!init"]


def test_columns_are_two_blanks_apart_and_never_cut() -> None:
    name = "f" * 500
    assert list(columns(["N", "NAME"], [["1", name], ["22", "g"]], left=["NAME"])) == [
        " N  NAME",
        f" 1  {name}",
        "22  g",
    ]
    assert list(columns(["N", "NAME"], [])) == ["N  NAME"]


@given(st.text())
def test_escaped_names_are_printable(name: str) -> None:
    assert escape(name).isprintable()


def test_escape_keeps_ordinary_names() -> None:
    assert (
        escape("std::vector<int>::push_back(int&&) [ä]") == "std::vector<int>::push_back(int&&) [ä]"
    )
    assert escape("\x1b\x9b\u202e\udc80\U000e0001") == "\\x1b\\x9b\\u202e\\udc80\\U000e0001"
