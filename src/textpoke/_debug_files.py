# SPDX-License-Identifier: Apache-2.0
"""The symbols that strip took away, where they were kept: a separate file, or packed in the module.

Who strips a file can leave its symbols in another one, which is known by the module's build id or
by the name and CRC in its .gnu_debuglink (the places are those where gdb looks). Fedora packs the
symbols of functions, as an ELF image under xz, into .gnu_debugdata. Separate files are looked for
in the tool's own file system, and taken only when build id or CRC say that they belong to the
module's very bytes.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

from textpoke import elf
from textpoke._errors import BadElf, ModuleUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

DEBUG_ROOT = "/usr/lib/debug"
"""Where distributions put symbols of what they have stripped."""
_DELETED = " (deleted)"
_CRC_BYTES = 4
_CHUNK_BYTES = 1 << 20
_LONGEST_NAME = 255
_MOST_LINK_BYTES = 4096
_NOTE_HEADER_BYTES = 16
_MOST_UNPACKED_BYTES = 128 << 20
_UNPACKER_MEMORY_BYTES = 128 << 20  # xz -9 asks for 65 MiB


def debug_file(image: elf.Image, path: str, build_id: bytes) -> elf.Image | None:
    """Open the separate file that has the symbols of a module; the caller closes it.

    Args:
        image: The module's file.
        path: Where the module lies, as the target sees it.
        build_id: The module's, empty when it has none.
    """
    if build_id:
        name = build_id.hex()
        found = _open(f"{DEBUG_ROOT}/.build-id/{name[:2]}/{name[2:]}.debug")
        if found and _build_id(found) == build_id:
            return found
        if found:
            found.close()
    link = _debug_link(image)
    if not link:
        return None
    for candidate in _linked_places(path.removesuffix(_DELETED), link[0]):
        found = _open(candidate)
        if found and _belongs(found, build_id, link[1]):
            return found
        if found:
            found.close()
    return None


def supplement(image: elf.Image) -> elf.Image | None:
    """Open what dwz has taken out of several debug files; the caller closes it.

    Args:
        image: The file with the debug information, opened by its path.
    """
    for section in image.sections:
        if section.name == ".gnu_debugaltlink" and section.size <= _MOST_LINK_BYTES:
            name, _, build_id = image.contents(section).partition(b"\0")
            places = [
                os.path.join(os.path.dirname(os.path.realpath(image.path)), os.fsdecode(name))
            ]
            digits = build_id.hex()
            places.append(f"{DEBUG_ROOT}/.build-id/{digits[:2]}/{digits[2:]}.debug")
            for place in places:
                found = _open(place)
                if found and build_id and _build_id(found) == build_id:
                    return found
                if found:
                    found.close()
    return None


def debug_data(packed: bytes) -> elf.Image | None:
    """Unpack the contents of .gnu_debugdata; None for damage and for what unpacks to too much."""
    import lzma

    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_UNPACKER_MEMORY_BYTES)
    try:
        content = unpacker.decompress(packed, max_length=_MOST_UNPACKED_BYTES)
        return elf.Image(content, ".gnu_debugdata") if unpacker.eof else None
    except (lzma.LZMAError, EOFError, BadElf):
        return None


def _open(path: str) -> elf.Image | None:
    try:
        return elf.Image.open(path)
    except (ModuleUnavailable, BadElf):
        return None


def _build_id(image: elf.Image) -> bytes:
    """Return the build id of a file whose segments may speak of bytes that it has no more."""
    try:
        for section in image.sections:
            if section.name == ".note.gnu.build-id":
                note = image.contents(section)
                size = int.from_bytes(note[4:8], "little")
                return note[_NOTE_HEADER_BYTES : _NOTE_HEADER_BYTES + size]
    except BadElf:
        pass
    return b""


def _debug_link(image: elf.Image) -> tuple[str, int] | None:
    """Return name and CRC of the module's debug file; a name that leads elsewhere is none."""
    for section in image.sections:
        if section.name == ".gnu_debuglink" and section.size <= _LONGEST_NAME + 1 + 2 * _CRC_BYTES:
            content = image.contents(section)
            name = os.fsdecode(content.partition(b"\0")[0])
            if name in ("", ".", "..") or "/" in name or len(content) % _CRC_BYTES:
                return None
            return name, int.from_bytes(content[-_CRC_BYTES:], "little")
    return None


def _linked_places(path: str, name: str) -> Iterator[str]:
    directory = os.path.dirname(path)
    if not directory.startswith("/"):
        return
    # A file that is itself called like its debug file is not its own: the CRC tells.
    yield f"{directory}/{name}"
    yield f"{directory}/.debug/{name}"
    yield f"{DEBUG_ROOT}{directory}/{name}"
    # Packages of a distribution with merged /usr may still speak of /lib.
    if directory.startswith("/usr/"):
        yield f"{DEBUG_ROOT}{directory.removeprefix('/usr')}/{name}"


def _belongs(image: elf.Image, build_id: bytes, wanted_crc: int) -> bool:
    theirs = _build_id(image)
    if build_id and theirs:
        return theirs == build_id
    crc = 0
    try:
        for offset in range(0, image.size, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, image.size - offset)
            crc = zlib.crc32(image.bytes_at(offset, size), crc)
    except BadElf:
        return False
    return crc == wanted_crc
