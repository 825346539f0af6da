# SPDX-License-Identifier: Apache-2.0
"""What a recording says that it has cost."""

from __future__ import annotations

import os
from dataclasses import replace

from textpoke.overhead import Meter, Overhead, event_ns, function_event_ns


def test_the_probe_is_measured_here() -> None:
    ns, measured = function_event_ns()
    assert measured
    assert 1 < ns < 200
    assert event_ns("function") == ns < event_ns("function_graph") < event_ns("blk")
    assert event_ns("nop") == 0


def test_it_is_said_as_a_share_of_the_cpu_time() -> None:
    cost = Overhead(41_000_000, 41e6 * 13, 4_000_000_000)
    assert str(cost) == (
        "overhead: about 13 % of the target's CPU time (41.0 M events at 13 ns in 4.0 s)"
    )
    assert cost.as_dict()["share"] == 0.1333
    assert Overhead(10, 1e9, 1).share == 1.0
    assert "nothing" in str(Overhead(0, 0.0, 0))
    assert "(41.0 M calls at" in str(replace(cost, calls=41_000_000))
    assert "(41.0 M events and calls at" in str(replace(cost, calls=1))
    assert "more than" in str(Overhead(1, 1.0, 10, known=False))


def test_each_tracer_has_its_price() -> None:
    meter = Meter(os.getpid())
    meter.begin()
    meter.look("function", 1000)
    meter.look("function_graph", 3000)
    meter.look("profile", 3000, 500)
    cost = meter.result()
    assert (cost.events, cost.calls) == (3500, 500)
    wanted = [1000 * event_ns("function"), 2000 * event_ns("function_graph")]
    assert abs(cost.cost_ns - sum(wanted) - 500 * event_ns("profile")) < 1
    assert cost.cpu_ns >= 0
