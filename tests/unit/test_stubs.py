# SPDX-License-Identifier: Apache-2.0
"""Where stubs stand: whole, apart from each other and from the thunk, whoever plans meanwhile."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

import pytest

from textpoke import stubs
from textpoke.model import Mapping, Site, SiteKind
from textpoke.plan import Method, Planner, Space

if TYPE_CHECKING:
    from textpoke.plan import Plan

THUNK = bytes(range(1, 201)) + bytes(56)
AT = 0x5555_5560_0000
PUSHES = bytes.fromhex("554889e54154")  # push, mov, push


def entry(address: int, displaced: bytes = PUSHES, heads: int = 0b10010) -> Site:
    kind = SiteKind.ENTRY
    old = displaced[:5]
    return Site(
        address, 5, kind, "m", "f", "f", address, old, "symtab", None, address, displaced, heads
    )


def pun(target: int) -> Site:
    """A site whose bytes make a JMP go to `target`: `lock` something, its first byte a push."""
    old = b"\x55" + struct.pack("<i", target - (AT + 5))
    return Site(AT, 5, SiteKind.PUN, "m", "f", "f", AT, old, "symtab", None, AT, old[:1], 0)


def memory(plan: Plan) -> dict[int, int]:
    """What the plan writes, byte by byte; nothing twice, nothing outside of its regions."""
    held: dict[int, int] = {}
    for start, data in plan.code:
        assert any(at <= start and start + len(data) <= at + size for at, size in plan.regions)
        for place, byte in enumerate(data, start):
            assert place not in held
            held[place] = byte
    return held


def read(held: dict[int, int], at: int, size: int) -> bytes:
    return bytes(held[place] for place in range(at, at + size))


@pytest.mark.parametrize("offset", [*range(64), *range(200, 300), *range(4030, 4096)])
def test_a_pun_and_its_thunk_leave_each_other_alone(offset: int) -> None:
    target = AT + 0x1000_0000 + offset
    plan = Planner(THUNK).plan([pun(target)], Space([]))
    [planned] = plan.sites
    assert planned.method is Method.PUN
    held = memory(plan)
    [thunk] = [start for start, data in plan.code if data == THUNK]
    assert read(held, thunk, len(THUNK)) == THUNK
    _, [(_, stub)], _ = stubs.place([planned.site], target, thunk)
    assert stub.address == target
    assert planned.return_address == stub.return_address
    call = target + 5
    assert held[call] == 0xE8
    assert call + 5 + struct.unpack("<i", read(held, call + 1, 4))[0] == thunk


def test_stubs_begin_at_their_addresses_and_do_not_overlap() -> None:
    sites = [entry(AT + 32 * i) for i in range(100)]
    text = Mapping(AT, AT + 0x1000, "r-xp", 0, "", 1, "/m")
    plan = Planner(THUNK).plan(sites, Space([text]))
    held = memory(plan)
    assert len(plan.sites) == 100
    for planned in plan.sites:
        jump = struct.unpack("<i", planned.on[1:])[0]
        stub = planned.site.address + 5 + jump
        assert read(held, stub, 5) == bytes.fromhex("488d642480")
        assert planned.return_address == stub + 10
        for head in (1, 4):
            assert held[stub + planned.copies[head - 1]] == planned.site.displaced[head]


def test_code_keeps_its_distance_where_there_is_room_for_that() -> None:
    distance = 0x10_0000
    text = Mapping(AT, AT + 0x1000, "r-xp", 0, "", 1, "/m")
    below = Mapping(AT - 0x8000, AT - 0x4000, "rw-p", 0, "", 0, "")
    lowest = Mapping(AT - 0x9000, AT - 0x8000, "rw-p", 0, "", 0, "")
    space = Space([text, below, lowest], apart=distance)
    assert space.room_near(AT, AT) == text.start - 0x1000 - distance
    floor = Mapping(0x1000, AT - 0x8000, "rw-p", 0, "", 0, "")
    assert Space([text, below, floor], apart=distance).room_near(AT, AT) == text.start - 0x1000


def test_where_nothing_is_free_below_code_stands_far_above() -> None:
    """As with five hundred threads: their stacks fill the two gigabytes below the libraries."""
    text = Mapping(AT, AT + 0x10000, "r-xp", 0, "", 1, "/lib/libc.so.6")
    stacks = Mapping(AT - (3 << 30), AT, "rw-p", 0, "", 0, "")
    above = text.end + (64 << 20)
    assert Space([stacks, text]).room_near(AT, AT) == above
    near = Mapping(above + (1 << 20), above + (2 << 20), "r--p", 0, "", 0, "")
    assert Space([stacks, text, near]).room_near(AT, AT) == near.start - 0x1000
    heap = Mapping(text.end, text.end + 0x1000, "rw-p", 0, "", 0, "[heap]")
    far = Mapping(AT + (3 << 30), AT + (4 << 30), "r--p", 0, "", 0, "")
    assert Space([stacks, text, heap, far]).room_near(AT, AT) is None


def test_plans_made_by_several_threads_at_once_are_right() -> None:
    windows = [PUSHES, bytes.fromhex("4883ec1890"), bytes.fromhex("41575641554154")]
    expected = {w: stubs.place([entry(AT, w)], AT + 0x1000, AT + 0x2000)[0] for w in windows}
    wrong: list[bytes] = []

    def work(window: bytes) -> None:
        for _ in range(3000):
            code, _, _ = stubs.place([entry(AT, window)], AT + 0x1000, AT + 0x2000)
            if code != expected[window]:
                wrong.append(code)

    threads = [threading.Thread(target=work, args=(window,)) for window in windows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
