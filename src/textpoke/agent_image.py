# SPDX-License-Identifier: Apache-2.0
"""The agent's ELF file as it is laid out in memory: bytes, relocations, entry point."""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from textpoke import cfi

_PT_LOAD, _PT_DYNAMIC = 1, 2
_PF_W = 2
_DT_RELA, _DT_RELASZ = 7, 8
_R_X86_64_RELATIVE = 8
_JMP = struct.Struct("<Bi")
_JMP_OPCODE = 0xE9
_FRAME_BYTES = ffi.sizeof("struct tp_call")
ANY_DEPTH = 1 << 32
"""Deeper than any stack of calls."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the code at a site does; the fields of struct tp_probe_words.

    Attributes:
        kind: One of enum tp_probe.
        ring_set: Address of the set of rings; 0: that of the agent itself.
        gate: Address of its gate; 0: likewise.
        offset: Bytes from the return address of the probe to that of the function: 8 behind a CALL.
        threshold: Shorter calls leave no event, in ticks; 0: all do.
        depth: Calls that are followed below each other.
        argument: Special to the kind.
        returns: It waits for the return, where its kind can.
    """

    kind: int
    ring_set: int = 0
    gate: int = 0
    offset: int = 8
    threshold: int = 0
    depth: int = ANY_DEPTH
    argument: int = 0
    returns: bool = True


@dataclass(frozen=True)
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

    def probe(self, base: int, probe: Probe, at: int, after: int = 0) -> bytes:
        """The code that patched sites call, for an image at `base`.

        Args:
            base: Where the agent's image is.
            probe: What is wanted.
            at: Where the copy will stand; without redirected returns it is good anywhere.
            after: The copy of another probe to go on to; 0 returns to the site.
        """
        start, tail, leave, words, call, other = self._template(probe.kind)
        code = bytearray(self.data[start:words])
        if after:
            place = tail - start
            distance = after - (at + place + _JMP.size)
            code[place : place + _JMP.size] = _JMP.pack(_JMP_OPCODE, distance)
        filled = ffi.new("struct tp_probe_words *")
        for name in ("claim", "sweep", "check", "pop"):
            setattr(filled, name, base + self._pointer(name))
        filled.gate = probe.gate or base + self._pointer("gate")
        filled.set = probe.ring_set or base + self._pointer("set")
        filled.offset = probe.offset
        filled.exit = at + leave - start if leave and probe.returns else 0
        filled.threshold, filled.depth = probe.threshold, probe.depth * _FRAME_BYTES
        filled.call = base + call if call else 0
        filled.other = base + other if other else 0
        filled.argument = probe.argument
        return bytes(code) + bytes(ffi.buffer(filled))

    @functools.cached_property
    def probe_bytes(self) -> tuple[int, ...]:
        """How long the code of a probe is, by kind."""
        return tuple(len(self.probe(0, Probe(kind), 0)) for kind in range(lib.TP_PROBES))

    def returns(self, heads: int, frames: int) -> bytes:
        """The code that stands before the trampolines of redirected returns."""
        start, words = self._pointer("return_start"), self._pointer("return_words")
        return self.data[start:words] + struct.pack("<2Q", heads, frames)

    @property
    def returns_bytes(self) -> int:
        """Room for that code."""
        return -(-len(self.returns(0, 0)) // 64) * 64

    def frames(self, base: int) -> list[cfi.Frame]:
        """Unwind rows of all code of an image at `base`: of what the file's .eh_frame has."""
        from textpoke import elf  # here: most recordings do without
        from textpoke.unwind_tables import UnwindTable

        with elf.Image.open(image_path()) as image:
            return [
                replace(frame, start=base + frame.start) for frame in UnwindTable(image).frames()
            ]

    def probe_frame(self, kind: int) -> cfi.Frame:
        """Unwind rows of a probe as the file has it; every copy has the same."""
        start = self._template(kind)[0]
        return next(frame for frame in self.frames(0) if frame.start == start)

    def _template(self, kind: int) -> tuple[int, ...]:
        """Start, tail, exit, words, call, other of struct tp_template, relative to the base."""
        at = ffi.offsetof("struct tp_image", "templates") + kind * ffi.sizeof("struct tp_template")
        places = (self.head_offset + at + 8 * i for i in range(6))
        return tuple(self._targets.get(place, 0) for place in places)

    def _pointer(self, field: str) -> int:
        """What a field of struct tp_image points to, relative to the base."""
        return self._targets[self.head_offset + ffi.offsetof("struct tp_image", field)]

    @functools.cached_property
    def _targets(self) -> dict[int, int]:
        return dict(self.relocations)


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
