# SPDX-License-Identifier: Apache-2.0
"""The helper process that stops the threads of the own process: killed, refused, gone in time."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from observe import POWERLESS
from own import CLEAN, PREAMBLE, PYTHON, run

if TYPE_CHECKING:
    from pathlib import Path


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


def test_the_helper_imports_nothing_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger')\n", encoding="ascii")
    said = run(
        """
        os.chdir(sys.argv[1])
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True, mode="stop") as trace:
                zlib.crc32(data)
        end(target, refused=len(trace.refused))
        """,
        tmp_path,
    )
    assert said == CLEAN | {"refused": 0}


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


def test_a_helper_that_is_killed_within_a_detach_leaves_nothing() -> None:
    said = run(
        """
        def kill(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        random.seed(3)
        for turn in range(12):
            with textpoke.this_process() as target:
                with target.trace("libz*!*", everything=True, mode="stop"):
                    helper = target.agent.helper.pid
                # Text is compared first, for some 40 ms.
                killer = threading.Timer(0.02 + random.random() / 15, kill, (helper,))
                killer.start()
            killer.join()
            assert target.report.clean, target.report.residue
        end(target)
        """
    )
    assert said == CLEAN


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
                helpers.add(target.agent.helper.pid)
            for turn in range(8):
                os.kill(target.agent.helper.pid, signal.SIGINT)
                timer = threading.Timer(0.02 + 0.06 * turn, os.killpg, (0, signal.SIGINT))
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


def test_a_program_without_standard_streams_has_a_helper_too() -> None:
    said = run(
        """
        kept = [os.dup(fd) for fd in range(3)]
        os.closerange(0, 3)
        with textpoke.this_process() as target:
            with target.trace("libz!crc32", everything=True, mode="stop") as trace:
                zlib.crc32(data)
        for fd in range(3):
            os.dup2(kept[fd], fd)
        end(target, events=trace.events)
        """
    )
    assert said == CLEAN | {"events": 1}


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
    warnings.simplefilter("error", ResourceWarning)
    target = textpoke.this_process()
    trace = target.trace("libz*!*", everything=True, mode="stop")
    with trace:
        pass
    child = os.fork()  # has inherited the line to the helper
    if not child:
        time.sleep(3)
        os._exit(0)
    print(target.agent.helper.pid, flush=True)
    sys.stdin.readline()
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
        [*PYTHON, PREAMBLE + textwrap.dedent(body), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    helper = int(process.stdout.readline())
    assert is_running(helper)
    process.stdin.write("\n")
    process.stdin.flush()
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
