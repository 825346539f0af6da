# SPDX-License-Identifier: Apache-2.0
"""The text of function_graph: the exact lines, whatever is missing or left out."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import captures
import pytest
from captures import GET, INFLATE, SET, Recipe, Ring

from textpoke import decode
from textpoke.capture import Capture, CaptureWriter
from textpoke.payload import Field, Layout, layouts_json
from textpoke.report.graph import GraphOptions, graph
from textpoke.report.summary import pair_notes
from textpoke.report.text import text
from textpoke.report.times import times

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IN, OUT = 1, 2
US = 3_000
HEADER = """\
# tracer: function_graph
#
# entries-in-buffer/entries-written: {held}/{held}   #P:2
#
#           TASK-PID         DURATION                  FUNCTION CALLS
#              | |            |   |                     |   |   |   |
"""
TASK = "    redis-server-100     |"
SOME = [
    (0, SET, IN),
    (2 * US, GET, IN),
    (4 * US, GET, OUT),
    (5 * US, INFLATE, IN),
    (6 * US, GET, IN),
    (20 * US, GET, OUT),
    (30 * US, INFLATE, OUT),
    (2_000 * US, SET, OUT),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def shown(
    path: Path,
    *rings: Ring,
    layouts: dict[int, Layout] | None = None,
    symbol: object = None,
    mode: str = "drop",
    notes: Sequence[dict[str, object]] = (),
    **options: object,
) -> str:
    meta = captures.meta(tracer="function_graph", mode=mode, notes=list(notes))
    if layouts:
        meta["layouts"] = layouts_json(layouts)
    path.unlink(missing_ok=True)
    with Capture(captures.write(path, Recipe(rings, meta=meta))) as capture:
        return "".join(graph(capture, GraphOptions(**options), symbol=symbol))


def lines(*args: object, **options: object) -> list[str]:
    """Without the header and the tasks' names."""
    found = [line for line in shown(*args, **options).splitlines() if line[0] != "#"]
    return [line.removeprefix(TASK) for line in found]


def test_text_is_in_the_manner_of_ftrace(path: Path) -> None:
    assert shown(path, Ring(SOME)) == HEADER.format(held=8) + (
        f"{TASK}                |  setCommand() {{\n"
        f"{TASK}    2.000 us    |    getCommand();\n"
        f"{TASK}                |    inflate [libz.so.1]() {{\n"
        f"{TASK}  + 14.000 us   |      getCommand();\n"
        f"{TASK}  + 25.000 us   |    }}\n"
        f"{TASK}  # 2000.00 us  |  }}\n"
    )


@pytest.mark.parametrize(
    ("us", "field"),
    [
        (0, "   0.000 us    "),
        (10, "   10.000 us   "),
        (100, " + 100.000 us  "),
        (101, " ! 101.000 us  "),
        (10_001, " * 10001.0 us  "),
        (100_001, " @ 100001 us   "),
        (1_000_001, " $ 1000001 us  "),
        (12_345_678, " $ 12345678 us "),
    ],
)
def test_durations_have_marks(path: Path, us: int, field: str) -> None:
    found = lines(path, Ring([(0, SET, IN), (us * US, SET, OUT)]))
    assert found == [f" {field}|  setCommand();"]


def test_depth_makes_leaves_of_what_stands_there(path: Path) -> None:
    assert [line.partition("|")[2] for line in lines(path, Ring(SOME), depth=2)] == [
        "  setCommand() {",
        "    getCommand();",
        "    inflate [libz.so.1]();",
        "  }",
    ]


def test_threshold_shows_ends_alone(path: Path) -> None:
    assert lines(path, Ring(SOME), threshold_ns=14_000) == [
        "  + 14.000 us   |      } /* getCommand */",
        "  + 25.000 us   |    } /* inflate [libz.so.1] */",
        "  # 2000.00 us  |  } /* setCommand */",
    ]


def test_below_some_functions(path: Path) -> None:
    found = lines(path, Ring(SOME), below=frozenset([2]))
    assert [line.partition("|")[2] for line in found] == [
        "  inflate [libz.so.1]() {",
        "    getCommand();",
        "  }",
    ]
    found = lines(path, Ring(SOME), below=frozenset([0]), depth=1)
    assert found == ["  # 2000.00 us  |  setCommand();"]


def test_flat_and_tail_and_time(path: Path) -> None:
    assert lines(path, Ring(SOME), flat=True)[-2:] == [
        "  + 25.000 us   |  inflate [libz.so.1]();",
        "  # 2000.00 us  |  setCommand();",
    ]
    assert lines(path, Ring(SOME), tail=True)[-1].endswith("|  } /* setCommand */")
    found = shown(path, Ring(SOME), abstime=True).splitlines()
    assert found[4].split() == ["#", "TASK-PID", "TIME", "DURATION", "FUNCTION", "CALLS"]
    assert found[6] == f"{TASK}  12345.000000 |                 |  setCommand() {{"
    assert found[-1] == f"{TASK}  12345.002000 |   # 2000.00 us  |  }}"


def test_ends_without_begin_begins_without_end_and_losses(path: Path) -> None:
    rings = [
        Ring([(0, INFLATE, OUT), (US, SET, IN), (2 * US, INFLATE, IN), (3 * US, GET, IN)], lost=4),
        Ring([(9 * US, SET, OUT), (10 * US, SET, IN)]),
    ]
    assert lines(path, *rings) == [
        "                |  } /* inflate [libz.so.1] */",
        "                |  setCommand() {",
        "                |    inflate [libz.so.1]() {",
        "                |      getCommand() {",
        "    redis-server-100     [LOST 4 EVENTS]",
        "                |      } /* getCommand: no exit */",
        "                |    } /* inflate [libz.so.1]: no exit */",
        "    8.000 us    |  }",
        "                |  setCommand() {",
    ]


def test_threads_stand_between_each_other_in_order_of_time(path: Path) -> None:
    other = Ring([(3 * US, SET, IN), (4 * US, SET, OUT)], tid=101, ring=1)
    found = shown(path, Ring([(0, SET, IN), (9 * US, SET, OUT)]), other).splitlines()[-2:]
    assert found == [
        f"{TASK}    9.000 us    |  setCommand();",
        "             bio-101     |    1.000 us    |  setCommand();",
    ]


LAYOUTS = {
    SET: Layout(
        (Field("caller", "caller"), Field("key", "str:1"), Field("argc", "i32")),
        (Field("ret", "ptr"),),
    ),
    INFLATE: Layout((), (Field("took", "duration"), Field("ret", "i32"), Field("n", "u8"))),
}
(KEY,) = struct.unpack("<Q", b"abc".ljust(8, b"\0"))


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_arguments_and_results(path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    monkeypatch.setattr(decode, "_MIN_PIECE_EVENTS", 1)
    rows = [
        (0, SET, IN),
        *captures.data(False, [0x401200, KEY, 3]),
        (3 * US, GET, IN),
        (4 * US, GET, OUT),
        (9 * US, SET, OUT),
        *captures.data(True, [0]),
    ]
    other = Ring([(i * US // 2, GET, IN + i % 2) for i in range(18)], tid=101, ring=1)
    for rings in ([Ring(rows)], [Ring(rows[:2]), other, Ring(rows[2:8]), Ring(rows[8:])]):
        found = lines(path, *rings, layouts=LAYOUTS, symbol={0x401200: "main+0x10"}.get)
        mine = [line for line in found if "bio" not in line]
        assert mine[0] == '                |  setCommand(key="abc", argc=3) { /* <-main+0x10 */'
        assert mine[-1] == "    9.000 us    |  } = 0x0"


def test_arguments_of_a_leaf(path: Path) -> None:
    rows = [
        (0, SET, IN),
        *captures.data(False, [0x401200, KEY, 3]),
        (9 * US, SET, OUT),
        *captures.data(True, [(1 << 64) - 2]),
    ]
    assert lines(path, Ring(rows), layouts=LAYOUTS) == [
        '    9.000 us    |  setCommand(key="abc", argc=3) = -2; /* <-0x401200 */'
    ]


def test_payload_that_is_not_whole_is_left_out(path: Path) -> None:
    rows = [(0, SET, IN), *captures.data(False, [1, 2, 3])[:2], (9 * US, SET, OUT)]
    assert lines(path, Ring(rows), layouts=LAYOUTS) == ["    9.000 us    |  setCommand();"]


def test_long_calls_have_an_end_alone(path: Path) -> None:
    rows = [(40 * US, INFLATE, OUT), *captures.data(True, [30 * US, 5, 6])]
    assert lines(path, Ring(rows), layouts=LAYOUTS) == [
        "  + 30.000 us   |  } = {ret=5, n=6} /* inflate [libz.so.1] */"
    ]


def test_function_text_has_arguments(path: Path) -> None:
    meta = captures.meta(layouts=layouts_json(LAYOUTS))
    rows = [(0, SET), *captures.data(False, [0x401200, KEY, 3]), (3 * US, GET)]
    with Capture(captures.write(path, Recipe([Ring(rows)], meta=meta))) as capture:
        found = "".join(text(capture)).splitlines()[-2:]
    assert [line.partition(": ")[2] for line in found] == [
        'setCommand(caller=0x401200, key="abc", argc=3)',
        "getCommand",
    ]


def test_no_call_reaches_over_what_was_not_kept(path: Path) -> None:
    rings = [
        Ring([(0, SET, IN), (3 * US, GET, IN)]),
        Ring([(900 * US, GET, OUT), (901 * US, SET, IN), (903 * US, SET, OUT)], sequence=70),
    ]
    assert lines(path, *rings, mode="kept") == [
        "                |  setCommand() {",
        "                |    getCommand() {",
        "                |    } /* getCommand: no exit */",
        "                |  } /* setCommand: no exit */",
        "                |  } /* getCommand */",
        "    2.000 us    |  setCommand();",
    ]
    assert lines(path, *rings, mode="kept", threshold_ns=1) == [
        "    2.000 us    |  } /* setCommand */"
    ]


def test_stretches_follow_each_other_where_a_ring_went_on(path: Path) -> None:
    rings = [Ring([(0, SET, IN)]), Ring([(3 * US, SET, OUT)], sequence=1)]
    assert lines(path, *rings, mode="kept") == ["    3.000 us    |  setCommand();"]


PAUSE = [
    {"command": "traceoff", "tsc": captures.START_TSC + 10 * US},
    {"command": "traceon", "tsc": captures.START_TSC + 50 * US},
]


def test_no_call_reaches_over_a_pause(path: Path) -> None:
    mine = Ring([(0, SET, IN), (60 * US, SET, IN), (70 * US, SET, OUT)])
    other = Ring([(0, GET, IN), (9 * US, GET, OUT)], tid=101, ring=1)
    assert [line for line in lines(path, mine, other, notes=PAUSE) if "bio" not in line] == [
        "                |  setCommand() {",
        "                |  } /* setCommand: no exit */",
        "    10.000 us   |  setCommand();",
    ]
    (shown_at,) = (
        line for line in lines(path, mine, notes=PAUSE, abstime=True) if "no exit" in line
    )
    assert shown_at.split()[0] == "12345.000050"


def switched(tracer: str, us: int) -> dict[str, object]:
    """META's field for a recording that went over to a tracer."""
    at = captures.START_TSC + us * US
    return {"tracer": tracer, "switched": [at, at + 3]}


SWITCHED = [
    (0, SET, IN),
    (10 * US, GET, IN),
    (11 * US, GET, IN),
    (30 * US, SET, OUT),
    (31 * US, GET, IN),
    (50 * US, INFLATE, IN),
    (52 * US, INFLATE, OUT),
]


def shown_of_two_tracers(path: Path, **options: object) -> list[str]:
    path.unlink(missing_ok=True)
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta(tracer="function_graph"))
        os.write(writer.fd, captures.events_block(Ring(SWITCHED)))
        writer.sites([], switched("function", 5))
        writer.sites([], switched("function_graph", 40))
        writer.threads(captures.NAMES)
        writer.end(captures.end())
    with Capture(path) as capture:
        found = "".join(graph(capture, GraphOptions(**options))).splitlines()
    return [line.removeprefix(TASK) for line in found if line[0] != "#"]


def test_calls_that_the_function_tracer_saw_have_a_line_each(path: Path) -> None:
    assert shown_of_two_tracers(path) == [
        "                |  setCommand() {",
        "                |    getCommand();",
        "                |    getCommand();",
        "  + 30.000 us   |  }",  # its end came although the tracer had changed
        "                |  getCommand();",
        "    2.000 us    |  inflate [libz.so.1]();",
    ]


def test_calls_that_the_function_tracer_saw_under_options(path: Path) -> None:
    blank = "                |  getCommand();"
    assert shown_of_two_tracers(path, below=frozenset([1])) == [blank] * 3
    assert shown_of_two_tracers(path, depth=1) == [
        "  + 30.000 us   |  setCommand();",
        blank,
        "    2.000 us    |  inflate [libz.so.1]();",
    ]
    assert shown_of_two_tracers(path, flat=True) == [
        blank,
        blank,
        "  + 30.000 us   |  setCommand();",
        blank,
        "    2.000 us    |  inflate [libz.so.1]();",
    ]
    assert shown_of_two_tracers(path, threshold_ns=1) == [
        "  + 30.000 us   |  } /* setCommand */",
        "    2.000 us    |  } /* inflate [libz.so.1] */",
    ]


def test_a_recording_that_ends_with_the_function_tracer(path: Path) -> None:
    path.unlink(missing_ok=True)
    with CaptureWriter(path) as writer:
        writer.meta({**captures.meta(tracer="function_graph"), "layouts": layouts_json(LAYOUTS)})
        rows = [(10 * US, SET, IN), *captures.data(False, [0x401200, KEY, 3]), (12 * US, SET, IN)]
        os.write(writer.fd, captures.events_block(Ring(rows)))
        writer.sites([], switched("function", 5))
    with Capture(path) as capture:
        found = "".join(graph(capture)).splitlines()[-2:]
        assert times(capture).counts.without_exits == 2
        (note,) = pair_notes(times(capture))
    assert [line.rpartition("|  ")[2] for line in found] == [
        'setCommand(key="abc", argc=3); /* <-0x401200 */',
        "setCommand();",
    ]
    assert note.startswith("not in the table: 2 events of the tracer function")
