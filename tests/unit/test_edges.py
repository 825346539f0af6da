# SPDX-License-Identifier: Apache-2.0
"""Callers and callees: the calls between two functions, added up over all threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import captures
import pytest
from captures import GET, INFLATE, SET, UNKNOWN, Recipe, Ring

from textpoke.capture import Capture
from textpoke.report.edges import NOBODY, Edge, callees, callers, edge_records, edge_table, ordered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN, OUT = 1, 2
US = 3_000
OF_SET, OF_GET, OF_INFLATE = 0, 1, 2
RINGS = [
    Ring(
        [
            (0, SET, IN),
            (1 * US, GET, IN),
            (2 * US, INFLATE, IN),
            (5 * US, INFLATE, OUT),
            (6 * US, GET, OUT),
            (7 * US, GET, IN),
            (9 * US, GET, IN),
            (10 * US, GET, OUT),
            (11 * US, GET, OUT),
            (12 * US, SET, OUT),
        ]
    ),
    Ring(
        [(0, GET, IN), (4 * US, GET, OUT), (5 * US, UNKNOWN, IN), (6 * US, GET, IN)],
        tid=101,
        ring=1,
    ),
]


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    meta = captures.meta(tracer="function_graph")
    with Capture(captures.write(tmp_path / "x.tptrace", Recipe(RINGS, meta=meta))) as opened:
        yield opened


def test_callers(capture: Capture) -> None:
    assert ordered(callers(capture, {OF_GET})) == [
        Edge(OF_SET, OF_GET, calls=2, total_ns=9_000, self_ns=5_000),
        Edge(NOBODY, OF_GET, calls=1, total_ns=4_000, self_ns=4_000),
        Edge(OF_GET, OF_GET, calls=1, total_ns=1_000, self_ns=1_000),
        Edge(-1, OF_GET, calls=1, unfinished=1),
    ]


def test_callees(capture: Capture) -> None:
    assert ordered(callees(capture, {OF_GET})) == [
        Edge(OF_GET, OF_INFLATE, calls=1, total_ns=3_000, self_ns=3_000),
        Edge(OF_GET, OF_GET, calls=1, total_ns=1_000, self_ns=1_000),
    ]
    assert callees(capture, {OF_INFLATE}) == []
    both = callees(capture, {OF_SET, OF_GET})
    assert {(edge.caller, edge.callee): edge.calls for edge in both} == {
        (OF_SET, OF_GET): 2,
        (OF_GET, OF_INFLATE): 1,
        (OF_GET, OF_GET): 1,
    }


@pytest.mark.parametrize(
    ("sort", "first"),
    [("total", OF_SET), ("self", OF_SET), ("calls", OF_SET), ("avg", OF_SET)],
)
def test_order_and_limit(capture: Capture, sort: str, first: int) -> None:
    edges = callers(capture, {OF_GET})
    edges.reverse()
    assert ordered(edges, sort, 1)[0].caller == first


def test_table_and_records_name_both_ends(capture: Capture) -> None:
    edges = ordered(callers(capture, {OF_GET}))
    header, *rows = (line.split() for line in edge_table(capture, edges, known=True))
    assert header == ["CALLS", "TOTAL", "SELF", "AVG", "CALLER", "CALLEE"]
    assert rows[0][-2:] == ["redis-server!setCommand", "redis-server!getCommand"]
    assert rows[1][-3:] == ["[not", "recorded]", "redis-server!getCommand"]
    assert rows[3] == ["1", "-", "-", "-", "[unknown]", "redis-server!getCommand"]
    records = edge_records(capture, edges)
    assert records[1]["caller"] is None
    assert records[3]["caller"] == {"module": None, "function": None}
    assert (records[0]["average_ns"], records[3]["average_ns"]) == (4_500, 0)
    assert records[0]["callee"] == {"module": "redis-server", "function": "getCommand"}
