# SPDX-License-Identifier: Apache-2.0
"""Fuzzers of what a target shares with the tool: shared object, image head, tables, outcomes."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from mutate import number

from textpoke import TextpokeError, agent, engine, leave, modes, poke, status, unload, wire
from textpoke._native import ffi, lib
from textpoke.agent_image import load_image
from textpoke.model import Mapping
from textpoke.ring import RingReader

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

PAGE = 4096
RING_BYTES = PAGE
RINGS = 2
SIZE = PAGE + PAGE + RINGS * (PAGE + RING_BYTES)
IMAGE_BASE = 0x7F00_0000_0000
KNOWN_BASE = 0x7E00_0000_0000
_LONG = {name: ffi.sizeof(f"struct {name}") for name in ("tp_wire", "tp_image", "tp_outcome")}


@functools.cache
def shared_object() -> int:
    """A sealed memfd like the agent's, small."""
    fd = os.memfd_create("textpoke", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def _as_bytes(raw: object) -> bytearray:
    return bytearray(bytes(ffi.buffer(raw)))


@functools.cache
def honest_header() -> bytes:
    """The first page's header as an agent writes it."""
    raw = ffi.new("struct tp_wire *")
    raw.magic, raw.version, raw.header_bytes = wire.MAGIC, lib.TP_WIRE_VERSION, _LONG["tp_wire"]
    raw.total_bytes, raw.request_offset, raw.request_bytes = SIZE, PAGE, PAGE
    raw.ring_offset, raw.ring_count, raw.ring_bytes = 2 * PAGE, RINGS, RING_BYTES
    raw.ring_stride, raw.image_base = PAGE + RING_BYTES, IMAGE_BASE
    return bytes(_as_bytes(raw))


@functools.cache
def honest_image() -> bytes:
    """The head of the image of an agent that has patched three sites."""
    raw = ffi.new("struct tp_image *")
    raw.magic, raw.version, raw.base = wire.MAGIC, lib.TP_WIRE_VERSION, IMAGE_BASE
    raw.image_bytes, raw.region_count, raw.state = 1 << 16, 2, lib.TP_AGENT_READY
    for i in range(2):
        raw.regions[i].start, raw.regions[i].bytes = IMAGE_BASE - (i + 1) * 65536, PAGE
    raw.known_base, raw.known_count, raw.known_bytes = KNOWN_BASE + 64, 3, PAGE
    raw.shared_base, raw.shared_bytes = IMAGE_BASE + (1 << 20), SIZE
    return bytes(_as_bytes(raw))


def change_words(rng: random.Random, data: bytes, most: int = 4) -> bytearray:
    """A copy with some of its numbers changed."""
    changed = bytearray(data)
    for _ in range(rng.randrange(most + 1)):
        size = rng.choice((1, 2, 4, 8))
        at = rng.randrange(len(data) // size) * size
        changed[at : at + size] = number(rng, 8 * size).to_bytes(size, "little")
    return changed


@dataclass(slots=True)
class FakeAgent(agent.Agent):
    """A connection whose memory is made up at every read, and now and then cut short."""

    rng: random.Random | None = None

    def read(self, address: int, size: int) -> bytes:
        """What the target shows; the limits are those of the real one."""
        rng = self.rng
        assert rng is not None
        if not wire.is_range(address, size) or size > agent._MOST_BYTES:
            return agent.Agent.read(self, address, size)
        if size == _LONG["tp_image"]:
            data: bytes = change_words(rng, honest_image())
            if rng.random() < 0.5:
                at = ffi.offsetof("struct tp_image", "known_base")
                data = data[:at] + change_words(rng, data[at : at + 40], 3) + data[at + 40 :]
        else:
            data = rng.randbytes(min(size, 4096))
        return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)

    def command(self, command: int, *args: int, timeout_s: float = 0.0, look: object = None) -> int:
        """Any answer."""
        del command, args, timeout_s, look
        assert self.rng is not None
        value = number(self.rng, 32)
        value -= (value >> 31) << 32
        return agent.checked_answer(value)


@contextlib.contextmanager
def connected(rng: random.Random) -> Iterator[FakeAgent]:
    """A connection to a shared object whose header is damaged, or only its contents."""
    fd = shared_object()
    header = change_words(rng, honest_header()) if rng.random() < 0.6 else honest_header()
    os.pwrite(fd, header, 0)
    for i in range(RINGS):
        os.pwrite(fd, change_words(rng, bytes(144), 12), 2 * PAGE + i * (PAGE + RING_BYTES))
    connection = FakeAgent(os.getpid(), -1, -1, -1, rng=rng)
    try:
        agent.connect(connection, 1, os.dup(fd), IMAGE_BASE)
        connection.image_at = IMAGE_BASE + load_image().head_offset
        yield connection
    finally:
        connection.close()


def _nothing_to_say(*_: object) -> str:
    return ""


def _no_maps(*_: object) -> list[Mapping]:
    return []


def fuzz_shared(rng: random.Random) -> None:
    """Connect, look, drain rings and run a batch, while header, rings and answers lie."""
    with connected(rng) as target:
        assert target.shared is not None
        assert target.layout is not None
        header = change_words(rng, honest_header(), 8)
        target.shared[: len(header)] = bytes(header)  # after the check
        status._live_rings(target)
        reader = RingReader(target, -1)
        drained = reader.drain(final=rng.random() < 0.5)
        assert 0 <= drained.lost < 1 << 62
        assert 0 <= reader.lost_no_ring < 1 << 62
        reader.tids()
        # What /proc says of our own process is no lie of the target's, and takes most of a case.
        with (
            mock.patch.object(modes, "why_no_traps", _nothing_to_say),
            mock.patch.object(modes.masks, "why_masking", _nothing_to_say),
            mock.patch.object(modes, "read_maps", _no_maps),
        ):
            request = poke.Request.of([poke.Poke(4096 + i, b"\x90", b"\xcc") for i in range(3)])
            with contextlib.suppress(TextpokeError):
                engine.run_request(target, request).as_dict()
            with contextlib.suppress(TextpokeError):
                engine.restore_all(target, request)
            engine.site_outcomes(target, request)


def fuzz_image(rng: random.Random) -> None:
    """The head of the agent's image and the table of known sites, out of a target that lies."""
    target = FakeAgent(1, -1, -1, -1, IMAGE_BASE + load_image().head_offset, rng=rng)
    with mock.patch.object(leave.time, "sleep", return_value=None):
        for site in leave.known_sites(target):
            assert 0 <= site.address < 1 << 64
    names = ("/memfd:textpoke (deleted)", "", "[anon:textpoke]")
    maps = [Mapping(0x1000, 0x2000, "rw-p", 0, "0:1", 1, name) for name in names]
    ranges = unload.our_ranges(target.image(), maps)
    ffi.new("uint64_t[]", [word for pair in ranges for word in pair])
    with (
        mock.patch.object(unload.target, "read_maps", return_value=maps),
        mock.patch.object(agent.os, "pread", return_value=b"TEXTPOKE"),
    ):
        agent.find_remains(target)


def fuzz_outcome(rng: random.Random) -> None:
    """Outcomes of batches that the engine never wrote, and what is said of them."""
    raw = ffi.new("struct tp_outcome *")
    data = change_words(rng, bytes(_LONG["tp_outcome"]), 16)
    ffi.memmove(raw, data, len(data))
    poke.read_outcome(raw, 0, (), ()).as_dict()
    code = rng.choice((22, 14, lib.TP_EHANDLER, number(rng, 31)))
    error = engine._failure(1, code, raw, [poke.Poke(4096, b"\x90", b"\xcc", name="x")])
    assert str(error)
    agent.error_text(number(rng, 40))
