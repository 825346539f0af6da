# SPDX-License-Identifier: Apache-2.0
"""The decoder and the mover of native/code against iced-x86, which knows nothing of ours.

Where the two are meant to differ:

- 66 before a near branch of four bytes: AMD's and Intel's processors disagree, ours decodes none.
- VEX, EVEX and XOP: ours judges opcode, mandatory prefix and kind of operand, iced-x86 also W, L,
  vvvv, masks and registers. Ours may find an instruction in bytes that no processor accepts.
- ptwrite with 66 besides its f3, which iced-x86 refuses.
- montmul of VIA's processors, which needs 67 and 32-bit addresses.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from errno import EINVAL, ERANGE
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import (
    Code,
    ConstantOffsets,
    Decoder,
    FlowControl,
    Instruction,
    Mnemonic,
    OpKind,
    Register,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = Path(__file__).parents[2] / "build/proof/native/tests/libcode.so"
SONAMES = ("libc.so.6", "ld-linux-x86-64.so.2", "libstdc++.so.6", "libcrypto.so.3")
MOST_BYTES = 15
MOST_MOVED = 96
FLOWS = (
    "NEXT",
    "JMP",
    "JCC",
    "LOOP",
    "CALL",
    "JMP_INDIRECT",
    "CALL_INDIRECT",
    "RET",
    "SYSCALL",
    "XBEGIN",
    "STOP",
)
RELATIVE = {"JMP", "JCC", "LOOP", "CALL", "XBEGIN"}
LEGACY_PREFIXES = frozenset(bytes.fromhex("26 2e 36 3e 64 65 66 67 f0 f2 f3"))


def many(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


class _Decoded(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_uint8),
        ("flow", ctypes.c_uint8),
        ("opcode_at", ctypes.c_uint8),
        ("modrm_at", ctypes.c_uint8),
        ("disp_at", ctypes.c_uint8),
        ("disp_bytes", ctypes.c_uint8),
        ("imm_at", ctypes.c_uint8),
        ("imm_bytes", ctypes.c_uint8),
        ("rip_relative", ctypes.c_bool),
        ("is_lea", ctypes.c_bool),
    )


class _Moved(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ubyte * MOST_MOVED),
        ("bytes", ctypes.c_uint32),
        ("head_at", ctypes.c_uint8 * 8),
        ("pushed_at", ctypes.c_uint32),
        ("back_at", ctypes.c_uint32),
    )


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ.get("TEXTPOKE_CODE_LIBRARY", str(LIBRARY)))
    library.tp_decode.restype = _Decoded
    library.tp_decode.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.tp_branch_target.restype = ctypes.c_uint64
    library.tp_branch_target.argtypes = (
        ctypes.c_void_p,
        ctypes.POINTER(_Decoded),
        ctypes.c_uint64,
    )
    library.tp_move_window.restype = ctypes.c_int
    library.tp_move_window.argtypes = (
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.POINTER(_Moved),
    )
    return library


_CODE = _load()


def our_length(code: bytes) -> int:
    decoded: _Decoded = _CODE.tp_decode(code, len(code))
    length: int = decoded.length
    return length


def their_length(code: bytes) -> int:
    instruction = Decoder(64, code).decode()
    return 0 if instruction.code == Code.INVALID else instruction.len


def split_prefixes(code: bytes) -> tuple[bytes, bytes]:
    """The prefixes, and what begins with the opcode."""
    at = 0
    while at < len(code) and (code[at] in LEGACY_PREFIXES or code[at] & 0xF0 == 0x40):
        at += 1
    return code[:at], code[at:]


def is_branch_with_66(code: bytes) -> bool:
    prefixes, rest = split_prefixes(code)
    wide = prefixes[-1:].hex() in {f"4{digit}" for digit in "89abcdef"}
    near = rest[:1] in {b"\xe8", b"\xe9"} or rest[:2] == b"\xc7\xf8"
    near = near or (rest[:1] == b"\x0f" and rest[1:2].hex().startswith("8"))
    return near and 0x66 in prefixes and not wide


def is_vector(code: bytes) -> bool:
    rest = split_prefixes(code)[1]
    return rest[:1] in {b"\xc4", b"\xc5", b"\x62"} or (rest[:1] == b"\x8f" and len(rest) > 1)


def is_accepted(code: bytes, ours: int, theirs: int) -> bool:
    """Is it the same, or one of the differences that this file's first lines name?"""
    if ours == theirs:
        return True
    prefixes, rest = split_prefixes(code)
    if not ours:
        return is_branch_with_66(code) or (rest[:3] == b"\x0f\xa6\xc0" and 0x67 in prefixes)
    ptwrite = rest[:2] == b"\x0f\xae" and 0x66 in prefixes and 0xF3 in prefixes
    return not theirs and (is_vector(code) or ptwrite)


BY_FLOW = {
    FlowControl.UNCONDITIONAL_BRANCH: "JMP",
    FlowControl.CONDITIONAL_BRANCH: "JCC",
    FlowControl.INDIRECT_BRANCH: "JMP_INDIRECT",
    FlowControl.INDIRECT_CALL: "CALL_INDIRECT",
    FlowControl.RETURN: "RET",
    FlowControl.INTERRUPT: "SYSCALL",
    FlowControl.EXCEPTION: "STOP",
}
BY_MNEMONIC = {
    **dict.fromkeys(
        (Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JECXZ, Mnemonic.JRCXZ), "LOOP"
    ),
    **dict.fromkeys((Mnemonic.SYSCALL, Mnemonic.SYSENTER), "SYSCALL"),
    **dict.fromkeys((Mnemonic.INT3, Mnemonic.HLT), "STOP"),
    **dict.fromkeys((Mnemonic.RSM, Mnemonic.SKINIT), "NEXT"),  # for firmware and hypervisors
    Mnemonic.XBEGIN: "XBEGIN",
}


def flow_of(instruction: Instruction) -> str:
    """The name in insn.h for what iced-x86 found; calls of hypervisors come back: NEXT."""
    if instruction.is_call_near:
        return "CALL"
    by_flow = BY_FLOW.get(instruction.flow_control, "NEXT")
    return BY_MNEMONIC.get(instruction.mnemonic, by_flow)


def fields_differ(raw: bytes, ours: _Decoded, theirs: Instruction, at: ConstantOffsets) -> str:
    """What of an instruction of one length is not the same: its name, or nothing."""
    flow = FLOWS[ours.flow]
    displacement = (at.displacement_offset, at.displacement_size)
    immediate = (at.immediate_offset, at.immediate_size + at.immediate_size2)
    if is_vector(raw) and not at.has_immediate:  # four bits of one may be a register's number
        immediate = (ours.imm_at, ours.imm_bytes)
    target, memory = theirs.near_branch_target, theirs.ip_rel_memory_address
    if flow in RELATIVE:
        target = _CODE.tp_branch_target(raw, ours, theirs.ip)
    if ours.rip_relative and theirs.memory_base == Register.RIP:
        memory = theirs.next_ip + struct.unpack_from("<i", raw, ours.disp_at)[0] & 2**64 - 1
    pairs = {
        "flow": (flow, flow_of(theirs)),
        "rip_relative": (ours.rip_relative, theirs.is_ip_rel_memory_operand),
        "is_lea": (ours.is_lea, theirs.mnemonic == Mnemonic.LEA),
        "displacement": ((ours.disp_at, ours.disp_bytes), displacement),
        "immediate": ((ours.imm_at, ours.imm_bytes), immediate),
        "target": (target, theirs.near_branch_target),
        "operand": (memory, theirs.ip_rel_memory_address),
    }
    return ", ".join(name for name, (mine, other) in pairs.items() if mine != other)


@dataclass(frozen=True)
class Object:
    """A library of this machine: its code, and the functions that it exports."""

    path: str
    vaddr: int
    code: bytes
    functions: tuple[int, ...]


@cache
def find_object(name: str) -> Object:
    """A library that programs on every machine have; "python": wherever the interpreter is."""
    if name != "python":
        ctypes.CDLL(name)
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    starts = (name, "libpython") if name == "python" else (name,)
    chosen = [path for path in paths if Path(path).name.startswith(starts)]
    return read_object(max(chosen, key=os.path.getsize))


def read_object(path: str) -> Object:
    with open(path, "rb") as file:
        elf = ELFFile(file)
        text, symbols = elf.get_section_by_name(".text"), elf.get_section_by_name(".dynsym")
        assert text is not None
        assert isinstance(symbols, SymbolTableSection)
        start, code = text["sh_addr"], text.data()
        functions = {
            symbol["st_value"]
            for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
            and start <= symbol["st_value"] < start + len(code)
        }
    return Object(path, start, code, tuple(sorted(functions)))


def sweep(code: bytes, vaddr: int) -> Iterator[tuple[int, Decoder, Instruction]]:
    """Every instruction from the first byte on; behind an invalid one, from the next byte on."""
    decoder, instruction, at = Decoder(64, code, ip=vaddr), Instruction(), 0
    while at < len(code):
        decoder.position, decoder.ip = at, vaddr + at
        decoder.decode_out(instruction)
        yield at, decoder, instruction
        at += instruction.len if instruction.code != Code.INVALID else 1


@pytest.mark.parametrize("soname", [*SONAMES, "python"])
def test_every_instruction_of_real_libraries_is_what_it_is_to_iced(soname: str) -> None:
    found = find_object(soname)
    held = ctypes.create_string_buffer(found.code, len(found.code))
    base, decode = ctypes.addressof(held), _CODE.tp_decode
    wrong, count = [], 0
    seen: set[bytes] = set()
    for at, decoder, theirs in sweep(found.code, found.vaddr):
        ours = decode(base + at, len(found.code) - at)
        length = 0 if theirs.code == Code.INVALID else theirs.len
        raw = found.code[at : at + max(length, ours.length, 1)]
        count += 1
        if ours.length != length:
            if not is_accepted(found.code[at : at + MOST_BYTES], ours.length, length):
                wrong.append((at, raw.hex(), f"{ours.length}, not {length}"))
        elif length and raw not in seen:
            seen.add(raw)
            differs = fields_differ(raw, ours, theirs, decoder.get_constant_offsets(theirs))
            if differs:
                wrong.append((at, raw.hex(), f"{differs}: {theirs}"))
    assert not wrong
    assert count > 10000


TAIL = bytes.fromhex("443322114845464750a1a2a3")
MODRMS = [
    modrm for modrm in range(256) if modrm >= 0xC0 or (modrm & 7 in {0, 4, 5} and modrm < 0x48)
]


@pytest.mark.parametrize("escape", ["", "0f", "0f38", "0f3a"])
def test_every_legacy_opcode_with_every_prefix_is_as_long_as_to_iced(escape: str) -> None:
    wrong = []
    for prefix in ("", "66", "f3", "f2", "48", "f0", "6648"):
        start = bytes.fromhex(prefix + escape)
        for opcode in range(256):
            for modrm in MODRMS:
                code = start + bytes((opcode, modrm)) + TAIL
                ours, theirs = our_length(code), their_length(code)
                if ours != theirs and not is_accepted(code, ours, theirs):
                    wrong.append((code.hex(), ours, theirs))
    assert not wrong


def vector_codes() -> Iterator[tuple[str, list[bytes]]]:
    """For every opcode of VEX, EVEX and XOP, encodings of which one is valid if any is."""
    operands = [b"\xc1", b"\xc8", b"\x01", b"\x0c\x78", b"\x05\1\2\3\4", b"\xd1", b"\xd9", b"\xe1"]
    wides = [0x78, 0xF8, 0x7C, 0xFC, 0x10, 0x90]
    payloads = {
        "c4": [(b"\xc4", bytes([0xE0 | m]), b"") for m in (1, 2, 3)],
        "8f": [(b"\x8f", bytes([0xE0 | m]), b"") for m in (8, 9, 10)],
        "62": [
            (b"\x62", bytes([0xF0 | m]), p) for m in (1, 2, 3, 5, 6) for p in (b"\x48", b"\x09")
        ],
    }
    for name, starts in payloads.items():
        for (first, second, last), pp in ((s, p) for s in starts for p in range(4)):
            for opcode in range(256):
                codes = [
                    first + second + bytes([(wide | (4 if last else 0) | pp)]) + last
                    + bytes([opcode]) + operand + TAIL
                    for wide in (wides if not last else wides[:2])
                    for operand in operands
                ]  # fmt: skip
                yield f"{name} {second.hex()} {pp} {opcode:02x}", codes


def test_every_vector_opcode_is_as_long_as_to_iced() -> None:
    wrong = []
    for name, codes in vector_codes():
        for code in codes:
            theirs = their_length(code)
            if theirs and our_length(code) != theirs:
                wrong.append((name, code.hex(), our_length(code), theirs))
    assert not wrong


prefixes = st.binary(max_size=4).map(
    lambda data: bytes(sorted(LEGACY_PREFIXES)[byte % 11] for byte in data)
)
escapes = st.sampled_from(
    [
        bytes.fromhex(text)
        for text in ("", "0f", "0f38", "0f3a", "c4", "c5", "62", "8f", "48", "4c0f")
    ]
)


@many(1000)
@given(prefixes, escapes, st.binary(min_size=1, max_size=20))
def test_any_bytes_are_as_long_as_to_iced(prefix: bytes, escape: bytes, data: bytes) -> None:
    code = prefix + escape + data
    ours, theirs = our_length(code), their_length(code)
    assert is_accepted(code, ours, theirs), f"{ours}, not {theirs}"
    for cut in range(ours):
        assert our_length(code[:cut]) == 0


def move(window: bytes, from_: int, to: int) -> _Moved | int:
    """The moved code, or the error."""
    moved = _Moved()
    error: int = _CODE.tp_move_window(window, len(window), from_, to, moved)
    return error or moved


def decode_all(code: bytes, at: int) -> list[Instruction]:
    return list(Decoder(64, code, ip=at))


def written(instruction: Instruction) -> str:
    """As text, with absolute addresses: the same wherever it stands, if it does the same."""
    text = f"{instruction}".replace("short ", "").replace("near ptr ", "")
    words = [word for word in text.split() if word not in {"bnd", "ht", "hnt"}]
    return " ".join(words)


def ends(instruction: Instruction) -> bool:
    return flow_of(instruction) in {"RET", "JMP", "JMP_INDIRECT"}


def instructions_of(window: bytes, from_: int) -> list[Instruction]:
    """Up to the terminator; the rest is padding."""
    found = []
    for instruction in Decoder(64, window, ip=from_):
        found.append(instruction)
        if ends(instruction):
            break
    return found


def pushed(moved: list[Instruction]) -> int:
    """Take the instructions that push a constant, and return it."""
    push = moved.pop(0)
    assert push.mnemonic == Mnemonic.PUSH
    value = push.immediate(0)
    if moved[0].mnemonic == Mnemonic.MOV:
        high = moved.pop(0)
        assert written(high).startswith("mov dword ptr [rsp+4],")
        value = value & 0xFFFFFFFF | high.immediate(1) << 32
    return value & 2**64 - 1


def check_loop(original: Instruction, moved: list[Instruction]) -> None:
    loop, over, jmp = moved.pop(0), moved.pop(0), moved.pop(0)
    assert loop.code == original.code
    assert loop.near_branch_target == jmp.ip
    assert (over.mnemonic, over.near_branch_target) == (Mnemonic.JMP, jmp.next_ip)
    assert (jmp.mnemonic, jmp.near_branch_target) == (Mnemonic.JMP, original.near_branch_target)


def check_same(original: Instruction, raw: bytes, moved: list[Instruction], end: int) -> None:
    """Take from @moved what does what @original, of the bytes @raw, did."""
    flow = flow_of(original)
    if flow == "LOOP":
        check_loop(original, moved)
        return
    if flow in {"CALL", "CALL_INDIRECT"}:
        assert pushed(moved) == end
        assert written(moved.pop(0)) == written(original).replace("call ", "jmp ", 1)
        return
    first = moved.pop(0)
    assert written(first) == written(original)
    if flow == "NEXT" and not original.is_ip_rel_memory_operand:
        assert first.len == len(raw)


def check_moved(window: bytes, from_: int, to: int, moved: _Moved) -> None:
    """Is the moved code the same, instruction by instruction, when iced-x86 reads both?"""
    code = bytes(moved.code[: moved.bytes])
    rest, originals = decode_all(code, to), instructions_of(window, from_)
    end = from_ + len(window)
    for original in originals:
        at = original.ip - from_
        if at < 5:
            assert rest[0].ip == to + moved.head_at[at]
        raw = window[at : at + original.len]
        check_same(original, raw, rest, end)
        if flow_of(original) == "NEXT" and not original.is_ip_rel_memory_operand:
            assert raw in code
    if not ends(originals[-1]) and not flow_of(originals[-1]).startswith("CALL"):
        back = rest.pop(0)
        assert (back.code, back.near_branch_target) == (Code.JMP_REL32_64, end)
        assert back.ip == to + moved.back_at
    else:
        assert moved.back_at == 0
    assert bool(moved.pushed_at) == any(flow_of(o).startswith("CALL") for o in originals)
    assert not rest


def has_66(raw: bytes) -> bool:
    prefixes = split_prefixes(raw)[0]
    return 0x66 in prefixes and prefixes[-1] & 0xF8 != 0x48


def reads_rsp(instruction: Instruction) -> bool:
    if instruction.op0_kind == OpKind.MEMORY:
        return instruction.memory_base in {Register.RSP, Register.ESP}
    return instruction.op0_register == Register.RSP


def reasons_not_to_move(window: bytes, from_: int, to: int) -> set[int]:
    """Every error that there is a reason for; none: it must move."""
    reasons: set[int] = set()
    end, at = from_ + len(window), from_
    interior = range(from_ + 1, end)
    for instruction in instructions_of(window, from_):
        flow, raw = flow_of(instruction), window[at - from_ : at - from_ + instruction.len]
        at += instruction.len
        if flow in {"SYSCALL", "XBEGIN", "STOP"} or instruction.code == Code.INVALID:
            reasons.add(EINVAL)
        if instruction.is_ip_rel_memory_operand:
            eip = instruction.memory_base == Register.EIP
            if eip or instruction.ip_rel_memory_address in interior:
                reasons.add(EINVAL)
            reasons |= out_of_range(instruction.ip_rel_memory_address, to)
        if flow in RELATIVE:
            if instruction.near_branch_target in interior or has_66(raw):
                reasons.add(EINVAL)
            reasons |= out_of_range(instruction.near_branch_target, to)
        if flow.startswith("CALL") and at != end:
            reasons.add(EINVAL)
        if flow == "CALL_INDIRECT" and (
            instruction.is_call_far_indirect or has_66(raw) or reads_rsp(instruction)
        ):
            reasons.add(EINVAL)
    return reasons | out_of_range(end, to)


def out_of_range(target: int, to: int) -> set[int]:
    """ERANGE, if 32 bits may not reach: where exactly is what test_move.c says."""
    distance = abs(target - to)
    return {ERANGE} if min(distance, 2**64 - distance) > 2**31 - MOST_MOVED else set()


def check_window(window: bytes, from_: int, to: int) -> bool:
    """Moved and the same, or refused with a reason. Was it moved?"""
    moved = move(window, from_, to)
    reasons = reasons_not_to_move(window, from_, to)
    if isinstance(moved, int):
        assert -moved in reasons
        return False
    assert EINVAL not in reasons
    check_moved(window, from_, to, moved)
    return True


def window_at(code: bytes, at: int) -> bytes:
    """Whole instructions of five bytes or more, as the survey takes them."""
    size = 0
    for instruction in Decoder(64, code[at : at + 40], ip=at):
        if instruction.code == Code.INVALID:
            break
        size += instruction.len
        if size >= 5 or ends(instruction):
            break
    return code[at : at + max(size, 5)].ljust(5, b"\xcc")


@pytest.mark.parametrize("soname", [*SONAMES, "python"])
def test_windows_of_real_functions_do_the_same_elsewhere(soname: str) -> None:
    found = find_object(soname)
    moved = 0
    for function in found.functions:
        window = window_at(found.code, function - found.vaddr)
        base = 0x7F12_3456_7000 if function % 32 else 0x40_0000
        moved += check_window(window, base + function, base + 0x123_4567 + function)
    assert moved >= len(found.functions) * 0.8


# Each "?" is a byte of its own choosing. These move from anywhere in a window ...
EASY = """
    90, 55, 4889e5, 4157, f30f1efa, 4883ec18, 6690, 0f1f4400?, c5f877, 48c7042411223344,
    488b05????, 488d3d????, 803d????11, c605????22, 660f6f05????, c5f8585d?, 81ec????,
    6748b8????????, 64488b0425????, f00fb115????, 74?, 0f84????, 3e7f?, e2?, 67e3?, e1?, e3?
""".replace(",", " ").split()
# ... and these from its end, or not at all.
HARD = """
    e8????, 666648e8????, ff15????, ffd0, 41ff5424?, ff5424?, ffd4, 66ffd0, ff1d????, ff90????, c3,
    f3c3, c2??, ffe0, ff25????, 3effe1, eb?, e9????, 66eb?, 6674?, cc, 0f05, 0f0b, f4, cd?,
    c7f8????, 678b05????, ff14c5????
""".replace(",", " ").split()
spots = st.sampled_from([0x40_0000, 0x7F12_3456_7000, 0x8000_0000, 0xFFFF_FFFF_8010_0000])
distances = st.one_of(
    st.integers(-(2**31) - 200, -(2**31) + 200),
    st.integers(2**31 - 200, 2**31 + 200),
    st.integers(-(2**30), 2**30),
)


def near(count: int) -> st.SearchStrategy[bytes]:
    """A displacement that may end in the window itself."""
    return st.integers(-24, 24).map(
        lambda value: value.to_bytes(4, "little", signed=True).ljust(count, b"\0")[:count]
    )


def filled(text: str, values: bytes) -> bytes:
    return bytes.fromhex(text.replace("?", "{:02x}").format(*values))


@st.composite
def instructions(draw: st.DrawFn, texts: list[str]) -> bytes:
    text = draw(st.sampled_from(texts))
    count = text.count("?")
    return filled(text, draw(st.one_of(st.binary(min_size=count, max_size=count), near(count))))


@st.composite
def windows(draw: st.DrawFn) -> bytes:
    """Instructions that are easy to move, then any; now and then the last one is cut."""
    last = draw(st.one_of(instructions(EASY), instructions(HARD)))
    body = b"".join(draw(st.lists(instructions(EASY), max_size=4)))
    window = (body + last if len(body + last) <= 19 else last).rjust(5, b"\x90")
    return window if len(window) == 5 or draw(st.integers(0, 19)) else window[:-1]


@many(500)
@given(windows(), spots, distances)
def test_any_window_moves_or_is_refused_for_a_reason(
    window: bytes, from_: int, distance: int
) -> None:
    to = from_ + distance
    if 0 <= to < 2**64 - 4096:
        check_window(window, from_, to)


@many(500)
@given(st.binary(min_size=1, max_size=19), spots)
def test_any_bytes_move_or_are_refused(window: bytes, from_: int) -> None:
    at = 0
    for instruction in instructions_of(window, from_):
        length = 0 if instruction.code == Code.INVALID else instruction.len
        ours = our_length(window[at:])
        if ours != length:  # one of the differences, checked above
            assert is_accepted(window[at:], ours, length)
            return
        at += instruction.len
    check_window(window, from_, from_ + 0x10_0000)
