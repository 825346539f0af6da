# SPDX-License-Identifier: Apache-2.0
"""Each fact that stands against attaching is found, named with its value, and has a cure."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from textpoke import checks, proc
from textpoke._errors import AttachDenied, NoSuchTarget, TargetError, UnsupportedTarget
from textpoke.target import check_attach, require_attachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Compile, Start

    from textpoke.model import Finding

PID = 4242
NOBODY = 65534
FULL_CAPABILITIES = "000001ffffffffff"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user id")

ALL_CHECKS = [
    "process",
    "alive",
    "whole process",
    "user program",
    "64-bit",
    "permission",
    "yama",
    "own memory",
    "debugger",
    "running",
    "seccomp",
    "shadow stack",
    "fsgsbase",
    "SIGTRAP blocked",
    "SIGTRAP ignored",
    "membarrier",
    "kernel",
    "agent",
]


class FakeProc:
    """A proc directory with one process; tests change what they are about."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.thread(PID)
        self.write("auxv", struct.pack("<4Q", 26, 2, 0, 0))
        self.write("exe", b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\0")
        self.own(capabilities="0")

    def write(self, name: str, content: bytes | str, pid: int = PID) -> None:
        path = self.root / str(pid) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def thread(self, tid: int, **fields: str) -> None:
        """Write the status of a thread; the first one's is the process's too."""
        known = {
            "Name": "worker",
            "State": "S (sleeping)",
            "Tgid": str(PID),
            "PPid": "1",
            "TracerPid": "0",
            "Uid": "\t".join([str(os.geteuid())] * 4),
            "VmSize": "1000 kB",
            "SigBlk": "0" * 16,
            "SigIgn": "0" * 16,
            "Seccomp": "0",
        } | fields
        text = "".join(f"{key}:\t{value}\n" for key, value in known.items() if value)
        self.write(f"task/{tid}/status", text)
        if tid == PID:
            self.write("status", text)

    def own(self, capabilities: str) -> None:
        """Write our own capabilities."""
        self.write("status", f"Name:\tpython\nPPid:\t1\nCapEff:\t{capabilities}\n", os.getpid())

    def yama(self, scope: int) -> None:
        path = self.root / "sys/kernel/yama/ptrace_scope"
        path.parent.mkdir(parents=True)
        path.write_text(f"{scope}\n")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    monkeypatch.setattr(proc, "ROOT", str(tmp_path))
    return FakeProc(tmp_path)


def finding(check: str, pid: int = PID) -> Finding:
    """Return one finding about a process."""
    return {found.check: found for found in check_attach(pid)}[check]


def refusal(pid: int = PID) -> TargetError:
    """Return the exception that says why a process cannot be traced."""
    with pytest.raises(TargetError) as caught:
        require_attachable(pid)
    assert caught.value.exit_code == 3
    return caught.value


def assert_unsupported(reason: str, value: str, pid: int = PID) -> None:
    """Check id and text of the refusal, and that the text is one line."""
    error = refusal(pid)
    assert isinstance(error, UnsupportedTarget)
    assert (error.pid, error.reason) == (pid, reason)
    assert value in str(error)
    assert "\n" not in str(error)


@pytest.mark.usefixtures("fake")
def test_nothing_speaks_against_a_plain_process() -> None:
    findings = check_attach(PID)
    assert [found.check for found in findings] == ALL_CHECKS
    assert [found for found in findings if not found.ok] == []
    assert all(found.value for found in findings)
    require_attachable(PID)


@pytest.mark.usefixtures("fake")
def test_no_such_process() -> None:
    assert [(found.check, found.ok) for found in check_attach(1)] == [("process", False)]
    assert isinstance(refusal(1), NoSuchTarget)


@pytest.mark.parametrize(
    ("fields", "reason", "value"),
    [
        ({"State": "Z (zombie)", "VmSize": ""}, "zombie", "has ended"),
        ({"Tgid": "17"}, "thread", "use -p 17"),
        ({"VmSize": ""}, "kernel-thread", "a kernel thread"),
        ({"TracerPid": "4242"}, "debugger", "worker (pid 4242) traces thread 4242 (worker)"),
        ({"TracerPid": "1"}, "debugger", "a process that is gone (pid 1)"),
        ({"State": "T (stopped)"}, "stopped", "kill -CONT 4242"),
        ({"State": "t (tracing stop)"}, "stopped", "thread 4242 (worker) stopped"),
        ({"Seccomp": "1"}, "seccomp", "thread 4242 (worker): mode 1 (strict)"),
        ({"Seccomp": "2"}, "seccomp", "mode 2 (filter)"),
        ({"x86_Thread_features": "shstk wrss"}, "shadow-stack", "glibc.cpu.x86_shstk=off"),
    ],
)
def test_facts_in_status_are_refused_by_name(
    fields: dict[str, str], reason: str, value: str, fake: FakeProc
) -> None:
    fake.thread(PID, **fields)
    assert_unsupported(reason, value)


@pytest.mark.parametrize(
    "fields", [{"TracerPid": "4242", "State": "t (tracing stop)", "SigBlk": "f" * 16}]
)
def test_what_our_own_hold_does_is_not_held_against_a_launched_program(
    fields: dict[str, str], fake: FakeProc
) -> None:
    fake.thread(PID, **fields)
    require_attachable(PID, held=True)
    fake.thread(PID, Seccomp="2", **fields)
    with pytest.raises(UnsupportedTarget, match="seccomp"):
        require_attachable(PID, held=True)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"SigBlk": "0000000000000010"}, "SIGTRAP blocked", "in thread 4242 (worker): "),
        ({"SigIgn": "0000000000001010"}, "SIGTRAP ignored", "yes: "),
    ],
)
def test_sigtrap_out_of_reach_is_no_refusal(
    fields: dict[str, str], name: str, value: str, fake: FakeProc
) -> None:
    fake.thread(PID, **fields)
    require_attachable(PID)
    assert finding(name).value.startswith(value)
    assert "direct or stop mode" in finding(name).value


@pytest.mark.parametrize("fields", [{"SigBlk": "000000000000ffef"}, {"x86_Thread_features": ""}])
def test_other_signals_and_features_do_not_matter(fields: dict[str, str], fake: FakeProc) -> None:
    fake.thread(PID, **fields)
    require_attachable(PID)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"Seccomp": "2"}, "seccomp"),
        ({"TracerPid": "4242"}, "debugger"),
        ({"State": "T (stopped)"}, "stopped"),
        ({"x86_Thread_features": "shstk"}, "shadow-stack"),
    ],
)
def test_every_thread_counts(fields: dict[str, str], reason: str, fake: FakeProc) -> None:
    for tid in range(PID + 1, PID + 6):
        fake.thread(tid, Name="helper", **fields)
    error = refusal()
    assert isinstance(error, UnsupportedTarget)
    assert error.reason == reason
    assert "4243 (helper)" in str(error)


def test_many_threads_fit_on_one_line(fake: FakeProc) -> None:
    for tid in range(PID, PID + 100):
        fake.thread(tid, SigBlk="10")
    assert (
        "4242 (worker), 4243 (worker), 4244 (worker) and 97 more"
        in finding("SIGTRAP blocked").value
    )


def test_our_agent_is_reported_and_not_held_against_the_target(fake: FakeProc) -> None:
    fake.thread(PID + 1, Name=checks.AGENT_COMM, SigBlk="f" * 16, State="T (stopped)")
    require_attachable(PID)
    assert finding("agent").value == "thread 4243 (textpoke)"
    assert "textpoke status -p 4242" in finding("agent").cure


def test_a_program_called_textpoke_is_a_program_like_any_other(fake: FakeProc) -> None:
    fake.thread(PID, Name=checks.AGENT_COMM, SigBlk="10")
    assert "4242 (textpoke)" in finding("SIGTRAP blocked").value
    assert finding("agent").value == "none"


def test_a_dead_first_thread_is_no_zombie_process(fake: FakeProc) -> None:
    fake.thread(PID, State="Z (zombie)", VmSize="", SigBlk="10")
    fake.thread(PID + 1)
    fake.write(f"task/{PID + 1}/auxv", struct.pack("<4Q", 26, 2, 0, 0))
    fake.write(f"task/{PID + 1}/exe", b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\0")
    require_attachable(PID)


@pytest.mark.parametrize(
    ("head", "value"),
    [
        (b"\x7fELF\x01\x01\x01" + bytes(11) + b"\x03\0", "ELF class 01, machine 3"),
        (b"\x7fELF\x01\x01\x01" + bytes(11) + b"\x3e\0", "ELF class 01, machine 62"),  # x32
    ],
)
def test_programs_of_32_bits_are_refused(head: bytes, value: str, fake: FakeProc) -> None:
    fake.write("exe", head)
    assert_unsupported("32-bit", value)


@pytest.mark.parametrize("auxv", [struct.pack("<4Q", 26, 0, 0, 0), struct.pack("<2Q", 6, 4096)])
def test_fsgsbase_is_needed(auxv: bytes, fake: FakeProc) -> None:
    fake.write("auxv", auxv)
    assert_unsupported("no-fsgsbase", "AT_HWCAP2 is 0x0")


def test_a_process_in_the_midst_of_exec_has_no_vector_to_judge_by(fake: FakeProc) -> None:
    fake.write("auxv", b"")
    require_attachable(PID)


@pytest.mark.parametrize(
    ("scope", "capabilities", "ok"),
    [
        (0, "0", True),
        (1, "0", False),
        (1, FULL_CAPABILITIES, True),
        (2, "0", False),
        (2, FULL_CAPABILITIES, True),
        (3, FULL_CAPABILITIES, False),
    ],
)
def test_yama(scope: int, capabilities: str, ok: bool, fake: FakeProc) -> None:
    fake.yama(scope)
    fake.own(capabilities)
    assert finding("yama").ok is ok
    assert finding("yama").value == f"ptrace_scope is {scope}"
    if not ok:
        error = refusal()
        assert isinstance(error, AttachDenied)
        assert isinstance(error, PermissionError)
        assert error.causes[0].startswith(f"ptrace_scope is {scope}; ")
        # Weakening the whole machine is never the advice.
        assert "ptrace_scope to" not in str(error)


def test_yama_allows_descendants(fake: FakeProc) -> None:
    fake.yama(1)
    fake.write("status", f"PPid:\t{os.getpid()}\n", 77)
    fake.thread(PID, PPid="77")
    assert finding("yama").ok


@pytest.mark.parametrize(
    ("uid", "capabilities", "cause"),
    [
        ("1", "0", "run textpoke as that user or with CAP_SYS_PTRACE (sudo)"),
        (str(os.geteuid()), "0", "not dumpable"),
        ("1", FULL_CAPABILITIES, "user namespace"),
    ],
)
def test_permission(
    uid: str, capabilities: str, cause: str, fake: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.thread(PID, Uid=uid)
    fake.own(capabilities)

    def denied(pid: int) -> dict[int, int]:
        raise AttachDenied(pid, ["not readable"])

    monkeypatch.setattr(proc, "read_auxv", denied)
    error = refusal()
    assert isinstance(error, AttachDenied)
    assert cause in error.causes[0]
    assert f"uid {uid}, ours is {os.geteuid()}" in error.causes[0]
    # What could not be read is left out.
    assert "fsgsbase" not in {found.check for found in check_attach(PID)}


def test_every_denial_is_listed(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.yama(2)

    def denied(pid: int) -> dict[int, int]:
        raise AttachDenied(pid, ["not readable"])

    monkeypatch.setattr(proc, "read_auxv", denied)
    error = refusal()
    assert isinstance(error, AttachDenied)
    assert len(error.causes) == 2


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("release", "ok"),
    [("6.18.44-fc", True), ("5.11", True), ("5.10.0-21-amd64", False), ("strange", False)],
)
def test_old_kernels_are_noted_and_not_refused(
    release: str, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = os.uname()
    changed = os.uname_result(
        (names.sysname, names.nodename, release, names.version, names.machine)
    )
    monkeypatch.setattr(os, "uname", lambda: changed)
    found = finding("kernel")
    assert (found.ok, found.value) == (ok, release)
    require_attachable(PID)


def test_membarrier_is_asked_of_the_kernel() -> None:
    assert finding("membarrier", os.getpid()).value.startswith("commands 0x")


# The same on real processes.


@pytest.fixture
def running(compile_target: Compile, start_target: Start) -> Callable[..., int]:
    """Return a function that starts tests/targets/signals.c and gives its pid."""
    return lambda *states: start_target(compile_target("signals.c"), *states).pid


@pytest.fixture
def zombie() -> Iterator[int]:
    process = subprocess.Popen(["true"])
    while "Z (zombie)" not in (proc.read_file(process.pid, "status").decode()):
        time.sleep(0.01)
    yield process.pid
    process.wait()


def test_real_plain_process(running: Callable[..., int]) -> None:
    require_attachable(running("plain"))


def test_real_zombie(zombie: int) -> None:
    assert_unsupported("zombie", f"its parent, pid {os.getpid()}", zombie)


def test_real_thread_id(running: Callable[..., int]) -> None:
    pid = running("plain")
    tid = proc.read_threads(pid)[1].tid
    assert_unsupported("thread", f"use -p {pid}", tid)


@pytest.mark.parametrize(
    ("state", "reason", "value"),
    [
        ("traced", "debugger", "(pid {own}) traces"),
        ("seccomp", "seccomp", "mode 1 (strict)"),
    ],
)
def test_real_states(state: str, reason: str, value: str, running: Callable[..., int]) -> None:
    pid = running(state)
    time.sleep(0.05)  # seccomp starts after "ready"
    assert_unsupported(reason, value.format(own=os.getpid()), pid)


def test_real_stopped_process(running: Callable[..., int]) -> None:
    pid = running()
    os.kill(pid, signal.SIGSTOP)
    while finding("alive", pid).value != "T (stopped)":
        time.sleep(0.01)
    assert_unsupported("stopped", f"kill -CONT {pid}", pid)


def test_real_agent_thread(running: Callable[..., int]) -> None:
    pid = running("textpoke")
    require_attachable(pid)
    assert finding("agent", pid).value.endswith("(textpoke)")


def test_real_dead_first_thread(running: Callable[..., int]) -> None:
    pid = running("leader-exits", "plain")
    while not proc.read_status(pid)["State"].startswith("Z"):
        time.sleep(0.01)
    require_attachable(pid)


@needs_root
@pytest.mark.parametrize(
    ("state", "cause"), [("plain", "as that user"), ("secret", "as that user")]
)
def test_real_process_of_another_user(state: str, cause: str, running: Callable[..., int]) -> None:
    pid = running(state)
    # Nobody may not read root's Python: import everything before.
    code = f"""
import ctypes, os
from textpoke.target import check_attach, require_attachable
os.setgid({NOBODY}); os.setuid({NOBODY})
print([finding.check for finding in check_attach({pid}) if not finding.ok])
try:
    require_attachable({pid})
except PermissionError as exc:
    print(exc)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    text = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert text.startswith("['permission']\n")
    assert f"uid 0, ours is {NOBODY} without CAP_SYS_PTRACE; run textpoke {cause}" in text
