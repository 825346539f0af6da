# SPDX-License-Identifier: Apache-2.0
"""Changes to bytes and numbers that are likely to hurt a reader."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

_FORMATS = ("<B", "<H", "<I", "<Q")
CONTROLS = (
    "\0\x01\x07\b\t\n\r\x1b[31m\x7f\x85\x9b\u00a0\u061c\u200b\u202e\u2028\u2066\ufeff\U000e0041"
)


def number(rng: random.Random, bits: int = 64) -> int:
    """A number near a border of something, or any number at all."""
    kind = rng.randrange(6)
    if kind == 0:
        value = rng.randrange(-4, 5)
    elif kind == 1:
        value = (1 << rng.randrange(bits)) + rng.randrange(-4, 5)
    elif kind == 2:
        value = (1 << bits - 1) + rng.randrange(-4, 5)
    elif kind == 3:
        value = rng.randrange(1024)
    elif kind == 4:
        value = -rng.randrange(4096)
    else:
        value = rng.getrandbits(bits)
    return value & (1 << bits) - 1


def spot(rng: random.Random, size: int, hot: Sequence[tuple[int, int]]) -> int:
    """An offset, mostly in one of the (start, end) ranges that matter."""
    if hot and rng.random() < 0.9:
        start, end = rng.choice(hot)
        if start < min(end, size):
            return rng.randrange(start, min(end, size))
    return rng.randrange(size)


def mutate(rng: random.Random, seed: bytes, hot: Sequence[tuple[int, int]] = ()) -> bytearray:
    """A copy of `seed` with one to six changes, most of which keep its length."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if not data:
            return data
        at = spot(rng, len(data), hot)
        kind = rng.randrange(12)
        if kind < 7:
            form = rng.choice(_FORMATS)
            size = struct.calcsize(form)
            at = at // size * size
            if at + size <= len(data):
                struct.pack_into(form, data, at, number(rng, 8 * size))
        elif kind == 7:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 8:
            end = at + rng.randrange(64)
            data[at:end] = rng.randbytes(min(end, len(data)) - at)
        elif kind == 9:
            place = rng.randrange(len(data))
            size = rng.randrange(1, 64)
            piece = bytes(data[place : place + size])[: len(data) - at]
            data[at : at + len(piece)] = piece
        elif kind == 10:
            del data[at : at + rng.choice((1, 4, 16, 1 << 20))]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
    return data


def text(rng: random.Random, alphabet: str = "") -> str:
    """A short name with everything in it that a terminal or parser may take for its own."""
    pool = alphabet or CONTROLS + "abcXYZ019 _$.:!<>(){}*/\\\"'&;%-é語\udc80\ud800"
    return "".join(rng.choice(pool) for _ in range(rng.randrange(24)))
