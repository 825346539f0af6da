# SPDX-License-Identifier: Apache-2.0
"""Readers of proc/PID: maps, threads, status and auxiliary vector."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import struct
from typing import TYPE_CHECKING

from textpoke._errors import AttachDenied, NoSuchTarget
from textpoke._native import ffi, lib
from textpoke.model import Mapping, Thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke._native import Pointer

ROOT = "/proc"
AT_HWCAP2 = 26

_AUXV_ENTRY = struct.Struct("<QQ")
_START_STACK = 25  # field 28 of proc/PID/stat, counted from behind the name
_WORKERS_MASK = b"\nSigBlk:\tfffffffffffbfeff\n"  # all but SIGKILL and SIGSTOP
_PF_IO_WORKER, _PF_USER_WORKER = 0x10, 0x4000
_GONE = (errno.ENOENT, errno.ESRCH)
_KEPT_LINES = 4096
_KEPT_MAPS = 4
_READ_BYTES = 1 << 16
_SYS_KCMP = 312
_KCMP_VM = 1
_ROOM_FOR_THREADS = 64
_MOST_CODE = 512
# futex; restart_syscall, which goes on with its arguments after a thread was stopped.
_FUTEX_CALLS = (b"202", b"219")


def read_file(pid: int, name: str) -> bytes:
    """Return the content of proc/PID/`name`.

    Raises:
        NoSuchTarget: The process, or the thread that `name` speaks of, is gone.
        AttachDenied: We may not read it.
    """
    try:
        return _content(f"{ROOT}/{pid}/{name}")
    except PermissionError as exc:
        raise AttachDenied(pid, [_unreadable(pid, name)]) from exc
    except OSError as exc:
        if exc.errno in _GONE:
            raise NoSuchTarget(pid) from exc
        raise


def _unreadable(pid: int, name: str) -> str:
    return f"proc/{pid}/{name} is not readable for uid {os.geteuid()}; run textpoke as root"


def _content(path: str) -> bytes:
    # Maps are read before every batch: this is half the price of a file object.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(fd, _READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(fd, _READ_BYTES))
        return b"".join(parts)
    finally:
        os.close(fd)


def _read_of_memory(pid: int, name: str) -> bytes:
    """A file about the memory, which the first thread has no more once it has exited."""
    with contextlib.suppress(NoSuchTarget):
        content = read_file(pid, name)
        if content:
            return content
    return read_file(pid, f"{living_task(pid)}{name}")


def read_maps(pid: int) -> list[Mapping]:
    """Return all mappings of a process, in address order.

    When the first thread has exited and others run on, the mappings are read from one of them.

    Raises:
        NoSuchTarget: No such process.
        AttachDenied: Another user's process.
    """
    return list(read_mappings(pid))


def read_mappings(pid: int) -> tuple[Mapping, ...]:
    """The same as one object, again and again while nothing changes. Raises as `read_maps`."""
    return _mappings(_read_of_memory(pid, "maps"))


# A batch looks at the maps more than once, and they are mostly the same.
@functools.lru_cache(_KEPT_MAPS)
def _mappings(content: bytes) -> tuple[Mapping, ...]:
    return tuple(_mapping(line) for line in os.fsdecode(content).split("\n") if line)


@functools.lru_cache(_KEPT_LINES)
def _mapping(line: str) -> Mapping:
    fields = line.split(None, 5)
    start, _, end = fields[0].partition("-")
    # The kernel escapes nothing but the newline.
    path = fields[5].replace("\\012", "\n") if len(fields) > 5 else ""
    offset, inode = int(fields[2], 16), int(fields[4])
    return Mapping(int(start, 16), int(end, 16), fields[1], offset, fields[3], inode, path)


def read_code(pid: int) -> bytes:
    """Where code of files is mapped, to tell whether that has changed since another look.

    A few microseconds, where the text of all mappings takes fifty. b"" where nobody knows: before
    Linux 6.11, or when the first thread has ended.
    """
    found = ffi.new("struct tp_code[]", _MOST_CODE)
    count = int(lib.tp_read_code(pid, found, len(found)))
    if not 0 < count <= len(found):
        return b""
    return bytes(ffi.buffer(found, count * ffi.sizeof("struct tp_code")))


def read_threads(pid: int) -> list[Thread]:
    """Return all threads of a process, our agent's included, in the order of their ids.

    Raises:
        NoSuchTarget: No such process.
    """
    found = ffi.new("struct tp_thread[]", _ROOM_FOR_THREADS)
    while True:
        count = _checked(pid, int(lib.tp_read_threads(pid, found, len(found))))
        if count <= len(found):
            return [_thread(found[i]) for i in range(count)]
        found = ffi.new("struct tp_thread[]", 2 * count)  # more may come meanwhile


def read_thread(pid: int, tid: int) -> Thread:
    """Return one thread of a process. Raises as `read_threads`, also when the thread is gone."""
    found = ffi.new("struct tp_thread *")
    _checked(pid, int(lib.tp_read_status(pid, tid, found)))
    return _thread(found)


def _checked(pid: int, result: int) -> int:
    if -result in _GONE:
        raise NoSuchTarget(pid)
    if result == -errno.EACCES:
        raise AttachDenied(pid, [_unreadable(pid, "task")])
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"{ROOT}/{pid}/task")
    return result


def read_statuses(pid: int) -> list[tuple[int, dict[str, str]]]:
    """Return thread id and the fields of proc/PID/task/TID/status for all threads.

    The kernel's own threads in the list (io_uring's workers) are left out: they run no code of the
    program, block every signal and cannot be seized.

    Raises:
        NoSuchTarget: No such process.
    """
    return [(tid, _fields(content)) for tid, content in _statuses(pid)]


def read_futex_wait(pid: int, tid: int) -> int | None:
    """Return the address of the futex that a thread is blocked on.

    0 when it is on none, is gone, or may not be looked at; None while it runs, or is about to.
    """
    try:
        words = read_file(pid, f"task/{tid}/syscall").split()
    except (NoSuchTarget, AttachDenied):
        return 0
    if words == [b"running"]:
        return None
    # Blocked elsewhere than in a call there are three words.
    return int(words[1], 16) if len(words) > 3 and words[0] in _FUTEX_CALLS else 0


def _statuses(pid: int) -> list[tuple[int, bytes]]:
    statuses: list[tuple[int, bytes]] = []
    for tid in task_ids(pid):
        try:
            status = read_file(pid, f"task/{tid}/status")
            if _WORKERS_MASK not in status or not _is_kernel_worker(pid, tid):
                statuses.append((tid, status))
        except NoSuchTarget:
            continue  # a thread that ended meanwhile
    if not statuses:
        raise NoSuchTarget(pid)
    return statuses


def _thread(found: Pointer) -> Thread:
    return Thread(
        found.tid,
        ffi.string(found.name).decode("utf-8", "backslashreplace").strip(),
        found.state.decode("ascii"),
        found.blocked,
        found.pending,
        found.tracer,
        found.seccomp,
    )


def read_status(pid: int, task: str = "") -> dict[str, str]:
    """Return the fields of proc/PID/status, or of one thread's with `task` = "task/TID/"."""
    return _fields(read_file(pid, f"{task}status"))


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped by a signal or a debugger; not one that is gone."""
    try:
        return read_status(pid).get("State", "")[:1] in ("T", "t")
    except NoSuchTarget:
        return False


def _fields(content: bytes) -> dict[str, str]:
    text = content.decode("utf-8", "backslashreplace")
    pairs = (line.partition(":") for line in text.split("\n"))
    return {key: value.strip() for key, _, value in pairs}


def start_of_main_stack(pid: int) -> int:
    """Return the address below which the first thread's stack is; 0 where proc does not tell.

    It is `startstack` of proc_pid_stat(5).

    Raises:
        NoSuchTarget: No such process.
    """
    return int(read_file(pid, "stat").rpartition(b")")[2].split()[_START_STACK])


def name_of(pid: int) -> str:
    """Return a process's name (its comm), also when it has just gone."""
    try:
        return read_status(pid).get("Name", "")
    except NoSuchTarget:
        return "a process that is gone"


def is_our_descendant(pid: int) -> bool:
    """Tell whether a process is this one, a child of it, or a child's child."""
    try:
        while pid not in (0, os.getpid()):
            pid = int(read_status(pid).get("PPid", "0"))
    except NoSuchTarget:
        return False
    return pid == os.getpid()


def thread_of(tid: int, status: dict[str, str]) -> Thread:
    """Build a Thread from the fields of its status file."""
    return Thread(
        tid,
        status.get("Name", ""),
        status.get("State", "?")[:1],
        int(status.get("SigBlk", "0"), 16),
        int(status.get("SigPnd", "0"), 16),
        int(status.get("TracerPid", "0")),
        int(status.get("Seccomp", "0")),
    )


def read_auxv(pid: int) -> dict[int, int]:
    """Return the auxiliary vector: AT_ type to value.

    Raises:
        NoSuchTarget: No such process.
        AttachDenied: Another user's process.
    """
    content = _read_of_memory(pid, "auxv")
    whole = len(content) // _AUXV_ENTRY.size * _AUXV_ENTRY.size
    return dict(_AUXV_ENTRY.iter_unpack(content[:whole]))


def living_task(pid: int) -> str:
    """Return "" or, when the first thread is a zombie but others live, "task/TID/" of one.

    proc/PID/maps, exe and auxv are empty once the first thread has exited.
    """
    if read_status(pid)["State"][:1] != "Z":
        return ""
    for tid, status in read_statuses(pid):
        if status["State"][:1] not in "ZX":
            return f"task/{tid}/"
    return ""


def _is_kernel_worker(pid: int, tid: int) -> bool:
    flags = read_file(pid, f"task/{tid}/stat").rpartition(b")")[2].split()[6]
    return bool(int(flags) & (_PF_IO_WORKER | _PF_USER_WORKER))


def task_ids(pid: int) -> Iterator[int]:
    """Return the ids of all threads, the kernel's own among them. Raises NoSuchTarget."""
    try:
        return iter(sorted(map(int, os.listdir(f"{ROOT}/{pid}/task"))))
    except OSError as exc:
        raise NoSuchTarget(pid) from exc


def shares_memory(pid: int, other: int) -> bool:
    """Return whether two processes run in one address space, as between vfork and exec.

    False as well where the kernel will not say: it has no kcmp, or we may not attach anyway.
    """
    import ctypes

    return bool(ctypes.CDLL(None).syscall(_SYS_KCMP, pid, other, _KCMP_VM, 0, 0) == 0)
