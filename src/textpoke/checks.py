# SPDX-License-Identifier: Apache-2.0
"""Whether textpoke can attach to a process, from facts in proc and without touching it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from textpoke import elf, proc
from textpoke._errors import AttachDenied, NoSuchTarget, UnsupportedTarget
from textpoke.model import Finding, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

AGENT_COMM = "textpoke"

_SIGTRAP_BIT = 1 << 4  # signal 5
_CAP_SYS_PTRACE_BIT = 1 << 19
_HWCAP2_FSGSBASE = 1 << 1
_SYS_MEMBARRIER = 324
_MEMBARRIER_SYNC_CORE = 1 << 5 | 1 << 6  # PRIVATE_EXPEDITED_SYNC_CORE and its registration
_OLDEST_KERNEL = (5, 11)
_SECCOMP_MODES = {1: "strict", 2: "filter"}
_NO_INT3 = "sites are written without int3 (direct or stop mode)"
_AS_ROOT = "run textpoke with CAP_SYS_PTRACE (sudo)"
_RUN_UNDER_US = "start it with: textpoke record -- CMD"

CURES = {
    "alive": "its parent, pid {parent}, has not noticed yet",
    "whole process": "use -p {group}",
    "user program": "trace it with ftrace",
    "64-bit": "only 64-bit x86 programs can be traced",
    "permission": "run textpoke as that user or with CAP_SYS_PTRACE (sudo)",
    "permission (not dumpable)": f"{_AS_ROOT}, or {_RUN_UNDER_US}",
    "permission (with the capability)": "a user namespace or security module is in the way; "
    "run textpoke outside of ours",
    "yama": _AS_ROOT,
    "yama (scope 1)": f"{_RUN_UNDER_US}; or {_AS_ROOT}",
    "yama (scope 3)": "nobody may attach until the next boot",
    "own memory": "wait until it has executed its program, or use -p {parent}",
    "debugger": "let it detach first",
    "running": "let it run: kill -CONT {pid}",
    "seccomp": "its filter could kill it for our system calls; start it without one "
    "(systemd: SystemCallFilter=, docker: --security-opt seccomp=unconfined)",
    "shadow stack": "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
    "fsgsbase": "needs a CPU with FSGSBASE and Linux 5.9, booted without nofsgsbase",
    "membarrier": "needs PRIVATE_EXPEDITED_SYNC_CORE: Linux 4.16 with MEMBARRIER",
    "kernel": "textpoke is tested on Linux 5.11 and newer",
    "agent": "look: textpoke status -p {pid}",
}
"""What to do about a finding, by its check, and the case in brackets where there are several."""


class _Verdict(NamedTuple):
    ok: bool
    value: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What proc says about the target, read once for all checks."""

    pid: int
    status: dict[str, str]
    threads: list[Thread]
    agents: list[Thread]
    features: dict[int, str]
    capable: bool


def check_attach(pid: int) -> list[Finding]:
    """Return one finding for each fact that decides whether we can attach, in order.

    Nothing is written and no process is stopped. The list ends early where the rest would make
    no sense (no such process, a zombie, a kernel thread); facts that we may not read are left
    out. The finding "agent" tells of a textpoke that is there already, and says nothing bad.
    """
    try:
        facts = _read_facts(pid)
    except NoSuchTarget:
        return [Finding("process", ok=False, value="no such pid", cure="check it with ps")]
    findings = [Finding("process", ok=True, value=facts.status.get("Name", ""), cure="")]
    for name, _, check in _CHECKS:
        verdict = check(facts)
        if verdict is not None:
            findings.append(Finding(name, *verdict))
            if not verdict.ok and name in _DECISIVE:
                break
    return findings


def require_attachable(pid: int, *, held: bool = False) -> None:
    """Raise for the first fact that speaks against attaching; return when there is none.

    Args:
        pid: The process.
        held: We have launched it and hold it with ptrace, stopped and with all signals blocked:
            those facts are our own doing.

    Raises:
        NoSuchTarget: No process has this pid.
        AttachDenied: The kernel will not let us; `causes` has every reason.
        UnsupportedTarget: Anything else, with the id of the reason.
    """
    harmless = _NOT_FATAL | _OUR_HOLD if held else _NOT_FATAL
    failed = [f for f in check_attach(pid) if not f.ok and f.check not in harmless]
    if not failed:
        return
    first = failed[0].check
    if first == "process":
        raise NoSuchTarget(pid)
    causes = [_text(finding) for finding in failed if finding.check in _DENIALS]
    if first in _DENIALS:
        raise AttachDenied(pid, causes)
    raise UnsupportedTarget(pid, _REASONS[first], _text(failed[0]))


def require_own_memory(pid: int) -> None:
    """Raise UnsupportedTarget ("vfork") for a process that runs in its parent's memory.

    Raises:
        NoSuchTarget: No process has this pid.
    """
    verdict = _own_memory(_read_facts(pid))
    if not verdict.ok:
        raise UnsupportedTarget(pid, _REASONS["own memory"], f"{verdict.value}; {verdict.cure}")


def _text(finding: Finding) -> str:
    return f"{finding.value}; {finding.cure}" if finding.cure else finding.value


def _read_facts(pid: int) -> _Facts:
    statuses = proc.read_statuses(pid)
    living = [(tid, status) for tid, status in statuses if status["State"][:1] not in "ZX"]
    threads = [proc.thread_of(tid, status) for tid, status in living]
    # The leader is never ours: a program called textpoke is a program like any other.
    agents = [t for t in threads if t.name == AGENT_COMM and t.tid != pid]
    capabilities = int(proc.read_status(os.getpid()).get("CapEff", "0"), 16)
    return _Facts(
        pid,
        (living or statuses)[0][1],
        [t for t in threads if t not in agents],
        agents,
        {tid: status.get("x86_Thread_features", "") for tid, status in living},
        bool(capabilities & _CAP_SYS_PTRACE_BIT),
    )


def _threads_text(threads: list[Thread]) -> str:
    shown = ", ".join(f"{t.tid} ({t.name})" for t in threads[:3])
    more = f" and {len(threads) - 3} more" if len(threads) > 3 else ""
    return f"thread{'s' if len(threads) > 1 else ''} {shown}{more}"


def _alive(facts: _Facts) -> _Verdict:
    if facts.threads or facts.agents:
        return _Verdict(ok=True, value=facts.status.get("State", ""))
    parent = facts.status.get("PPid", "?")
    return _Verdict(False, "the process has ended", CURES["alive"].format(parent=parent))


def _whole_process(facts: _Facts) -> _Verdict:
    group = facts.status.get("Tgid", str(facts.pid))
    if group == str(facts.pid):
        return _Verdict(True, "yes")
    value = f"{facts.pid} is a thread of process {group}"
    return _Verdict(False, value, CURES["whole process"].format(group=group))


def _user_program(facts: _Facts) -> _Verdict:
    if "VmSize" in facts.status:
        return _Verdict(True, "yes")
    return _Verdict(False, "a kernel thread: it has no memory of its own", CURES["user program"])


def _wide(facts: _Facts) -> _Verdict | None:
    task = proc.living_task(facts.pid)
    try:
        with open(f"{proc.ROOT}/{facts.pid}/{task}exe", "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    machine = int.from_bytes(head[18:20], "little")
    if head[4:5] == b"\x02" and machine == elf.EM_X86_64:
        return _Verdict(True, "x86-64")
    return _Verdict(False, f"ELF class {head[4:5].hex()}, machine {machine}", CURES["64-bit"])


def _own_memory(facts: _Facts) -> _Verdict:
    parent = int(facts.status.get("PPid", "0"))
    if not parent or not proc.shares_memory(facts.pid, parent):
        return _Verdict(True, "yes")
    # Its text is the parent's: what we would patch, or take out, is in use there.
    value = f"it runs in the memory of its parent, pid {parent} (vfork)"
    return _Verdict(False, value, CURES["own memory"].format(parent=parent))


def _permission(facts: _Facts) -> _Verdict:
    ours, theirs = os.geteuid(), facts.status.get("Uid", "?").split()
    power = "with" if facts.capable else "without"
    value = f"uid {'/'.join(dict.fromkeys(theirs))}, ours is {ours} {power} CAP_SYS_PTRACE"
    try:
        proc.read_auxv(facts.pid)
    except AttachDenied:
        pass
    else:
        return _Verdict(True, value)
    if facts.capable:
        cure = CURES["permission (with the capability)"]
    elif set(theirs) == {str(ours)}:
        value += ", and the process is not dumpable (setuid program, or prctl)"
        cure = CURES["permission (not dumpable)"]
    else:
        cure = CURES["permission"]
    return _Verdict(False, value, cure)


def _yama(facts: _Facts) -> _Verdict:
    try:
        with open(f"{proc.ROOT}/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            scope = int(file.read())
    except (OSError, ValueError):
        return _Verdict(True, "not active")
    value = f"ptrace_scope is {scope}"
    if (
        scope <= 0
        or (scope < 3 and facts.capable)
        or (scope == 1 and proc.is_our_descendant(facts.pid))
    ):
        return _Verdict(True, value)
    case = {1: "yama (scope 1)", 2: "yama"}.get(scope, "yama (scope 3)")
    return _Verdict(False, value, CURES[case])


def _debugger(facts: _Facts) -> _Verdict:
    for thread in facts.threads:
        if thread.tracer_pid:
            name = proc.name_of(thread.tracer_pid)
            value = f"{name} (pid {thread.tracer_pid}) traces {_threads_text([thread])}"
            return _Verdict(False, value, CURES["debugger"])
    return _Verdict(True, "none")


def _running(facts: _Facts) -> _Verdict:
    stopped = [thread for thread in facts.threads if thread.state in "Tt"]
    return _none_of(stopped, "yes", "{} stopped", CURES["running"].format(pid=facts.pid))


def _none_of(threads: list[Thread], good: str, bad: str, cure: str) -> _Verdict:
    if not threads:
        return _Verdict(True, good)
    return _Verdict(False, bad.format(_threads_text(threads)), cure)


def _seccomp(facts: _Facts) -> _Verdict:
    filtered = [thread for thread in facts.threads if thread.seccomp]
    mode = filtered[0].seccomp if filtered else 0
    return _none_of(
        filtered,
        "off",
        f"{{}}: mode {mode} ({_SECCOMP_MODES.get(mode, '?')})",
        CURES["seccomp"],
    )


def _shadow_stack(facts: _Facts) -> _Verdict:
    with_one = [t for t in facts.threads if "shstk" in facts.features[t.tid].split()]
    return _none_of(with_one, "off", "on in {}", CURES["shadow stack"])


def _fsgsbase(facts: _Facts) -> _Verdict | None:
    try:
        vector = proc.read_auxv(facts.pid)
    except AttachDenied:
        return None
    if not vector:  # it is executing another program, or ending
        return None
    hwcap2 = vector.get(proc.AT_HWCAP2, 0)
    ok = bool(hwcap2 & _HWCAP2_FSGSBASE)
    return _Verdict(ok, f"AT_HWCAP2 is {hwcap2:#x}", "" if ok else CURES["fsgsbase"])


def _sigtrap_blocked(facts: _Facts) -> _Verdict:
    blocked = [thread for thread in facts.threads if thread.sig_blocked & _SIGTRAP_BIT]
    value = f"in {_threads_text(blocked)}: {_NO_INT3}" if blocked else "in no thread"
    return _Verdict(True, value)


def _sigtrap_ignored(facts: _Facts) -> _Verdict:
    ignored = int(facts.status.get("SigIgn", "0"), 16) & _SIGTRAP_BIT
    return _Verdict(True, f"yes: {_NO_INT3}" if ignored else "no")


def _membarrier(_: _Facts) -> _Verdict:
    import ctypes

    commands = ctypes.CDLL(None, use_errno=True).syscall(_SYS_MEMBARRIER, 0, 0, 0)
    if commands >= 0 and commands & _MEMBARRIER_SYNC_CORE == _MEMBARRIER_SYNC_CORE:
        return _Verdict(True, f"commands {commands:#x}")
    value = f"commands {commands:#x}" if commands >= 0 else os.strerror(ctypes.get_errno())
    return _Verdict(False, value, CURES["membarrier"])


def _kernel(_: _Facts) -> _Verdict:
    release = os.uname().release
    numbers = re.findall(r"\d+", release)[:2]
    ok = tuple(map(int, numbers)) >= _OLDEST_KERNEL
    return _Verdict(ok, release, "" if ok else CURES["kernel"])


def _agent(facts: _Facts) -> _Verdict:
    if not facts.agents:
        return _Verdict(True, "none")
    return _Verdict(True, _threads_text(facts.agents), CURES["agent"].format(pid=facts.pid))


# Name of the finding, id of the refusal, the check itself.
_CHECKS: tuple[tuple[str, str, Callable[[_Facts], _Verdict | None]], ...] = (
    ("alive", "zombie", _alive),
    ("whole process", "thread", _whole_process),
    ("user program", "kernel-thread", _user_program),
    ("64-bit", "32-bit", _wide),
    ("permission", "", _permission),
    ("yama", "", _yama),
    ("own memory", "vfork", _own_memory),
    ("debugger", "debugger", _debugger),
    ("running", "stopped", _running),
    ("seccomp", "seccomp", _seccomp),
    ("shadow stack", "shadow-stack", _shadow_stack),
    ("fsgsbase", "no-fsgsbase", _fsgsbase),
    ("SIGTRAP blocked", "", _sigtrap_blocked),
    ("SIGTRAP ignored", "", _sigtrap_ignored),
    ("membarrier", "no-membarrier", _membarrier),
    ("kernel", "", _kernel),
    ("agent", "", _agent),
)
_REASONS = {name: reason for name, reason, _ in _CHECKS}
_DECISIVE = frozenset(("alive", "whole process", "user program"))
_DENIALS = frozenset(("permission", "yama"))
_NOT_FATAL = frozenset(("kernel", "agent"))
_OUR_HOLD = frozenset(("debugger", "running"))
