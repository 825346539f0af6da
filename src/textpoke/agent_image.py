# SPDX-License-Identifier: Apache-2.0
"""The agent's ELF file as it is laid out in memory: bytes, relocations, entry point."""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textpoke._native import ffi

if TYPE_CHECKING:
    from textpoke import cfi

_PT_LOAD, _PT_DYNAMIC = 1, 2
_PF_W = 2
_DT_RELA, _DT_RELASZ = 7, 8
_R_X86_64_RELATIVE = 8


@dataclass(frozen=True, slots=True)
class AgentImage:
    """What `agent` loads into a target; offsets are relative to the image's base.

    Attributes:
        data: Code and initialised data, by offset.
        size: Bytes of the whole image, with bss, gate page and stack.
        head_offset: Where struct tp_image lies: the start of the writable part.
        entry_offset: Where tpa_bootstrap lies.
        relocations: (offset, addend) of every relative relocation.
    """

    data: bytes
    size: int
    head_offset: int
    entry_offset: int
    relocations: tuple[tuple[int, int], ...]

    def thunk(self, base: int) -> bytes:
        """The code that patched sites call, good at any address, for an image at `base`."""
        start, end = self._pointer("thunk_function"), self._pointer("thunk_function_end")
        addresses = (base + self._pointer(name) for name in ("gate", "ring_claim"))
        return self.data[start : end - 16] + struct.pack("<2Q", *addresses)

    def frames(self, base: int) -> list[cfi.Frame]:
        """Unwind rows of all code of an image at `base`: of what the file's .eh_frame has."""
        from textpoke import elf  # here: most recordings do without
        from textpoke.unwind_tables import UnwindTable

        with elf.Image.open(image_path()) as image:
            return [
                replace(frame, start=base + frame.start) for frame in UnwindTable(image).frames()
            ]

    def thunk_frame(self) -> cfi.Frame:
        """Unwind rows of the thunk as the file has it; every copy has the same."""
        start = self._pointer("thunk_function")
        return next(frame for frame in self.frames(0) if frame.start == start)

    def _pointer(self, field: str) -> int:
        """What a field of struct tp_image points to, relative to the base."""
        at = self.head_offset + ffi.offsetof("struct tp_image", field)
        return dict(self.relocations)[at]


def image_path() -> str:
    """The file that the build installs beside this module."""
    return os.path.join(os.path.dirname(__file__), "_agent.so")


@functools.cache
def load_image() -> AgentImage:
    """Read the agent's file; it is ours, so a surprise in it is an assertion, not an error."""
    with open(image_path(), "rb") as file:
        raw = file.read()
    entry, table = struct.unpack_from("<QQ", raw, 24)
    size, count = struct.unpack_from("<HH", raw, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", raw, table + i * size) for i in range(count)]
    loads = [h for h in headers if h[0] == _PT_LOAD]
    data = bytearray(max(vaddr + file_bytes for _, _, _, vaddr, _, file_bytes, _, _ in loads))
    for _, _, offset, vaddr, _, file_bytes, _, _ in loads:
        data[vaddr : vaddr + file_bytes] = raw[offset : offset + file_bytes]
    end = max(vaddr + memory for _, _, _, vaddr, _, _, memory, _ in loads)
    head = next(vaddr for _, flags, _, vaddr, *_ in loads if flags & _PF_W)
    dynamic = next(h for h in headers if h[0] == _PT_DYNAMIC)
    relocations = _relocations(bytes(data), dynamic[3], dynamic[5])
    return AgentImage(bytes(data), -(-end // 4096) * 4096, head, entry, relocations)


def _relocations(data: bytes, dynamic: int, size: int) -> tuple[tuple[int, int], ...]:
    tags = dict(struct.iter_unpack("<qQ", data[dynamic : dynamic + size]))
    start = tags.get(_DT_RELA, 0)
    entries = struct.iter_unpack("<QQq", data[start : start + tags.get(_DT_RELASZ, 0)])
    found = []
    for offset, info, addend in entries:
        assert info == _R_X86_64_RELATIVE, f"agent has relocation {info:#x}"  # noqa: S101
        found.append((offset, addend))
    return tuple(found)
