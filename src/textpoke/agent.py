# SPDX-License-Identifier: Apache-2.0
"""The agent inside a target: find one that is there, connect to it, give it commands.

Only this module and `poke` change a target. `Agent` is one connection; it holds the target's lock,
so that a second tool gets a clear `TargetBusy` and never patches beside us.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke import target, wire
from textpoke._errors import (
    AgentFailed,
    AgentTimeout,
    AttachDenied,
    NoSuchTarget,
    TargetBusy,
    TargetExited,
    UnsupportedTarget,
)
from textpoke._native import ffi, lib
from textpoke.agent_image import load_image
from textpoke.proc import is_stopped, living_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from textpoke._native import Pointer
    from textpoke.helper import Helper
    from textpoke.model import Mapping
    from textpoke.poke import Poked
    from textpoke.wire import Layout

NAME = "textpoke"
_COMMAND_TIMEOUT_S = 30.0
_SILENT_TIMEOUT_S = 1.0
_ERROR_CODES = 1 << 16
_MOST_BYTES = 1 << 30  # of one read
_MASKING_S = 1.0  # a newborn may wait that long for a busy processor
_STARTING_S = 1.0
_LOCK_TIMEOUT_S = 5.0


def error_text(code: int) -> str:
    """One clause for a positive errno or code of native/include/errors.def."""
    if not 0 < code < _ERROR_CODES:  # a target that lies
        return f"error {code}"
    text = lib.tp_error_text(code)
    return ffi.string(text).decode() if text else os.strerror(code)


@dataclass(slots=True)
class Timings:
    """Where the time of an attach went, in milliseconds; `hold_ns` in nanoseconds."""

    checks_ms: float = 0.0
    inject_ms: float = 0.0
    start_ms: float = 0.0
    hold_ns: int = 0


@dataclass(frozen=True, slots=True)
class Masking:
    """Why the program may block SIGTRAP in its own code, and the files that say so."""

    maps: Sequence[Mapping]  # as they were at the last look
    files: frozenset[tuple[str, int]]
    why: str


@dataclass(slots=True)
class AgentInfo:
    """An agent that is in a process: its thread (0 when gone) and where its image lies."""

    pid: int
    tid: int
    shared_fd: int
    image_base: int


@dataclass(slots=True)
class Agent:
    """A connection to the agent of one process; made by `inject.load` or `open_existing`."""

    pid: int
    mem_fd: int
    pidfd: int
    lock_fd: int
    image_at: int = 0
    shared: mmap.mmap | None = None
    wire: Pointer | None = None
    tid: int = 0
    timings: Timings = field(default_factory=Timings)
    held: Pointer | None = None
    shared_fd: int = -1
    runtimes: list[tuple[int, int]] | None = None  # text of libc and ld.so
    lasting: tuple[tuple[int, int], ...] | None = None  # code that is never closed: `modes`
    masking: Masking | None = None  # of the program: `masks`
    obstacle: str = ""  # to traps, at the last look: `modes`
    no_traps: tuple[str, float] = ("", 0.0)  # why not, and until when nobody looks again: `modes`
    usual_until: float = 0.0  # nobody looks for a debugger again before: `modes`
    layout: Layout | None = None
    known_restorer: int = 0  # see `restorer`
    silent: bool = False
    helper: Helper | None = None  # stops the threads of the own process for us
    owner: int = field(default_factory=os.getpid)
    witnesses: list[Callable[[Poked], None]] = field(default_factory=list)  # of every batch

    @property
    def is_ours(self) -> bool:
        """False in a forked child: the connection is its parent's."""
        return self.owner == os.getpid()

    @property
    def agent(self) -> Agent:
        """Itself: the seed's layer (`bp`) takes a `Target` or a connection."""
        return self

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the target's memory; raises TargetExited when it is gone."""
        if not wire.is_range(address, size) or size > _MOST_BYTES:
            raise AgentFailed(f"reading {size} bytes at {address:#x}", errno.EFAULT)
        try:
            data = os.pread(self.mem_fd, size, address)
        except OSError as exc:
            self.require_alive("a read of its memory")
            raise AgentFailed(f"reading {size} bytes at {address:#x}", exc.errno or 0) from exc
        if not data and size:
            raise TargetExited(self.pid, "a read of its memory")
        return data

    @property
    def base(self) -> int:
        """Where the agent's image begins."""
        return self.image_at - load_image().head_offset

    def image(self) -> Pointer:
        """A fresh copy of the head of the agent's image (struct tp_image), checked."""
        data = self.read(self.image_at, ffi.sizeof("struct tp_image"))
        return wire.read_image(data, self.base)

    def restorer(self) -> int:
        """Where a frame of our handler returns to: it tells that from others on a stack."""
        self.known_restorer = self.known_restorer or int(self.image().restorer)
        return self.known_restorer

    def require_alive(self, action: str) -> None:
        """Raise TargetExited when the process has ended, or the agent with it (exec)."""
        if has_ended(self.pidfd) or not os.path.exists(f"/proc/{self.pid}/task/{self.tid}"):
            raise TargetExited(self.pid, action)

    def command(
        self,
        command: int,
        *args: int,
        timeout_s: float = _COMMAND_TIMEOUT_S,
        look: Callable[[int, Sequence[int], int], int] | None = None,
    ) -> int:
        """Run one command. Returns 0 or more, or a negative code (errors.def, errno).

        Args:
            command: One of enum tp_command.
            args: Its arguments.
            timeout_s: Seconds to wait for the answer.
            look: Runs it instead, and looks for threads when the agent asks: takes command,
                arguments and milliseconds.

        Raises:
            TargetExited: The process has ended.
            AgentTimeout: No answer within `timeout_s` seconds.
        """
        if self.silent:  # it has had its time: whoever undoes things now must not wait again
            timeout_s = min(timeout_s, _SILENT_TIMEOUT_S)
        timeout_ms = int(timeout_s * 1000)
        began = time.monotonic()
        if look is None:
            values = ffi.new("uint64_t[4]", list(args))
            result = int(lib.tp_command(self.wire, command, values, timeout_ms, self.pid, self.tid))
        else:
            result = look(command, args, timeout_ms)
        self.silent = result == -errno.ETIMEDOUT
        if result == -errno.ESRCH:
            self.require_alive("a command to the agent")
        if result == -errno.ETIMEDOUT:
            raise self.timeout(command, time.monotonic() - began)
        return checked_answer(result)

    def timeout(self, command: int, waited_s: float) -> AgentTimeout:
        """What to raise for a command that was waited for in vain, with the reason.

        Raises:
            TargetExited: The process has ended.
        """
        self.require_alive("a command to the agent")
        why = f"pid {self.pid} is stopped, let it go on: kill -CONT {self.pid}"
        return AgentTimeout(f"command {command}", waited_s, why if is_stopped(self.pid) else "")

    def require(self, action: str, command: int, *args: int) -> int:
        """Like `command`, but raises AgentFailed naming `action` for a negative result."""
        result = self.command(command, *args)
        if result < 0:
            raise AgentFailed(f"{action} ({error_text(-result)})", -result)
        return result

    def map_code(self, address: int, size: int) -> None:
        """Map `size` bytes of r-x memory at `address`, where nothing may be yet."""
        self.require(f"mapping {size:#x} bytes at {address:#x}", lib.TP_CMD_MAP, address, size)

    def map_data(self, address: int, size: int) -> None:
        """Map `size` bytes of memory that the target can only read, where nothing may be yet."""
        action = f"mapping {size:#x} bytes at {address:#x}"
        self.require(action, lib.TP_CMD_MAP, address, size, lib.TP_MAP_DATA)

    def map_counters(self, address: int, size: int) -> None:
        """Map `size` bytes of zeros that the target can write, where nothing may be yet."""
        action = f"mapping {size:#x} bytes at {address:#x}"
        self.require(action, lib.TP_CMD_MAP, address, size, lib.TP_MAP_COUNTERS)

    def fill_code(self, content: Iterable[tuple[int, bytes]]) -> None:
        """Write (address, bytes) pieces of code that no thread can execute yet; read them back.

        Raises AgentFailed when a piece does not hold what was written: no CALL may go there.
        """
        for start, data in content:
            try:
                os.pwrite(self.mem_fd, data, start)
                held = os.pread(self.mem_fd, len(data), start)
            except OSError as exc:
                raise AgentFailed(f"filling the code at {start:#x}", exc.errno or 0) from exc
            if held != data:
                self.image()  # says so when the target has ended
                raise AgentFailed(f"filling the code at {start:#x}", errno.EIO)

    def store_words(self, address: int, old: bytes, new: bytes) -> None:
        """Change aligned words of `map_data` that threads may be reading, each one whole.

        Raises AgentFailed (EILSEQ) when they do not hold `old`: nothing was stored.
        """
        if self.shared is None or self.layout is None:
            raise AgentFailed("storing words on a closed connection", errno.EBADF)
        start, words = lib.TP_PAGE_BYTES, old + new
        if len(words) > self.layout.request_bytes:
            raise AgentFailed(f"storing {len(new)} bytes at {address:#x}", errno.E2BIG)
        self.shared[start : start + len(words)] = words
        action = f"storing {len(new)} bytes at {address:#x}"
        self.require(action, lib.TP_CMD_STORE, address, len(new) // 8)

    def record(self, *, on: bool, waiting: int = 0) -> None:
        """Let thunks write events, or return at once; `waiting` events may wait in a ring."""
        self.require("switching the rings", lib.TP_CMD_RECORD, int(on), waiting)

    def keep(self, *, on: bool) -> None:
        """Whether what is patched stays when this tool is gone; else the agent turns it off."""
        self.require("telling the agent what to keep", lib.TP_CMD_KEEP, int(on))

    def release(self) -> None:
        """Let a launched program run on; nothing to do for an attached one."""
        if self.held is not None:
            lib.tp_release(self.held)
            lib.tp_held_destroy(self.held)
            self.held = None

    def close(self) -> None:
        """Give up the connection; the agent stays in the target."""
        self.release()
        if self.helper is not None:
            self.helper.close()
            self.helper = None
        self.wire = None
        if self.shared is not None:
            with contextlib.suppress(BufferError):  # a ring reader may still hold a view
                self.shared.close()
            self.shared = None
        for fd in (self.lock_fd, self.shared_fd):
            if fd >= 0 and self.is_ours:  # a child that we have forked would keep the locks alive
                fcntl.flock(fd, fcntl.LOCK_UN)
        for fd in (self.mem_fd, self.pidfd, self.lock_fd, self.shared_fd):
            if fd >= 0:
                os.close(fd)
        self.mem_fd = self.pidfd = self.lock_fd = self.shared_fd = -1


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Be scheduled before others for a moment, where we may: for a switch that takes one."""
    usual = os.sched_getscheduler(0) == os.SCHED_OTHER
    try:  # an interrupt may come at any moment
        lib.tp_hurry()
        yield
    finally:
        lib.tp_relax(usual)


def checked_answer(result: int) -> int:
    """A command's result; raises AgentFailed for one that no agent of ours gives."""
    if result <= -_ERROR_CODES:
        raise wire.overwritten("answer")
    return result


def has_ended(pidfd: int) -> bool:
    """True when the process behind a pidfd has ended (a zombie counts)."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def find_agent(pid: int) -> AgentInfo | None:
    """The agent in process `pid`, or None. The caller closes `shared_fd` when it is not -1.

    An agent is a thread named "textpoke" that holds a memfd of that name. One that a killed tool
    has just started is given the time to come up.
    """
    deadline = time.monotonic() + _STARTING_S
    while True:
        named = [t.tid for t in target.read_threads(pid) if t.name == NAME and t.tid != pid]
        for tid in named:
            info = _agent_at(pid, tid)
            if info is not None:
                return info
        if not named or time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def _agent_at(pid: int, tid: int) -> AgentInfo | None:
    shared_fd = open_shared(pid, tid)
    if shared_fd < 0:
        return None
    header = os.pread(shared_fd, ffi.sizeof("struct tp_wire"), 0)
    if _field(header, "magic") != wire.MAGIC:
        os.close(shared_fd)
        return None
    return AgentInfo(pid, tid, shared_fd, _field(header, "image_base"))


def find_remains(agent: Agent) -> bool:
    """Look for an agent whose thread is gone but whose pages are there; sets `agent.image_at`.

    So it is after a tool was killed between the agent's last command and the unmapping, after a
    detach that could not unmap, and in a child that a patched program has forked.
    """
    for mapping in target.read_maps(agent.pid):
        # The writable part of the image begins with its head: the page behind the code.
        if mapping.perms == "rw-p" and mapping.path in ("", f"[anon:{NAME}]"):
            agent.image_at = mapping.start
            head = _image_head(agent)
            if head is not None:
                return True
    agent.image_at = 0
    return False


def _image_head(agent: Agent) -> Pointer | None:
    try:
        start = os.pread(agent.mem_fd, 8, agent.image_at)
        if int.from_bytes(start, "little") != wire.MAGIC:
            return None
        head = agent.image()
    except (OSError, AgentFailed):  # not ours, or overwritten
        return None
    return head if head.version == lib.TP_WIRE_VERSION else None


def open_shared(pid: int, tid: int) -> int:
    """The memfd that the agent's thread `tid` shares with tools; -1 when there is none."""
    folder = f"/proc/{pid}/task/{tid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{NAME}"):
                return os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
    return -1


def _field(header: bytes, name: str) -> int:
    raw = ffi.new("struct tp_wire *")
    ffi.memmove(raw, header, min(len(header), ffi.sizeof("struct tp_wire")))
    return int(getattr(raw, name))


def open_target(pid: int) -> Agent:
    """Open what every connection needs and take the target's lock.

    Raises:
        TargetError: The process cannot be opened, or another textpoke holds the lock.
    """
    agent = Agent(pid, -1, -1, -1)
    try:
        agent.pidfd = os.pidfd_open(pid)
        agent.lock_fd = _lock(pid)
        agent.mem_fd = os.open(_mem_path(pid), os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        agent.close()
        target.require_attachable(pid)  # the kernel says no, proc says why
        if isinstance(exc, PermissionError):
            raise AttachDenied(pid, [f"{exc.filename}: {exc.strerror}"]) from exc
        if isinstance(exc, (ProcessLookupError, FileNotFoundError)):
            raise TargetExited(pid, "attach") from exc  # its memory goes first, the rest later
        raise
    except BaseException:
        agent.close()
        raise
    return agent


def _mem_path(pid: int) -> str:
    # A first thread that has exited has no memory any more; the others go on with theirs.
    return f"/proc/{pid}/{living_task(pid)}mem"


def _lock(pid: int) -> int:
    """The kernel drops this lock with its owner, however that ends (text_mutex's role)."""
    fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        owner = _lock_owner(fd)
        os.close(fd)
        raise TargetBusy(pid, owner) from exc
    return fd


def lock_owner(pid: int) -> str:
    """The tool that is attached to `pid`; "" when none is."""
    try:
        os.close(_lock(pid))
    except TargetBusy as exc:
        return exc.owner
    return ""


def _lock_owner(fd: int) -> str:
    inode = os.fstat(fd).st_ino
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as locks:
        for line in locks:
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return f"another textpoke (pid {words[4]})"
    return "another textpoke"


def open_existing(pid: int) -> Agent | None:
    """Connect to the agent that is in process `pid`; None when there is none."""
    agent = open_target(pid)
    try:
        info = find_agent(pid)
        if info is None:
            agent.close()
            return None
        connect(agent, info.tid, info.shared_fd, info.image_base)
    except BaseException:
        agent.close()
        raise
    return agent


def connect_to_look(pid: int) -> Agent | None:
    """Like `open_existing` but without the lock: for reading only."""
    try:
        agent = Agent(pid, -1, os.pidfd_open(pid), -1)
    except OSError as exc:
        raise NoSuchTarget(pid) from exc
    try:
        info = find_agent(pid)
        if info is None:
            agent.close()
            return None
        agent.mem_fd = os.open(_mem_path(pid), os.O_RDONLY | os.O_CLOEXEC)
        connect(agent, info.tid, info.shared_fd, info.image_base)
    except PermissionError as exc:
        agent.close()
        raise AttachDenied(pid, [f"{exc.filename}: {exc.strerror}"]) from exc
    except BaseException:
        agent.close()
        raise
    return agent


def connect(agent: Agent, tid: int, shared_fd: int, image_base: int) -> None:
    """Map what the agent shares and check its layout; `shared_fd` is the connection's from now on.

    A connection that holds the target's lock locks the shared object too: by that the agent sees
    that its tool is alive, wherever their pid namespaces are.

    Raises:
        AgentTimeout: The lock is not free: something in the target holds it.
        AgentVersion: Another textpoke's agent.
        AgentFailed: The layout makes no sense.
    """
    agent.shared_fd = shared_fd
    seals = fcntl.fcntl(shared_fd, fcntl.F_GET_SEALS)
    size = os.fstat(shared_fd).st_size
    if not seals & fcntl.F_SEAL_SHRINK or size < lib.TP_PAGE_BYTES:
        raise AgentFailed("checking the shared memory object", errno.EBADMSG)
    if agent.lock_fd >= 0:
        _lock_shared(shared_fd)
    agent.shared = mmap.mmap(shared_fd, size)
    agent.tid = tid
    agent.wire = ffi.cast(
        "struct tp_wire *", ffi.from_buffer("char[]", agent.shared, require_writable=True)
    )
    agent.image_at = image_base + load_image().head_offset
    agent.layout = wire.read_layout(agent.shared[: ffi.sizeof("struct tp_wire")], size)


def _lock_shared(shared_fd: int) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(shared_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:  # the agent holds it while it undoes a dead tool's work
            if time.monotonic() > deadline:
                raise AgentTimeout("lock of the shared memory object", _LOCK_TIMEOUT_S) from exc
            time.sleep(0.002)
        else:
            return


def outlast_masking(check: Callable[[], None], *, patience_s: float = _MASKING_S) -> None:
    """Run `check` again for a while if it finds SIGTRAP blocked.

    libcs block all signals for a moment in every thread that is born (pitfalls 3); only a thread
    that keeps SIGTRAP blocked is a reason to refuse. Where many are born, it is another one at
    every look: the time starts anew for each, within reason.
    """
    blamed, start = "", time.monotonic()
    since = start
    while True:
        try:
            check()
        except UnsupportedTarget as exc:
            now = time.monotonic()
            if exc.detail != blamed:
                blamed, since = exc.detail, now
            patience = patience_s if now - start < 5 * patience_s else 0.0
            if exc.reason != "sigtrap-blocked" or now - since >= patience:
                raise
            time.sleep(0.002)
        else:
            return
