# SPDX-License-Identifier: Apache-2.0
"""Which modules a program may close (dlclose), and which stay mapped as long as it lives.

A batch reads a page, and writes it back a moment later. Where the program closes a library and
opens another one meanwhile, at the same place, the bytes of the first would come into the second.
So sites of what may be closed are only written while every thread is held.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke import elf, target
from textpoke._errors import ModuleUnavailable, SiteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textpoke.model import Module

_PT_DYNAMIC, _PT_INTERP = 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_FLAGS_1 = 1, 5, 10, 14, 0x6FFFFFFB
_NODELETE = 8
_ENTRY = struct.Struct("<QQ")
_MOST_STRINGS = 1 << 24
_LONGEST_NAME = 4096


@dataclass(frozen=True, slots=True)
class Linked:
    """What a file tells the dynamic loader.

    Attributes:
        name: Its own name (DT_SONAME), "" where it has none.
        needs: Names of what it was linked with.
        stays: Once opened it is never closed (-z nodelete).
        interpreter: Path of the loader, for a program.
    """

    name: str = ""
    needs: tuple[str, ...] = ()
    stays: bool = False
    interpreter: str = ""


def linked(image: elf.Image) -> Linked:
    """Read the dynamic section of a file; an empty answer where there is none.

    Raises:
        BadElf: A header points outside of the file.
    """
    rows: list[tuple[int, int]] = []
    interpreter = ""
    for segment in image.segments:
        if segment.type == _PT_DYNAMIC:
            size = segment.file_size // _ENTRY.size * _ENTRY.size
            rows = list(_ENTRY.iter_unpack(image.bytes_at(segment.offset, size)))
        elif segment.type == _PT_INTERP:
            path = image.bytes_at(segment.offset, min(segment.file_size, _LONGEST_NAME))
            interpreter = elf.string_at(path, 0, _LONGEST_NAME)
    found = dict(rows)
    start = image.offset_of(found.get(_DT_STRTAB, 0))
    size = min(found.get(_DT_STRSZ, 0), _MOST_STRINGS)
    strings = image.bytes_at(start, size) if start >= 0 and size else b""
    return Linked(
        _name(strings, found.get(_DT_SONAME)),
        tuple(_name(strings, value) for tag, value in rows if tag == _DT_NEEDED),
        bool(found.get(_DT_FLAGS_1, 0) & _NODELETE),
        interpreter,
    )


def lasting(pid: int) -> list[tuple[int, int]]:
    """[start, end) of the code of modules that no dlclose unmaps, in ascending order.

    The main program, the loader, what they were linked with, directly or through others, and what
    asks to stay. What cannot be read may be closed, for all we know; so may what LD_PRELOAD added.

    Raises:
        NoSuchTarget, AttachDenied: As `target.read_modules`.
    """
    modules = target.read_modules(pid)
    told = [_of_module(pid, module) for module in modules]
    by_name: dict[str, list[int]] = {}
    for i, (module, about) in enumerate(zip(modules, told, strict=True)):
        for name in {about.name, module.name, module.path} - {""}:
            by_name.setdefault(name, []).append(i)
    todo = deque(i for i, m in enumerate(modules) if m.is_main or told[i].stays)
    stays: set[int] = set()
    while todo:
        i = todo.popleft()
        if i in stays:
            continue
        stays.add(i)
        for name in (*told[i].needs, told[i].interpreter):
            there = by_name.get(name, []) or by_name.get(name.rpartition("/")[2], [])
            if len(there) == 1:  # of several (dlmopen) it could be any
                todo.append(there[0])
    return sorted(_code(modules[i] for i in stays))


def _code(modules: Iterable[Module]) -> Iterable[tuple[int, int]]:
    return ((m.start, m.end) for module in modules for m in module.mappings if "x" in m.perms)


def _of_module(pid: int, module: Module) -> Linked:
    try:
        with elf.Image.open(target.open_module(pid, module)) as image:
            return linked(image)
    except (ModuleUnavailable, SiteError):
        return Linked()


def _name(strings: bytes, at: int | None) -> str:
    return "" if at is None else elf.string_at(strings, at, _LONGEST_NAME)
