# SPDX-License-Identifier: Apache-2.0
"""Where the tool that records a process can be spoken to: a socket that is its user's alone.

The directory is `textpoke` in $XDG_RUNTIME_DIR, or /tmp/textpoke-UID; everything in it is reached
through an open descriptor of it, so it cannot be exchanged under our hands. A lock file beside the
socket says whether its tool lives: the kernel drops that with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

from textpoke._errors import ControlBusy, ControlUnsafe

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPORARY = "/tmp"  # noqa: S108 - only a directory in it that is checked
RUNTIME = "/run/user"
_BACKLOG = 8
_TRIES = 10
_CREDENTIALS = struct.Struct("3i")


def _directories(uid: int) -> list[str]:
    """Where the socket of a user's tool may be, the usual place first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "") if uid == os.geteuid() else ""
    bases = [base for base in (runtime, f"{RUNTIME}/{uid}") if os.path.isabs(base)]
    return [*(f"{base}/textpoke" for base in dict.fromkeys(bases)), f"{TEMPORARY}/textpoke-{uid}"]


def _own_directory() -> str:
    return next(
        path
        for path in _directories(os.geteuid())
        if os.path.dirname(path) == TEMPORARY or _is_private(os.path.dirname(path))
    )


def _is_private(path: str) -> bool:
    # $XDG_RUNTIME_DIR must belong to its user; after su it may be somebody else's.
    with contextlib.suppress(OSError):
        return os.stat(path).st_uid == os.geteuid() and os.access(path, os.W_OK)
    return False


def _open_directory(path: str, uid: int) -> int:
    """Open a directory that is this user's alone.

    Raises:
        OSError: It is not there.
        ControlUnsafe: It is a link, or somebody else can get in.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        directory = os.open(path, flags)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ControlUnsafe(path, "it is not a directory but a link or a file") from None
        raise
    status = os.fstat(directory)
    reason = ""
    if status.st_uid != uid:
        reason = f"it belongs to uid {status.st_uid}, not {uid}"
    elif stat.S_IMODE(status.st_mode) & 0o077:
        reason = f"others can get in (mode {stat.S_IMODE(status.st_mode):o})"
    if reason:
        os.close(directory)
        raise ControlUnsafe(path, reason)
    return directory


class Place:
    """The socket on which one tool listens for one target; removed by `close`.

    Args:
        pid: The target.

    Attributes:
        path: Of the socket, for people.
        socket: Listening, non-blocking.

    Raises:
        ControlBusy: Another tool listens for this target.
        ControlUnsafe: The directory is not ours alone.
        OSError: It cannot be made.
    """

    def __init__(self, pid: int) -> None:
        directory = _own_directory()
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        self.path = f"{directory}/{pid}.sock"
        self._names = (f"{pid}.lock", f"{pid}.sock")
        self._directory = _open_directory(directory, os.geteuid())
        self._lock = -1
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._lock = self._take_lock(pid)
            self._remove(self._names[1])  # of a tool that was killed
            self.socket.bind(_through(self._directory, self._names[1]))
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except BaseException:
            self._close()
            raise

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._lock >= 0:
            for name in reversed(self._names):  # the lock last: nobody comes in between
                self._remove(name)
        self._close()

    def _take_lock(self, pid: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(_TRIES):
            lock = os.open(self._names[0], flags, 0o600, dir_fd=self._directory)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
                os.close(lock)
                raise ControlBusy(pid, f"textpoke (pid {owner or '?'})") from None
            if os.fstat(lock).st_nlink:
                os.truncate(lock, 0)
                os.pwrite(lock, b"%d\n" % os.getpid(), 0)
                return lock
            os.close(lock)  # its owner removed it just before we had it
        raise ControlBusy(pid, "another textpoke")

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._directory)

    def _close(self) -> None:
        self.socket.close()
        for fd in (self._lock, self._directory):
            if fd >= 0:
                os.close(fd)
        self._lock = self._directory = -1


def _through(directory: int, name: str) -> str:
    # Short enough for an address, and it is the directory that was checked.
    return f"/proc/self/fd/{directory}/{name}"


def connect(pid: int, timeout_s: float) -> socket.socket | None:
    """A connection to the tool that listens for a target; None when there is none.

    Raises:
        ControlUnsafe: A place where it might be is not its user's alone.
    """
    unsafe: ControlUnsafe | None = None
    for uid in _users(pid):
        for path in _directories(uid):
            try:
                found = _connect(path, f"{pid}.sock", uid, timeout_s)
            except ControlUnsafe as exc:  # who has made it must not keep us from the others
                unsafe = unsafe or exc
                continue
            if found is not None:
                return found
    if unsafe is not None:
        raise unsafe
    return None


def _users(pid: int) -> Iterator[int]:
    """Whose tool it may be: ours; for root also the target's owner's."""
    own = os.geteuid()
    yield own
    if own == 0:
        with contextlib.suppress(OSError):
            owner = os.stat(f"/proc/{pid}").st_uid
            if owner != own:
                yield owner


def _connect(path: str, name: str, uid: int, timeout_s: float) -> socket.socket | None:
    try:
        directory = _open_directory(path, uid)
    except OSError as exc:
        if isinstance(exc, ControlUnsafe):
            raise
        return None
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.settimeout(timeout_s)
    try:
        found.connect(_through(directory, name))
        if peer_uid(found) in (uid, 0):
            return found
    except OSError:
        pass
    finally:
        os.close(directory)
    found.close()
    return None


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end, as the kernel says: who listened."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel says."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(data)[1]
    return uid
