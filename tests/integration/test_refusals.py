# SPDX-License-Identifier: Apache-2.0
"""What cannot be traced is refused by one line and the right exit code, and nobody notices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import elf32
import programs
import pytest
from observe import (
    EXIT_CANNOT_TRACE,
    POWERLESS,
    ask,
    is_one_error_line,
    status,
    textpoke,
    untouched,
    wait_until,
)

if TYPE_CHECKING:
    from conftest import Compile, Start

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can change its user and its root")


@pytest.fixture
def counter(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("counter.c", *programs.PIE))


def record(pid: object, tmp_path: Path, *more: str, **options: object) -> object:
    """What `textpoke record` answers; no capture may be left behind by a refusal."""
    output = tmp_path / "refused.tptrace"
    result = textpoke("record", "-p", pid, "-d", "1s", "-o", output, *more, **options)
    assert not output.exists()
    return result


def doctor_says(pid: int, check: str) -> None:
    """Assert that the doctor comes to the same verdict, by this check."""
    result = textpoke("doctor", "-p", pid, "--json")
    assert result.code == EXIT_CANNOT_TRACE, result
    failed = [f["check"] for f in json.loads(result.out)["findings"] if not f["ok"]]
    assert check in failed


def test_no_such_pid(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    is_one_error_line(
        record(process.pid, tmp_path), EXIT_CANNOT_TRACE, f"no process with pid {process.pid}"
    )
    doctor_says(process.pid, "process")


@pytest.mark.parametrize("verb", ["sites", "status", "detach"])
def test_no_such_pid_for_the_other_verbs(verb: str) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    result = textpoke(verb, "-p", process.pid)
    is_one_error_line(result, EXIT_CANNOT_TRACE, f"no process with pid {process.pid}")


@needs_root
def test_another_users_process(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("privileges.c", *programs.PIE), "nobody")
    with untouched(process):
        result = record(process.pid, tmp_path, prefix=POWERLESS)
    is_one_error_line(
        result, EXIT_CANNOT_TRACE, f"may not attach to pid {process.pid}", "CAP_SYS_PTRACE"
    )
    assert ask(process, "work").isdecimal()


@pytest.mark.skipif(AS_ROOT, reason="root may attach to everybody")
def test_roots_process(tmp_path: Path) -> None:
    is_one_error_line(record(1, tmp_path), EXIT_CANNOT_TRACE, "may not attach to pid 1")


def kernel_threads() -> list[int]:
    """Pids of kernel threads: children of kthreadd, and that itself."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[6]) & 0x200000:
                found.append(int(name))
    return found


@pytest.mark.skipif(not kernel_threads(), reason="a container shows no kernel threads")
def test_a_kernel_thread(tmp_path: Path) -> None:
    pid = min(kernel_threads())
    is_one_error_line(record(pid, tmp_path), EXIT_CANNOT_TRACE, "kernel-thread")
    doctor_says(pid, "user program")


def test_a_zombie(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    try:
        wait_until(lambda: status(process.pid)["State"][:1] == "Z", "it is a zombie")
        is_one_error_line(record(process.pid, tmp_path), EXIT_CANNOT_TRACE, "zombie", "has ended")
        doctor_says(process.pid, "alive")
    finally:
        process.wait()


def test_a_thread_is_no_process(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("signals.c"), "plain")
    with untouched(process):
        tid = max(map(int, os.listdir(f"/proc/{process.pid}/task")))
        result = record(tid, tmp_path)
    is_one_error_line(result, EXIT_CANNOT_TRACE, f"thread of process {process.pid}")


def test_a_32_bit_program(start_target: Start, tmp_path: Path) -> None:
    process = start_target(elf32.write_program(tmp_path / "small"))
    with untouched(process):
        is_one_error_line(record(process.pid, tmp_path), EXIT_CANNOT_TRACE, "32-bit")
        doctor_says(process.pid, "64-bit")


def test_a_program_without_sites(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("nothing.S", "-nostdlib", "-static"))
    with untouched(process):
        result = record(process.pid, tmp_path)
    is_one_error_line(result, 1, "nothing to patch", "a system call is in its first five bytes")


def test_an_unknown_function(counter: subprocess.Popen[str], tmp_path: Path) -> None:
    with untouched(counter):
        result = record(counter.pid, tmp_path, "-i", "midle")
    is_one_error_line(result, 1, "no function matches 'midle'", "middle")
    assert ask(counter, "ping") == "pong"


def test_a_debugger_is_attached(
    counter: subprocess.Popen[str],
    compile_target: Compile,
    start_target: Start,
    tmp_path: Path,
) -> None:
    debugger = start_target(compile_target("debugger.c"), str(counter.pid))
    with untouched(counter):
        result = record(counter.pid, tmp_path)
        doctor_says(counter.pid, "debugger")
    name = Path(f"/proc/{debugger.pid}/comm").read_text().strip()
    is_one_error_line(result, EXIT_CANNOT_TRACE, f"{name} (pid {debugger.pid})")
    debugger.kill()  # first: the debugged cannot be reaped before
    debugger.wait()
    assert ask(counter, "ping") == "pong"


def test_a_stopped_program_stays_stopped(counter: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(counter.pid, signal.SIGSTOP)
    wait_until(lambda: status(counter.pid)["State"][:1] == "T", "it has stopped")
    with untouched(counter):
        result = record(counter.pid, tmp_path)
        doctor_says(counter.pid, "running")
        assert status(counter.pid)["State"][:1] == "T"
    is_one_error_line(result, EXIT_CANNOT_TRACE, "stopped", f"kill -CONT {counter.pid}")
    os.kill(counter.pid, signal.SIGCONT)
    assert ask(counter, "ping") == "pong"


def test_a_program_with_a_seccomp_filter(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("privileges.c", *programs.PIE), "seccomp")
    with untouched(process):
        result = record(process.pid, tmp_path)
        doctor_says(process.pid, "seccomp")
    is_one_error_line(result, EXIT_CANNOT_TRACE, "seccomp", "mode 2 (filter)")
    assert ask(process, "work").isdecimal()


def test_an_output_file_that_exists_is_kept(counter: subprocess.Popen[str], tmp_path: Path) -> None:
    output = tmp_path / "mine.txt"
    output.write_text("precious")
    with untouched(counter):
        result = textpoke("record", "-p", counter.pid, "-d", "1s", "-o", output)
    is_one_error_line(result, 1, f"{output} exists", "-f")
    assert output.read_text() == "precious"


def test_an_output_directory_that_does_not_exist(
    counter: subprocess.Popen[str], tmp_path: Path
) -> None:
    output = tmp_path / "nowhere" / "x.tptrace"
    with untouched(counter):
        result = textpoke("record", "-p", counter.pid, "-d", "1s", "-o", output)
    is_one_error_line(result, 1, str(output), "No such file or directory")


@pytest.mark.parametrize("content", ["no program", "no right to execute", "nothing there"])
def test_a_command_that_cannot_be_started(tmp_path: Path, content: str) -> None:
    command = tmp_path / "command"
    if content != "nothing there":
        command.write_bytes(b"\x7fELF" + b"\0" * 100)
        command.chmod(0o755 if content == "no program" else 0o644)
    output = tmp_path / "x.tptrace"
    result = textpoke("record", "-o", output, "--", command)
    is_one_error_line(result, 1, str(command))
    assert not output.exists()


def test_a_command_without_sites_is_not_started(compile_target: Compile, tmp_path: Path) -> None:
    nothing = compile_target("nothing.S", "-nostdlib", "-static")
    result = textpoke("record", "-o", tmp_path / "x.tptrace", "--", nothing)
    is_one_error_line(result, 1, "nothing to patch", "a system call is in its first five bytes")
    assert "ready" not in result.out
