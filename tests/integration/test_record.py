# SPDX-License-Identifier: Apache-2.0
"""`textpoke record` and what comes after it, on its good days and on its bad ones."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest
from observe import (
    EXIT_CANNOT_TRACE,
    agent_task,
    ask,
    command_line,
    hear_until_end,
    is_one_error_line,
    recording,
    tell,
    textpoke,
    untouched,
    wait_until,
)

import textpoke as api
from textpoke import pokes
from textpoke.capture_log import CaptureLog
from textpoke.status import read_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Compile, Start

FLIPPED = 0x40
SMALL = ("--buffer", "64K")  # a block is never larger than a ring
LIMITED = ("prlimit", "--fsize=1048576")
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def program(compile_target: Compile) -> Path:
    return compile_target("counter.c", *programs.PIE)


@pytest.fixture
def counter(program: Path, start_target: Start) -> subprocess.Popen[str]:
    process = start_target(program)
    tell(process, "phase 1 2")  # stacks that libc keeps
    hear_until_end(process)
    return process


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def work(process: subprocess.Popen[str]) -> dict[str, dict[str, int]]:
    """Let two threads of the program work; returns its own count by function and thread."""
    tell(process, "phase 100 2")
    rows = hear_until_end(process)
    return {
        name: {str(row[0]): row[i] for row in rows}
        for i, name in enumerate(("top", "middle", "leaf"), start=1)
    }


def calls(counts: dict[str, dict[str, int]]) -> int:
    """All together."""
    return sum(n for row in counts.values() for n in row.values())


def written(output: Path) -> int:
    """How many events have reached the file."""
    with api.Capture(output) as capture:
        return sum(block.events for block in capture.events)


def reported(output: Path) -> dict[str, dict[str, int]]:
    """Calls by function and thread, as `textpoke report --json` has them."""
    result = textpoke("report", "--json", output)
    assert result.code == 0, result
    return {f["function"]: f["threads"] for f in json.loads(result.out)["functions"]}


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "term", "hup"]
)
def test_a_signal_ends_a_recording_cleanly(
    counter: subprocess.Popen[str], output: Path, number: signal.Signals
) -> None:
    with untouched(counter), recording("-p", counter.pid, "-o", output, "--json") as tool:
        own = work(counter)
        result = tool.interrupt(number)
    assert result.code == 0, result
    said = json.loads(result.out)
    assert said["reason"] == "interrupted"
    assert said["events"] == calls(own)
    assert (said["lost"], said["lost_no_ring"]) == (0, 0)
    assert said["detach"]["clean"]
    assert said["detach"]["text_equal"] == said["detach"]["text_pages"] > 0
    assert reported(output) == own


def test_a_recording_ends_after_its_duration(counter: subprocess.Popen[str], output: Path) -> None:
    with untouched(counter):
        result = textpoke("record", "-p", counter.pid, "-o", output, "-d", "100ms", "--json")
    assert result.code == 0, result
    assert json.loads(result.out)["reason"] == "duration"
    with api.Capture(output) as capture:
        assert capture.end is not None
        assert capture.end.reason == "duration"
        assert capture.cut_off is None


def test_a_recording_says_how_long_it_held_whom_and_where_the_time_went(
    counter: subprocess.Popen[str], output: Path
) -> None:
    result = textpoke(
        *("record", "-v", "-p", counter.pid, "-o", output, "-d", "50ms", "--mode", "int3")
    )
    assert result.code == 0, result
    assert "tracing 3 functions" in result.err
    assert "one thread held for" in result.err
    assert "3 sites in" in result.err
    assert "2 syncs" in result.err
    assert "from start to first event" in result.err
    assert f"textpoke report {output}" in result.err


def test_a_quiet_recording_says_nothing(counter: subprocess.Popen[str], output: Path) -> None:
    result = textpoke("record", "-q", "-p", counter.pid, "-o", output, "-d", "50ms")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_terminal_shows_a_live_line(counter: subprocess.Popen[str], output: Path) -> None:
    ask(counter, "hot 1")
    terminal, theirs = pty.openpty()
    try:
        command = command_line("record", "-p", counter.pid, "-o", output, "-d", "700ms")
        done = subprocess.run(command, stdin=theirs, stderr=theirs, check=True, timeout=60)
        shown = os.read(terminal, 65536).decode()
    finally:
        os.close(terminal)
        os.close(theirs)
    assert done.returncode == 0
    assert "events/s" in shown
    assert "Ctrl-C ends" in shown


def test_the_text_report_has_a_line_for_every_event(
    counter: subprocess.Popen[str], output: Path
) -> None:
    with recording("-p", counter.pid, "-o", output, "-i", "middle") as tool:
        own = work(counter)
        assert tool.interrupt().code == 0
    result = textpoke("report", "--text", output)
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if not line.startswith("#")]
    assert len(lines) == sum(own["middle"].values())
    assert all("middle" in line for line in lines)


def test_every_poke_is_in_the_capture(counter: subprocess.Popen[str], output: Path) -> None:
    with recording("-p", counter.pid, "-o", output) as tool:
        held = {}
        with open(f"/proc/{counter.pid}/mem", "rb", buffering=0) as memory:
            with api.Capture(output) as capture:
                (on,) = pokes.read(capture)
            for poke in on.pokes:
                memory.seek(poke.address)
                held[poke.address] = memory.read(len(poke.new))
        assert tool.interrupt().code == 0
    with api.Capture(output) as capture:
        batches = list(pokes.read(capture))
        sites = {site.address - 5 for site in capture.meta.sites}
        assert capture.end is not None
        ticks = [capture.meta.clock.tsc, capture.end.clock.tsc]
        assert capture.meta.raw["build_ids"].keys() == {capture.meta.exe}
    assert [batch.failed for batch in batches] == [False, False]
    on, off = batches
    assert {poke.address for poke in on.pokes} == sites
    assert {poke.address: poke.new for poke in on.pokes} == held
    back = {poke.address: (poke.new, poke.old) for poke in off.pokes}
    assert {poke.address: (poke.old, poke.new) for poke in on.pokes} == back
    stamps = [ticks[0], on.from_tsc, on.to_tsc, off.from_tsc, off.to_tsc, ticks[1]]
    assert stamps == sorted(stamps)


def test_a_disk_that_fills_right_behind_the_first_batch_leaves_nothing_on(
    counter: subprocess.Popen[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise api.CaptureWrite(os.fspath(output), errno.ENOSPC)

    monkeypatch.setattr(CaptureLog, "more_sites", full)
    with untouched(counter), api.attach(counter.pid) as target:
        with pytest.raises(api.CaptureWrite), target.trace(output=output):
            pytest.fail("it has begun")
        assert patched(counter.pid) == []
    assert not output.exists()


def test_excluded_functions_are_not_traced(counter: subprocess.Popen[str], output: Path) -> None:
    words = ("-i", "counter*!*", "-x", "le*")
    with recording("-p", counter.pid, "-o", output, *words) as tool:
        own = work(counter)
        assert tool.interrupt().code == 0
    assert reported(output) == {name: own[name] for name in ("top", "middle")}


def test_sites_of_a_process_are_listed(counter: subprocess.Popen[str]) -> None:
    with untouched(counter):
        result = textpoke("sites", "-p", counter.pid, "--json")
    assert result.code == 0
    names = {s["function"] for s in json.loads(result.out)["sites"] if s["patchable"]}
    assert names == programs.FUNCTIONS


def test_the_doctor_finds_nothing_wrong(counter: subprocess.Popen[str]) -> None:
    with untouched(counter):
        result = textpoke("doctor", "-p", counter.pid)
    assert result.code == 0, result
    assert f"pid {counter.pid} can be traced" in result.err


def test_status_and_detach_find_nothing_in_a_fresh_process(
    counter: subprocess.Popen[str],
) -> None:
    with untouched(counter):
        looked = textpoke("status", "-p", counter.pid)
        left = textpoke("detach", "-p", counter.pid)
    assert (looked.code, left.code) == (0, 0)
    assert "nothing is patched" in looked.out
    assert "nothing to undo" in left.out


@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_the_target_ends_during_a_recording(
    counter: subprocess.Popen[str], output: Path, ending: str
) -> None:
    with recording("-p", counter.pid, "-o", output, "--json") as tool:
        own = work(counter)
        if ending == "exit":
            tell(counter, "quit 0")
        else:
            counter.kill()
        assert counter.wait() == (0 if ending == "exit" else -signal.SIGKILL)
        result = tool.end()
    assert result.code == 0, result
    assert json.loads(result.out)["reason"] == "target exited"
    with api.Capture(output) as capture:
        assert capture.cut_off is None
        assert capture.end is not None
        assert capture.end.reason == "target exited"
    assert reported(output) == own


def test_a_target_that_goes_while_its_modules_are_looked_at_has_exited(
    counter: subprocess.Popen[str],
) -> None:
    def find_in(_: object) -> list[api.Site]:
        counter.kill()
        counter.wait()
        raise api.NoSuchTarget(counter.pid)

    with api.attach(counter.pid) as target, target.trace(["top", "leaf"]) as trace:
        trace.find_in, trace._seen, trace._next_look = find_in, set(), 0.0
        with pytest.raises(api.TargetExited):
            trace.drain()
    assert trace.reason == "target exited"


def test_the_target_is_killed_during_batches(program: Path, start_target: Start) -> None:
    for i in range(6):
        process = start_target(program)
        ask(process, "hot 1")
        target = api.attach(process.pid)
        killer = threading.Timer(0.005 * i, process.kill)
        killer.start()
        with contextlib.suppress(api.TargetExited, api.NoSuchTarget):  # nothing else may come
            while process.poll() is None:
                with target.trace():
                    pass
        killer.join()
        process.wait()
        report = target.detach()
        assert report.residue == []
        with pytest.raises(api.TargetError):
            api.attach(process.pid)


def patched(pid: int) -> list[str]:
    """The names of the sites that are patched now."""
    return read_status(pid).patched


def test_a_stopped_tool_is_not_a_dead_one(counter: subprocess.Popen[str], output: Path) -> None:
    with untouched(counter), recording("-p", counter.pid, "-o", output) as tool:
        os.kill(tool.process.pid, signal.SIGSTOP)
        time.sleep(1.0)  # some looks of the agent
        assert {name.partition("!")[2] for name in patched(counter.pid)} == programs.FUNCTIONS
        os.kill(tool.process.pid, signal.SIGCONT)
        own = work(counter)
        assert tool.interrupt().code == 0
    assert reported(output) == own


def test_what_is_to_be_kept_stays(counter: subprocess.Popen[str]) -> None:
    with untouched(counter):
        with api.attach(counter.pid, keep=True) as target:
            site = target.sites("leaf")[0]
            plan = target.prepare([site]).sites[0]
            with target.batch() as batch:
                batch.queue(site, new=plan.on, old=plan.off)
        time.sleep(1.0)  # some looks of the agent
        assert len(patched(counter.pid)) == 1
        with pytest.raises(api.UnsupportedTarget, match="on purpose"):
            api.attach(counter.pid)
        work(counter)
        with api.attach(counter.pid, keep=True) as target:
            assert target.repaired == 0
            assert len(patched(counter.pid)) == 1
            assert target.detach().clean


def test_the_tool_is_killed_during_a_recording(
    counter: subprocess.Popen[str], output: Path
) -> None:
    with untouched(counter):
        with recording("-p", counter.pid, "-o", output) as tool:
            own = work(counter)
            wait_until(lambda: written(output) == calls(own), "all events are written")
            with api.Capture(output) as capture:
                assert "still being written" in (capture.cut_off or "")
            tool.kill()
        assert work(counter).keys() == own.keys()  # patched or not, and none the worse for it
        wait_until(lambda: not patched(counter.pid), "the agent turns its probes off")
        assert work(counter).keys() == own.keys()
        looked = textpoke("status", "-p", counter.pid)
        left = textpoke("detach", "-p", counter.pid, "--json")
    assert "its tool is gone" in looked.out
    assert "a tool died while it recorded" in looked.out
    assert left.code == 0
    assert json.loads(left.out)["clean"]
    assert json.loads(left.out)["sites"] == len(programs.FUNCTIONS)
    assert json.loads(left.out)["outcome"] is None  # nothing was left to undo
    with api.Capture(output) as capture:
        assert "still" not in (capture.cut_off or "still")
    assert "; everything before that is here\n" in textpoke("report", output).out
    assert reported(output) == own


@pytest.mark.parametrize("tracer", ["profile", "branch"])
def test_counts_of_a_killed_tool_are_said_to_be_missing(
    counter: subprocess.Popen[str], output: Path, tracer: str
) -> None:
    with recording("-p", counter.pid, "-o", output, "-t", tracer) as tool:
        work(counter)
        assert "incomplete: the counts are written when" in textpoke("report", output).out
        tool.kill()
    assert "incomplete: the counts are written when" in textpoke("report", output).out
    assert textpoke("detach", "-p", counter.pid).code == 0


def test_a_new_recording_repairs_what_a_killed_tool_has_left(
    counter: subprocess.Popen[str], tmp_path: Path
) -> None:
    with untouched(counter):
        with recording("-p", counter.pid, "-o", tmp_path / "1") as tool:
            tool.kill()
        work(counter)
        with recording("-p", counter.pid, "-o", tmp_path / "2", "-i", "top") as tool:
            own = work(counter)
            result = tool.interrupt()
    assert result.code == 0
    assert reported(tmp_path / "2") == {"top": own["top"]}


@pytest.mark.parametrize("delay", range(8))
def test_the_tool_is_killed_at_any_time(
    counter: subprocess.Popen[str], output: Path, delay: int
) -> None:
    """Whatever it was doing: the program runs on, and the next tool cleans up."""
    with untouched(counter):
        tool = subprocess.Popen(
            command_line("record", "-q", "-p", counter.pid, "-o", output),
            start_new_session=True,
        )
        if delay:
            wait_until(lambda: agent_task(counter.pid) is not None, "the agent is there")
            time.sleep(0.01 * delay)
        tool.kill()
        tool.wait()
        work(counter)
        left = textpoke("detach", "-p", counter.pid, "--json")
    assert left.code == 0, left
    assert json.loads(left.out)["clean"]


@pytest.mark.parametrize("call", ["ptrace", "syscall"])
def test_the_tool_is_killed_at_every_step(
    counter: subprocess.Popen[str],
    compile_target: Compile,
    output: Path,
    call: str,
) -> None:
    """At every call of ptrace (a thread is held) and of syscall (a command is on its way)."""
    killer = compile_target("killer.c", "-shared", "-fPIC")
    words = ("record", "-q", "-f", "-p", counter.pid, "-o", output, "-d", "10ms")
    step, killed = 0, True
    while killed:
        step += 1
        prefix = ("env", f"LD_PRELOAD={killer}", f"KILL_IN={call}", f"KILL_AT={step}")
        with untouched(counter):
            result = textpoke(*words, prefix=prefix)
            killed = result.code == -signal.SIGKILL
            assert killed or result.code == 0, result
            work(counter)
            if step % 4:  # a new session must cope as well as the command that cleans up
                with api.attach(counter.pid) as target, target.trace():
                    pass
                assert target.report is not None
                assert target.report.residue == [], step
            else:
                left = textpoke("detach", "-p", counter.pid, "--json")
                assert (left.code, json.loads(left.out)["clean"]) == (0, True), (step, left)
    assert step > 5


def test_a_second_tool_finds_the_target_busy(
    counter: subprocess.Popen[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    with recording("-p", counter.pid, "-o", first) as tool:
        refused = textpoke("record", "-p", counter.pid, "-o", second, "-d", "1s")
        left = textpoke("detach", "-p", counter.pid)
        looked = textpoke("status", "-p", counter.pid)
        own = work(counter)
        assert tool.interrupt().code == 0
    for result in (refused, left):
        is_one_error_line(
            result, EXIT_CANNOT_TRACE, "busy", f"another textpoke (pid {tool.process.pid})"
        )
    assert not second.exists()
    assert looked.code == 0
    assert f"in use by another textpoke (pid {tool.process.pid})" in looked.out
    assert reported(first) == own


def test_a_second_connection_in_one_program_is_refused_too(
    counter: subprocess.Popen[str],
) -> None:
    with untouched(counter), api.attach(counter.pid):
        with pytest.raises(api.TargetBusy) as caught:
            api.attach(counter.pid)
        assert caught.value.pid == counter.pid


@contextlib.contextmanager
def small_file_system(place: Path) -> Iterator[None]:
    """Mount one megabyte."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def is_cut_short_but_readable(result: object, counter: object, output: Path, cause: str) -> None:
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(f"textpoke: error: cannot write {output}: ")
    assert cause in result.err
    assert ask(counter, "ping") == "pong"
    assert output.stat().st_size > 0
    report = textpoke("report", "--json", output)
    assert report.code == 0
    assert json.loads(report.out)["events"] > 0
    assert json.loads(report.out)["reason"] in {"error", None}


@pytest.mark.skipif(not AS_ROOT, reason="only root can mount a file system")
def test_the_disk_is_full(counter: subprocess.Popen[str], tmp_path: Path) -> None:
    output = tmp_path / "disk" / "x.tptrace"
    ask(counter, "hot 1")
    with small_file_system(output.parent):
        with untouched(counter):
            result = textpoke("record", "-q", "-p", counter.pid, "-o", output, *SMALL)
        is_cut_short_but_readable(result, counter, output, "No space left on device (ENOSPC)")


def test_the_capture_may_not_grow(counter: subprocess.Popen[str], output: Path) -> None:
    ask(counter, "hot 1")
    with untouched(counter):
        result = textpoke("record", "-p", counter.pid, "-o", output, *SMALL, prefix=LIMITED)
    is_cut_short_but_readable(result, counter, output, "File too large (EFBIG)")


@pytest.fixture
def capture(counter: subprocess.Popen[str], output: Path) -> Path:
    """A real capture."""
    with api.attach(counter.pid) as target, target.trace(output=output):
        work(counter)
    return output


@pytest.mark.parametrize("place", [0, 8, 20, 64], ids=str)
def test_a_corrupted_capture_is_refused(capture: Path, place: int) -> None:
    data = bytearray(capture.read_bytes())
    data[place] ^= FLIPPED
    capture.write_bytes(data)
    is_one_error_line(textpoke("report", capture), 1, str(capture), "at byte")


@pytest.mark.parametrize("bytes_", [0, 5, 20, 100])
def test_a_capture_cut_before_its_names_is_refused(capture: Path, bytes_: int) -> None:
    capture.write_bytes(capture.read_bytes()[:bytes_])
    is_one_error_line(textpoke("report", capture), 1, str(capture))


def test_a_capture_cut_among_its_events_is_read_as_far_as_it_goes(capture: Path) -> None:
    whole = calls(reported(capture))
    with api.Capture(capture) as opened:
        last = opened.events[-1]
    with open(capture, "r+b") as file:
        file.truncate(last.end - 1)
    result = textpoke("report", capture)
    assert result.code == 0
    assert "cut off" in result.out
    assert 0 < calls(reported(capture)) < whole


def test_something_else_than_a_capture_is_refused(program: Path) -> None:
    is_one_error_line(textpoke("report", program), 1, "is not a textpoke capture")


def test_a_command_is_traced_from_its_first_call_to_its_last(program: Path, output: Path) -> None:
    with recording("-o", output, "--", program, stdin="phase 100 2\nquit 7\n") as tool:
        result = tool.end()
    assert result.code == 7
    said = result.out.splitlines()
    assert said[0] == "ready"
    rows = [[int(word) for word in line.split()] for line in said[1:3]]
    assert [row[4] for row in rows] == [0, 0]
    assert reported(output) == {
        name: {str(row[0]): row[i] for row in rows}
        for i, name in enumerate(("top", "middle", "leaf"), start=1)
    }
    assert "target exited" in result.err


def test_a_command_killed_by_a_signal_gives_its_number(program: Path, output: Path) -> None:
    with recording("-o", output, "--", program) as tool:
        [child] = children(tool.process.pid)
        os.kill(child, signal.SIGKILL)
        assert tool.end().code == 128 + signal.SIGKILL


def test_ctrl_c_reaches_command_and_tool_alike(program: Path, output: Path) -> None:
    with recording("-o", output, "--", program, stdin="phase 100 2\n") as tool:
        wait_until(lambda: written(output) == 1000, "all events are written")
        os.killpg(tool.process.pid, signal.SIGINT)
        assert tool.end().code == 128 + signal.SIGINT
    with api.Capture(output) as capture:
        assert capture.cut_off is None
    assert calls(reported(output)) == 1000


def test_a_command_outlives_a_recording_that_is_over(program: Path, output: Path) -> None:
    with recording("-d", "50ms", "-o", output, "--", program) as tool:
        [child] = children(tool.process.pid)
        wait_until(lambda: agent_task(child) is None, "the recording is over")
        tool.tell("ping")
        tool.tell("quit 5")
        result = tool.end()
    assert result.code == 5, result
    assert "pong" in result.out


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
