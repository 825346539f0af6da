# SPDX-License-Identifier: Apache-2.0
"""A running recording is changed by other tools: tracer, filter, triggers, threads, instances."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import live
import numpy as np
import observe
import programs
import pytest
from live import Running, marks

import textpoke
from textpoke.decode import Decoder
from textpoke.governor import Budget
from textpoke.trigger_notes import left_out

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Compile, Start


@pytest.fixture
def running(
    compile_target: Compile,
    start_target: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Running]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)
    process = start_target(compile_target("triggers.c", *programs.PIE), "2")
    with live.running(process, budget=getattr(request, "param", None)) as running:
        yield running


def calls(path: str) -> dict[str, int]:
    """Events of each function in a capture."""
    with textpoke.Capture(path) as capture:
        assert capture.cut_off is None
        events = Decoder(capture).all()
        assert capture.end is not None
        assert capture.end.events == len(events)
        names = [site.function for site in capture.meta.sites]
        site = events.site[events.type == 1]
        found = np.bincount(site, minlength=len(names))
        total: dict[str, int] = {}
        for name, count in zip(names, found.tolist(), strict=True):
            total[name] = total.get(name, 0) + count
        return total


def test_status_and_tracers(running: Running) -> None:
    assert "function_graph" in running.tool("tracers")
    (first,) = json.loads(running.tool("instances", "--json"))["instances"]
    assert (first["name"], first["tracer"], first["on"]) == ("", "function", True)


def test_filter_and_switch_while_it_runs(running: Running) -> None:
    running.drain(0.1)
    out = json.loads(running.tool("filter", "quiet", "loud", "--json"))
    assert out["chosen"] == 2
    before = running.trace.events
    running.drain(0.3)
    assert 0 < running.trace.events - before < 2000  # work() is called a million times a second
    lines = running.tool("filter", "--available").splitlines()
    number = next(line.split()[0] for line in lines if line.split()[1] == "work")
    assert running.tool("filter", number, "--list") == "work\n"
    assert "close names: work" in running.tool("filter", "wrok", code=1)
    running.tool("switch", "nop")
    before = running.trace.events
    running.drain(0.1)
    assert running.trace.events == before
    running.tool("switch", "function_graph")
    running.drain(0.1)
    assert running.trace.events > before


def test_triggers_cut_and_snapshot(running: Running) -> None:
    lines = running.tool("trigger", "quiet:traceoff", "loud:traceon", "loud:snapshot:1")
    assert lines.splitlines() == [
        "quiet:traceoff:unlimited",
        "loud:traceon:unlimited",
        "loud:snapshot:count=1",
    ]
    running.drain(0.5)
    running.recording.stop()
    (snapshot,) = running.recording.snapshots
    assert snapshot == "first.snapshot-1.tptrace"
    assert calls(snapshot)["loud"] >= 1
    assert calls("first.tptrace")["quiet"] > 50
    with textpoke.Capture("first.tptrace") as capture:
        events = Decoder(capture).all()
        names = [site.function for site in capture.meta.sites]
        markers = marks(capture)
    marked = [m["tsc"] for m in markers if m["command"] == "traceoff"]
    assert len(marked) > 50
    is_quiet = events.site == names.index("quiet")
    after = np.flatnonzero(is_quiet)[-20:-1] + 1
    others = [names[events.site[i]] for i in after.tolist()]
    assert others.count("loud") > 15  # nothing of other threads between, but for equal times


def test_a_function_for_its_trigger_alone_is_not_recorded(running: Running) -> None:
    running.tool("filter", "loud")
    running.tool("trigger", "quiet:snapshot:2")
    running.drain(0.3)
    assert len(running.recording.snapshots) == 2
    running.recording.stop()
    with textpoke.Capture("first.tptrace") as capture:
        events = Decoder(capture).all()
        names = [site.function for site in capture.meta.sites]
    last_ns = {
        name: int(events.ts_ns[events.site == names.index(name)].max())
        for name in ("quiet", "loud")
    }
    assert last_ns["loud"] - last_ns["quiet"] > 100_000_000


def test_triggers_sit_at_functions_that_blk_leaves_out(running: Running) -> None:
    """Their own events stay hidden; without triggers nothing but libc's calls is traced."""
    running.tool("switch", "blk")
    before = running.session.target.records.count
    running.tool("trigger", "quiet:snapshot:2")
    assert running.session.target.records.count == before + 1
    running.drain(0.3)
    assert len(running.recording.snapshots) == 2
    running.tool("trigger", "!quiet:snapshot:2")
    assert running.session.target.records.count == before


def test_record_with_blk_and_a_trigger_of_the_program(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    words = ("-p", process.pid, "-t", "blk", "--trigger", "loud:traceoff:1", "-d", "500ms")
    with observe.untouched(process):
        result = observe.textpoke("record", *words, "-o", tmp_path / "x.tptrace")
    assert result.code == 0, result.err
    assert "loud: traceoff" in result.err


def test_calls_above_a_threshold_are_what_the_report_shows(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    """Such a call is one event at its end, which carries how long it took."""
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    capture = tmp_path / "x.tptrace"
    words = ("-p", process.pid, "-t", "function_graph", "--threshold", "4ms", "-d", "1s")
    with observe.untouched(process):
        assert observe.textpoke("record", *words, "-o", capture).code == 0
    result = observe.textpoke("report", "--json", capture)
    report = json.loads(result.out)
    (row,) = report["functions"]
    assert row["function"] == "slow"
    assert row["calls"] * 4_000_000 < row["total_ns"] < row["calls"] * 100_000_000
    assert report["pairs"]["orphans"] == report["pairs"]["short_payloads"] == 0
    assert observe.textpoke("report", "--text", capture).out.count("/* slow */") == row["calls"]


def test_a_trigger_that_can_never_act_is_refused(running: Running) -> None:
    refused = running.tool("trigger", "work>1ms:snapshot", code=2)
    assert "column 5: the function tracer sees no returns" in refused
    assert refused.endswith(f"textpoke switch -p {running.session.pid} function_graph\n")
    running.tool("switch", "function_graph")
    assert running.tool("trigger", "work>1ms:snapshot") == "work>1ms:snapshot:unlimited\n"
    running.tool("switch", "function")
    assert "work>1ms:snapshot rests: the function tracer" in running.recording.remarks[-1]
    assert running.tool("trigger", "loud:stacktrace").count("\n") == 2  # it is not in the way
    assert running.tool("trigger", "!work>1ms:snapshot") == "loud:stacktrace:unlimited\n"
    running.tool("switch", "profile")
    assert "writes no events" in running.tool("trigger", "quiet:traceoff", code=2)


@pytest.mark.parametrize(
    ("tracer", "trigger", "why"),
    [
        ("function", "slow>4ms:snapshot", "column 5: the function tracer sees no returns"),
        ("profile", "slow:traceoff", "the profile tracer counts and writes no events"),
        ("branch", "slow>4ms:traceoff", "the branch tracer counts and writes no events"),
    ],
)
def test_record_refuses_a_trigger_that_can_never_act(
    compile_target: Compile,
    start_target: Start,
    tmp_path: Path,
    tracer: str,
    trigger: str,
    why: str,
) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    words = ("-p", process.pid, "-t", tracer, "--trigger", trigger, "-d", "1s")
    with observe.untouched(process):
        result = observe.textpoke("record", *words, "-o", tmp_path / "x.tptrace")
    observe.is_one_error_line(result, 2, f"{trigger!r}, ", why, ": record with -t function_graph")
    assert list(tmp_path.iterdir()) == []


def test_a_slow_call_is_caught(running: Running) -> None:
    running.tool("switch", "function_graph")
    running.tool("trigger", "slow>4ms:snapshot:1")
    deadline = time.monotonic() + 10
    while not running.recording.snapshots and time.monotonic() < deadline:
        running.drain(0.05)
    found = calls(running.recording.snapshots[0])
    assert found["slow"] >= 1
    assert found["work"] > 1000


def test_threads_and_the_switch_by_hand(running: Running) -> None:
    running.tool("filter", "--thread", "nobody")
    before = running.trace.events
    running.drain(0.1)
    assert running.trace.events == before
    assert any("no thread is 'nobody' now" in remark for remark in running.recording.remarks)
    running.tool("filter", "--clear")
    running.drain(0.1)
    assert running.trace.events > before
    running.tool("switch", "--off")
    running.drain(0.05)
    before = running.trace.events
    running.drain(0.1)
    assert running.trace.events == before
    running.tool("switch", "--on")
    running.drain(0.1)
    assert running.trace.events > before


def test_filters_rest_with_a_tracer_that_cannot_honour_them(running: Running) -> None:
    """Who pairs calls needs all of them; who counts in the target sees no threads."""
    running.tool("filter", "--sample", "10")
    running.drain(0.2)
    before = running.trace.events
    running.tool("switch", "irqsoff")
    assert running.trace.sample == 1
    assert "--sample 10 rests: the irqsoff tracer pairs calls" in running.recording.remarks[-1]
    running.tool("filter", "loud")  # it is not in the way
    assert "pairs calls" in running.tool("filter", "--sample", "20", code=2)
    running.tool("switch", "profile")
    refused = running.tool("filter", "--thread", "nobody", code=2)
    assert refused.endswith(f"textpoke switch -p {running.session.pid} function_graph\n")
    assert "writes no events" in refused
    running.tool("switch", "function")
    assert running.trace.sample == 10
    assert running.recording.remarks[-1].startswith("--sample 10 rests: the profile tracer")
    running.drain(0.2)
    assert running.trace.events > before
    running.recording.stop()
    with textpoke.Capture(running.trace.output) as capture:
        assert left_out(capture) == ["partial: recorded with one of 10 calls"]


def test_an_instance_of_another_tool(running: Running) -> None:
    running.tool("instances", "--create", "two", "quiet", "-o", "two.tptrace")
    running.tool("filter", "loud")
    running.drain(0.3)
    assert "two" in running.tool("instances")
    running.tool("filter", "--instance", "two", "-a", "loud")
    running.drain(0.3)
    running.tool("instances", "--remove", "two")
    found = calls("two.tptrace")
    assert found["quiet"] > found["loud"] > 50
    assert found.get("work", 0) == 0
    assert running.tool("instances", "--create", "bad", "nosuch", code=1).count("no function") == 1
    assert not os.path.exists(f"bad-{running.session.pid}.tptrace")


@pytest.mark.parametrize("running", [Budget(0.005)], indirect=True)
def test_a_budget_switches_the_hottest_off(running: Running) -> None:
    trace = running.trace
    running.drain(1.2)
    assert "work" not in {site.function for site in trace.chosen}
    assert {"quiet", "loud"} <= {site.function for site in trace.chosen}
    assert "!work off: it cost" in running.recording.remarks[0]
    before = trace.events
    running.drain(0.5)
    assert 0 < trace.events - before < 20_000
    running.tool("filter", "quiet", "work")  # whoever asks for it gets it, until it costs too much
    running.drain(1.2)
    assert [site.function for site in trace.chosen] == ["quiet"]


def test_a_snapshot_that_cannot_be_written_ends_nothing(running: Running, tmp_path: Path) -> None:
    (tmp_path / "first.snapshot-1.tptrace").write_text("somebody's")
    running.tool("trigger", "loud:snapshot:1")
    running.drain(0.2)
    assert running.recording.snapshots == []
    assert "exists" in running.recording.remarks[-1]
    assert (tmp_path / "first.snapshot-1.tptrace").read_text() == "somebody's"


def test_record_answers(
    compile_target: Compile,
    start_target: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    tool = [sys.executable, "-m", "textpoke"]
    pid = ["-p", str(process.pid)]
    words = ["-i", "loud", "-x", "work", "-d", "20s", "-o", "x.tptrace"]
    with subprocess.Popen([*tool, "record", *pid, *words]) as recording:
        deadline = time.monotonic() + 15
        while subprocess.run([*tool, "filter", *pid], check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        out = subprocess.check_output([*tool, "filter", *pid, "-a", "quiet"], text=True)
        assert out == "loud\nquiet\nnotrace work\n"
        subprocess.run([*tool, "switch", *pid, "function_graph"], check=True)
        time.sleep(0.2)
        recording.terminate()
        assert recording.wait() == 0
    assert calls("x.tptrace")["quiet"] > 50
    assert not os.listdir(tmp_path / "textpoke")


@pytest.mark.parametrize("when", ["slow", "slow>4ms"])  # its triggers have probes of their own
def test_record_as_a_flight_recorder(
    compile_target: Compile,
    start_target: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    words = ["--flight", "--trigger", f"{when}:keep=50ms:2", "-d", "1500ms", "-o", "x.tptrace"]
    command = [sys.executable, "-m", "textpoke", "record", "-p", str(process.pid), *words]
    subprocess.run(command, check=True)
    found = calls("x.tptrace")
    assert 1 <= found["slow"] <= 2
    assert found["work"] > 100
    with textpoke.Capture("x.tptrace") as capture:
        markers = [m for m in marks(capture) if "from_tsc" in m]
        events = Decoder(capture).all()
    assert len(markers) == found["slow"]
    assert sum(m["events"] for m in markers) == len(events)


@pytest.mark.parametrize("tracer", ["profile", "branch"])
def test_record_says_what_was_counted_and_how_to_see_it(
    compile_target: Compile, start_target: Start, tmp_path: Path, tracer: str
) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    output = tmp_path / "x.tptrace"
    done = observe.textpoke("record", "-p", process.pid, "-t", tracer, "-d", "0.5s", "-o", output)
    assert done.code == 0, done
    report = json.loads(observe.textpoke("report", "--json", output).out)
    if tracer == "profile":
        calls, functions = report["calls"], len(report["functions"])
        wanted = f"{calls:,} calls of {functions:,} functions counted, 0 lost (duration)"
        assert calls > 100
    else:
        branches, executed, times = (report[name] for name in ("branches", "executed", "total"))
        wanted = f"{branches:,} branches counted, {executed:,} executed, {times:,} times (duration)"
        assert executed > 1
    assert wanted in done.err.splitlines()
    assert done.err.splitlines()[-1] == f"textpoke report {output}"
    assert "events" not in done.err


def test_an_instance_that_counts_says_so(running: Running) -> None:
    running.tool("instances", "--create", "sums", "quiet", "-t", "profile", "-o", "sums.tptrace")
    running.drain(0.3)
    line = next(x for x in running.tool("instances").splitlines() if x.startswith("sums"))
    assert int(line.split()[3]) > 50
    assert line.split()[4] == "calls"


def test_record_says_how_to_see_what_was_counted_on_the_way(
    compile_target: Compile, start_target: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    output = tmp_path / "x.tptrace"
    with observe.recording("-p", process.pid, "-d", "20s", "-o", output) as recording:
        assert observe.textpoke("switch", "-p", process.pid, "profile").code == 0
        time.sleep(0.3)
        result = recording.interrupt()
    taken, _, by_profile, usual = result.err.splitlines()[-4:]
    calls, events = (int(part.split()[0].replace(",", "")) for part in taken.split("; "))
    assert [by_profile, usual] == [f"textpoke report {x}{output}" for x in ("--by profile ", "")]
    assert json.loads(observe.textpoke(*by_profile.split()[1:], "--json").out)["calls"] == calls
    assert json.loads(observe.textpoke(*usual.split()[1:], "--json").out)["events"] == events


def test_a_report_tells_of_what_other_tracers_have_brought(
    compile_target: Compile, start_target: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    output = tmp_path / "x.tptrace"
    words = ("-p", process.pid, "-d", "20s", "-o", output, "-t", "profile")
    with observe.recording(*words) as recording:
        assert observe.textpoke("switch", "-p", process.pid, "function_graph").code == 0
        time.sleep(0.3)
        assert recording.interrupt().code == 0
    with textpoke.Capture(output) as capture:
        events = sum(block.events for block in capture.events)
    table = observe.textpoke("report", output)
    assert "tracer profile" in table.out
    hint = f"and {events:,} events of other tracers: textpoke report --by function"
    assert hint in table.out.splitlines()
    shown = observe.textpoke("report", "--by", "function", output)
    assert f"{events:,} events" in shown.out
    assert "and what the profile tracer has counted: textpoke report --by profile" not in shown.out
    assert observe.textpoke("report", "--tree", output).code == 0
