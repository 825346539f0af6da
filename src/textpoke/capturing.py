# SPDX-License-Identifier: Apache-2.0
"""The agent's table of what to capture at which site.

`arguments` makes the programs of `-A` and `-R`, `libc_programs` those of blk, wakeup_rt and
irqsoff; native/agent/rich.c runs them.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from textpoke._errors import AgentFailed
from textpoke._native import ffi, lib
from textpoke.payload import Field, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textpoke.arguments import CaptureProgram
    from textpoke.ring_sets import RingSet

_HEAD = struct.Struct("<QQ")  # struct tp_capture_head
_SITE = struct.Struct("<QIIII")  # struct tp_capture_site
_OP_BYTES = ffi.sizeof("struct tp_capture_op")


def joined(first: CaptureProgram, second: CaptureProgram) -> CaptureProgram:
    """Both, the second behind the first."""
    return replace(
        first,
        entry_ops=first.entry_ops + second.entry_ops,
        exit_ops=first.exit_ops + second.exit_ops,
        entry_layout=tuple(first.entry_layout) + tuple(second.entry_layout),
        exit_layout=tuple(first.exit_layout) + tuple(second.exit_layout),
        enums={**first.enums, **second.enums},
    )


def layouts_of(
    programs: Mapping[int, CaptureProgram], *, threshold: bool = False
) -> dict[int, Layout]:
    """What calls carry, by return address, as a capture tells it."""
    found: dict[int, Layout] = {}
    for address, program in programs.items():
        entry = () if threshold else tuple(Field(*row) for row in program.entry_layout)
        leave = tuple(Field(*row) for row in program.exit_layout)
        if threshold:
            leave = (Field("duration", "duration"), *leave)
        found[address] = Layout(entry, leave)
    return found


def fits(rings: RingSet, programs: Mapping[int, CaptureProgram]) -> bool:
    """Is there room to give the agent all these at once?"""
    layout = rings.agent.layout
    ops = sum(len(p.entry_ops) + len(p.exit_ops) for p in programs.values())
    size = _HEAD.size + len(programs) * _SITE.size + ops
    return layout is not None and size <= layout.request_bytes


def upload(rings: RingSet, programs: Mapping[int, CaptureProgram]) -> None:
    """Give the agent the programs for the probes of one set of rings, by return address.

    Raises:
        AgentFailed: They are too many, or the target has no memory for them.
    """
    agent = rings.agent
    if agent.shared is None or agent.layout is None:
        raise AgentFailed("giving the agent what to capture on a closed connection", errno.EBADF)
    if not fits(rings, programs):
        raise AgentFailed("giving the agent what to capture: too many functions", errno.E2BIG)
    table = _table(sorted(programs.items()))
    start = lib.TP_PAGE_BYTES
    agent.shared[start : start + len(table)] = table
    action = "giving the agent what to capture"
    agent.require(action, lib.TP_CMD_CAPTURE, len(table), rings.number)


def _table(programs: Iterable[tuple[int, CaptureProgram]]) -> bytes:
    rows, ops = bytearray(), bytearray()
    for address, program in programs:
        places: list[int] = []
        for part in (program.entry_ops, program.exit_ops):
            places += [len(ops) // _OP_BYTES, len(part) // _OP_BYTES]
            ops += part
        rows += _SITE.pack(address, *places)
    return _HEAD.pack(len(rows) // _SITE.size, len(ops) // _OP_BYTES) + bytes(rows + ops)
