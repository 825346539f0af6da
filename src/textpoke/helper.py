# SPDX-License-Identifier: Apache-2.0
"""A process that stops the threads of this one for us: no process can do that to itself.

It is a Python of its own (`helper_main`), started when it is first needed and ended with the
connection. Not one that shares our memory: a stopped thread may hold the lock of malloc, or the
interpreter's. While threads are held it needs nothing of us, and we only wait for its answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING

from textpoke import holds
from textpoke._errors import AgentFailed, AgentTimeout, TextpokeError, UnsupportedTarget
from textpoke._native import ffi, lib
from textpoke.agent import error_text
from textpoke.holds import PARTS, POKE_BYTES, Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.agent import Agent

HELLO = 0
MOST_PARTS = max(PARTS.values())
HEAD = struct.Struct(f"<II{MOST_PARTS}Q")
"""Magic, which work, and the size of each of its byte strings; they follow."""
RESULT = struct.Struct("<q")
"""What the call has returned; what it has found follows."""
MAGIC = 0x504C4548
TEXT_BYTES = 512
"""The answer to the first message: an error code, and a sentence for people."""
# Not the caller's site packages, start-up files or options, nor what lies in the current directory
# (the first place that `-c` looks at): only where its modules are.
_START = (
    "import sys; del sys.path[0]; words = sys.argv[1:]; "
    "sys.path[:] = __import__('json').loads(words[0])"
)
_MAIN = "from textpoke.helper_main import main; sys.exit(main(words[1:]))"
_HELLO_MS = 20_000
_WORK_MS = 180_000  # more than any work of it waits for by itself
_END_S = 5.0
_TRIES = 3
_ALONE_S = 60.0
_FLAGS_AT, _OUTCOME_AT = 29, 30  # in struct tp_poke
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


class HelperEnded(Exception):
    """It has ended while we waited; the text says how. Never leaves this module."""


class Helper:
    """The running process; made by `start`.

    Attributes:
        pid: Its process id.
        agent_tid: The agent's thread that it has found; 0 when there was none.
        start_ms: How long it took to come up, in milliseconds.
    """

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        self._process, self._line = process, line
        self._pidfd = os.pidfd_open(process.pid)
        self._finish = weakref.finalize(self, _finish, process, line, self._pidfd, os.getpid())
        self.pid = process.pid
        self.agent_tid = 0
        self.start_ms = 0.0

    def exchange(
        self, work: int, parts: Sequence[bytes], size: int, timeout_ms: int = _WORK_MS
    ) -> tuple[int, bytes]:
        """Ask, and return the code and `size` bytes of the answer; raises HelperEnded."""
        sizes = [len(part) for part in parts] + [0] * (MOST_PARTS - len(parts))
        message = b"".join((HEAD.pack(MAGIC, work, *sizes), *parts))
        answer = bytearray(RESULT.size + size)
        error = lib.tp_ask(
            self._line.fileno(),
            self._pidfd,
            ffi.from_buffer("char[]", message),
            len(message),
            ffi.from_buffer("char[]", answer, require_writable=True),
            len(answer),
            timeout_ms,
        )
        if error:
            raise HelperEnded(self._end(error))
        return RESULT.unpack_from(answer)[0], bytes(answer[RESULT.size :])

    def _end(self, error: int) -> str:
        """It does not answer: end it, wait until all is let go, and say what became of it."""
        if error != -errno.EPIPE:
            self._process.kill()
            rest = ffi.new("char[]", 1 << 20)
            lib.tp_ask(self._line.fileno(), self._pidfd, ffi.NULL, 0, rest, 1 << 20, _HELLO_MS)
        self.close()
        code = self._process.returncode
        if error != -errno.EPIPE:
            return f"did not answer ({error_text(-error)})"
        return f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with {code}"

    def close(self) -> None:
        """End it, and reap it. In a forked child: only let go of it."""
        self._finish()


def _finish(process: subprocess.Popen[bytes], line: socket.socket, pidfd: int, owner: int) -> None:
    os.close(pidfd)
    if os.getpid() != owner:
        line.close()
        process.returncode = 0  # not our child
        return
    with contextlib.suppress(OSError):  # a child of ours may hold the line, too
        line.shutdown(socket.SHUT_RDWR)
    line.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def perform(agent: Agent, work: Work, *parts: bytes) -> tuple[int, bytes]:
    """Make a call of `holds`: from here, or for the own process from a helper.

    Raises:
        UnsupportedTarget: ("no-helper") It cannot be started.
        AgentFailed, AgentTimeout: It has ended again and again, or the agent has not answered.
    """
    if agent.pid != os.getpid():
        return holds.perform(agent, work, parts)
    why = ""
    for _ in range(_TRIES):
        helper = require(agent)
        before = agent.wire.command_seq if agent.wire is not None else 0
        try:
            return helper.exchange(work, parts, holds.answer_bytes(work, parts))
        except HelperEnded as exc:
            agent.helper, why = None, str(exc)
        if agent.wire is not None and agent.wire.command_seq != before:
            return _without_helper(agent, work, parts)
        if work is Work.LEAVE and _has_left(agent):
            return 0, bytes(ffi.buffer(ffi.new("struct tp_left *", {"handler_restored": 1})))
    raise AgentFailed(f"asking the helper process for process {agent.pid}: it {why}", errno.EPIPE)


def _without_helper(agent: Agent, work: Work, parts: Sequence[bytes]) -> tuple[int, bytes]:
    """The helper has ended after it gave the agent its command: the agent tells how that ended.

    Who was to be looked at remains unknown: the agent undoes a batch that waits for it.
    """
    wire, shared = agent.wire, agent.shared
    if wire is None or shared is None:
        raise AgentFailed("waiting for the agent on a closed connection", errno.EBADF)
    deadline = time.monotonic() + _ALONE_S
    while wire.done_seq != wire.command_seq:
        if wire.looked_seq != wire.look_seq:
            wire.look_result = -errno.EOWNERDEAD
            wire.looked_seq = wire.look_seq
        if time.monotonic() > deadline:
            agent.silent = True
            raise AgentTimeout("a command of a helper process that has ended", _ALONE_S)
        time.sleep(0.002)
    pokes, page = parts[-1], lib.TP_PAGE_BYTES  # the last of STOP and LOOK
    held = shared[page : page + len(pokes)]
    left = bytes(
        held[at + _OUTCOME_AT] == lib.TP_SITE_LEFT or held[at + _FLAGS_AT] != pokes[at + _FLAGS_AT]
        for at in range(0, len(pokes), POKE_BYTES)
    )
    if work is Work.LOOK:
        return int(wire.result), left
    stopped = ffi.new("struct tp_stopped *", {"in_ranges": 1, "result": wire.result})
    return 0, bytes(ffi.buffer(stopped)) + left


def _has_left(agent: Agent) -> bool:
    """Is the image of the agent unmapped? The guard has ended its work then."""
    try:
        agent.image()
    except TextpokeError:
        return True
    return False


def require(agent: Agent) -> Helper:
    """The helper of a connection to the own process, started if it is not there.

    Raises:
        UnsupportedTarget: ("no-helper") It cannot be; the message says why and what helps.
    """
    if agent.helper is not None and agent.helper.agent_tid != agent.tid:
        agent.helper.close()  # it has helped to remove an earlier agent
        agent.helper = None
    if agent.helper is None:
        started = time.perf_counter()
        agent.helper = _start(agent)
        agent.helper.agent_tid = agent.tid
        agent.helper.start_ms = (time.perf_counter() - started) * 1e3
    return agent.helper


def _start(agent: Agent) -> Helper:
    refusal = _why_no_interpreter()
    if refusal:
        raise _refused(agent.pid, refusal)
    try:
        helper = _spawn(agent)
    except (OSError, RuntimeError) as exc:  # of the second kind: the interpreter is ending
        raise _refused(agent.pid, f"it cannot be started ({exc})") from exc
    if os.path.exists(_YAMA):
        lib.tp_allow_tracer(helper.pid)  # where it may not, the first question tells
    try:
        code, said = helper.exchange(HELLO, [struct.pack("<q", agent.tid)], TEXT_BYTES, _HELLO_MS)
    except HelperEnded as exc:
        raise _refused(agent.pid, f"it {exc} at its start") from exc
    if code:
        helper.close()
        raise _refused(agent.pid, said.rstrip(b"\0").decode(errors="replace"))
    return helper


def _spawn(agent: Agent) -> Helper:
    ours, theirs = socket.socketpair()
    paths = [os.path.abspath(path) for path in sys.path if path] + [_package_root()]
    with contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        with theirs, _above(theirs.fileno()) as line_fd, _above(agent.pidfd) as pidfd:
            words = [json.dumps(paths), str(line_fd), str(pidfd), str(agent.pid)]
            process = subprocess.Popen(
                [sys.executable, "-S", "-B", "-c", f"{_START}; {_MAIN}", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(line_fd, pidfd),
                start_new_session=True,  # what the terminal sends to us is not for it
                env=_environment(),
            )
        stack.callback(process.wait)
        stack.callback(process.kill)
        helper = Helper(process, ours)
        stack.pop_all()
    return helper


@contextlib.contextmanager
def _above(fd: int) -> Iterator[int]:
    """A copy above the standard streams, whose place the original has if we have closed them."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        yield copy
    finally:
        os.close(copy)


def _why_no_interpreter() -> str:
    """Why `sys.executable` is nothing to start: of an embedded Python it may be any program."""
    cure = "set sys.executable to a Python that can import textpoke"
    if not sys.executable:
        return f"this Python is embedded and does not know of an interpreter to start: {cure}"
    name = os.path.basename(sys.executable)
    if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
        return f"sys.executable ({sys.executable}) is not a Python interpreter: {cure}"
    return ""


def _package_root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    home = os.environ.get("PYTHONHOME")
    return kept | ({"PYTHONHOME": home} if home else {})


def _refused(pid: int, why: str) -> UnsupportedTarget:
    what = "a process cannot stop its own threads, and has no helper process to do it"
    return UnsupportedTarget(pid, "no-helper", f"{what}: {why}")
