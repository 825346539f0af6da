# SPDX-License-Identifier: Apache-2.0
"""Surveys of modules that were made before, on disk, found by the content of what was surveyed.

One file for each module lies in $XDG_CACHE_HOME/textpoke (~/.cache/textpoke). A survey says which
bytes of a program may be overwritten, so nobody else may have a hand in it: the directory must be
ours alone, the name of a file is a hash of everything that the survey was made from and of the code
that made it, and what is read back is checked. What cannot be read or written is made anew.

Layout, little-endian: magic, number of parts, sizes of up to four parts in bytes, the key, a hash
of key, sizes and parts; then the parts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import struct
import time
from typing import TYPE_CHECKING

from textpoke._native import __file__ as _native_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_BYTES = 256 << 20
"""All files together; the ones that were not used for the longest time go first."""
_MAGIC = b"TPSURV01"
_MOST_PARTS = 4
_HASH_BYTES = 32
_HEADER = struct.Struct(f"<8sQ{_MOST_PARTS}Q{_HASH_BYTES}s{_HASH_BYTES}s")
_MAKERS = ("functions", "_function_tables", "_debug_files", "elf")
_SUFFIX = ".survey"
_TEMPORARY = ".new-"
_STALE_S = 3600
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def is_on() -> bool:
    """Tell whether surveys are kept: TEXTPOKE_CACHE=off in the environment turns that off."""
    return os.environ.get("TEXTPOKE_CACHE", "").lower() not in ("off", "0", "no") and bool(_maker())


def key_of(digest: bytes) -> bytes:
    """Return the key for a survey of what has this digest, made by this very code."""
    return hashlib.blake2b(digest, digest_size=_HASH_BYTES, key=_maker()).digest()


def load(build_id: bytes, key: bytes) -> list[bytes] | None:
    """Return the parts that were stored, None when there are none that can be trusted."""
    try:
        with _directory(make=False) as directory:
            fd = os.open(_name(build_id, key), _FILE_FLAGS, dir_fd=directory)
            with open(fd, "rb", buffering=0) as file:
                content = _read_whole(file.fileno())
                parts = _unpack(content, key)
                if parts is not None:
                    os.utime(file.fileno())
                return parts
    except OSError:
        return None


def store(build_id: bytes, key: bytes, parts: Sequence[bytes]) -> None:
    """Keep up to four parts; without a word when that is not possible."""
    with contextlib.suppress(OSError), _directory(make=True) as directory:
        content = _pack(key, parts)
        if len(content) <= MOST_BYTES // 2:
            _write(directory, _name(build_id, key), content)
            _drop_oldest(directory)


@functools.cache
def _maker() -> bytes:
    """Return a hash of the code that makes surveys: one by other code is another survey.

    Empty when that code cannot be read.
    """
    whole = hashlib.blake2b(_MAGIC, digest_size=_HASH_BYTES)
    here = os.path.dirname(__file__)
    try:
        for path in (_native_file, *(f"{here}/{name}.py" for name in _MAKERS)):
            with open(path, "rb") as file:
                whole.update(file.read())
    except OSError:
        return b""
    return whole.digest()


def _path() -> str:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # the XDG specification: relative paths are ignored
        base = os.path.expanduser("~/.cache")
    return f"{base}/textpoke"


@contextlib.contextmanager
def _directory(*, make: bool) -> Iterator[int]:
    """Open the directory; OSError when there is none that is ours alone."""
    path = _path()
    if make:
        _make(os.path.dirname(path))
        _make(path)
    directory = os.open(path, _DIRECTORY_FLAGS)
    try:
        status = os.fstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(path)
        yield directory
    finally:
        os.close(directory)


def _make(path: str) -> None:
    # Not in another user's directory: root's could keep them from having their own there.
    if not os.path.lexists(path) and os.stat(os.path.dirname(path)).st_uid == os.geteuid():
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _name(build_id: bytes, key: bytes) -> str:
    return f"{build_id[:20].hex() or 'none'}-{key.hex()}{_SUFFIX}"


def _read_whole(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, min(size, MOST_BYTES), 0)


def _pack(key: bytes, parts: Sequence[bytes]) -> bytes:
    sizes = [len(part) for part in parts]
    sizes += [0] * (_MOST_PARTS - len(sizes))
    header = _HEADER.pack(_MAGIC, len(parts), *sizes, key, _check(key, sizes, b"".join(parts)))
    return b"".join((header, *parts))


def _unpack(content: bytes, key: bytes) -> list[bytes] | None:
    if len(content) < _HEADER.size:
        return None
    magic, count, *sizes, its_key, check = _HEADER.unpack_from(content)
    rest = memoryview(content)[_HEADER.size :]
    if (
        magic != _MAGIC
        or count > _MOST_PARTS
        or its_key != key
        or sum(sizes) != len(rest)
        or check != _check(key, sizes, rest)
    ):
        return None
    parts: list[bytes] = []
    for size in sizes[:count]:
        parts.append(bytes(rest[:size]))
        rest = rest[size:]
    return parts


def _check(key: bytes, sizes: Sequence[int], content: bytes | memoryview) -> bytes:
    whole = hashlib.blake2b(key, digest_size=_HASH_BYTES)
    whole.update(struct.pack(f"<{_MOST_PARTS}Q", *sizes))
    whole.update(content)
    return whole.digest()


def _write(directory: int, name: str, content: bytes) -> None:
    temporary = f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _drop_oldest(directory: int) -> None:
    """Keep the directory small; remove what a killed tool has left half written."""
    files: list[tuple[float, int, str]] = []
    now = time.time()
    for name in os.listdir(directory):
        if not name.endswith(_SUFFIX) and not name.startswith(_TEMPORARY):
            continue
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if name.startswith(_TEMPORARY) and now - status.st_mtime > _STALE_S:
                os.unlink(name, dir_fd=directory)
            else:
                files.append((status.st_mtime, status.st_size, name))
    left = MOST_BYTES
    for _, size, name in sorted(files, reverse=True):
        left -= size
        if left < 0:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
