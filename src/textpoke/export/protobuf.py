# SPDX-License-Identifier: Apache-2.0
"""Messages of protocol buffers (wire format): fields one by one, and columns of numbers at once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_VARINT, _FIXED64, _BYTES = 0, 1, 2
_U64 = (1 << 64) - 1


def varint(value: int) -> bytes:
    """A number, negative ones as 64 bits."""
    value &= _U64
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def number(field: int, value: int) -> bytes:
    """A field of an integer, bool or enumeration type."""
    return varint(field << 3 | _VARINT) + varint(value)


def double(field: int, value: float) -> bytes:
    """A field of type double."""
    return varint(field << 3 | _FIXED64) + struct.pack("<d", value)


def message(field: int, *parts: bytes) -> bytes:
    """A field that is a message, given as its fields; or bytes."""
    content = b"".join(parts)
    return varint(field << 3 | _BYTES) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    """A field of type string; what is no Unicode becomes a question mark."""
    return message(field, value.encode("utf-8", "replace"))


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated field of integers."""
    return message(field, *map(varint, values))


def padded(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Varints of one width, a row each: longer than they must be, which readers have to take.

    Args:
        values: int64, from 0 to below 2 ** (7 * width).
        width: Bytes, 1 to 9.
    """
    shifts = np.arange(width, dtype=np.int64) * 7
    found: NDArray[np.uint8] = (values[:, np.newaxis] >> shifts & 0x7F).astype(np.uint8)
    found[:, :-1] |= 0x80
    return found
