# SPDX-License-Identifier: Apache-2.0
"""The helper process itself: takes one request after the other until its process is gone.

Nobody is held between two requests. If it is killed in the middle of one, the guard that holds the
threads (native/control/guard.c) goes on and lets them go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import TYPE_CHECKING

from textpoke import holds
from textpoke._errors import TextpokeError
from textpoke.agent import Agent, connect, find_agent
from textpoke.helper import HEAD, HELLO, MAGIC, RESULT, TEXT_BYTES
from textpoke.target import require_attachable

if TYPE_CHECKING:
    from collections.abc import Sequence

_IDLE_MS = 1000
_MOST_BYTES = 1 << 30
# What a terminal or a service manager sends to all is for the program; we end with it.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
_COMM = "textpoke-helper"


def main(words: Sequence[str]) -> int:
    """Serve process words[2]: the socket is words[0], the pidfd of the process words[1]."""
    line_fd, pidfd, pid = (int(word) for word in words)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(_COMM)
    with socket.socket(fileno=line_fd) as line, contextlib.suppress(ConnectionError):
        _serve(line, Agent(pid, -1, pidfd, -1))
    return 0


def _serve(line: socket.socket, agent: Agent) -> None:
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(agent.pidfd, select.POLLIN)
    # The program's end is known by whichever comes first: its children may hold its line.
    while True:
        ready = {fd for fd, _ in poll.poll(_IDLE_MS)}
        if line.fileno() in ready:
            request = _receive(line)
            if request is None:
                return
            line.sendall(_answer(agent, *request))
        elif ready or (agent.tid and _has_lost_agent(agent)):
            return


def _has_lost_agent(agent: Agent) -> bool:
    """After an exec the process lives on as another program, and its children may hold the line."""
    return not os.path.exists(f"/proc/{agent.pid}/task/{agent.tid}")


def _receive(line: socket.socket) -> tuple[int, list[bytes]] | None:
    """The next request; None when nobody will ask any more, or it is none of ours."""
    head = _receive_all(line, HEAD.size)
    if len(head) != HEAD.size:
        return None
    magic, work, *sizes = HEAD.unpack(head)
    if magic != MAGIC or sum(sizes) > _MOST_BYTES:
        return None
    parts = [_receive_all(line, size) for size in sizes]
    if [len(part) for part in parts] != sizes:
        return None
    return work, parts


def _receive_all(line: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = line.recv(min(size - len(data), 1 << 20))
        if not piece:
            break
        data += piece
    return bytes(data)


def _answer(agent: Agent, number: int, parts: list[bytes]) -> bytes:
    if number == HELLO:
        return _connect(agent, int.from_bytes(parts[0], "little", signed=True))
    work = holds.Work(number)
    used = parts[: holds.PARTS[work]]
    size = holds.answer_bytes(work, used)
    code, found = holds.perform(agent, work, used)
    return RESULT.pack(code) + found.ljust(size, b"\0")


def _connect(agent: Agent, tid: int) -> bytes:
    """Open what the work needs; the answer is a code and a sentence."""
    code, said = 0, ""
    try:
        if os.getppid() != agent.pid:
            code, said = errno.ESRCH, "it is in another pid namespace than the process"
        else:
            _open(agent, tid)
    except TextpokeError as exc:
        code, said = errno.EACCES, str(exc)
    except OSError as exc:
        code, said = exc.errno or errno.EIO, f"{exc.filename or 'it'}: {exc.strerror}"
    return RESULT.pack(code) + said.encode(errors="replace")[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")


def _open(agent: Agent, tid: int) -> None:
    try:
        agent.mem_fd = os.open(f"/proc/{agent.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        info = find_agent(agent.pid)
    except PermissionError:
        require_attachable(agent.pid)  # the kernel says no, proc says why
        raise
    if info is not None and info.tid == tid:
        connect(agent, info.tid, info.shared_fd, info.image_base)
    agent.tid = tid
