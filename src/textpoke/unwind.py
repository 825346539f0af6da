# SPDX-License-Identifier: Apache-2.0
"""Where functions start, from the unwind tables that strip keeps."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from textpoke import elf

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER_BYTES = 12
_ROW = struct.Struct("<ii")
_LENGTH_AND_ID = struct.Struct("<II")
_PC_OFFSET = struct.Struct("<i")
# Pointer encodings (LSB core specification, 10.5.1) that linkers and compilers write.
_UDATA4, _DATAREL_SDATA4, _PCREL_SDATA4 = 0x03, 0x3B, 0x1B
_POINTER_BYTES = {0: 8, 2: 2, 3: 4, 4: 8}  # by the low bits of the encoding
_EXTENDED_LENGTH = 0xFFFFFFFF


def function_starts(image: elf.Image) -> list[int]:
    """Return the first addresses of all functions that have unwind information.

    .eh_frame_hdr lists them in one table; where it is missing (static programs) .eh_frame is
    walked. The layouts are from the LSB core specification, 10.6. Images without either, or
    with encodings that no compiler for x86-64 writes, give an empty list.

    Raises:
        BadElf: A table points outside of the file.
    """
    for segment in image.segments:
        if segment.type == elf.PT_GNU_EH_FRAME:
            header = image.bytes_at(segment.offset, _HEADER_BYTES)
            if header[0] == 1 and header[2:4] == bytes((_UDATA4, _DATAREL_SDATA4)):
                count = int.from_bytes(header[8:12], "little")
                elf.require_rows(image, count, "functions in .eh_frame_hdr")
                rows = image.bytes_at(segment.offset + _HEADER_BYTES, count * _ROW.size)
                return [segment.vaddr + row[0] for row in _ROW.iter_unpack(rows)]
    return [
        start
        for section in image.sections
        if section.name == ".eh_frame"
        for start in _walk(image.contents(section), section.vaddr)
    ]


def _walk(frame: bytes, vaddr: int) -> Iterator[int]:
    """Yield the start that each entry of .eh_frame names; `vaddr` is the section's address."""
    offset = 0
    usable: dict[int, bool] = {}
    while offset + _LENGTH_AND_ID.size <= len(frame):
        length, identity = _LENGTH_AND_ID.unpack_from(frame, offset)
        end = offset + 4 + length
        if length in (0, _EXTENDED_LENGTH) or end > len(frame):
            return
        if not identity:
            usable[offset] = _is_pcrel(frame[offset + 8 : end])
        elif usable.get(offset + 4 - identity) and end - offset >= 12:
            yield vaddr + offset + 8 + _PC_OFFSET.unpack_from(frame, offset + 8)[0]
        offset = end


def _is_pcrel(entry: bytes) -> bool:
    """Tell whether a common entry's functions have 4-byte addresses relative to the place.

    All compilers for x86-64 write version 1, and code alignment, data alignment and return
    register of one byte each; any other form is left alone.
    """
    augmentation, _, rest = entry[1:].partition(b"\0")
    position = 4  # behind the three bytes and the length of what follows
    for letter in augmentation.removeprefix(b"z"):
        encoding = rest[position] if position < len(rest) else 0
        if letter == ord("R"):
            return encoding == _PCREL_SDATA4
        # "L" is one encoding, "P" an encoding and a pointer, others have no data.
        if letter in b"LP":
            position += 1 if letter == ord("L") else 1 + _POINTER_BYTES.get(encoding & 7, 0)
    return False
