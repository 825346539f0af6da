# SPDX-License-Identifier: Apache-2.0
"""Batches of every site kind at every kind of place, for hypothesis.

What an instruction does is known from how it was made here; nothing is decoded.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
LINE = 64
INT3 = 0xCC
STRANGER = 0x42  # what a stranger writes to first bytes: native/tests/proof_faults.c
PAGES = 24
PLACES = ["next", "near", "line", "page", "far", "end"]

# The NOPs of Intel's manual, by length; longer ones get prefixes.
INTEL_NOPS = (
    "90",
    "6690",
    "0f1f00",
    "0f1f4000",
    "0f1f440000",
    "660f1f440000",
    "0f1f8000000000",
    "0f1f840000000000",
    "660f1f840000000000",
)


class Kind(enum.IntEnum):
    """enum tp_insn_kind of native/engine/engine.h."""

    OTHER, NOP, CALL, JMP, JCC, RET = range(6)


class Mode(enum.IntEnum):
    """enum tp_mode of native/include/wire.h."""

    INT3, DIRECT, STOP = range(3)


@dataclasses.dataclass(frozen=True)
class Code:
    """What stands at a site: bytes, where instructions begin, what they do."""

    data: bytes
    kind: Kind
    starts: tuple[int, ...] = (0,)
    reach: int = 0
    condition: int = 0
    pops: int = 0

    def __str__(self) -> str:
        return f"{self.data.hex(' ')} ({self.kind.name.lower()}, begins at {self.starts})"


@dataclasses.dataclass(frozen=True)
class Site:
    """One record of a batch."""

    offset: int
    old: Code
    new: Code
    handler: bool = False
    null: bool = False

    def __str__(self) -> str:
        if self.null:
            return f"{self.offset:#x}: NULL pair"
        handler = ", handler" if self.handler else ""
        return f"{self.offset:#x}: {self.old} -> {self.new}{handler}"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records in the caller's order, and how they are to be run."""

    sites: tuple[Site, ...]
    window_pages: int = 0
    all_or_nothing: bool = True
    finish: bool = True
    predicate: bool = False
    mode: Mode = Mode.INT3

    @property
    def pages(self) -> int:
        """Pages of memory that all sites fit into."""
        end = max((site.offset + len(site.old.data) for site in self.sites), default=0)
        return end // PAGE + 2

    def __str__(self) -> str:
        head = (
            f"batch of {len(self.sites)}: window_pages={self.window_pages} "
            f"all_or_nothing={self.all_or_nothing} finish={self.finish} predicate={self.predicate} "
            f"mode={self.mode.name.lower()}"
        )
        return "\n".join([head, *(f"  {site}" for site in self.sites)])


byte = st.integers(0, 255)
rel8 = st.integers(-128, 127)
rel32 = st.integers(-(1 << 31), (1 << 31) - 1)
nop_fill = st.sampled_from([0, 0x08, 0x7F, 0x80, 0xFF])


def _signed(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little", signed=True)


def _one_nop(length: int, fill: int = 0) -> bytes:
    base = bytearray.fromhex(INTEL_NOPS[min(length, 9) - 1])
    if len(base) in {4, 5, 6, 7, 8, 9} and len(base) == min(length, 9):
        base[-1] = fill  # the displacement of a NOP means nothing
    return b"\x66" * (length - len(base)) + bytes(base)


def _nop(draw: Callable, length: int) -> Code:
    return Code(_one_nop(length, draw(nop_fill)), Kind.NOP)


def _prefixed_90(_draw: Callable, length: int) -> Code:
    return Code(b"\x66" * (length - 1) + b"\x90", Kind.NOP)


def _endbr(_draw: Callable, _length: int) -> Code:
    return Code(bytes.fromhex("f30f1efa"), Kind.NOP)


def _run(_draw: Callable, length: int) -> Code:
    return Code(b"\x90" * length, Kind.NOP, tuple(range(length)))


def _mixed_run(draw: Callable, length: int) -> Code:
    """NOPs of 66 and 90 in any order."""
    data = bytes(draw(st.sampled_from([0x66, 0x90])) for _ in range(length - 1)) + b"\x90"
    return Code(data, Kind.NOP, (0, *(i for i in range(1, length) if data[i - 1] == 0x90)))


def _several_nops(draw: Callable, length: int) -> Code:
    """Some NOPs of several bytes each, one after another."""
    data, starts = b"", []
    while len(data) < length:
        starts.append(len(data))
        data += _one_nop(draw(st.integers(1, length - len(data))))
    return Code(data, Kind.NOP, tuple(starts))


def _call(draw: Callable, length: int) -> Code:
    reach = draw(rel32)
    return Code(
        b"\x2e" * (length - 5) + b"\xe8" + _signed(reach, 4), Kind.CALL, reach=reach + length
    )


def _jmp_short(draw: Callable, length: int) -> Code:
    reach = draw(rel8)
    data = (b"\xeb" + _signed(reach, 1)).ljust(length, b"\xcc")
    return Code(data, Kind.JMP, reach=reach + 2)


def _jmp_near(draw: Callable, length: int) -> Code:
    reach = draw(rel32)
    data = (b"\xe9" + _signed(reach, 4)).ljust(length, b"\xcc")
    return Code(data, Kind.JMP, reach=reach + 5)


def _jcc_short(draw: Callable, _length: int) -> Code:
    condition, reach = draw(st.integers(0, 15)), draw(rel8)
    data = bytes([0x70 | condition]) + _signed(reach, 1)
    return Code(data, Kind.JCC, reach=reach + 2, condition=condition)


def _jcc_near(draw: Callable, _length: int) -> Code:
    condition, reach = draw(st.integers(0, 15)), draw(rel32)
    data = bytes([0x0F, 0x80 | condition]) + _signed(reach, 4)
    return Code(data, Kind.JCC, reach=reach + 6, condition=condition)


def _ret(_draw: Callable, length: int) -> Code:
    return Code(b"\xc3".ljust(length, b"\xcc"), Kind.RET)


def _rep_ret(_draw: Callable, length: int) -> Code:
    return Code(b"\xf3\xc3".ljust(length, b"\xcc"), Kind.RET)


def _ret_imm16(draw: Callable, length: int) -> Code:
    pops = draw(st.integers(0, 0xFFFF))
    data = (b"\xc2" + pops.to_bytes(2, "little")).ljust(length, b"\xcc")
    return Code(data, Kind.RET, pops=pops)


def _other(draw: Callable, length: int) -> Code:
    """One instruction that is not emulated: MOV, PUSH, HLT, with prefixes."""
    base = {1: b"\x55", 2: b"\x89\xc8", 3: b"\x48\x89\xe5"}.get(length)
    if base is None:
        base = (
            b"\x48\xc7\xc0".ljust(7, b"\x01")[: max(length, 7)] if length >= 7 else b"\x83\xc0\x05"
        )
    marked = bytearray(b"\x26" * (length - len(base)) + base)
    if length > 1:
        marked[-1] = draw(byte)
    return Code(bytes(marked), Kind.OTHER)


def _flipped_run(_draw: Callable, length: int) -> Code:
    """CALL whose displacement is the rest of a run of NOPs."""
    data = b"\x2e" * (length - 5) + b"\xe8\x90\x90\x90\x90"
    return Code(data, Kind.CALL, reach=length - 0x6F6F6F70)


def _anything(draw: Callable, length: int) -> Code:
    """Bytes that mean nothing to anybody: only stop mode takes them."""
    data = draw(
        st.binary(min_size=length, max_size=length).filter(lambda data: data[0] != STRANGER)
    )
    starts = draw(st.sets(st.integers(0, length - 1))) | {0}
    return Code(data, Kind.OTHER, tuple(sorted(starts)))


# Maker and the lengths that it can make.
MAKERS: list[tuple[Callable, range]] = [
    (_nop, range(1, 16)),
    (_prefixed_90, range(1, 16)),
    (_endbr, range(4, 5)),
    (_run, range(1, 16)),
    (_mixed_run, range(1, 16)),
    (_several_nops, range(1, 16)),
    (_call, range(5, 16)),
    (_jmp_short, range(2, 16)),
    (_jmp_near, range(5, 16)),
    (_jcc_short, range(2, 3)),
    (_jcc_near, range(6, 7)),
    (_ret, range(1, 16)),
    (_rep_ret, range(2, 16)),
    (_ret_imm16, range(3, 16)),
    (_other, range(1, 16)),
    (_flipped_run, range(5, 6)),
]
FITTING = {n: [make for make, lengths in MAKERS if n in lengths] for n in range(1, 16)}
# Site kinds that a program is patched with every day, more often than chance would make them.
USUAL: list[tuple[Callable, Callable, int]] = [
    (_nop, _call, 5),
    (_nop, _jmp_near, 5),
    (_run, _flipped_run, 5),
    (_run, _prefixed_90, 5),
    (_mixed_run, _run, 5),
    (_mixed_run, _mixed_run, 9),
    (_prefixed_90, _call, 5),
    (_call, _call, 5),
    (_call, _jmp_near, 5),
    (_jcc_near, _nop, 6),
    (_jcc_short, _jmp_short, 2),
    (_jcc_near, _jcc_near, 6),
    (_ret, _nop, 1),
    (_nop, _call, 10),
    (_other, _nop, 3),
    (_ret_imm16, _jmp_near, 7),
]


# What one store changes, or NOPs to NOPs.
FLIPS: list[tuple[Callable, Callable, int]] = [
    (_run, _flipped_run, 5),
    (_run, _prefixed_90, 5),
    (_mixed_run, _mixed_run, 5),
    (_mixed_run, _mixed_run, 9),
    (_prefixed_90, _mixed_run, 15),
    (_ret, _nop, 1),
    (_other, _ret, 1),
]

# Several instructions turn into one, or back.
WHOLES: list[tuple[Callable, Callable, int]] = [
    *USUAL,
    (_run, _call, 5),
    (_run, _nop, 5),
    (_mixed_run, _call, 5),
    (_several_nops, _call, 5),
    (_several_nops, _jmp_near, 9),
    (_several_nops, _several_nops, 15),
]
PAIRS = {Mode.INT3: USUAL, Mode.DIRECT: FLIPS, Mode.STOP: WHOLES}


def is_nop_mix(code: Code) -> bool:
    """Return whether every mix with another such code is NOPs at every byte."""
    return set(code.data) <= {0x66, 0x90} and code.data[-1] == 0x90


def is_accepted(old: Code, new: Code, handler: bool, mode: Mode = Mode.INT3) -> bool:
    """Return whether the engine must take the site; what it must refuse is generated too."""
    same_tail = old.data[1:] == new.data[1:] or (is_nop_mix(old) and is_nop_mix(new))
    if not same_tail and mode is Mode.DIRECT:
        return False
    trapped = mode is Mode.INT3
    if trapped and not same_tail and max(len(old.starts), len(new.starts)) > 1:
        return False
    if trapped and not handler and old.kind == new.kind == Kind.OTHER:
        return False
    return INT3 not in {old.data[0], new.data[0]}


@st.composite
def _pair(draw: Callable, mode: Mode) -> tuple[Code, Code, bool]:
    direct = mode is Mode.DIRECT
    if mode is Mode.STOP and draw(st.integers(0, 3)) == 0:
        length = draw(st.integers(1, 15))
        return _anything(draw, length), _anything(draw, length), draw(st.booleans())
    if draw(st.integers(0, 2)):
        make_old, make_new, length = draw(st.sampled_from(PAIRS[mode]))
        old, new = make_old(draw, length), make_new(draw, length)
    else:
        length = draw(st.integers(1, 15))
        makers = st.sampled_from(FITTING[length])
        old, new = draw(makers)(draw, length), draw(makers)(draw, length)
    if (
        draw(st.integers(0, 1 if direct else 7)) == 0 and length > 1
    ):  # only the first byte is another
        new = dataclasses.replace(
            old, data=draw(st.sampled_from([b"\x26", b"\x36"])) + old.data[1:], kind=Kind.OTHER
        )
        return old, new, mode is Mode.INT3 or draw(st.booleans())
    handler = draw(st.integers(0, 4)) == 0
    if mode is Mode.INT3:  # nothing there could be emulated
        handler = handler or old.kind == new.kind == Kind.OTHER
    if draw(st.booleans()):
        old, new = new, old
    return old, new, handler


@st.composite
def _like(draw: Callable, last: tuple[Code, Code, bool]) -> tuple[Code, Code, bool]:
    """Return the pair of the site before, or all but a part: the engine goes by likeness."""
    old, new, handler = last
    length = len(old.data)
    how = draw(st.sampled_from(["same", "same", "handler", "old", "new", "swapped"]))
    other = draw(st.sampled_from(FITTING[length]))(draw, length) if how in {"old", "new"} else old
    return {
        "same": last,
        "handler": (old, new, not handler),
        "old": (other, new, handler),
        "new": (old, other, handler),
        "swapped": (new, old, handler),
    }[how]


@st.composite
def _place(draw: Callable, at: int, length: int, how: str) -> int:
    """Return where the next site of @length may stand, from @at on."""
    if how == "next":
        return at
    if how == "near":
        return at + draw(st.integers(1, 40))
    if how == "over":  # the site before
        return max(at - 1, 0)
    inside = draw(st.integers(0, length))
    if how in {"line", "page"}:
        unit = LINE if how == "line" else PAGE
        return -(-(at + inside) // unit) * unit - inside
    if how == "end":
        return -(-(at + length) // PAGE) * PAGE - length
    return at + PAGE * draw(st.integers(1, 3)) + draw(st.integers(0, 100))


@st.composite
def batches(
    draw: Callable, most: int = 9, refusable: bool = False, mode: Mode | None = None
) -> Batch:
    """Return a batch; with @refusable also such as must be refused."""
    mode = draw(st.sampled_from(Mode)) if mode is None else mode
    sites: list[Site] = []
    last: tuple[Code, Code, bool] | None = None
    places = [*PLACES, "over"] if refusable else PLACES
    at = draw(st.sampled_from([0, 1, 60, PAGE - 3]))
    for _ in range(draw(st.integers(0, most))):
        if draw(st.integers(0, 9)) == 0:
            code = Code(b"\x11" * 5, Kind.OTHER)
            sites.append(Site(max(at - draw(st.integers(0, 6)), 0), code, code, null=True))
            continue
        alike = last is not None and draw(st.integers(0, 4)) < 2
        old, new, handler = draw(_like(last) if alike else _pair(mode))
        if not refusable and not is_accepted(old, new, handler, mode):
            continue
        last = old, new, handler
        how = draw(st.sampled_from(places))
        if how == "over" and (not sites or sites[-1].null or len(sites[-1].old.data) < 2):
            how = "next"
        offset = draw(_place(at, len(old.data), how))
        if offset + 16 > PAGES * PAGE:
            break
        sites.append(Site(offset, old, new, handler))
        at = offset + len(old.data)
    if draw(st.booleans()):
        sites = draw(st.permutations(sites))
    return Batch(
        tuple(sites),
        window_pages=draw(st.sampled_from([0, 1, 2, 3, 16, 17])),
        all_or_nothing=draw(st.booleans()),
        finish=draw(st.integers(0, 3)) > 0,
        predicate=draw(st.booleans()),
        mode=mode,
    )


@st.composite
def turns(draw: Callable, most: int = 6) -> list[int]:
    """Return masks: sites of each batch of some in turn; bits 29, 30: mode; bit 31: it fails."""
    fails = st.sampled_from([0, 0, 0, 1 << 31])
    modes = st.integers(0, 3).map(lambda mode: mode << 29)
    return [
        draw(st.integers(0, 0xFFFF)) | draw(modes) | draw(fails)
        for _ in range(draw(st.integers(1, most)))
    ]


@st.composite
def control_batches(draw: Callable, mode: Mode = Mode.INT3) -> Batch:
    """Return a batch with a site that every wrong engine does wrong: first byte and tail differ."""
    batch = draw(batches(most=4, mode=mode))
    if mode is Mode.DIRECT:  # the first byte alone
        old, new = _run(draw, 5), _flipped_run(draw, 5)
    else:
        old, new = Code(_one_nop(5), Kind.NOP), _call(draw, 5)
        if new.data[1:] == old.data[1:]:
            new = _call(lambda _: 0x11223344, 5)
    sites = tuple(site for site in batch.sites if site.null or site.old.data != site.new.data)
    end = max((site.offset + len(site.old.data) for site in sites), default=0)
    torn = Site(end + draw(st.integers(0, 70)), old, new)
    return dataclasses.replace(batch, sites=(*sites, torn))
