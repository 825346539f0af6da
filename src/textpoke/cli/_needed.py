# SPDX-License-Identifier: Apache-2.0
"""The files that a command would load: its program and the libraries it needs; nothing is run."""

from __future__ import annotations

import errno
import os
import re
import struct
from typing import TYPE_CHECKING

from textpoke import elf
from textpoke._errors import BadElf, ModuleUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_CACHE = "/etc/ld.so.cache"
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER_BYTES = 48
_CACHE_ENTRY = struct.Struct("<iIIIQ")  # flags, name, path, and two that do not matter here
_CACHE_X86_64_LIBC6 = 0x0303
_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
_DYNAMIC = struct.Struct("<qQ")
_PT_DYNAMIC = 2
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MOST_STRING_BYTES = 4096
_MOST_FILES = 1000
_SCRIPT = re.compile(rb"#![ \t]*([^ \t\n]+)")


def program_of(command: str) -> str:
    """Path of the program that a command starts: found on PATH, the interpreter of a script.

    Raises:
        FileNotFoundError: no such program.
        OSError: it cannot be read.
    """
    import shutil

    path = shutil.which(command)
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", command)
    with open(path, "rb") as file:
        script = _SCRIPT.match(file.read(256))
    return os.fsdecode(script[1]) if script else path


def needed_files(program: str) -> Iterator[tuple[str, str | None]]:
    """Name and path of the program and of all libraries it needs; None for one not found.

    The search is ld.so's (RPATH, LD_LIBRARY_PATH, RUNPATH, cache, default directories), without
    the subdirectories for newer processors.

    Raises:
        BadElf: the program is no ELF file. Damaged libraries are passed on unread.
        ModuleUnavailable: the program cannot be read.
    """
    cache = _read_cache()
    yield os.path.basename(program), program
    queue = list(_wanted(program))
    seen: set[str] = set()
    while queue and len(seen) < _MOST_FILES:
        name, directories = queue.pop(0)
        if name in seen:
            continue
        seen.add(name)
        path = _find(name, directories, cache)
        yield os.path.basename(name), path
        if path:
            try:
                queue.extend(_wanted(path))
            except (BadElf, ModuleUnavailable):
                continue  # whoever reads its sites will say so


def _wanted(path: str) -> list[tuple[str, list[str]]]:
    # The libraries that a file needs, each with the directories to search before the cache.
    with elf.Image.open(path) as image:
        entries = list(_dynamic(image))
    origin = os.path.dirname(os.path.realpath(path))
    given = [d for d in os.environ.get("LD_LIBRARY_PATH", "").split(":") if d]
    runpath = _directories(entries, _DT_RUNPATH, origin)
    rpath = [] if runpath else _directories(entries, _DT_RPATH, origin)
    return [(text, rpath + given + runpath) for tag, text in entries if tag == _DT_NEEDED]


def _directories(entries: list[tuple[int, str]], wanted: int, origin: str) -> list[str]:
    texts = [text for tag, text in entries if tag == wanted]
    parts = [part for text in texts for part in text.split(":") if part]
    return [part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for part in parts]


def _dynamic(image: elf.Image) -> Iterator[tuple[int, str]]:
    # The entries of the dynamic section that are strings (gABI 4.1, chapter 5).
    segment = next((s for s in image.segments if s.type == _PT_DYNAMIC), None)
    if segment is None:
        return
    size = segment.file_size - segment.file_size % _DYNAMIC.size
    rows = list(_DYNAMIC.iter_unpack(image.bytes_at(segment.offset, size)))
    strings = next((image.offset_of(value) for tag, value in rows if tag == _DT_STRTAB), -1)
    if strings < 0:
        return
    for tag, value in rows:
        if tag == 0:
            return
        if tag in (_DT_NEEDED, _DT_RPATH, _DT_RUNPATH):
            start = min(strings + value, image.size)
            text = image.bytes_at(start, min(_MOST_STRING_BYTES, image.size - start))
            yield tag, os.fsdecode(text.partition(b"\0")[0])


def _find(name: str, directories: list[str], cache: dict[str, str]) -> str | None:
    if "/" in name:
        return name if os.path.exists(name) else None
    nearby = [os.path.join(directory, name) for directory in directories]
    cached = [cache[name]] if name in cache else []
    default = [os.path.join(directory, name) for directory in _DIRECTORIES]
    return next((path for path in (*nearby, *cached, *default) if os.path.exists(path)), None)


def _read_cache() -> dict[str, str]:
    # Name to path; an absent or odd cache counts as empty.
    try:
        with open(_CACHE, "rb") as file:
            return parse_cache(file.read())
    except OSError:
        return {}


def parse_cache(data: bytes) -> dict[str, str]:
    """Name to path of the libraries in the bytes of an ld.so.cache; empty for an odd one."""
    # The older format may stand before the newer one, which starts with its magic either way
    # (dl-cache.h of glibc describes it).
    start = data.find(_CACHE_MAGIC)
    if start < 0 or len(data) - start < _CACHE_HEADER_BYTES:
        return {}
    data = data[start:]
    count = int.from_bytes(data[20:24], "little")
    end = min(_CACHE_HEADER_BYTES + count * _CACHE_ENTRY.size, len(data))
    rows = data[_CACHE_HEADER_BYTES : end - (end - _CACHE_HEADER_BYTES) % _CACHE_ENTRY.size]
    found: dict[str, str] = {}
    for flags, name, path, _, _ in _CACHE_ENTRY.iter_unpack(rows):
        if flags == _CACHE_X86_64_LIBC6:
            found.setdefault(_cache_string(data, name), _cache_string(data, path))
    return found


def _cache_string(data: bytes, offset: int) -> str:
    return os.fsdecode(data[offset : offset + _MOST_STRING_BYTES].partition(b"\0")[0])
