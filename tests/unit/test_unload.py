# SPDX-License-Identifier: Apache-2.0
"""Where a return address of ours may point."""

from __future__ import annotations

from textpoke.model import Mapping
from textpoke.unload import executable_of


def mapping(start: int, end: int, perms: str) -> Mapping:
    return Mapping(start, end, perms, 0, "00:00", 0, "")


def test_buffers_of_ours_are_no_code_though_calls_stand_in_them() -> None:
    maps = [
        mapping(0x1000, 0x3000, "r-xp"),  # the image's code
        mapping(0x3000, 0x9000, "rw-p"),  # its copies of the program's text
        mapping(0xA000, 0xC000, "r-xp"),  # copies of probes, beside code of others
        mapping(0xD000, 0xE000, "r-xp"),  # the program's
    ]
    ours = [(0xA000, 0xB000), (0x1000, 0x9000)]
    assert executable_of(ours, maps) == [(0x1000, 0x3000), (0xA000, 0xB000)]
