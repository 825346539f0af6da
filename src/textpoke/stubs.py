# SPDX-License-Identifier: Apache-2.0
"""Stubs: what the JMP at a displaced entry goes to. Pure functions of bytes and addresses.

A stub calls the thunk, does the displaced instructions, and goes on behind them in the function
(native/code/stub.c, move.c).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke._native import Pointer
    from textpoke.model import Site

_ALIGN = 16
_INT3 = 0xCC


@dataclass(frozen=True, slots=True)
class Stub:
    """One stub.

    Attributes:
        address: Its first byte.
        return_address: Where the thunk returns to.
        copies: For the instructions that begin 1 to 4 bytes into the window, their offsets in
            the stub; 0 for none.
    """

    address: int
    return_address: int
    copies: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a stub are, in bytes from its start; the same wherever it stands.

    Attributes:
        size: Of the whole.
        return_at: What the thunk returns to.
        heads: Where the instructions of the window begin in it, each with its copy's offset.
        pushed_at: From here on a CALL's return address is on the stack; 0 for none.
        back_at: The jump that goes on behind the window; 0 for none.
    """

    size: int
    return_at: int
    heads: tuple[tuple[int, int], ...]
    pushed_at: int
    back_at: int


def layout(site: Site) -> Layout:
    """The layout of a site's stub; `measure` must have accepted the site."""
    error, raw = _make(site, site.address, site.address)
    if error:
        raise ValueError(_why(error))
    heads = ((head, raw.head_at[head]) for head in range(1, 5) if raw.head_at[head])
    return Layout(raw.bytes, raw.return_at, ((0, raw.copy_at), *heads), raw.pushed_at, raw.back_at)


def measure(sites: Sequence[Site]) -> tuple[list[tuple[Site, int]], list[tuple[Site, str]]]:
    """How long the stub of each site is, in bytes; and the sites that cannot be moved, with why."""
    sized: list[tuple[Site, int]] = []
    refused: list[tuple[Site, str]] = []
    for site in sites:
        error, stub = _make(site, site.address, site.address)  # the length is the same anywhere
        if error:
            refused.append((site, _why(error)))
        else:
            sized.append((site, int(stub.bytes)))
    return sized, refused


def room(length: int) -> int:
    """Bytes that a stub of `length` bytes takes in a region."""
    return -(-length // _ALIGN) * _ALIGN


def place(
    sites: Sequence[Site], start: int, thunk: int
) -> tuple[bytes, list[tuple[Site, Stub]], list[tuple[Site, str]]]:
    """The code of a region at `start` with the stubs of all sites, which call `thunk`.

    Returns:
        The code; the stub of each site; the sites of which something does not reach, with why.
    """
    code = bytearray()
    placed: list[tuple[Site, Stub]] = []
    refused: list[tuple[Site, str]] = []
    for site in sites:
        at = start + len(code)
        error, raw = _make(site, at, thunk)
        if error:
            refused.append((site, _why(error)))
            continue
        placed.append((site, Stub(at, at + raw.return_at, bytes(raw.head_at)[1:5])))
        code += ffi.buffer(raw.code, raw.bytes)
        code += bytes([_INT3]) * (-(start + len(code)) % _ALIGN)
    return bytes(code), placed, refused


def _make(site: Site, at: int, thunk: int) -> tuple[int, Pointer]:
    stub = ffi.new("struct tp_stub *")
    window = site.displaced
    error = lib.tp_make_stub(window, len(window), site.address, at, thunk, stub)
    return int(error), stub


def _why(error: int) -> str:
    if error == -errno.ERANGE:
        return "its first instructions refer to something more than 2 GiB away from free memory"
    return "its first instructions do not work elsewhere"
