# SPDX-License-Identifier: Apache-2.0
"""What a target shares with us, checked before it is used: the target can write all of it.

Numbers are read once, into memory of our own; nothing is read again from where the target could
change it after the check.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import AgentFailed, AgentVersion
from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from textpoke._native import Pointer

MAGIC = int.from_bytes(b"TEXTPOKE", "little")
HIGHEST = 0x7FFF_FFFF_F000
"""The end of user space: no address of a target lies behind it."""
MOST_KNOWN = 1 << 22
"""Sites that were ever poked in one target."""
KNOWN_BYTES = ffi.sizeof("struct tp_known")
_MOST_RINGS = 1 << 16
_LARGEST_COPIES = 1 << 20
_LARGEST_RING = 1 << 28
_LARGEST_REQUEST = 1 << 30
_MOST_COUNTED = 1 << 61


def plausible(count: int) -> int:
    """A count that a capture can hold: the target writes it and may lie."""
    return min(max(count, 0), _MOST_COUNTED)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie in the shared memory object; offsets and sizes in bytes."""

    request_bytes: int
    ring_offset: int
    ring_count: int
    ring_stride: int
    ring_bytes: int


def read_layout(header: bytes, size: int) -> Layout:
    """The layout that the first bytes of a shared memory object of `size` bytes describe.

    Raises:
        AgentVersion: Another textpoke's agent.
        AgentFailed: It makes no sense.
    """
    wire = ffi.new("struct tp_wire *")
    ffi.memmove(wire, header, min(len(header), ffi.sizeof("struct tp_wire")))
    if wire.magic == MAGIC and wire.version != lib.TP_WIRE_VERSION:
        raise AgentVersion(wire.version, lib.TP_WIRE_VERSION)
    page = lib.TP_PAGE_BYTES
    layout = Layout(
        wire.request_bytes, wire.ring_offset, wire.ring_count, wire.ring_stride, wire.ring_bytes
    )
    sane = (
        wire.magic == MAGIC
        and wire.header_bytes == ffi.sizeof("struct tp_wire")
        and wire.request_offset == page
        and layout.request_bytes <= _LARGEST_REQUEST
        and layout.request_bytes % page == 0
        and page <= layout.ring_bytes <= _LARGEST_RING
        and layout.ring_bytes & (layout.ring_bytes - 1) == 0
        and layout.ring_stride == page + layout.ring_bytes
        and 0 < layout.ring_count <= _MOST_RINGS
        and wire.copies_bytes <= _LARGEST_COPIES
        and layout.ring_offset == page + layout.request_bytes + wire.copies_bytes
        and layout.ring_offset + layout.ring_count * layout.ring_stride == size
    )
    if not sane:
        raise overwritten("shared memory")
    return layout


def read_image(data: bytes, base: int) -> Pointer:
    """The head of the agent's image (struct tp_image) that lies at `base`, from its bytes.

    Raises AgentFailed when a range in it cannot be one.
    """
    head = ffi.new("struct tp_image *")
    if len(data) != ffi.sizeof("struct tp_image"):
        raise overwritten("image")
    ffi.memmove(head, data, len(data))
    if head.magic != MAGIC or head.base != base or head.region_count > lib.TP_MAX_REGIONS:
        raise overwritten("image")
    if head.set_count > lib.TP_MAX_SETS:
        raise overwritten("image")
    regions = [head.regions[i] for i in range(head.region_count)]
    regions += [head.sets[i] for i in range(head.set_count)]
    ranges = [(region.start, region.bytes) for region in regions]
    ranges += [
        (head.base, head.image_bytes),
        (head.shared_base, head.shared_bytes),
        (head.slots_base, head.slots_bytes),
    ]
    if not all(is_range(start, size) for start, size in ranges):
        raise overwritten("image")
    return head


def known_range(head: Pointer) -> tuple[int, int]:
    """(address, bytes) of the table of known sites; raises AgentFailed when there can be none."""
    count = int(head.known_count)
    size = count * KNOWN_BYTES
    if count > MOST_KNOWN or size > head.known_bytes or not is_range(head.known_base, size):
        raise overwritten("table of sites")
    return int(head.known_base), size


def is_range(start: int, size: int) -> bool:
    """Tell whether `size` bytes from `start` on lie in user space."""
    return 0 <= start <= HIGHEST and 0 <= size <= HIGHEST - start


def overwritten(what: str) -> AgentFailed:
    """The error to raise for what no agent of ours has written."""
    action = f"checking the agent's {what} (the target has overwritten it)"
    return AgentFailed(action, errno.EBADMSG)
