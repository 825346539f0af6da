# SPDX-License-Identifier: Apache-2.0
"""The native calls that stop the threads of a target, on plain bytes.

A process cannot stop its own threads: for the own process `helper` has another one make these
calls. So each takes a connection and byte strings, and returns a code and a byte string of a size
that is known before.
"""

from __future__ import annotations

import enum
import errno
from array import array
from itertools import chain
from typing import TYPE_CHECKING

from textpoke._native import ffi, lib
from textpoke.wire import KNOWN_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from textpoke._native import Pointer
    from textpoke.agent import Agent
    from textpoke.model import Mapping


class Work(enum.IntEnum):
    """What can be asked for; the comment names the byte strings that it takes."""

    STOP = 1  # struct tp_stop, windows, ranges, pokes
    LOOK = 2  # struct tp_stop, pokes
    INSIDE = 3  # bytes of a site, addresses
    LEAVE = 4  # struct tp_leave, ranges, sites, stacks, known sites
    RANGES = 5  # ranges


POKE_BYTES = ffi.sizeof("struct tp_poke")
PARTS = {Work.STOP: 4, Work.LOOK: 2, Work.INSIDE: 2, Work.LEAVE: 5, Work.RANGES: 1}
"""How many byte strings each takes."""
_WORD_BYTES = 8


def words(numbers: Iterable[int]) -> bytes:
    """An array of uint64_t."""
    return array("Q", numbers).tobytes()


def pairs(ranges: Iterable[tuple[int, int]]) -> bytes:
    """An array of ranges: start, end."""
    return words(chain.from_iterable(ranges))


def writable(maps: Iterable[Mapping]) -> list[tuple[int, int]]:
    """Start and end of the mappings that may hold a stack, as the kernel lists them."""
    return [(m.start, m.end) for m in maps if "w" in m.perms]


def answer_bytes(work: Work, parts: Sequence[bytes]) -> int:
    """Size of the byte string that `perform` returns for these."""
    if work is Work.STOP:
        return ffi.sizeof("struct tp_stopped") + len(parts[-1]) // POKE_BYTES
    if work is Work.LOOK:
        return len(parts[-1]) // POKE_BYTES
    if work is Work.INSIDE:
        return len(parts[1]) // _WORD_BYTES
    if work is Work.RANGES:
        return 0
    return ffi.sizeof("struct tp_left")


def perform(agent: Agent, work: Work, parts: Sequence[bytes]) -> tuple[int, bytes]:
    """Make a call from this process.

    Args:
        agent: The connection.
        work: Which.
        parts: Its byte strings. Pointers, sizes, ids and descriptors in a struct are filled here.

    Returns:
        The call's result, and `answer_bytes` bytes of what it has found.
    """
    return _CALLS[work](agent, *parts)


def stop(
    agent: Agent, raw: bytes, windows: bytes, ranges: bytes, pokes: bytes
) -> tuple[int, bytes]:
    """Run a command with every thread but the agent's held (tp_stop_and_run).

    Returns its code; struct tp_stopped and a byte for each poke, non-zero where a thread is inside.
    """
    if agent.wire is None:
        return -errno.EBADF, b""
    request, keep = _stop_of(agent, raw, pokes)
    keep += [_array("uint64_t[]", part) for part in (windows, ranges)]
    request.wire = agent.wire
    request.sites, request.site_count = keep[-2], len(windows) // (2 * _WORD_BYTES)
    request.ranges, request.range_count = keep[-1], len(ranges) // (2 * _WORD_BYTES)
    out = ffi.new("struct tp_stopped *")
    error = int(lib.tp_stop_and_run(request, out))
    return error, bytes(ffi.buffer(out)) + _bytes_of(keep[0], len(pokes) // POKE_BYTES)


def look(agent: Agent, raw: bytes, pokes: bytes) -> tuple[int, bytes]:
    """Run a command and look at all threads when the agent asks (tp_command_looking).

    Returns the command's result; a byte for each poke, as `stop`.
    """
    if agent.wire is None:
        return -errno.EBADF, b""
    request, keep = _stop_of(agent, raw, pokes)
    result = lib.tp_command_looking(
        agent.wire,
        request.command,
        request.args,
        request.timeout_ms,
        ffi.addressof(request, "look"),
    )
    return int(result), _bytes_of(keep[0], len(pokes) // POKE_BYTES)


def inside(agent: Agent, size: bytes, addresses: bytes) -> tuple[int, bytes]:
    """Which sites have a thread in their interior (tp_look_inside)? Returns a byte for each."""
    count = len(addresses) // _WORD_BYTES
    found = ffi.new("uint8_t[]", count or 1)
    error = lib.tp_look_inside(
        agent.pid,
        _array("uint64_t[]", addresses),
        count,
        int.from_bytes(size, "little"),
        found,
    )
    return int(error), _bytes_of(found, count)


def ranges(agent: Agent, pairs_in: bytes) -> tuple[int, bytes]:
    """Is a thread in one of these ranges (tp_look_in_ranges)? Returns 1, 0 or a negative errno."""
    count = len(pairs_in) // (2 * _WORD_BYTES)
    where = _array("uint64_t[]", pairs_in)
    return int(lib.tp_look_in_ranges(agent.pid, agent.tid, where, count)), b""


def leave(
    agent: Agent, raw: bytes, ranges: bytes, sites: bytes, stacks: bytes, known: bytes
) -> tuple[int, bytes]:
    """Unmap what is ours, while nobody is inside (tp_leave). Returns its code, struct tp_left."""
    request = _struct("struct tp_leave", raw)
    keep = [_array("uint64_t[]", part) for part in (ranges, sites, stacks)]
    keep.append(_array("struct tp_known[]", known))
    request.pid, request.mem_fd = agent.pid, agent.mem_fd
    request.ranges, request.range_count = keep[0], len(ranges) // (2 * _WORD_BYTES)
    request.sites, request.site_count = keep[1], len(sites) // _WORD_BYTES
    request.stacks, request.stack_count = keep[2], len(stacks) // (2 * _WORD_BYTES)
    request.known, request.known_count = keep[3], len(known) // KNOWN_BYTES
    out = ffi.new("struct tp_left *")
    return int(lib.tp_leave(request, out)), bytes(ffi.buffer(out))


_CALLS: dict[Work, Callable[..., tuple[int, bytes]]] = {
    Work.STOP: stop,
    Work.LOOK: look,
    Work.INSIDE: inside,
    Work.LEAVE: leave,
    Work.RANGES: ranges,
}


def _stop_of(agent: Agent, raw: bytes, pokes: bytes) -> tuple[Pointer, list[Pointer]]:
    """The request, and what it points to: the bytes for busy sites first."""
    request, count = _struct("struct tp_stop", raw), len(pokes) // POKE_BYTES
    busy, records = ffi.new("uint8_t[]", count or 1), _array("struct tp_poke[]", pokes)
    request.pid, request.agent_tid = agent.pid, agent.tid
    request.look.pid, request.look.agent_tid = agent.pid, agent.tid
    request.look.pokes, request.look.count, request.look.busy = records, count, busy
    return request, [busy, records]


def _struct(name: str, raw: bytes) -> Pointer:
    struct = ffi.new(f"{name} *")
    if len(raw) != ffi.sizeof(name):
        raise ValueError(name, len(raw))
    ffi.memmove(struct, raw, len(raw))
    return struct


def _array(ctype: str, data: bytes) -> Pointer:
    # An item may be cut off at the end: the counts are of whole ones.
    return ffi.from_buffer(ctype, data)


def _bytes_of(array: Pointer, count: int) -> bytes:
    return bytes(ffi.buffer(array, count)) if count else b""
