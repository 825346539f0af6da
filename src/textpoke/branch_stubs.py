# SPDX-License-Identifier: Apache-2.0
"""Stubs that count branches, thousands at a time. Pure functions of bytes and addresses.

A stub does the instructions of a site; each branch among them counts on both of its ways, in
memory that the stubs reach (native/code/branch_stub.c).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke._native import Pointer
    from textpoke.model import BranchSite

COUNTER_BYTES: int = lib.TP_COUNTER_BYTES
"""Of one branch: how often it was taken and how often it was not, 8 bytes each."""
_SITE = struct.Struct(f"<QQBB6x{lib.TP_MOST_BRANCH_WINDOW}s")  # struct tp_branch_site
_MARK = struct.Struct("<HBB")  # struct tp_branch_mark
_PLACED = struct.Struct("<IIi4s")  # struct tp_branch_placed


@dataclass(frozen=True, slots=True)
class BranchStub:
    """One stub.

    Attributes:
        address: Its first byte.
        copies: As in `stubs.Stub`.
        counters: Address of the first branch's counters; those of the others follow.
    """

    address: int
    copies: bytes
    counters: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a stub are, in bytes from its start; the same wherever it stands.

    Attributes:
        size: Of the whole.
        marks: From which byte on the stack is that of a place in the window, and by how many bytes
            lower: (byte of the stub, byte of the window, bytes lower), ascending.
    """

    size: int
    marks: tuple[tuple[int, int, int], ...]


def layout(site: BranchSite) -> Layout:
    """The layout of a site's stub; `measure` must have accepted the site."""
    stub = ffi.new("struct tp_branch_stub *")
    record = ffi.from_buffer("uint8_t[]", _packed(site, site.address))
    error = lib.tp_make_branch_stub(ffi.cast("struct tp_branch_site *", record), site.address, stub)
    if error:
        raise ValueError(_why(error))
    raw = bytes(ffi.buffer(stub.marks, stub.mark_count * _MARK.size))
    last = {at: (at, head, lowered) for at, head, lowered in _MARK.iter_unpack(raw)}
    return Layout(int(stub.bytes), tuple(last[at] for at in sorted(last)))


def measure(
    sites: Sequence[BranchSite],
) -> tuple[list[BranchSite], int, list[tuple[BranchSite, str]]]:
    """Which sites can have stubs, how many bytes these take, and the other sites, with why."""
    records = b"".join(_packed(site, 0) for site in sites)
    size, placed = _place(records, 0, ffi.NULL)
    good = [site for site, row in zip(sites, placed, strict=True) if not row[2]]
    refused = [(s, _why(row[2])) for s, row in zip(sites, placed, strict=True) if row[2]]
    return good, size, refused


def place(
    sites: Sequence[BranchSite], start: int, size: int, counters: int
) -> tuple[bytes, list[tuple[BranchSite, BranchStub]], list[tuple[BranchSite, str]]]:
    """The code of a region at `start` with the stubs of all sites.

    Args:
        sites: Measured ones.
        start: Address of the region.
        size: Bytes, as measured.
        counters: Address of the counters: COUNTER_BYTES for each branch, site after site.

    Returns:
        The code; the stub of each site; the sites of which something does not reach, with why.
    """
    records, at, firsts = [], counters, []
    for site in sites:
        records.append(_packed(site, at))
        firsts.append(at)
        at += len(site.branches) * COUNTER_BYTES
    code = ffi.new("uint8_t[]", size)
    used, placed = _place(b"".join(records), start, code)
    stubs: list[tuple[BranchSite, BranchStub]] = []
    refused: list[tuple[BranchSite, str]] = []
    for site, first, (offset, _, error, heads) in zip(sites, firsts, placed, strict=True):
        if error:
            refused.append((site, _why(error)))
        else:
            stubs.append((site, BranchStub(start + offset, heads, first)))
    return bytes(ffi.buffer(code, used)), stubs, refused


def _packed(site: BranchSite, counters: int) -> bytes:
    window = site.displaced
    return _SITE.pack(site.address, counters, len(window), site.live, window)


def _place(
    records: bytes, start: int, code: Pointer
) -> tuple[int, list[tuple[int, int, int, bytes]]]:
    count = len(records) // _SITE.size
    sites = ffi.cast("struct tp_branch_site *", ffi.from_buffer("uint8_t[]", records))
    placed = ffi.new("struct tp_branch_placed[]", count)
    used = lib.tp_place_branch_stubs(sites, count, start, code, placed)
    rows = bytes(ffi.buffer(placed, count * _PLACED.size))
    return int(used), list(_PLACED.iter_unpack(rows))


def _why(error: int) -> str:
    if error == -errno.ERANGE:
        return "its instructions refer to something more than 2 GiB away from free memory"
    return "its instructions do not work elsewhere"
