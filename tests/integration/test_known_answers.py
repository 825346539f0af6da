# SPDX-License-Identifier: Apache-2.0
"""Every tracer against a program that knows the answers: equal where exact, else within 5 %."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, textpoke, untouched

import textpoke as api
from textpoke.capture import Capture
from textpoke.clock import ns_per_tick
from textpoke.report import blk, latency

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Compile, Start

ROUNDS = 40
WITHIN = 0.05
SETTLED_S = 0.15  # the waiters are back in their waits, and were looked at
LATE_NS = 200_000  # a return is seen after the program's own look at the clock


@pytest.fixture
def known(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    process = start_target(compile_target("known.c", *programs.PIE))
    ask(process, "locks 1")  # stacks that libc keeps
    return process


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def traced(
    process: subprocess.Popen[str], output: Path, tracer: str, line: str, *include: str
) -> dict:
    """Let the program do one of its parts under a tracer; returns the program's own answers."""
    with untouched(process), api.attach(process.pid) as target:
        with target.trace(include, tracer=tracer, output=output) as trace:
            answers = json.loads(ask(process, line))
        assert trace.lost == 0
    return answers


def near(number: float) -> object:
    return pytest.approx(number, rel=WITHIN)


def test_blk_knows_every_byte(known: subprocess.Popen[str], output: Path, tmp_path: Path) -> None:
    names = {
        fd: os.readlink(f"/proc/{known.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{known.pid}/fd")
    }
    mine = traced(known, output, "blk", f"io {ROUNDS} {tmp_path}")
    with Capture(output) as capture:
        found = blk.records(capture)
    files = {row["name"]: row for row in found["by_file"]}
    # The program's own talk goes through descriptors 0 and 1.
    talk = [files.pop(names[fd], None) for fd in "01"]
    talked = sum(row["calls"] for row in talk if row)
    file = files[mine["file"]]
    assert (file["bytes_read"], file["bytes_written"]) == (mine["file_in"], mine["file_out"])
    reader, writer, moved = mine["pipe"]
    pipe = files[names[str(reader)]]
    assert names[str(reader)] == names[str(writer)]
    assert (pipe["bytes_read"], pipe["bytes_written"]) == (moved, moved)
    sender, receiver, moved = mine["socket"]
    assert files[names[str(sender)]]["bytes_written"] == moved
    assert files[names[str(receiver)]]["bytes_read"] == moved
    calls = {row["name"]: row["calls"] for row in found["by_function"]}
    assert calls["open"] == mine["opens"]
    assert calls["close"] == mine["closes"]
    assert calls["fsync"] == mine["syncs"]
    of_read = calls["read"] + calls["pread"] + calls["recv"]
    of_write = calls["write"] + calls["pwrite"] + calls["writev"] + calls["send"]
    assert of_read + of_write == mine["reads"] + mine["writes"] + talked
    assert found["failed"] == mine["failed"]
    callers = {row["name"] for row in found["by_caller"]}
    assert {"file_round", "pipe_round"} <= callers


def test_irqsoff_knows_the_longest_hold(known: subprocess.Popen[str], output: Path) -> None:
    mine = traced(known, output, "irqsoff", f"locks {ROUNDS}")
    with Capture(output) as capture:
        found = latency.records(capture)
    locks = {(row["kind"], row["address"]): row for row in found["by_object"]}
    for kind in ("mutex", "spin", "rwlock"):
        address, holds, longest_ns = mine[kind]
        row = locks[kind, address]
        assert row["count"] == holds
        assert row["max_ns"] == near(longest_ns)
        assert found["longest"][0]["latency_ns"] >= row["max_ns"]
    assert locks["mutex", mine["mutex"][0]]["symbol"] == "plain_mutex"


def test_irqsoff_keeps_the_functions_inside(known: subprocess.Popen[str], output: Path) -> None:
    mine = traced(known, output, "irqsoff", f"locks {ROUNDS}", "hold_*", "inside_of_lock")
    with Capture(output) as capture:
        (longest, *_) = latency.records(capture)["longest"]
    assert longest["latency_ns"] == near(max(mine[kind][2] for kind in ("mutex", "spin", "rwlock")))
    assert longest["object"].startswith("mutex")
    assert [row["function"] for row in longest["inside"]][:1] == ["inside_of_lock"]
    assert longest["stacks"][0]["functions"][0] == "hold_mutex"
    assert longest["started_at"]["caller"] == "hold_mutex"


def test_irqsoff_knows_the_longest_mask(known: subprocess.Popen[str], output: Path) -> None:
    mine = traced(known, output, "irqsoff", f"masks {ROUNDS}")
    with Capture(output) as capture:
        found = latency.records(capture)
    (masked,) = found["masked_by_thread"]
    assert masked["count"] == mine["sections"]
    assert masked["max_ns"] == near(mine["longest_ns"])


def test_wakeup_knows_the_longest_wake(known: subprocess.Popen[str], output: Path) -> None:
    mine = traced(known, output, "wakeup_rt", f"wakes {ROUNDS}", "sleep_on_*", "wake_by_*")
    with Capture(output) as capture:
        found = latency.records(capture)
    objects = {(row["kind"], row["address"]): row for row in found["by_object"]}
    condition = objects["cond", mine["condition"]]
    assert condition["count"] == mine["wakes"]
    assert condition["max_ns"] == near(mine["condition_ns"])
    assert objects["sem", mine["semaphore"]]["count"] == mine["wakes"]
    (longest,) = found["longest"]
    assert longest["latency_ns"] == near(mine["condition_ns"])
    stacks = {stack["tid"]: stack["functions"][0] for stack in longest["stacks"]}
    assert stacks == {mine["waker"]: "wake_by_condition", mine["waiter"]: "sleep_on_condition"}


def of_semaphore(output: Path, address: int) -> dict:
    with Capture(output) as capture:
        found = latency.records(capture)
    return next(
        row for row in found["by_object"] if (row["kind"], row["address"]) == ("sem", address)
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_wakeup_knows_who_waited_already(
    known: subprocess.Popen[str], output: Path, threads: int
) -> None:
    """The first wake of each is not shown: its wait has no begin."""
    ask(known, f"crowd {threads}")
    with untouched(known), api.attach(known.pid) as target:
        with target.trace([], tracer="wakeup_rt", output=output) as trace:
            trace.run(SETTLED_S)
            mine = json.loads(ask(known, f"posts {ROUNDS}"))
        assert trace.lost == 0
    semaphore = of_semaphore(output, mine["semaphore"])
    assert semaphore["count"] == ROUNDS - threads
    assert semaphore["max_ns"] <= mine["longest_ns"] * (1 + WITHIN) + LATE_NS


def test_wakeup_knows_who_waits_when_it_is_switched_on_again(
    known: subprocess.Popen[str], output: Path
) -> None:
    ask(known, "crowd 3")
    with api.attach(known.pid) as target:
        with target.trace([], tracer="wakeup_rt", output=output) as trace:
            trace.run(SETTLED_S)
            first = json.loads(ask(known, f"posts {ROUNDS}"))
            trace.tracer = "nop"
            ask(known, f"posts {ROUNDS}")  # each gets some
            trace.tracer = "wakeup_rt"
            trace.run(SETTLED_S)
            second = json.loads(ask(known, f"posts {ROUNDS}"))
        assert trace.lost == 0
    semaphore = of_semaphore(output, first["semaphore"])
    assert semaphore["count"] == 2 * (ROUNDS - 3)
    longest_ns = max(first["longest_ns"], second["longest_ns"])
    assert semaphore["max_ns"] <= longest_ns * (1 + WITHIN) + LATE_NS


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_calls_and_their_times(known: subprocess.Popen[str], output: Path, tracer: str) -> None:
    mine = traced(known, output, tracer, f"calls {ROUNDS}", "*_work")
    result = textpoke("report", "--json", output)
    assert result.code == 0, result
    rows = {row["function"]: row for row in json.loads(result.out)["functions"]}
    for function, (calls, total_ns) in mine.items():
        assert rows[function]["calls"] == calls
        if tracer != "function":
            assert rows[function]["total_ns"] == near(total_ns)
    if tracer != "function":
        inner, outer = mine["inner_work"][1], mine["outer_work"][1]
        assert rows["outer_work"]["self_ns"] == near(outer - inner)


def test_profile_counts_in_the_program(known: subprocess.Popen[str]) -> None:
    with untouched(known), api.attach(known.pid) as target:
        names = {site.address + site.length: site.function for site in target.sites("*_work")}
        with target.trace("*_work", tracer="profile") as trace:
            mine = json.loads(ask(known, f"calls {ROUNDS}"))
            rows = {names[address]: row for address, row in trace.profile().items()}
    to_ns = ns_per_tick()
    for function, (calls, total_ns) in mine.items():
        assert rows[function].hits == calls
        assert rows[function].total * to_ns == near(total_ns)
    inner, outer = mine["inner_work"][1], mine["outer_work"][1]
    assert rows["outer_work"].self * to_ns == near(outer - inner)


def test_branches_are_counted_by_direction(known: subprocess.Popen[str]) -> None:
    with untouched(known), api.attach(known.pid) as target:
        with target.branches(["jump_every_third", "jump_back"]) as counts:
            mine = json.loads(ask(known, f"branches {ROUNDS}"))
        rows = {row.function: (row.taken, row.not_taken) for row in counts.read()}
    assert rows == {function: tuple(numbers) for function, numbers in mine.items()}


def test_a_lock_that_a_last_jump_releases_is_released_for_the_caller(
    compile_target: Compile, start_target: Start, output: Path
) -> None:
    """The return address is a trampoline of ours then, of the function that jumps."""
    process = start_target(compile_target("tail.c", *programs.PIE, "-O2"))
    result = textpoke("record", "-p", process.pid, "-t", "irqsoff", "-o", output, "-d", "300ms")
    assert result.code == 0, result
    longest = json.loads(textpoke("report", "--json", output).out)["longest"][0]
    assert longest["started_at"]["caller"] == "hold"
    assert longest["ended_at"]["caller"] == "hold_and_more"


def test_the_compilers_start_files_call_nothing_of_the_program(
    compile_target: Compile, output: Path
) -> None:
    """Nobody sees their returns: they would hold the whole program, as its callers."""
    program = compile_target("tail.c", "-O1")
    result = textpoke("record", "-t", "function_graph", "-o", output, "--", program, 5)
    assert result.code == 0, result
    tree = textpoke("report", "--tree", "--depth", "2", output).out
    assert "main" in tree
    assert not {"_init", "frame_dummy", "register_tm_clones"} & set(tree.split())
