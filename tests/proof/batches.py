# SPDX-License-Identifier: Apache-2.0
"""Batches of every site kind at every kind of place, for hypothesis.

What an instruction does is known from how it was made here; nothing is decoded.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, NamedTuple

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


class Windows(enum.IntEnum):
    """enum proof_windows of native/tests/proof.h: what windows a control wants."""

    NONE, EMPTY, BUSY, LEFT, BACK = range(5)


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
    copies: tuple[int, ...] = ()  # of a window: where the instruction at byte i goes on
    one: bool = False  # each side is one instruction and padding, and the engine is told so
    busy: bool = False  # a look finds somebody inside

    def __str__(self) -> str:
        if self.null:
            return f"{self.offset:#x}: NULL pair"
        handler = ", handler" if self.handler else ""
        window = f", window, copies at {self.copies}" if self.copies else ""
        busy = ", busy" if self.busy else ""
        one = ", one" if self.one else ""
        return f"{self.offset:#x}: {self.old} -> {self.new}{handler}{window}{busy}{one}"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records in the caller's order, and how they are to be run."""

    sites: tuple[Site, ...]
    window_pages: int = 0
    all_or_nothing: bool = True
    finish: bool = True
    predicate: bool = False
    mode: Mode = Mode.INT3
    leave_busy: bool = False
    blind: bool = False  # nobody can tell where threads are

    @property
    def pages(self) -> int:
        """Pages of memory that all sites fit into."""
        end = max((site.offset + len(site.old.data) for site in self.sites), default=0)
        return end // PAGE + 2

    def __str__(self) -> str:
        head = (
            f"batch of {len(self.sites)}: window_pages={self.window_pages} "
            f"all_or_nothing={self.all_or_nothing} finish={self.finish} predicate={self.predicate} "
            f"mode={self.mode.name.lower()} leave_busy={self.leave_busy} blind={self.blind}"
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


class Pair(NamedTuple):
    """What a site holds and shall hold; with @copies it is a window."""

    old: Code
    new: Code
    handler: bool = False
    copies: tuple[int, ...] = ()
    one: bool = False

    def swapped(self) -> Pair:
        return self._replace(old=self.new, new=self.old)

    @property
    def forward(self) -> bool:
        """Do several instructions give way to a JMP here? Else they come back."""
        return len(self.old.starts) > 1


def _padded(draw: Callable, told: bool) -> Pair:
    """Return a site of one instruction that nothing follows, NOPs behind it, and a JMP.

    Where the engine is not @told, it must take these for what they look like. What it does not know
    is one instruction anyhow.
    """
    unknown = ["0f0b", "ffe0"] if told else []
    first = draw(st.sampled_from(["c3", "f3c3", "c20800", "eb10", "e911223344", *unknown]))
    data = bytes.fromhex(first)
    length = draw(st.integers(max(len(data) + 1, 5), 15))
    starts = [0]
    while len(data) < length:
        starts.append(len(data))
        data += _one_nop(draw(st.integers(1, length - len(data))))
    old = Code(data, Kind.OTHER, (0,) if told else tuple(starts))
    pair = Pair(old, _jmp_near(draw, length), one=told)
    return pair if draw(st.integers(0, 2)) else pair.swapped()


# What functions begin with: bytes and where instructions begin, some of which reach further.
PROLOGUES = (
    ("55 48 89 e5 41", (0, 1, 4)),
    ("f3 0f 1e fa 55", (0, 4)),
    ("41 57 41 56 41", (0, 2, 4)),
    ("53 48 89 fb e8", (0, 1, 4)),
    ("48 83 ec 18 64", (0, 4)),
    ("85 ff 74 cc 31", (0, 2, 4)),
    ("90 90 90 90 90", (0, 1, 2, 3, 4)),
    ("66 90 0f 1f 00", (0, 2)),
    ("31 c0 c3 cc cc", (0, 2, 3, 4)),
)
# No first byte of an instruction here: int3, a stranger's, that of the JMP.
NO_FIRST = {INT3, STRANGER, 0xE9}
first_byte = byte.filter(lambda value: value not in NO_FIRST)


def _several(draw: Callable) -> Code:
    """The first five bytes of code in which an instruction begins at one more of them at least."""
    if draw(st.integers(0, 3)) == 0:
        text, starts = draw(st.sampled_from(PROLOGUES))
        data = bytearray.fromhex(text)
    else:
        starts = (0, *sorted(draw(st.sets(st.integers(1, 4), min_size=1))))
        data = bytearray(draw(st.binary(min_size=5, max_size=5)))
    for at in starts:
        if data[at] in NO_FIRST:
            data[at] = draw(first_byte)
    return Code(bytes(data), Kind.OTHER, starts)


def _window(draw: Callable, mode: Mode) -> Pair:
    old = _several(draw)
    new = _jmp_near(draw, 5)
    often = mode is Mode.DIRECT
    if (draw(st.integers(0, 7)) == 0) != often:  # the JMP goes where the old code's bytes say
        reach = int.from_bytes(old.data[1:], "little", signed=True)
        new = Code(b"\xe9" + old.data[1:], Kind.JMP, reach=reach + 5)
    copies = draw(st.lists(st.integers(1, 255), min_size=5, max_size=5, unique=True))
    pair = Pair(old, new, copies=tuple(copies))
    return pair if draw(st.integers(0, 2)) else pair.swapped()


def _bad_window(draw: Callable, pair: Pair) -> Pair:
    """Return a window that every mode must refuse."""
    how = draw(st.sampled_from(["handler", "copy", "long", "other"]))
    old, new = (pair.old, pair.new) if pair.forward else (pair.new, pair.old)
    if how == "handler":
        return pair._replace(handler=True)
    if how == "copy":
        missing = draw(st.sampled_from(old.starts[1:]))
        bad = pair._replace(
            copies=tuple(c if i != missing else 0 for i, c in enumerate(pair.copies))
        )
        return bad if pair.forward else bad.swapped()
    if how == "long":
        more = draw(st.integers(1, 6))
        old = dataclasses.replace(old, data=old.data + b"\x90" * more)
        new = dataclasses.replace(new, data=new.data + b"\xcc" * more)
    else:
        new = draw(st.sampled_from([_call, _jmp_short, _nop, _ret]))(draw, 5)
    bad = pair._replace(old=old, new=new)
    return bad if pair.forward else bad.swapped()


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


# What a NOP may begin with, so that a prefix before it is part of a NOP.
PREFIXED = frozenset(b"\x90\x66\x2e\x36\x3e\x26\x0f")


def is_nop_mix(code: Code) -> bool:
    """Return whether every mix with another such code is NOPs at every byte."""
    return set(code.data) <= {0x66, 0x90} and code.data[-1] == 0x90


def _is_accepted_window(pair: Pair, how: Batch) -> bool:
    old, new = (pair.old, pair.new) if pair.forward else (pair.new, pair.old)
    copied = not pair.forward or all(pair.copies[at] for at in old.starts[1:])
    if new.data[:1] != b"\xe9" or len(new.data) != 5 or pair.handler or not copied:
        return False
    if how.mode is Mode.INT3 and pair.forward and how.blind:
        return False
    if how.mode is Mode.STOP or old.data[1:] == new.data[1:]:
        return True
    may_go_back = how.all_or_nothing or how.finish
    return how.mode is Mode.INT3 and (pair.forward or not may_go_back)


def is_accepted(pair: Pair, how: Batch) -> bool:
    """Return whether the engine must take the site; what it must refuse is generated too."""
    if pair.copies:
        return _is_accepted_window(pair, how)
    old, new = pair.old, pair.new
    same_tail = old.data[1:] == new.data[1:] or (is_nop_mix(old) and is_nop_mix(new))
    if not same_tail and how.mode is Mode.DIRECT:
        return False
    trapped = how.mode is Mode.INT3
    if trapped and not same_tail and max(len(old.starts), len(new.starts)) > 1:
        return False
    if trapped and not pair.handler and old.kind == new.kind == Kind.OTHER:
        return False
    return INT3 not in {old.data[0], new.data[0]}


def _other_first_byte(draw: Callable, old: Code) -> Code:
    first, tail = draw(st.sampled_from([b"\x26", b"\x36"])), old.data[1:]
    if set(tail) == {0x90}:  # a prefix of the first of these NOPs
        return Code(first + tail, Kind.NOP, (0, *range(2, len(old.data))))
    if tail[0] in PREFIXED:
        first = b"\x27"
    return dataclasses.replace(old, data=first + tail, kind=Kind.OTHER)


@st.composite
def _pair(draw: Callable, mode: Mode) -> Pair:
    direct = mode is Mode.DIRECT
    if mode is Mode.STOP and draw(st.integers(0, 3)) == 0:
        length = draw(st.integers(1, 15))
        return Pair(_anything(draw, length), _anything(draw, length), draw(st.booleans()))
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
        new = _other_first_byte(draw, old)
        return Pair(old, new, mode is Mode.INT3 or draw(st.booleans()))
    handler = draw(st.integers(0, 4)) == 0
    if mode is Mode.INT3:  # nothing there could be emulated
        handler = handler or old.kind == new.kind == Kind.OTHER
    if draw(st.booleans()):
        old, new = new, old
    return Pair(old, new, handler)


@st.composite
def _like(draw: Callable, last: Pair) -> Pair:
    """Return the pair of the site before, or all but a part: the engine goes by likeness."""
    if last.copies or last.one:
        return draw(st.sampled_from([last, last, last.swapped()]))
    length = len(last.old.data)
    how = draw(st.sampled_from(["same", "same", "handler", "old", "new", "swapped"]))
    if how == "handler":
        return last._replace(handler=not last.handler)
    if how in {"old", "new"}:
        return last._replace(**{how: draw(st.sampled_from(FITTING[length]))(draw, length)})
    return last.swapped() if how == "swapped" else last


@st.composite
def _site_codes(
    draw: Callable, last: Pair | None, mode: Mode, windows: int, refusable: bool
) -> Pair:
    if last is not None and draw(st.integers(0, 4)) < 2:
        return draw(_like(last))
    if not windows or draw(st.integers(1, windows)) > 1:
        if draw(st.integers(0, 9)) == 0:
            return _padded(draw, told=not refusable or draw(st.integers(0, 3)) > 0)
        return draw(_pair(mode))
    pair = _window(draw, mode)
    return _bad_window(draw, pair) if refusable and draw(st.integers(0, 2)) == 0 else pair


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
    draw: Callable,
    most: int = 9,
    refusable: bool = False,
    mode: Mode | None = None,
    windows: int | None = None,
) -> Batch:
    """Return a batch; with @refusable also such as must be refused.

    A window is one site in @windows; 0: none, None: any number.
    """
    mode = draw(st.sampled_from(Mode)) if mode is None else mode
    how = Batch(
        (),
        window_pages=draw(st.sampled_from([0, 1, 2, 3, 16, 17])),
        all_or_nothing=draw(st.booleans()),
        finish=draw(st.integers(0, 3)) > 0,
        predicate=draw(st.booleans()),
        mode=mode,
        leave_busy=draw(st.booleans()),
        blind=refusable and draw(st.integers(0, 5)) == 0,
    )
    windows = draw(st.sampled_from([0, 0, 1, 3])) if windows is None else windows
    if windows and draw(st.booleans()):  # they may come back
        how = dataclasses.replace(how, all_or_nothing=False, finish=False)
    sites: list[Site] = []
    last: Pair | None = None
    places = [*PLACES, "over"] if refusable else PLACES
    at = draw(st.sampled_from([0, 1, 60, PAGE - 3]))
    for _ in range(draw(st.integers(0, most))):
        if draw(st.integers(0, 9)) == 0:
            code = Code(b"\x11" * 5, Kind.OTHER)
            sites.append(Site(max(at - draw(st.integers(0, 6)), 0), code, code, null=True))
            continue
        pair = draw(_site_codes(last, mode, windows, refusable))
        if not refusable and not is_accepted(pair, how):
            continue
        last = pair
        place = draw(st.sampled_from(places))
        length = len(pair.old.data)
        if place == "over" and (not sites or sites[-1].null or len(sites[-1].old.data) < 2):
            place = "next"
        offset = draw(_place(at, length, place))
        if offset + 16 > PAGES * PAGE:
            break
        busy = bool(pair.copies) and draw(st.integers(0, 2)) == 0
        code = pair.old, pair.new, pair.handler
        sites.append(Site(offset, *code, copies=pair.copies, busy=busy, one=pair.one))
        at = offset + length
    if draw(st.booleans()):
        sites = draw(st.permutations(sites))
    return dataclasses.replace(how, sites=tuple(sites))


@st.composite
def turns(draw: Callable, most: int = 6) -> list[int]:
    """Return masks of some in turn, a batch each.

    Bits 0 to 15: sites; 16 to 27: somebody is inside of that one; 28: which is left then;
    29 and 30: the mode; 31: the batch fails.
    """
    fails = st.sampled_from([0, 0, 0, 1 << 31])
    modes = st.integers(0, 3).map(lambda mode: mode << 29)
    inside = st.one_of(st.just(0), st.integers(0, 0xFFF)).map(lambda mask: mask << 16)
    leaves = st.booleans().map(lambda leave: leave << 28)
    return [
        draw(st.integers(0, 0xFFFF)) | draw(inside) | draw(leaves) | draw(modes) | draw(fails)
        for _ in range(draw(st.integers(1, most)))
    ]


def _torn_pair(draw: Callable, mode: Mode) -> Pair:
    """Return a site whose first byte differs and, but for direct mode, whose tail does too."""
    if mode is Mode.DIRECT:
        return Pair(_run(draw, 5), _flipped_run(draw, 5))
    old, new = Code(_one_nop(5), Kind.NOP), _call(draw, 5)
    if new.data[1:] == old.data[1:]:
        new = _call(lambda _: 0x11223344, 5)
    return Pair(old, new)


def _torn_window(draw: Callable) -> Pair:
    """Return a window of which a thread at any head sees that the tail is another."""
    old, new = _several(draw), _jmp_near(draw, 5)
    tail = bytes(
        n if n not in {o, INT3} else o ^ 0x11 for o, n in zip(old.data, new.data, strict=True)
    )
    tail = bytes(t if t != INT3 else 0x10 for t in tail[1:])
    reach = int.from_bytes(tail, "little", signed=True)
    copies = draw(st.lists(st.integers(1, 254), min_size=5, max_size=5, unique=True))
    return Pair(old, Code(b"\xe9" + tail, Kind.JMP, reach=reach + 5), copies=tuple(copies))


@st.composite
def control_batches(
    draw: Callable, mode: Mode = Mode.INT3, windows: Windows = Windows.NONE
) -> Batch:
    """Return a batch with a site, and a window, that every wrong engine does wrong."""
    batch = draw(batches(most=4, mode=mode, windows=3 * (windows is not Windows.NONE)))
    busy = windows in {Windows.BUSY, Windows.LEFT}
    sites = [
        dataclasses.replace(site, busy=site.busy and busy)
        for site in batch.sites
        if site.null or site.old.data != site.new.data
    ]
    pairs: list[Pair] = []
    if windows is Windows.NONE or busy:  # else the window alone must show it
        pairs.append(_torn_pair(draw, mode))
    if windows is Windows.BACK:
        sites = [site for site in sites if not site.copies]
        batch = dataclasses.replace(batch, all_or_nothing=False, finish=False)
        pairs.append(_torn_window(draw).swapped())
    elif windows is not Windows.NONE:
        sites = [site for site in sites if not site.copies or len(site.old.starts) > 1]
        pairs.insert(draw(st.integers(0, len(pairs))), _torn_window(draw))
    end = max((site.offset + len(site.old.data) for site in sites), default=0)
    for pair in pairs:
        at = end + draw(st.integers(0, 70))
        inside = busy and bool(pair.copies)
        sites.append(Site(at, pair.old, pair.new, copies=pair.copies, busy=inside))
        end = at + 5
    leaves = windows is Windows.LEFT
    return dataclasses.replace(batch, sites=tuple(sites), leave_busy=leaves)
