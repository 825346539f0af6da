# SPDX-License-Identifier: Apache-2.0
"""A 32-bit program, byte by byte: no 32-bit compiler is needed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BASE = 0x08048000
_HEADERS = 52 + 32
# write(1, "ready\n", 6); for (;;) pause();
_CODE = (
    b"\xb8\x04\0\0\0"  # mov $4, %eax
    b"\xbb\x01\0\0\0"  # mov $1, %ebx
    b"\xb9" + struct.pack("<I", _BASE + _HEADERS + 31) + b"\xba\x06\0\0\0"  # mov text, 6
    b"\xcd\x80"  # int $0x80
    b"\xb8\x1d\0\0\0"  # mov $29, %eax
    b"\xcd\x80"
    b"\xeb\xf7"  # back to the mov
)


def write_program(path: Path) -> Path:
    """Write a program that says "ready" and pauses for ever."""
    assert len(_CODE) == 31
    data = _CODE + b"ready\n"
    size = _HEADERS + len(data)
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        *(ident, 2, 3, 1, _BASE + _HEADERS, 52, 0, 0, 52, 32, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIIIIIII", 1, 0, _BASE, _BASE, size, size, 5, 4096)
    path.write_bytes(header + segment + data)
    path.chmod(0o755)
    return path
