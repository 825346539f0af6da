# SPDX-License-Identifier: Apache-2.0
"""The kernel's ftrace selftests, by name, translated to a process (docs/selftests.md).

Each is written anew from what the kernel's test of that name promises its users.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

import live
import programs
import pytest
from observe import ask, hear_until_end, tell, textpoke, untouched

import textpoke as api
from textpoke.arguments import parse
from textpoke.calls import Calls, all_calls, tracers_of
from textpoke.control_verbs import ErrorLog, answer
from textpoke.decode import Decoder
from textpoke.report import latency
from textpoke.tracer_names import TRACERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from conftest import Compile, Start
    from live import Running

    Counts = dict[str, int]

ROUNDS = 500
MOST_ERRNO = 133
FUNCTIONS = {
    *("schedule", "sys_open", "Sys_close", "raw_spin_lock", "raw_spin_unlock"),
    *("mutex_trylock", "sched_clock", "schedule_timeout"),
}
NOP5 = bytes.fromhex("0f 1f 44 00 00")
EVENT_BYTES = 16
STEP = 32  # from f0 to f1 in pokes.c


@pytest.fixture
def program(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    """tests/targets/selftests.c, running."""
    process = start_target(compile_target("selftests.c", *programs.PIE))
    ask(process, "rounds 1 4")  # stacks that libc keeps
    return process


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of our own for captures and the control socket."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def running(program: subprocess.Popen[str], here: Path) -> Iterator[Running]:
    """A recording of all functions of the program, with function_graph, into live.OUTPUT."""
    assert here.is_dir()
    with live.running(program, tracer="function_graph") as running:
        yield running


def by_thread(text: str) -> dict[int, Counts]:
    """The program's own counts: by thread, by function."""
    return {
        int(tid): {name: n for name, n in counts.items() if name != "number"}
        for tid, counts in json.loads(text).items()
    }


def rounds(process: subprocess.Popen[str], number: int = ROUNDS, threads: int = 2) -> Counts:
    """Let the program work; its own counts."""
    return summed(by_thread(ask(process, f"rounds {number} {threads}")))


def summed(counts: dict[int, Counts]) -> Counts:
    """Over all threads."""
    total: collections.Counter[str] = collections.Counter()
    for one in counts.values():
        total.update(one)
    return dict(total)


def only(counts: Counts, *functions: str) -> Counts:
    """The counts of some functions."""
    return {name: counts[name] for name in functions}


def calls_in(path: str | Path) -> Calls:
    """All calls of a capture that is whole."""
    with api.Capture(path) as capture:
        assert capture.cut_off is None
        return all_calls(capture)


def counted(path: str | Path) -> Counts:
    """Calls of each function in a capture, with whatever tracer."""
    total: collections.Counter[str] = collections.Counter()
    for counts in counted_by_thread(path).values():
        total.update(counts)
    return dict(total)


def counted_by_thread(path: str | Path) -> dict[int, Counts]:
    """The same, by thread."""
    with api.Capture(path) as capture:
        assert capture.cut_off is None
        names = [site.function for site in capture.meta.sites]
        events = Decoder(capture).all()
    found: dict[int, Counts] = {}
    entries = events.type == 1
    for tid, site in zip(events.tid[entries].tolist(), events.site[entries].tolist(), strict=True):
        counts = found.setdefault(tid, {})
        counts[names[site]] = counts.get(names[site], 0) + 1
    return found


def finished(calls: Calls) -> Counts:
    """Calls of each function that have an end, and none that has not."""
    assert calls.counts.unfinished == calls.counts.orphans == 0
    names = [name.partition("!")[2] for name in calls.names]
    return dict(collections.Counter(names[site] for site in calls.site.tolist()))


def text_of(path: str | Path, *options: str) -> list[str]:
    """What `report --text` prints."""
    result = textpoke("report", "--text", *options, path)
    assert result.code == 0, result
    return result.out.splitlines()


def hits(trace: api.Trace) -> Counts:
    """What the profile tracer has counted, by function."""
    names = {address: site.function for site, address in trace.sites_by_return()}
    return {names[address]: row.hits for address, row in trace.profile().items() if row.hits}


# --- 00basic ---


def test_basic1(program: subprocess.Popen[str], here: Path) -> None:
    with (
        untouched(program),
        api.attach(program.pid) as target,
        target.trace(tracer="nop", output="x.tptrace") as trace,
    ):
        rounds(program)
        assert (trace.tracer, trace.events, target.records.count) == ("nop", 0, 0)
    assert text_of(here / "x.tptrace")[0] == "# tracer: nop"


def test_basic2(program: subprocess.Popen[str], here: Path) -> None:
    with (
        untouched(program),
        api.attach(program.pid) as target,
        target.trace(output="x.tptrace") as trace,
    ):
        for name in TRACERS:
            trace.tracer = name
            assert trace.tracer == name
            rounds(program, 20)
        with pytest.raises(api.UnknownTracer, match="function_graph"):
            trace.tracer = "hwlat"
        assert trace.tracer == list(TRACERS)[-1]
    with api.Capture(here / "x.tptrace") as capture:
        assert tracers_of(capture) == set(TRACERS)
    assert "schedule" in textpoke("report", "--tree", here / "x.tptrace").out


def test_basic3(program: subprocess.Popen[str], here: Path) -> None:
    before_ns = time.monotonic_ns()
    with api.attach(program.pid) as target, target.trace(output="x.tptrace"):
        rounds(program)
    after_ns = time.monotonic_ns()
    with api.Capture(here / "x.tptrace") as capture:
        events = Decoder(capture).all()
        start_ns = capture.meta.clock.monotonic_ns
    assert before_ns <= start_ns + int(events.ts_ns.min())
    assert start_ns + int(events.ts_ns.max()) <= after_ns


def test_basic4(running: Running) -> None:
    assert set(running.tool("filter", "--available").split()) >= FUNCTIONS
    assert set(TRACERS) <= set(running.tool("tracers").split())


def test_snapshot(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("trigger", "trace_mark:snapshot:1")
    first = rounds(program)
    ask(program, "mark now")
    second = rounds(program)
    ask(program, "mark later")  # its count is over
    running.drain(0.2)
    (path,) = running.recording.snapshots
    taken = counted(path)
    assert only(taken, *FUNCTIONS) == only(first, *FUNCTIONS)
    running.recording.stop()
    everything = counted(live.OUTPUT)  # what a snapshot holds is not taken from the recording
    assert everything["schedule"] == first["schedule"] + second["schedule"]


def test_trace_pipe(running: Running, program: subprocess.Popen[str], here: Path) -> None:
    mine = rounds(program, 100)
    running.drain(0.1)
    sizes = []
    for _ in range(2):  # reading takes nothing away, and never waits
        with api.Capture(here / live.OUTPUT) as capture:
            assert capture.end is None
            sizes.append(int((Decoder(capture).all().type == 1).sum()))
    assert sizes == [sum(mine.values())] * 2
    assert any("schedule()" in line for line in text_of(here / live.OUTPUT))
    more = rounds(program, 100)
    running.recording.stop()
    assert sum(counted(live.OUTPUT).values()) == sum(mine.values()) + sum(more.values())


def test_ringbuffer_order(program: subprocess.Popen[str], here: Path) -> None:
    with (
        api.attach(program.pid) as target,
        target.trace(output="x.tptrace", tracer="function_graph") as trace,
    ):
        tell(program, f"rounds {ROUNDS} 4")
        trace.run(seconds=0.3)
    with api.Capture(here / "x.tptrace") as capture:
        decoder = Decoder(capture)
        assert len(decoder.tids) == 4
        for tid in decoder.tids:
            last = -1
            for events in decoder.thread(tid):
                times = events.ts_ns.tolist()
                assert times == sorted(times)
                assert times[0] >= last
                last = times[-1]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("ring_bytes", [1 << 16, 1 << 18])
def test_ringbuffer_size(program: subprocess.Popen[str], ring_bytes: int) -> None:
    with (
        api.attach(program.pid, ring_bytes=ring_bytes) as target,
        target.trace(output="x.tptrace", overwrite=True) as trace,
    ):
        mine = by_thread(ask(program, "rounds 4000 2"))
    kept = {tid: sum(counts.values()) for tid, counts in counted_by_thread("x.tptrace").items()}
    assert kept == dict.fromkeys(mine, ring_bytes // EVENT_BYTES)
    assert trace.lost == sum(summed(mine).values()) - sum(kept.values())


def test_trace_marker(program: subprocess.Popen[str], here: Path) -> None:
    arguments = [parse("trace_mark(text/s64)")]
    with (
        api.attach(program.pid) as target,
        target.trace("trace_mark", output="x.tptrace", arguments=arguments),
    ):
        ask(program, "mark test input 1")
        ask(program, "mark of the program itself")
    lines = [line for line in text_of(here / "x.tptrace") if "trace_mark(" in line]
    assert len(lines) == 2
    assert "test input 1" in lines[0]
    assert "of the program itself" in lines[1]


def test_trace_marker_raw(program: subprocess.Popen[str], here: Path) -> None:
    arguments = [parse("trace_mark_raw(arg1, arg2)")]
    written = [(i, (0x0123456789ABCDEF * i) & (1 << 64) - 1) for i in range(1, 20)]
    with (
        api.attach(program.pid) as target,
        target.trace("trace_mark_raw", output="x.tptrace", arguments=arguments),
    ):
        for number, value in written:
            ask(program, f"raw {number} {value}")
    calls = calls_in(here / "x.tptrace")
    assert [tuple(calls.entry_words(row)) for row in range(len(calls))] == written


# --- ftrace: function_graph ---


def test_fgraph_filter(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("filter", "schedule")
    mine = rounds(program)
    running.recording.stop()
    assert finished(calls_in(live.OUTPUT)) == only(mine, "schedule")
    calls = {line.rpartition("|")[2].strip() for line in text_of(live.OUTPUT) if "()" in line}
    assert calls == {"schedule();"}


def test_fgraph_filter_stack(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("filter", "schedule")
    running.tool("trigger", "raw_spin_lock:stacktrace")  # of the calls that are recorded
    mine = rounds(program)
    running.drain(0.1)
    running.tool("trigger", "!raw_spin_lock:stacktrace")
    more = rounds(program)
    running.recording.stop()
    assert counted(live.OUTPUT) == {"schedule": mine["schedule"] + more["schedule"]}
    with api.Capture(live.OUTPUT) as capture:
        stacks = [mark for mark in live.marks(capture) if mark.get("command") == "stacktrace"]
    assert stacks


GRAPHS: dict[str, tuple[str, ...]] = {
    "top": ("schedule", "sys_open", "mutex_trylock"),
    "one": ("raw_spin_*",),
    "two": ("sys_open", "Sys_close", "raw_spin_unlock"),
    "three": ("sched*",),
}


def matching(counts: Counts, globs: Sequence[str]) -> Counts:
    """The counts of the functions that plain globs mean."""
    return {
        name: n
        for name, n in counts.items()
        if any(name.startswith(g[:-1]) if g.endswith("*") else name == g for g in globs)
    }


def test_fgraph_multi(program: subprocess.Popen[str], here: Path) -> None:
    with untouched(program), api.attach(program.pid) as target, contextlib.ExitStack() as stack:
        for name, globs in GRAPHS.items():
            trace = target.trace(
                globs, tracer="function_graph", name=name, output=f"{name}.tptrace"
            )
            stack.enter_context(trace)
        mine = rounds(program)
    for name, globs in GRAPHS.items():
        assert finished(calls_in(here / f"{name}.tptrace")) == matching(mine, globs), name


def test_fgraph_multi_filter(program: subprocess.Popen[str]) -> None:
    def graph(name: str, include: str, exclude: str) -> api.Trace:
        wanted = [include] if include else ()
        trace = target.trace(wanted, [exclude], tracer="function_graph", name=name)
        trace.start()
        return trace

    def on() -> set[str]:
        return {site.function for site in sites if target.records.is_on(site.address)}

    scheds = {"schedule", "sched_clock"}
    locks = {"raw_spin_lock", "raw_spin_unlock", "mutex_trylock"}
    with untouched(program), api.attach(program.pid) as target:
        sites = target.sites()
        first = graph("1", "*sched*", "*time*")
        assert on() == scheds
        second = graph("2", "*lock*", "*clock*")
        assert on() == scheds | locks
        first.stop()
        assert on() == locks
        second.stop()
        assert on() == set()
        second = graph("2", "*lock*", "*clock*")
        assert on() == locks
        first = graph("1", "*sched*", "*time*")
        assert on() == scheds | locks
        second.stop()
        assert on() == scheds
        first.stop()
        # Everything but, and filters that change while both run.
        first, second = graph("1", "", "*lock*"), graph("2", "", "*sched*")
        both = {site.function for site in sites} - {"sched_clock"}
        assert on() == both
        first.filter = ["sched*"]  # notrace stays, and wins
        assert on() == both
        first.notrace = []
        assert on() == both | {"sched_clock"}
        second.filter = ["*spin*"]
        assert on() == {"schedule", "sched_clock", "schedule_timeout"} | locks - {"mutex_trylock"}
        mine = rounds(program)
        second.stop()
        first.stop()
        assert on() == set()
    assert first.events == 2 * sum(matching(mine, ["sched*"]).values())
    assert second.events == 2 * sum(matching(mine, ["raw_spin_*"]).values())


def test_fgraph_profiler(program: subprocess.Popen[str], here: Path) -> None:
    with untouched(program), api.attach(program.pid) as target:
        graph = target.trace("*lock*", tracer="function_graph", name="g", output="x.tptrace")
        with target.trace("sched*", tracer="profile") as profile, graph:
            mine = rounds(program)
            assert hits(profile) == matching(mine, ["sched*"])
    names = ("raw_spin_lock", "raw_spin_unlock", "mutex_trylock", "sched_clock")
    assert finished(calls_in(here / "x.tptrace")) == only(mine, *names)


def test_fgraph_retval(program: subprocess.Popen[str], here: Path) -> None:
    arguments = [parse("fail_*", returns=True), parse("succeed", returns=True)]
    with (
        untouched(program),
        api.attach(program.pid) as target,
        target.trace(
            ["fail_*", "succeed"],
            tracer="function_graph",
            output="x.tptrace",
            arguments=arguments,
        ),
    ):
        ask(program, "fail")
    lines = text_of(here / "x.tptrace")
    errors = [str(-error) for error in range(1, MOST_ERRNO + 1)]
    for function in ("fail_int", "fail_long"):
        shown = [line.rsplit("=", 1)[1].strip(" ;*/") for line in lines if function in line]
        assert shown == errors, function
    assert sum("succeed" in line for line in lines) == MOST_ERRNO
    assert {line.rsplit("=", 1)[1].strip(" ;*/") for line in lines if "succeed" in line} == {"0"}
    calls = calls_in(here / "x.tptrace")
    rows = calls.of(*calls.sites_named("fail_pointer"))
    assert [calls.exit_words(int(row)) for row in rows] == [
        [(1 << 64) - error] for error in range(1, MOST_ERRNO + 1)
    ]


# --- ftrace: filters, triggers, profile ---


@pytest.mark.parametrize(
    ("glob", "functions"),
    [
        ("*sched*", {"schedule", "sched_clock", "schedule_timeout"}),
        ("sched*", {"schedule", "sched_clock", "schedule_timeout"}),
        ("*clock", {"sched_clock"}),
        ("*spin*lock", {"raw_spin_lock", "raw_spin_unlock"}),
        ("mutex*try*", {"mutex_trylock"}),
        ("*open", {"sys_open"}),
        ("[Ss]y[Ss]_*", {"sys_open", "Sys_close"}),
        ("[!S]ys_*", {"sys_open"}),
        ("sch?dule", {"schedule"}),
    ],
)
def test_func_filter_glob(program: subprocess.Popen[str], glob: str, functions: set[str]) -> None:
    with api.attach(program.pid) as target, target.trace(glob) as trace:
        assert {site.function for site in trace.chosen} == functions
        mine = rounds(program, 50)
    assert trace.events == sum(only(mine, *functions).values())


def numbers(text: str) -> dict[int, int]:
    """Thread id by the worker's number."""
    return {counts["number"]: int(tid) for tid, counts in json.loads(text).items()}


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        (("--thread", "worker-1", "--thread", "worker-2"), {1, 2}),
        (("--no-thread", "worker-[12]"), {0, 3}),
        (("--thread", "worker-*", "--no-thread", "worker-0"), {1, 2, 3}),  # notrace wins
    ],
    ids=["func_filter_pid", "func_filter_notrace_pid", "both"],
)
def test_func_filter_pid(
    running: Running, program: subprocess.Popen[str], words: tuple[str, ...], recorded: set[int]
) -> None:
    running.tool("filter", "schedule")
    ask(program, "hot 4")
    running.drain(0.3)
    running.tool("filter", *words)
    running.drain(0.3)
    since_ns = time.monotonic_ns()
    running.drain(0.3)
    tids = numbers(ask(program, "stop"))
    running.recording.stop()
    with api.Capture(live.OUTPUT) as capture:
        events = Decoder(capture).all()
        since = events.ts_ns > since_ns - capture.meta.clock.monotonic_ns
    assert set(events.tid.tolist()) >= set(tids.values())
    assert set(events.tid[since].tolist()) == {tids[number] for number in recorded}


def test_func_filter_notrace_pid(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("filter", "schedule", "--no-thread", "worker-*")
    mine = rounds(program)  # threads that begin now are chosen by their names, too
    running.drain(0.3)
    running.tool("filter", "schedule", "--clear")
    more = rounds(program)
    running.recording.stop()
    found = counted(live.OUTPUT)["schedule"]
    assert more["schedule"] <= found < more["schedule"] + mine["schedule"]


def test_func_filter_stacktrace(running: Running, program: subprocess.Popen[str]) -> None:
    lines = running.tool("trigger", "raw_spin_lock:stacktrace").splitlines()
    assert lines == ["raw_spin_lock:stacktrace:unlimited"]
    assert running.tool("trigger").splitlines() == lines
    mine = rounds(program, 20)
    running.drain(0.1)
    running.recording.stop()
    with api.Capture(live.OUTPUT) as capture:
        names = {site.address: site.function for site in capture.meta.sites}
        stacks = [
            tuple(names[frame[0]] for frame in mark["frames"])
            for mark in live.marks(capture)
            if mark.get("command") == "stacktrace"
        ]
    assert len(stacks) == mine["raw_spin_lock"]
    assert {frozenset(stack) for stack in stacks} == {
        frozenset(("raw_spin_lock", "sys_open", "schedule"))
    }


def test_func_event_triggers(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("trigger", "sys_open:stacktrace:3", "Sys_close:stacktrace")
    mine = rounds(program, 20)
    running.drain(0.1)
    running.tool("trigger", "!sys_open:stacktrace:0", "!Sys_close:stacktrace")
    assert running.tool("trigger") == ""
    rounds(program, 20)
    running.drain(0.1)
    running.tool("trigger", "sys_open:stacktrace:2")  # the count begins anew
    rounds(program, 20)
    running.drain(0.1)
    running.recording.stop()
    with api.Capture(live.OUTPUT) as capture:
        hit = collections.Counter(m["trigger"] for m in live.marks(capture) if "trigger" in m)
    assert hit == {
        "sys_open:stacktrace:3": 3,
        "Sys_close:stacktrace": mine["Sys_close"],
        "sys_open:stacktrace:2": 2,
    }


def test_func_hotplug(program: subprocess.Popen[str], here: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    total: collections.Counter[str] = collections.Counter()
    with untouched(program), api.attach(program.pid, ring_bytes=live.RING_BYTES) as target:
        with target.trace(output="x.tptrace", tracer="function_graph") as trace:
            for i in range(40):
                tell(program, "rounds 4000 2")
                for task in os.listdir(f"/proc/{program.pid}/task"):
                    with contextlib.suppress(OSError):  # it may have ended
                        os.sched_setaffinity(int(task), {cores[i % len(cores)]})
                trace.drain()
                assert program.stdout is not None
                total.update(summed(by_thread(program.stdout.readline())))
        assert trace.lost == trace.overruns == 0
        os.sched_setaffinity(program.pid, cores)
    assert finished(calls_in(here / "x.tptrace")) == dict(total)


def test_func_mod_trace(compile_target: Compile, start_target: Start, here: Path) -> None:
    library = compile_target("plugin.c", programs.NOPS, "-shared", "-fPIC")
    process = start_target(compile_target("plugins.c", *programs.PIE), str(library))
    name = library.name
    with live.running(process, "work") as running:
        out = running.tool("filter", f"*:mod:{name}", "--list")  # it is not there yet
        assert out.splitlines() == [f"*:mod:{name}"]
        for _ in range(2):
            assert ask(process, "open 0") == "0"
            running.drain(0.4)
            assert {"leaf", "plugin"} <= {
                line.split()[0] for line in running.tool("filter", "--list").splitlines()
            }
            assert ask(process, "call 0 100").startswith("0 ")
            assert ask(process, "close 0") == "0"
            running.drain(0.3)
            assert running.tool("filter", "--list").splitlines() == [f"*:mod:{name}"]
        running.tool("filter", "work")
        assert ask(process, "open 0") == "0"
        running.drain(0.3)
        assert ask(process, "call 0 100").startswith("0 ")
        assert ask(process, "close 0") == "0"
    found = counted(here / live.OUTPUT)
    assert only(found, "leaf", "plugin") == {"leaf": 400, "plugin": 200}
    tell(process, "quit")
    assert process.wait(timeout=20) == 0


def test_func_profile_stat(program: subprocess.Popen[str], here: Path) -> None:
    with api.attach(program.pid) as target, target.trace(tracer="profile", output="x.tptrace"):
        mine = rounds(program)
    lines = textpoke("report", here / "x.tptrace").out.splitlines()
    head = next(i for i, line in enumerate(lines) if "FUNCTION" in line)
    assert {"CALLS", "TOTAL", "AVG", "STDDEV"} <= set(lines[head].split())
    found = {row[-1].rpartition("!")[2]: row for row in map(str.split, lines[head + 1 :]) if row}
    assert {name: int(found[name][0].replace(",", "")) for name in mine} == mine


def test_func_profiler(program: subprocess.Popen[str], here: Path) -> None:
    names = ("schedule", "raw_spin_unlock")
    with untouched(program), api.attach(program.pid) as target:
        function = target.trace(names, name="f", output="x.tptrace")
        with target.trace(names, tracer="profile") as profile, function:
            mine = rounds(program)
            assert hits(profile) == only(mine, *names)
            profile.filter = ["sys_open"]
            more = rounds(program)
            assert hits(profile) == {**only(mine, *names), "sys_open": more["sys_open"]}
    assert counted(here / "x.tptrace") == {n: mine[n] + more[n] for n in names}


def test_func_set_ftrace_file(running: Running, program: subprocess.Popen[str]) -> None:
    def listed(*words: str) -> set[str]:
        return set(running.tool("filter", *words, "--list").split())

    def is_on(function: str) -> bool:
        (site,) = running.session.target.sites(function)
        return running.session.target.records.is_on(site.address)

    assert running.tool("filter", "--list") == "#### all functions enabled ####\n"
    assert listed("schedule") == {"schedule"}
    running.tool("trigger", "sys_open:traceoff:1", "schedule:traceon")
    assert listed("-a", "raw_spin*") == {"schedule", "raw_spin_lock", "raw_spin_unlock"}
    assert listed("-a", "!raw_spin_lock") == {"schedule", "raw_spin_unlock"}
    assert listed("Sys*") == {"Sys_close"}
    assert running.tool("trigger").splitlines() == [  # whatever happens to the filter
        "sys_open:traceoff:count=1",
        "schedule:traceon:unlimited",
    ]
    assert (is_on("sys_open"), is_on("schedule"), is_on("raw_spin_lock")) == (True, True, False)
    assert "no such trigger" in running.tool("trigger", "!sys_open:traceoff", code=2)  # it has one
    running.tool("trigger", "!schedule:traceon")
    assert running.tool("trigger") == "sys_open:traceoff:count=1\n"
    running.tool("trigger", "!sys_open:traceoff:0")
    assert (is_on("sys_open"), is_on("Sys_close")) == (False, True)
    available = running.tool("filter", "--available").splitlines()
    number = next(line.split()[0] for line in available if line.endswith("mutex_trylock"))
    assert listed(number) == {"mutex_trylock"}
    running.tool("filter", "-x", "mutex*", "--clear")
    assert not is_on("mutex_trylock")
    mine = rounds(program)
    running.recording.stop()
    del mine["mutex_trylock"]
    assert only(counted(live.OUTPUT), *mine) == mine


def test_func_traceonoff_triggers(running: Running, program: subprocess.Popen[str]) -> None:
    def is_on_after(number: int) -> bool:
        rounds(program, number)
        running.drain(0.1)
        return running.recording.on

    assert is_on_after(5)
    assert running.tool("trigger", "schedule:traceoff") == "schedule:traceoff:unlimited\n"
    for _ in range(4):
        assert not is_on_after(5)
        running.tool("switch", "--on")
    assert running.tool("trigger", "!schedule:traceoff") == ""
    assert is_on_after(5)
    assert running.tool("trigger", "schedule:traceoff:3") == "schedule:traceoff:count=3\n"
    for _ in range(3):
        assert not is_on_after(5)
        running.tool("switch", "--on")
    assert is_on_after(5)  # the count is over
    running.tool("trigger", "!schedule:traceoff:0")
    running.tool("trigger", "sched_clock:traceoff", "schedule_timeout:traceon")
    rounds(program, 50)
    running.drain(0.1)
    assert running.recording.on


def test_tracing_error_log(running: Running) -> None:
    log = ErrorLog()

    def fails(pattern: str) -> dict[str, Any]:
        change = {"kind": "trace", "action": "replace", "patterns": [pattern]}
        result = answer(running.session, {"verb": "filter", "changes": [change]}, [], log)
        assert not result["ok"]
        return log.entries()[-1]

    before = running.tool("filter")
    (first,) = {fails("schedule:mod:x:nod:y")["caret"]}
    line, caret = str(first).splitlines()
    assert line[caret.index("^") :].startswith("nod")
    assert "close names: schedule" in str(fails("shedule")["message"])
    for number in range(8):
        fails(f"nothing{number}")
    assert ["nothing" in str(entry["message"]) for entry in log.entries()] == [True] * 8
    assert running.tool("filter") == before  # nothing was changed


# --- direct, kprobe: pokes of one's own beside traces ---


class Pokes:
    """tests/targets/pokes.c: f0..f7 return 0..7; poked to jump to r0..r7, 100..107."""

    def __init__(self, process: subprocess.Popen[str], target: api.Target) -> None:
        self.process, self.target = process, target
        self.old, self.new, self.handlers, _ = map(int, ask(process, "where").split())

    @property
    def jump(self) -> bytes:
        """What makes f(i) r(i): they are as far apart for every i."""
        return b"\xe9" + struct.pack("<i", self.new - self.old - 5)

    def address(self, i: int) -> int:
        """Of f(i)."""
        return self.old + i * STEP

    def results(self) -> list[int]:
        """What f0..f7 return now."""
        return [int(word) for word in ask(self.process, "ask").split()]


@pytest.fixture
def pokes(compile_target: Compile, start_target: Start) -> Iterator[Pokes]:
    process = start_target(compile_target("pokes.c", "-fPIE", "-pie"))
    with untouched(process), api.attach(process.pid) as target:
        yield Pokes(process, target)
    assert ask(process, "ask") == "0 1 2 3 4 5 6 7"


def test_ftrace_direct(pokes: Pokes) -> None:
    with pokes.target.batch() as batch:  # somebody's direct jump at one function
        batch.queue(pokes.address(3), new=pokes.jump, old=NOP5)
    with pytest.raises(api.BytesDiffer, match=r"!f3 .*hook \(jmp\)"):
        pokes.target.trace("f*").start()
    with pokes.target.trace("f*", ["f3"]) as trace:
        assert pokes.results() == [0, 1, 2, 103, 4, 5, 6, 7]
    assert trace.events == 7
    with pokes.target.batch() as batch:
        batch.queue(pokes.address(3), new=NOP5, old=pokes.jump)
    with pokes.target.trace("f*") as trace:
        assert pokes.results() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert trace.events == 8


def test_kprobe_direct(pokes: Pokes) -> None:
    with pokes.target.trace("f[0-3]") as trace:  # traced first, then poked
        batch = pokes.target.batch()
        for i in range(8):
            batch.queue(pokes.address(i), new=pokes.jump, old=NOP5)
        with pytest.raises(api.BytesDiffer, match=r"hook \(call\)"):
            batch.commit()
        assert pokes.results() == [0, 1, 2, 3, 4, 5, 6, 7]  # all or nothing
        with pokes.target.batch() as batch:
            for i in range(4, 8):
                batch.queue(pokes.address(i), new=pokes.jump, old=NOP5)
        assert pokes.results() == [0, 1, 2, 3, 104, 105, 106, 107]
    assert trace.events == 8


def loads(value: int) -> bytes:
    """movl $value, %eax"""
    return b"\xb8" + struct.pack("<i", value)


def test_kprobe_ftrace(pokes: Pokes) -> None:
    at = pokes.address(2) + 5  # behind the site, in a function that is traced
    handler = pokes.handlers + 2 * STEP  # for a thread that is there just then
    with pokes.target.trace("f*") as trace:
        with pokes.target.batch() as batch:
            batch.queue(at, new=loads(42), old=loads(2), handler=handler)
        assert pokes.results() == [0, 1, 42, 3, 4, 5, 6, 7]
        trace.filter = ["f[4-7]"]
        assert pokes.results()[2] == 42
        trace.filter = ["f[0-7]"]
        assert pokes.results()[2] == 42
    with pokes.target.batch() as batch:
        batch.queue(at, new=loads(2), old=loads(42), handler=handler)
    assert trace.events == 8 + 4 + 8


def boundaries(program: Path) -> set[int]:
    """Where instructions begin in a file, by its disassembly."""
    out = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", program], text=True)
    found = re.findall(r"^ +([0-9a-f]+):\t", out, re.MULTILINE)
    return {int(address, 16) for address in found}


@pytest.mark.parametrize("flags", [programs.PIE, ("-fPIE", "-pie")], ids=["nops", "unmodified"])
def test_kprobe_insn_boundary(
    compile_target: Compile, start_target: Start, flags: tuple[str, ...]
) -> None:
    program = compile_target("selftests.c", *flags)
    process = start_target(program)
    begin = boundaries(program)
    with api.attach(process.pid) as target:
        sites = target.sites()
        assert {site.function for site in sites} >= FUNCTIONS
        for site in sites:  # of an address of his own, the caller says so
            assert site.vaddr in begin, site
            code = site.displaced or site.old
            # Behind a return there is only padding.
            assert site.vaddr + len(code) in begin or b"\xc3" in code, site
            assert {site.vaddr + i for i in range(1, 5) if site.heads >> i & 1} <= begin, site


def test_multiple_kprobes(compile_target: Compile, start_target: Start) -> None:
    count, other = 4000, bytes.fromhex("0f 1f 44 00 08")
    entry = "0x0f,0x1f,0x44,0x00,0x00"
    program = compile_target("many.c", f"-DENTRY_BYTES={entry}", f"-DCOUNT={count}", *programs.PIE)
    process = start_target(program)
    ask(process, "run 2")
    tell(process, "stop")
    hear_until_end(process)
    with untouched(process):
        ask(process, "run 2")
        with api.attach(process.pid) as target:
            poked = target.sites("f*[13579]")
            assert len(poked) == count // 2
            for tracer in ("function", "function_graph", "profile", "function"):
                with target.trace("f*[02468]", tracer=tracer) as trace:
                    assert trace.refused == []
                    with target.batch() as there:
                        for site in poked:
                            there.queue(site, new=other, old=site.old)
                with target.batch() as back:
                    for site in poked:
                        back.queue(site, new=site.old, old=other)
                for batch in (there, back):
                    assert batch.outcome is not None
                    assert batch.outcome.finished == len(poked)
        tell(process, "stop")
        rows = hear_until_end(process)
    assert all(done > 0 and wrong == 0 for done, wrong in rows)


# --- instances, preemptirq ---


def test_instances(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("filter", "schedule")
    total: collections.Counter[str] = collections.Counter()

    def work() -> Counts:
        mine = rounds(program, 100)
        total.update(mine)
        return mine

    for i in range(3):
        for name in ("foo", "bar"):
            running.tool("instances", "--create", name, "raw_spin_*", "-o", f"{name}{i}.tptrace")
        assert "foo" in running.tool("instances", "--create", "foo", "schedule", code=1)
        both = work()
        running.tool("instances", "--remove", "foo")
        alone = work()
        running.tool("instances", "--remove", "bar")
        assert "bar" in running.tool("instances", "--remove", "bar", code=1)
        names = ("raw_spin_lock", "raw_spin_unlock")
        assert counted(f"foo{i}.tptrace") == only(both, *names)
        assert counted(f"bar{i}.tptrace") == {n: both[n] + alone[n] for n in names}
    assert [row["name"] for row in running.session.instances()] == [""]
    running.recording.stop()
    assert counted(live.OUTPUT) == {"schedule": total["schedule"]}


def test_irqsoff_tracer(compile_target: Compile, start_target: Start, here: Path) -> None:
    process = start_target(compile_target("known.c", *programs.PIE))
    ask(process, "locks 1")
    with (
        api.attach(process.pid) as target,
        target.trace("hold_*", tracer="irqsoff", output="x.tptrace"),
    ):
        mine = json.loads(ask(process, "locks 5"))
    with api.Capture(here / "x.tptrace") as capture:
        longest = latency.records(capture)["longest"][0]
    longest_ns = max(mine[kind][2] for kind in ("mutex", "spin", "rwlock"))
    assert longest["latency_ns"] >= longest_ns
    lines = textpoke("report", here / "x.tptrace").out
    for part in ("# tracer: irqsoff", "latency: ", "=> started at:", "=> ended at:"):
        assert part in lines
