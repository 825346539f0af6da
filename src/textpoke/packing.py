# SPDX-License-Identifier: Apache-2.0
"""Packed events: what a capture holds of a ring, in some three bytes an event (see pack.c).

Nothing here is done per event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from textpoke._native import Pointer

MOST_EVENTS: int = lib.TP_PACKED_EVENTS
"""In one block."""

_MOST_BYTES = (
    lib.TP_PACKED_HEADER_BYTES + lib.TP_PACKED_EVENT_BYTES * MOST_EVENTS + lib.TP_PACKED_ROOM
)


class Packer:
    """Packs events; one thread at a time.

    Attributes:
        raw: What the ring reader is given.
    """

    def __init__(self) -> None:
        self.raw: Pointer = ffi.new("struct tp_packer *")

    def pack(self, events: memoryview, count: int) -> memoryview:
        """The payload of a PACKED block; good until the next one.

        Args:
            events: `count` events of sixteen bytes, contiguous.
            count: `MOST_EVENTS` at most.

        Raises:
            ValueError: They are too many.
        """
        if count > MOST_EVENTS or len(events) < count * 16:
            raise ValueError(count)
        if not count:
            return memoryview(b"")
        given = ffi.cast("struct tp_event *", ffi.from_buffer("uint8_t[]", events))
        size = lib.tp_pack(self.raw, given, count)
        return memoryview(ffi.buffer(self.raw.out, size)).cast("B")


class Unpacker:
    """Unpacks them; one thread at a time."""

    def __init__(self) -> None:
        self._raw = ffi.new("struct tp_unpacker *")
        self._payload = memoryview(bytearray(_MOST_BYTES))

    def payload(self, size: int) -> memoryview:
        """Where a payload of so many bytes is to be put for `unpack`."""
        return self._payload[:size]

    def unpack(self, size: int, events: memoryview, count: int) -> bool:
        """Unpack the payload; False: it is damaged.

        Args:
            size: Its bytes.
            events: Room for the events, sixteen bytes each, contiguous.
            count: How many there are by the block's header.
        """
        if len(events) < count * 16:
            raise ValueError(count)
        if not count:
            return True
        payload = ffi.from_buffer("uint8_t[]", self._payload)
        room = ffi.cast(
            "struct tp_event *", ffi.from_buffer("uint8_t[]", events, require_writable=True)
        )
        return not lib.tp_unpack(self._raw, payload, size, room, count)
