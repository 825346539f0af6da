# SPDX-License-Identifier: Apache-2.0
"""What stacktrace triggers noted stands behind its event in the text, and in the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import captures
import pytest
from captures import GET, INFLATE, SET, START_TSC, UNKNOWN, Recipe, Ring

from textpoke import decode
from textpoke.capture import Capture
from textpoke.decode import Clock
from textpoke.report.counts import count
from textpoke.report.graph import GraphOptions, graph
from textpoke.report.records import records
from textpoke.report.stacks import stack_records
from textpoke.report.text import text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

IN, OUT = 1, 2
US = 3_000


def note(us: int, *frames: tuple[int, int], tid: int = 100, **more: object) -> dict[str, object]:
    """A hit; frames are (return address, microseconds)."""
    return {
        "trigger": "getCommand:stacktrace",
        "command": "stacktrace",
        "address": GET,
        "tid": tid,
        "tsc": START_TSC + us * US,
        "frames": [[address, START_TSC + at * US] for address, at in frames],
        "open_calls": True,
        **more,
    }


def opened(tmp_path: Path, tracer: str, *notes: dict[str, object], rings: list[Ring]) -> Capture:
    meta = captures.meta(tracer=tracer, notes=list(notes))
    return Capture(captures.write(tmp_path / "x.tptrace", Recipe(rings, meta=meta)))


def body(chunks: Iterable[str]) -> list[str]:
    """Without the header and the tasks' names."""
    found = [line for line in "".join(chunks).splitlines() if line[0] != "#"]
    return [line.partition("-100     ")[2] or line for line in found]


NESTED = [
    (0, SET, IN),
    (2 * US, GET, IN),
    (4 * US, INFLATE, IN),
    (5 * US, INFLATE, OUT),
    (6 * US, GET, OUT),
    (7 * US, SET, OUT),
]


@pytest.mark.parametrize("chunk", [1, 1 << 16])
def test_a_stack_stands_behind_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    monkeypatch.setattr(decode, "_MIN_PIECE_EVENTS", 1)
    hit = note(2, (GET, 2), (SET, 0), (UNKNOWN, 0), (UNKNOWN + 1, 0))
    with opened(tmp_path, "function_graph", hit, rings=[Ring(NESTED)]) as capture:
        found = body(graph(capture, symbol={UNKNOWN: "main+0x10"}.get))
    assert found[:8] == [
        "|                |  setCommand() {",
        "|                |    getCommand() {",
        "|                |      /* <stack trace>",
        " => getCommand",
        " => setCommand",
        " => main+0x10",
        " => 0x500001",
        " */",
    ]
    assert found[-2:] == ["|    4.000 us    |    }", "|    7.000 us    |  }"]


def test_a_stack_is_there_whatever_calls_are_shown(tmp_path: Path) -> None:
    hit = note(2, (GET, 2))
    with opened(tmp_path, "function_graph", hit, rings=[Ring(NESTED)]) as capture:
        found = body(graph(capture, GraphOptions(threshold_ns=5_000, abstime=True)))
    assert found == [
        "|  12345.000002 |                 |  /* <stack trace>",
        " => getCommand",
        " */",
        "|  12345.000007 |     7.000 us    |  } /* setCommand */",
    ]


def test_functions_that_are_no_open_calls_say_so(tmp_path: Path) -> None:
    hits = [
        note(2, (GET, 2), (SET, 0), open_calls=False),
        note(900, tid=7),  # of a thread without events, behind the last one
    ]
    rings = [Ring([(0, SET), (2 * US, GET), (4 * US, SET)], lost=2)]
    with opened(tmp_path, "function", *hits, rings=rings) as capture:
        found = body(text(capture))
    assert found == [
        " 12345.000000: setCommand",
        " 12345.000002: getCommand",
        " 12345.000002: <stack trace> (the last functions, not open calls)",
        " => getCommand",
        " => setCommand",
        " 12345.000004: setCommand",
        "[LOST 2 EVENTS]",
        "           <...>-7        12345.000900: <stack trace>",
    ]


def test_calls_are_open_where_ends_are_recorded_though_none_was_seen_yet(tmp_path: Path) -> None:
    early = note(1, (SET, 0), open_calls=False)
    late = note(60, (SET, 0), open_calls=False)
    away = {"tracer": "function", "switched": [START_TSC + 50 * US, START_TSC + 51 * US]}
    with opened(tmp_path, "function_graph", early, late, rings=[Ring(NESTED)]) as capture:
        assert [one["open_calls"] for one in stack_records(capture, Clock(capture))] == [True, True]
        capture.notes.append(away)
        assert [one["open_calls"] for one in stack_records(capture, Clock(capture))] == [
            True,
            False,
        ]


def test_records_hold_stacks(tmp_path: Path) -> None:
    hit = note(3, (GET, 2), (UNKNOWN, 0))
    with opened(tmp_path, "function_graph", hit, rings=[Ring(NESTED)]) as capture:
        found = records(capture, count(capture))["stacks"]
    assert found == [
        {
            "trigger": "getCommand:stacktrace",
            "tid": 100,
            "ts_ns": 3_000,
            "open_calls": True,
            "frames": [
                {
                    "module": "redis-server",
                    "function": "getCommand",
                    "address": GET,
                    "since_ns": 2_000,
                },
                {"module": None, "function": None, "address": UNKNOWN, "since_ns": 0},
            ],
        }
    ]
