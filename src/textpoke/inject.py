# SPDX-License-Identifier: Apache-2.0
"""Bring the agent into a process: choose a thread, borrow it for two system calls, shake hands."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from textpoke import target
from textpoke._errors import (
    AgentFailed,
    AgentTimeout,
    AttachDenied,
    NoSuchTarget,
    TargetError,
    TargetExited,
    TextpokeError,
)
from textpoke._native import ffi, lib
from textpoke.agent import (
    NAME,
    Agent,
    connect,
    error_text,
    find_agent,
    has_ended,
    open_shared,
    open_target,
    outlast_masking,
)
from textpoke.agent_image import load_image
from textpoke.unload import find_syscall, remove, remove_remains

if TYPE_CHECKING:
    from textpoke._native import Pointer
    from textpoke.model import Thread

DEFAULT_RING_BYTES = 1 << 20
_LEAST_RINGS, _MOST_RINGS = 128, 1024
_MOST_RING_BYTES = 16 << 30  # of all of them, where that is more than the least
_REQUEST_BYTES = 128 << 20  # 2,097,152 sites; what no batch needs is never touched
_START_TIMEOUT_S = 5.0
_RETRIES = 20
_FUTEX = 202
# read, poll, select, pause, nanosleep, accept, wait4, waitid, clock_nanosleep, accept4
_WRITES = frozenset((1, 18, 20, 40, 44, 46, 275, 296))  # write, send, splice and their kin
_RESTARTED = frozenset((0, 7, 23, 34, 35, 43, 61, 247, 230, 288))


def load(
    pid: int,
    *,
    ring_bytes: int = DEFAULT_RING_BYTES,
    rings: int | None = None,
    held: Pointer | None = None,
) -> Agent:
    """Load the agent into process `pid` and connect to it.

    Args:
        pid: The target; our own pid loads it into this process.
        ring_bytes: Bytes of events in one thread's ring, a power of two from 64 KiB.
        rings: Threads that can record at the same time.
        held: A launched program that is already stopped (`launch`).

    Raises:
        TargetError: This process cannot be traced; nothing was left in it.
        AgentFailed, AgentTimeout: A step of the agent's start failed.
    """
    agent = open_target(pid)
    agent.held = held
    try:
        existing = find_agent(pid)
        if existing is not None:
            connect(agent, existing.tid, existing.shared_fd, existing.image_base)
            _wait_ready(agent)
            if agent.image().socket_fd >= 0:  # a tool was killed before it could
                _hand_over_files(agent)
            return agent
        _load(agent, ring_bytes, rings or _enough_rings(pid, ring_bytes))
    except TargetError:
        agent.close()
        raise
    except BaseException as exc:
        # What a dying process no longer has is no failure of ours, whatever it was.
        gone = isinstance(exc, (AgentFailed, OSError)) and _has_gone(agent)
        agent.close()
        if gone:
            raise TargetExited(pid, "attach") from exc
        raise
    return agent


def _has_gone(agent: Agent) -> bool:
    # A process that ends loses its memory first; its pidfd tells later.
    with contextlib.suppress(NoSuchTarget):
        return has_ended(agent.pidfd) or not target.read_maps(agent.pid)
    return True


def _load(agent: Agent, ring_bytes: int, rings: int) -> None:
    started = time.perf_counter()
    if agent.held is not None:
        target.require_attachable(agent.pid, held=True)
    else:
        outlast_masking(lambda: target.require_attachable(agent.pid))
        remove_remains(agent)
    checked = time.perf_counter()
    injected = _inject(agent, ring_bytes, rings)
    done = time.perf_counter()
    try:
        _wait_ready(agent)
        shared_fd = open_shared(agent.pid, agent.tid)
        if shared_fd < 0:
            raise AgentFailed("opening the shared memory object", errno.ENOENT)
        connect(agent, agent.tid, shared_fd, injected.base)
        _hand_over_files(agent)
    except AgentFailed:
        _take_out(agent)
        raise
    agent.timings.checks_ms = (checked - started) * 1e3
    agent.timings.inject_ms = (done - checked) * 1e3
    agent.timings.start_ms = (time.perf_counter() - done) * 1e3


def _enough_rings(pid: int, ring_bytes: int) -> int:
    """Memory that no thread writes to is none: only addresses are spent."""
    wanted = 2 * len(target.read_threads(pid))
    most = min(_MOST_RINGS, _MOST_RING_BYTES // ring_bytes)
    return max(_LEAST_RINGS, min(wanted, most))


def _take_out(agent: Agent) -> None:
    """The agent could not start: its thread has ended, leave nothing behind."""
    if agent.held is None:
        with contextlib.suppress(TextpokeError):
            remove(agent, agent.image(), [])


def _inject(agent: Agent, ring_bytes: int, rings: int) -> Pointer:
    image = load_image()
    request = ffi.new("struct tp_inject *")
    keep = [
        ffi.new("uint8_t[]", image.data),
        ffi.new("uint64_t[]", [word for pair in image.relocations for word in pair]),
    ]
    request.image = keep[0]
    request.image_file_bytes = len(image.data)
    request.image_bytes = image.size
    request.head_offset = image.head_offset
    request.entry_offset = image.entry_offset
    request.relocations = keep[1]
    request.relocation_count = len(image.relocations)
    request.mem_fd = agent.mem_fd
    request.ring_count = rings
    request.ring_bytes = ring_bytes
    request.request_bytes = _REQUEST_BYTES
    out = ffi.new("struct tp_injected *")
    if agent.pid == os.getpid():
        _check_injection(agent, lib.tp_inject_self(request, out))
    else:
        request.syscall_at = find_syscall(agent.mem_fd, target.read_maps(agent.pid))
        _inject_remote(agent, request, out)
    agent.tid = out.agent_tid
    agent.image_at = out.base + image.head_offset
    agent.timings.hold_ns = out.hold_ns
    return out


def _inject_remote(agent: Agent, request: Pointer, out: Pointer) -> None:
    if agent.held is not None:
        request.local_tid = _local_tid(agent.pid, agent.pid)
        _check_injection(agent, lib.tp_inject(agent.held, request, out))
        return
    error = -errno.EAGAIN
    for attempt in range(_RETRIES):
        for thread in borrow_order(agent.pid):
            try:
                request.local_tid = _local_tid(agent.pid, thread.tid)
            except OSError:  # it has ended since we saw it; another one will do
                error = -errno.ESRCH
                continue
            error = lib.tp_inject_thread(agent.pid, thread.tid, request, out)
            if error not in (-errno.EAGAIN, -errno.ESRCH):
                _check_injection(agent, error)
                return
        time.sleep(0.001 * attempt)
    _check_injection(agent, error)


def _check_injection(agent: Agent, error: int) -> None:
    if error >= 0:
        return
    if has_ended(agent.pidfd) or error == -errno.ESRCH:
        raise TargetExited(agent.pid, "attach")
    if error == -errno.ESTALE:
        raise TargetExited(agent.pid, "attach: it has executed another program")
    if error in (-errno.EPERM, -errno.EACCES):
        raise AttachDenied(agent.pid, [f"ptrace: {os.strerror(-error)}"])
    if error == -errno.ETIMEDOUT:
        raise AgentTimeout("stopping one thread of the target", _START_TIMEOUT_S)
    raise AgentFailed("loading the agent", -error)


def borrow_order(pid: int) -> list[Thread]:
    """Threads of `pid`, best one to hold first: asleep in a call that restarts by itself.

    A futex wait is woken and resumed by the kernel with nothing lost; a running thread has no
    call to interrupt; the rest may be in a call that answers EINTR (pitfalls 7).
    """

    def rank(thread: Thread) -> int:
        try:
            with open(f"/proc/{pid}/task/{thread.tid}/syscall", encoding="ascii") as file:
                word = file.read().split()[0]
        except (OSError, IndexError):
            return 9
        if word == "running":
            return 1
        number = int(word)
        if number in _WRITES:  # cut short by any stop, and few programs expect that
            return 4
        return 0 if number == _FUTEX else 2 if number in _RESTARTED else 3

    threads = [t for t in target.read_threads(pid) if t.name != NAME and t.state in "RS"]
    return sorted(threads, key=rank)


def _local_tid(pid: int, tid: int) -> int:
    with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return tid


def _wait_ready(agent: Agent) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        head = agent.image()
        if head.state == lib.TP_AGENT_READY:
            agent.tid = target_tid(agent.pid, agent.tid)
            return
        if head.state == lib.TP_AGENT_FAILED:
            code = -head.error
            raise AgentFailed(f"start of the agent, step {head.step} ({error_text(code)})", code)
        if time.monotonic() > deadline:
            raise AgentTimeout("start of the agent", _START_TIMEOUT_S)
        time.sleep(0.0001)


def target_tid(pid: int, tid: int) -> int:
    """The agent's thread id as this tool sees it; `tid` is what clone gave inside the target."""
    if os.path.exists(f"/proc/{pid}/task/{tid}"):
        return tid
    named = [t.tid for t in target.read_threads(pid) if t.name == NAME and t.tid != pid]
    if not named:  # `tid` itself may be anybody's in our own numbering
        raise AgentFailed("finding the agent's thread", errno.ESRCH)
    return named[0]


def _hand_over_files(agent: Agent) -> None:
    """Pass the files over that the agent needs; a kernel before 6.9 lets it open its own."""
    opened = [agent.mem_fd]
    try:
        paths = (f"/proc/{agent.pid}/{name}" for name in ("status", "stat", "task"))
        opened.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        sent = lib.tp_send_fds(agent.tid, agent.image().socket_fd, opened)
    finally:
        for fd in opened[1:]:
            os.close(fd)
    same_ids = _user_namespace(f"{agent.pid}/task/{agent.tid}") == _user_namespace("self")
    words = (int(sent == 0), int(same_ids), agent.tid)
    agent.require("handing over the mem file", lib.TP_CMD_FDS, *words)


def _user_namespace(process: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/user")
    except FileNotFoundError:  # a kernel without them
        return ""
