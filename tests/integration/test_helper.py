# SPDX-License-Identifier: Apache-2.0
"""Functions without NOPs in the very process that asks: a helper process stops its threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from observe import POWERLESS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Compile

# A Python of its own, with three threads at work in C extensions from beginning to end.
PREAMBLE = """
import contextlib, ctypes, hashlib, json, os, random, signal, sys, threading, time, zlib
import textpoke

EXTENSIONS = ("libz*!*", "zlib*!*", "_json*!*", "_hashlib*!*")
data = bytes(range(256)) * 40
rows = json.dumps({"rows": list(range(300))})
right = (zlib.compress(data), hashlib.sha256(data).digest())
busy, wrong, done = threading.Event(), [], []

def work():
    while not busy.is_set():
        if (zlib.compress(data), hashlib.sha256(data).digest()) != right:
            wrong.append("bytes")
        if json.dumps(json.loads(rows)) != rows:
            wrong.append("rows")
        done.append(1)

workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for worker in workers:
    worker.start()

def others():
    "Our children, zombies too."
    return open("/proc/thread-self/children").read().split() + [
        line for task in os.listdir("/proc/self/task")
        for line in open(f"/proc/self/task/{task}/children").read().split()
    ]

def end(target, **more):
    busy.set()
    for worker in workers:
        worker.join()
    report = target.report
    print(json.dumps({
        "wrong": wrong, "worked": len(done) > 0, "residue": report.residue,
        "differing": len(report.text.differing), "children": others(), **more,
    }))
"""

CLEAN = {"wrong": [], "worked": True, "residue": [], "differing": 0, "children": []}


def run(
    body: str, *words: object, under: Sequence[str] = (), new_session: bool = False
) -> dict[str, object]:
    """Run a script in a new Python; returns the object that it prints."""
    done = subprocess.run(
        [*under, sys.executable, "-c", PREAMBLE + textwrap.dedent(body), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        start_new_session=new_session,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("mode", ["auto", "int3", "stop"])
def test_every_function_of_extensions_at_work_is_traced_and_left_as_it_was(mode: str) -> None:
    said = run(
        """
        refused, events, modes, several = [], [], set(), 0
        with textpoke.this_process() as target:
            for pattern in EXTENSIONS:
                with target.trace(pattern, everything=True, mode=sys.argv[1]) as trace:
                    time.sleep(0.1)
                refused += [str(site) for site, _ in trace.refused]
                events.append(trace.events > 0)
                modes |= {str(choice.mode) for choice in trace.on.choices}
                several += sum(bool(site.heads) for site in trace.chosen)
        end(target, refused=refused, events=events, modes=sorted(modes), several=several > 50)
        """,
        mode,
    )
    modes = said.pop("modes")
    # CPython blocks signals around vfork: nothing in it may meet an int3 unless that is asked for.
    assert "stop" in modes and "int3" not in modes if mode == "auto" else modes == [mode]
    assert said == CLEAN | {"refused": [], "events": [True] * 4, "several": True}


@pytest.mark.parametrize("mode", ["auto", "int3", "stop"])
def test_calls_of_functions_without_nops_are_counted_one_by_one(
    mode: str, compile_target: Compile
) -> None:
    library = compile_target("counter.c", "-DPART_OBJECT", "-shared", "-fPIC")
    said = run(
        """
        library = ctypes.CDLL(sys.argv[2])
        tally = (ctypes.c_ulong * 8)()
        with textpoke.this_process() as target:
            with target.trace("counter*!top", everything=True, mode=sys.argv[1]) as trace:
                for x in range(1000):
                    library.top(tally, x)
            with target.trace("libz!crc32", everything=True, mode=sys.argv[1]) as crc:
                for _ in range(500):
                    zlib.crc32(data)
        end(target, events=[trace.events, crc.events], lost=[trace.lost, crc.lost])
        """,
        mode,
        library,
    )
    assert said == CLEAN | {"events": [1000, 500], "lost": [0, 0]}


@pytest.mark.parametrize("mode", ["auto", "int3"])
def test_extensions_are_toggled_fifty_times_under_their_threads(mode: str) -> None:
    said = run(
        """
        helpers = set()
        with textpoke.this_process() as target:
            for turn in range(50):
                with target.trace(EXTENSIONS[turn % 4], everything=True, mode=sys.argv[1]):
                    helpers.add(target.agent.helper.pid)
        end(target, helpers=len(helpers))
        """,
        mode,
    )
    assert said == CLEAN | {"helpers": 1}


def test_runs_of_nops_are_merged_where_a_flip_has_no_room(compile_target: Compile) -> None:
    """The landing pads of a flip would lie 1.75 GiB below; here something lies there already."""
    flags = ("-fpatchable-function-entry=5", "-DPART_OBJECT", "-shared", "-fPIC")
    library = compile_target("counter.c", *flags)
    said = run(
        """
        from textpoke.plan import Method
        library = ctypes.CDLL(sys.argv[1])
        tally = (ctypes.c_ulong * 8)()
        with textpoke.this_process() as target:
            [site] = target.sites("counter*!top")
            low = (site.address - 0x6f6f6f6b) & -4096
            mmap = ctypes.CDLL(None).mmap
            mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t,
                ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
            assert mmap(low - 65536, 2 << 16, 0, 0x100022, -1, 0) == low - 65536
            with target.trace("counter*!top") as trace:
                for x in range(100):
                    library.top(tally, x)
                methods = {str(p.method.name) for p in trace.plan.sites}
        end(target, events=trace.events, methods=sorted(methods))
        """,
        library,
    )
    assert said == CLEAN | {"events": 100, "methods": ["MERGE"]}


def test_forked_children_leave_the_parents_recording_alone() -> None:
    said = run(
        """
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True) as trace:
                pids = [os.fork()]
                if not pids[0]:
                    sys.exit(0 if zlib.compress(data) == right[0] else 1)  # through both blocks
                pids.append(os.fork())
                if not pids[1]:
                    time.sleep(60)  # outlives the recording, and holds what it has inherited
                first = os.waitpid(pids[0], 0)[1]
                before = trace.events
                zlib.crc32(data)
                trace.drain()
                counted = trace.events > before
        first_report = target.report.clean
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True) as trace:
                zlib.crc32(data)
        os.kill(pids[1], signal.SIGKILL)
        os.waitpid(pids[1], 0)
        end(target, first=first, counted=counted, clean=first_report, events=trace.events > 0)
        """
    )
    assert said == CLEAN | {"first": 0, "counted": True, "clean": True, "events": True}


def test_a_forked_child_traces_itself() -> None:
    said = run(
        """
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True):
                pid = os.fork()
                if not pid:
                    with textpoke.this_process() as child:
                        with child.trace("libz*!crc32", everything=True) as trace:
                            for _ in range(30):
                                zlib.crc32(data)
                    good = trace.events == 30 and child.report.clean and not others()
                    os._exit(0 if good else 1)
                status = os.waitpid(pid, 0)[1]
        end(target, status=status)
        """
    )
    assert said == CLEAN | {"status": 0}


def test_a_helper_that_was_killed_is_followed_by_another() -> None:
    said = run(
        """
        helpers = set()
        with textpoke.this_process() as target:
            for _ in range(4):
                with target.trace("libz*!*", everything=True, mode="stop") as trace:
                    os.kill(target.agent.helper.pid, signal.SIGKILL)
                    helpers.add(target.agent.helper.pid)
        end(target, helpers=len(helpers))
        """
    )
    assert said == CLEAN | {"helpers": 4}


@pytest.mark.parametrize("mode", ["stop", "int3"])
def test_a_helper_that_is_killed_within_a_batch_leaves_it_done_or_undone(mode: str) -> None:
    said = run(
        """
        def kill(pid, after_s):
            time.sleep(after_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        errors, random.seed = [], random.seed(7)
        with textpoke.this_process() as target:
            from textpoke import helper
            sites = target.sites("libz*!*", everything=True)
            for turn in range(40):
                killer = threading.Thread(
                    target=kill, args=(helper.require(target.agent).pid, random.random() / 20)
                )
                killer.start()
                try:
                    with target.trace("libz*!*", everything=True, mode=sys.argv[1]):
                        pass
                except textpoke.PokeError as exc:
                    errors.append(str(exc))
                killer.join()
            with target.trace("libz*!crc32", everything=True, mode=sys.argv[1]) as trace:
                zlib.crc32(data)
        end(target, events=trace.events, errors=errors)
        """,
        mode,
    )
    errors = said.pop("errors")
    assert isinstance(errors, list)
    assert mode == "int3" or not errors  # its guard finishes what it has begun
    assert all("helper process" in error for error in errors)
    assert said == CLEAN | {"events": 1}


def test_two_targets_one_after_the_other_have_a_helper_each() -> None:
    said = run(
        """
        helpers, fds = [], len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            with textpoke.this_process() as target:
                with target.trace("libz*!crc32", everything=True, mode="stop"):
                    helpers.append(target.agent.helper.pid)
            assert not others()
        left = len(os.listdir("/proc/self/fd")) - fds
        end(target, helpers=len(set(helpers)), descriptors=left)
        """
    )
    assert said == CLEAN | {"helpers": 2, "descriptors": 0}


def test_an_interrupt_from_the_terminal_ends_the_recording_and_not_the_helper() -> None:
    said = run(
        """
        interrupts, helpers = 0, set()
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True, mode="stop") as trace:
                pass
            for turn in range(8):
                os.kill(target.agent.helper.pid, signal.SIGINT)
                timer = threading.Timer(0.01 + 0.02 * turn, os.killpg, (0, signal.SIGINT))
                try:
                    timer.start()
                    while True:
                        trace = target.trace("libz*!*", everything=True, mode="stop")
                        with trace:
                            helpers.add(target.agent.helper.pid)
                except KeyboardInterrupt:
                    interrupts += 1
                trace.stop()  # where the interrupt came in its last moment
                timer.join()
        end(target, interrupts=interrupts, helpers=len(helpers))
        """,
        new_session=True,
    )
    assert said == CLEAN | {"interrupts": 8, "helpers": 1}


@pytest.mark.parametrize("executable", ["", "/bin/true", "/nowhere/python3"])
def test_without_a_helper_the_refusal_has_a_name(executable: str) -> None:
    said = run(
        """
        sys.executable, python = sys.argv[1], sys.executable
        said = []
        with textpoke.this_process() as target:
            for mode in ("stop", "auto"):
                try:
                    target.batch(mode=mode).commit()
                    target.trace("libz*!*", everything=True, mode=mode).start()
                except textpoke.UnsupportedTarget as exc:
                    said.append((exc.reason, "helper" in str(exc), str(exc).count("\\n")))
            with target.trace("libz*!*", everything=True, mode="int3") as trace:
                zlib.crc32(data)
            some = len(trace.refused) > 50 and all("helper" in why for _, why in trace.refused)
            sys.executable = python
        end(target, said=said, some=some)
        """,
        executable,
    )
    assert said == CLEAN | {"said": [["no-helper", True, 0]] * 2, "some": True}


def test_a_process_that_nobody_may_look_into_is_told_so() -> None:
    said = run(
        """
        libc = ctypes.CDLL(None)
        PR_SET_DUMPABLE = 4
        with textpoke.this_process() as target:
            libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
            try:
                target.batch(mode="stop").commit()
            except textpoke.UnsupportedTarget as exc:
                said = [exc.reason, "dump" in exc.detail]
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        end(target, said=said)
        """,
        under=POWERLESS,  # root's helper may do everything
    )
    assert said == CLEAN | {"said": ["no-helper", True]}


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", ["kill", "exec", "exit"])
def test_the_helper_does_not_outlive_its_process(how: str, tmp_path: Path) -> None:
    body = """
    import warnings
    warnings.simplefilter("error")
    target = textpoke.this_process()
    trace = target.trace("libz*!*", everything=True, mode="stop")
    with trace:
        pass
    child = os.fork()  # has inherited the line to the helper
    if not child:
        time.sleep(3)
        os._exit(0)
    print(target.agent.helper.pid, flush=True)
    if sys.argv[1] == "kill":
        while True:
            with trace:
                pass
    busy.set()
    for worker in workers:
        worker.join()
    if sys.argv[1] == "exec":
        os.execv("/bin/sleep", ["sleep", "60"])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    helper = int(process.stdout.readline())
    assert is_running(helper)
    time.sleep(0.3)
    if how == "kill":
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 2.5
    while is_running(helper) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(helper)
    process.kill()
    _, errors = process.communicate()
    assert errors == ""
    assert not os.path.exists(f"/proc/{helper}") or how == "exec"
