# SPDX-License-Identifier: Apache-2.0
"""Taking our code out of a process: stop every thread, look where it is, unmap (pitfalls 4)."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke import helper, target, wire
from textpoke._errors import AgentFailed, TargetExited
from textpoke._native import ffi, lib
from textpoke.agent import NAME, error_text, find_remains
from textpoke.holds import Work, pairs, words, writable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textpoke._native import Pointer
    from textpoke.agent import Agent
    from textpoke.model import Mapping

_SHARED = f"/memfd:{NAME}"
_RINGS = "/memfd:tp-rings"
_SYSCALL = b"\x0f\x05"
_KNOWN_ADDRESS = struct.Struct(f"<Q{wire.KNOWN_BYTES - 8}x")  # of struct tp_known
_PIECE = 1 << 20
_MOST_SEARCHED = 1 << 26
_TRIES = 60
_MOST_SHADOWS = 4096
_PAUSE_S = 0.01
_BUSY = {
    lib.TP_BUSY_RIP: "runs in our code",
    lib.TP_BUSY_SITE: "stands behind a patched site",
    lib.TP_BUSY_PENDING: "has a SIGTRAP pending",
    lib.TP_BUSY_STACK: "will return to our code",
    lib.TP_BUSY_LIST: "holds our entry of the list of code for debuggers",
}


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of our handler and mappings.

    Attributes:
        handler_restored: SIGTRAP was given back to whoever had it.
        unmapped: Mappings removed.
        hold_ms: How long all threads were stopped.
        residue: What had to stay, and why; "" when nothing did.
        put_back: Sites that held bytes of ours and hold their first ones again.
    """

    handler_restored: bool
    unmapped: int
    hold_ms: float
    residue: str
    put_back: int = 0


def find_syscall(mem_fd: int, maps: Iterable[Mapping]) -> int:
    """Address of a `syscall` instruction in any r-x mapping, the vdso first.

    Raises AgentFailed when the program has none.
    """
    code = [m for m in maps if "r" in m.perms and "x" in m.perms and m.path != "[vsyscall]"]
    for mapping in sorted(code, key=lambda m: m.path != "[vdso]"):
        with contextlib.suppress(OSError):
            at = _find_code(mem_fd, mapping, _SYSCALL)
            if at >= 0:
                return at
    raise AgentFailed("finding a syscall instruction in the target", errno.ENOENT)


def _find_code(mem_fd: int, mapping: Mapping, wanted: bytes) -> int:
    """Address of the bytes in the first part of a mapping, -1 where they are not.

    In pieces and not for ever: a program may map terabytes of executable zeros.
    """
    end = min(mapping.end, mapping.start + _MOST_SEARCHED)
    for start in range(mapping.start, end, _PIECE):
        size = min(_PIECE + len(wanted) - 1, end - start)
        at = os.pread(mem_fd, size, start).find(wanted)
        if at >= 0:
            return start + at
    return -1


def our_ranges(head: Pointer, maps: Sequence[Mapping]) -> list[tuple[int, int]]:
    """[start, end) of every mapping of ours in the target.

    A forked child has not inherited the shared object, and may have something of its own in its
    place.
    """
    shared = any(m.start == head.shared_base and _SHARED in m.path for m in maps)
    ring_maps = {m.start for m in maps if _RINGS in m.path}
    sets = [head.sets[i] for i in range(head.set_count)]
    ranges = [
        (region.start, region.start + region.bytes)
        for region in (head.regions[i] for i in range(head.region_count))
    ]
    ranges.append((head.base, head.base + head.image_bytes))
    known = head.known_base // lib.TP_PAGE_BYTES * lib.TP_PAGE_BYTES
    data = (
        (head.shared_base, head.shared_bytes if shared else 0),
        (head.slots_base, head.slots_bytes),
        (known, head.known_bytes),
        *((rings.start, rings.bytes) for rings in sets if rings.start in ring_maps),
    )
    # What the target has made of these numbers must at least be a range.
    kept = [(start, size) for start, size in data if size and wire.is_range(start, size)]
    return ranges + [(start, start + size) for start, size in kept]


def executable_of(
    ranges: Sequence[tuple[int, int]], maps: Sequence[Mapping]
) -> list[tuple[int, int]]:
    """The parts of ranges that can be executed: a return address points into one of them."""
    return [
        (max(start, m.start), min(end, m.end))
        for m in maps
        if "x" in m.perms
        for start, end in ranges
        if m.start < end and start < m.end
    ]


def remove(agent: Agent, head: Pointer, sites: list[int], known: bytes = b"") -> Removal:
    """Stop all threads, look, give SIGTRAP back, unmap; again while a thread is inside.

    Args:
        agent: The connection; the agent's own thread must have ended.
        head: Its image head, as it was last.
        sites: Addresses of every site that was ever poked, sorted.
        known: The table of those sites, when they must be put back first.

    Raises:
        TargetExited: The target has ended meanwhile.
    """
    for attempt in range(_TRIES):
        left = ffi.new("struct tp_left *")
        try:
            error = _remove_once(agent, head, sites, known, left)
        except AgentFailed:
            _require_memory(agent.pid)
            raise
        if error != -errno.EAGAIN:
            break
        time.sleep(_PAUSE_S * (1 + attempt / 10))
    if error == -errno.ESTALE:
        raise TargetExited(agent.pid, "detach: it has executed another program")
    if error:
        _require_memory(agent.pid)
    residue = _why_left(agent.pid, error, left, installed=bool(head.handler_installed))
    return Removal(
        bool(left.handler_restored), left.unmapped, left.hold_ns / 1e6, residue, left.put_back
    )


def let_frames_go(agent: Agent) -> str:
    """Put the return addresses of all redirected calls back; "" or why that could not be done.

    Nobody may be on the way into a probe: the sites must be off.
    """
    head = agent.image()
    for attempt in range(_TRIES):
        left = ffi.new("struct tp_left *")
        error = _remove_once(agent, head, [], b"", left, unmap=False)
        if error != -errno.EAGAIN:
            break
        time.sleep(_PAUSE_S * (1 + attempt / 10))
    if error == -errno.ESTALE:
        raise TargetExited(agent.pid, "detach: it has executed another program")
    return "" if error == 0 else _why_left(agent.pid, error, left, installed=False)


def remove_remains(agent: Agent) -> Removal | None:
    """Remove what is left of an agent whose thread has ended; None when there is nothing.

    So it is in a child that a patched program has forked: it has the patched text and the pages,
    but not the agent's thread. Its sites are put back while all its threads are held.

    Raises as `remove`, and UnsupportedTarget ("vfork"): they are in use, by its parent's agent.
    """
    if not find_remains(agent):
        return None
    target.require_own_memory(agent.pid)
    head = agent.image()
    table = agent.read(*wire.known_range(head))
    table = table[: len(table) // _KNOWN_ADDRESS.size * _KNOWN_ADDRESS.size]
    addresses = [address for (address,) in _KNOWN_ADDRESS.iter_unpack(table)]
    return remove(agent, head, addresses, table)


def _require_memory(pid: int) -> None:
    # A process that ends loses its memory first; its pidfd tells later.
    if not target.read_maps(pid):
        raise TargetExited(pid, "detach")


def _why_left(pid: int, error: int, left: Pointer, *, installed: bool) -> str:
    if error == 0:
        taken = f"pid {pid} has put its own SIGTRAP handler over ours: left as it is"
        return "" if left.handler_restored or not installed else taken
    if error == -errno.EAGAIN:
        why = _BUSY.get(left.busy_why, "is inside")
        return f"thread {left.busy_tid} {why} ({left.busy_at:#x}): handler and agent pages stay"
    if error == -errno.ESRCH:
        return "no thread to unmap the agent's pages with: they stay"
    if error == -errno.EACCES:
        return "the program's seccomp filter could kill it for our calls: handler and pages stay"
    return f"agent pages stay: {error_text(-error)}"


def _remove_once(
    agent: Agent,
    head: Pointer,
    sites: list[int],
    known: bytes,
    left: Pointer,
    *,
    unmap: bool = True,
) -> int:
    maps = target.read_maps(agent.pid)
    ranges = our_ranges(head, maps)
    executable = executable_of(ranges, maps)
    stacks = writable(m for m in maps if not _inside(ranges, m.start))
    request = ffi.new("struct tp_leave *")
    # Any program's own instruction will do, but not one in what we are about to unmap.
    request.syscall_at = find_syscall(
        agent.mem_fd, [m for m in maps if not _inside(ranges, m.start)]
    )
    request.code_count = len(executable)
    request.handler, request.restorer = head.handler, head.restorer
    request.old_action = agent.image_at + _offset_of("old_action")
    request.scratch = agent.image_at + _offset_of("regions")
    if head.jit_descriptor and wire.is_range(head.jit_descriptor, lib.TP_PAGE_BYTES):
        request.jit_descriptor = head.jit_descriptor
        request.jit_entry = agent.image_at + _offset_of("jit_entry")
    request.unmap = unmap
    request.spared = 0 if unmap else agent.tid
    count = min(head.shadow_count, _MOST_SHADOWS)
    if wire.is_range(head.shadow_heads, count * ffi.sizeof("struct tp_shadow")):
        request.shadow_heads, request.shadow_count = head.shadow_heads, count
        request.shadow_frames = head.shadow_frames
    raw = bytes(ffi.buffer(request))
    parts = (raw, pairs(executable + ranges), words(sites), pairs(stacks), known)
    code, found = helper.perform(agent, Work.LEAVE, *parts)
    ffi.memmove(left, found, len(found))
    return code


def _inside(ranges: list[tuple[int, int]], address: int) -> bool:
    return any(start <= address < end for start, end in ranges)


def _offset_of(name: str) -> int:
    return int(ffi.offsetof("struct tp_image", name))


def ranges_in_use(agent: Agent, ranges: bytes) -> bool:
    """True when some thread is in one of these ranges of code, or comes back there from a signal.

    Args:
        agent: The connection.
        ranges: Sorted, as `holds.pairs` packs them.

    Raises:
        AgentFailed: The threads could not be stopped.
    """
    found, _ = helper.perform(agent, Work.RANGES, ranges)
    if found < 0:
        agent.require_alive("a look at its threads")
        raise AgentFailed("looking where the target's threads are", -found)
    return bool(found)


def interior_sites(agent: Agent, addresses: list[int], size: int) -> set[int]:
    """Which sites of `size` bytes have a thread in their interior, or may get one back?

    Looks at every thread's rip and stack; `addresses` must be sorted.

    Raises:
        AgentFailed: The threads could not be stopped.
    """
    parts = (size.to_bytes(8, "little"), words(addresses))
    error, inside = helper.perform(agent, Work.INSIDE, *parts)
    if error:
        agent.require_alive("a look at its threads")
        raise AgentFailed("looking where the target's threads are", -error)
    return {address for i, address in enumerate(addresses) if inside[i]}
