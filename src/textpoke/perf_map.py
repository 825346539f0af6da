# SPDX-License-Identifier: Apache-2.0
"""The file in which perf looks for the names of code that no file holds: /tmp/perf-PID.map.

perf reads it in the process's own mount namespace, by the pid that the process has there, and
believes it only if it is the process's user's or root's (tools/perf/Documentation/jit-interface.txt
in the kernel's source). The program may write there too, and so may everybody: nothing is followed
and nothing of others is touched but by appending to a plain file that the program's user owns.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke import proc
from textpoke._errors import ViewError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from textpoke.code_object import Symbol

_WRITE = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o644
_FOLDER = "tmp"


@dataclass(frozen=True, slots=True)
class PerfMap:
    """The map of one process.

    Attributes:
        path: As the process sees it.
        lines: How many this process's tool has written.
    """

    path: str
    lines: int


def lines_of(symbols: Iterable[Symbol]) -> bytes:
    """Perf's text for some names: start and size in hexadecimal, then the name."""
    return b"".join(f"{s.address:x} {s.size:x} {s.name}\n".encode("ascii") for s in symbols)


def append(pid: int, symbols: Iterable[Symbol]) -> PerfMap:
    """Add names to the process's map; the file is made when there is none.

    It stays when we leave: perf reads it when it reports, which may be much later.

    Raises:
        ViewError: There is something else than a plain file of the process's user, or it cannot be
            written.
        NoSuchTarget: No such process.
    """
    data = lines_of(symbols)
    status = proc.read_status(pid)
    # The last number is the pid in the innermost namespace: the one by which it knows itself.
    name = f"perf-{status.get('NSpid', str(pid)).split()[-1]}.map"
    path = f"/{_FOLDER}/{name}"
    uid, gid = (int(status[field].split()[1]) for field in ("Uid", "Gid"))
    try:
        with _folder(pid) as folder, _opened(folder, name, path, (uid, gid)) as fd:
            # One call: whatever the program appends itself stands before or behind it.
            if os.write(fd, data) != len(data):
                raise ViewError(path, "no space left")
    except ViewError:
        raise
    except OSError as exc:
        raise ViewError(path, exc.strerror or str(exc), exc.errno or 0) from exc
    return PerfMap(path, data.count(b"\n"))


@contextlib.contextmanager
def _folder(pid: int) -> Iterator[int]:
    """The process's /tmp; a symbolic link there would be followed from our root, not from its."""
    root = os.open(f"{proc.ROOT}/{pid}/{proc.living_task(pid)}root", os.O_PATH | os.O_CLOEXEC)
    try:
        folder = os.open(_FOLDER, _DIRECTORY, dir_fd=root)
    finally:
        os.close(root)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _opened(folder: int, name: str, path: str, owner: tuple[int, int]) -> Iterator[int]:
    try:
        fd = os.open(name, _WRITE | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=folder)
        made = True
    except FileExistsError:
        fd = os.open(name, _WRITE, dir_fd=folder)
        made = False
    try:
        found = os.fstat(fd)
        if made and (found.st_uid, found.st_gid) != owner:
            os.fchown(fd, *owner)
        elif not made and not _is_its_own(found, owner[0]):
            raise ViewError(path, "there is something that is no plain file of the program's user")
        yield fd
    finally:
        os.close(fd)


def _is_its_own(found: os.stat_result, uid: int) -> bool:
    # A second name (hard link) could be that of any file of this user.
    return stat.S_ISREG(found.st_mode) and found.st_uid == uid and found.st_nlink == 1
