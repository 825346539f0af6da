# SPDX-License-Identifier: Apache-2.0
"""A process as we find it: its modules and their files, and whether we may attach."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from textpoke import elf, proc
from textpoke._errors import BadElf, ModuleUnavailable
from textpoke.checks import check_attach, require_attachable, require_own_memory
from textpoke.model import Mapping, Module
from textpoke.proc import read_mappings, read_maps, read_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "check_attach",
    "open_module",
    "read_mappings",
    "read_maps",
    "read_modules",
    "read_threads",
    "require_attachable",
    "require_own_memory",
]

_PAGE_BYTES = 4096
_DELETED = " (deleted)"
# Program headers and the build id stand at the very beginning of a file.
_HEAD_BYTES = 4 * _PAGE_BYTES


def read_modules(pid: int) -> list[Module]:
    """Return every ELF file that is mapped with an executable part, the main program first.

    What cannot be opened is left out: the vdso, memfds, deleted files that nothing leads to.
    A file that is mapped twice (dlmopen) gives two modules with different biases.

    Raises:
        NoSuchTarget: No such process.
        AttachDenied: Another user's process.
    """
    main = _main_path(pid)
    modules: list[Module] = []
    for path, mappings in _by_file(read_maps(pid)).items():
        is_main = path == main
        if is_main or not path.startswith("/memfd:"):
            modules += _modules_of_file(pid, tuple(mappings), is_main=is_main)
    return sorted(modules, key=lambda module: (not module.is_main, module.mappings[0].start))


def open_module(pid: int, module: Module) -> str:
    """Return a path by which we can open the very file that the target has mapped.

    It goes through the target's own root directory, so containers and chroots work. A file
    that was deleted or replaced meanwhile is reached through the kernel's links where we may
    use them (the main program always, others as root).

    Raises:
        ModuleUnavailable: The file is gone, or another file has taken its place.
    """
    return _openable(pid, module.mappings, is_main=module.is_main)


def _by_file(mappings: list[Mapping]) -> dict[str, list[Mapping]]:
    """Group file mappings by path; only files with an executable part."""
    files: dict[str, list[Mapping]] = {}
    for mapping in mappings:
        if mapping.inode and mapping.path.startswith("/"):
            files.setdefault(mapping.path, []).append(mapping)
    return {path: parts for path, parts in files.items() if any("x" in m.perms for m in parts)}


def _modules_of_file(pid: int, mappings: tuple[Mapping, ...], *, is_main: bool) -> Iterator[Module]:
    try:
        with elf.Image.open(_openable(pid, mappings, is_main=is_main)) as image:
            loads = image.loads
    except (ModuleUnavailable, BadElf):
        return
    path = mappings[0].path
    for bias in dict.fromkeys(_biases(loads, mappings)):
        first = bias + loads[0].vaddr - _PAGE_BYTES
        end = bias + loads[-1].vaddr + loads[-1].memory_size
        parts = tuple(m for m in mappings if first < m.start < end)
        name = _program_name(pid, mappings[0]) if is_main else _file_name(path)
        yield Module(name, path, bias, is_main, parts)


def _file_name(path: str) -> str:
    return os.path.basename(path.removesuffix(_DELETED))


def _program_name(pid: int, first: Mapping) -> str:
    """What the program was started as, where its file has several names.

    Debian's redis-server is a link to redis-check-rdb, every applet of BusyBox one to busybox: that
    name says nothing to who started the program. A beginning of the file's name is no other name
    (python3 of python3.11).
    """
    name = _file_name(first.path)
    started_as = proc.name_of(pid)
    if "/" in started_as or name.startswith(started_as):
        return name
    task = f"{proc.ROOT}/{pid}/{proc.living_task(pid)}"
    link = os.path.join(f"{task}root{os.path.dirname(first.path)}", started_as)
    return started_as if _inode(link) == first.inode else name


def _biases(loads: tuple[elf.Segment, ...], mappings: tuple[Mapping, ...]) -> Iterator[int]:
    """Yield runtime minus ELF address for each executable mapping of an executable segment."""
    for mapping in mappings:
        for load in loads:
            page = load.offset & -_PAGE_BYTES
            if (
                "x" in mapping.perms
                and load.flags & elf.PF_X
                and page <= mapping.offset < load.offset + load.file_size
            ):
                yield mapping.start - (mapping.offset - load.offset + load.vaddr)


def _openable(pid: int, mappings: tuple[Mapping, ...], *, is_main: bool) -> str:
    first = mappings[0]
    path = first.path.removesuffix(_DELETED)
    task = f"{proc.ROOT}/{pid}/{proc.living_task(pid)}"
    in_target = f"{task}root{path}"
    kernel_link = f"{proc.ROOT}/{pid}/map_files/{first.start:x}-{first.end:x}"
    exe = [f"{task}exe"] if is_main else []
    # A path in maps is relative to our root, not to the target's, when the target sits in a
    # chroot below ours; hence the plain path too.
    for candidate in (*exe, in_target, path, kernel_link):
        if _inode(candidate) == first.inode:
            return candidate
    # Some file systems (overlayfs, btrfs) show other inode numbers in maps than in stat.
    wanted = _build_id_in_memory(pid, mappings)
    if wanted and wanted == _build_id_of_file(in_target):
        return in_target
    raise ModuleUnavailable(path, _why_unavailable(in_target, first.inode))


def _why_unavailable(path: str, inode: int) -> str:
    now = _inode(path)
    if not now:
        return "the file was deleted or cannot be read; restart the program or run as root"
    return (
        f"the file was replaced while the program runs (inode {now}, mapped is {inode}); "
        "restart the program or run as root"
    )


def _inode(path: str) -> int:
    """Return the inode of a regular file that we can open, else 0."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_ino if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else 0


def _build_id_of_file(path: str) -> bytes:
    if not _inode(path):
        return b""
    try:
        with elf.Image.open(path) as image:
            return elf.build_id(image)
    except (ModuleUnavailable, BadElf):
        return b""


def _build_id_in_memory(pid: int, mappings: tuple[Mapping, ...]) -> bytes:
    head = next((m for m in mappings if not m.offset), None)
    if head is None:
        return b""
    try:
        with open(f"{proc.ROOT}/{pid}/mem", "rb", buffering=0) as memory:
            content = os.pread(memory.fileno(), min(_HEAD_BYTES, head.end - head.start), head.start)
        return elf.build_id(elf.Image(content))
    except (OSError, BadElf):
        return b""


def _main_path(pid: int) -> str:
    try:
        return os.readlink(f"{proc.ROOT}/{pid}/{proc.living_task(pid)}exe")
    except OSError:
        return ""
