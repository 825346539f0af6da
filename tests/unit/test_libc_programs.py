# SPDX-License-Identifier: Apache-2.0
"""What the agent records of libc's functions: its own interpreter, on the registers of a call."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from textpoke.arguments import MOST_OPS, MOST_WORDS, OP_BYTES
from textpoke.libc_calls import TRACERS, Function
from textpoke.libc_programs import program_of

NATIVE = Path(__file__).parents[2] / "native"
RAX, RDX, RCX, RSI, RDI, R8 = 0, 1, 2, 4, 5, 8
CALLER = 0x401234
FUNCTIONS = {function.name: function for table in TRACERS.values() for function in table}
MASK = (1 << 64) - 1

Run = "Callable[[bytes, dict[int, int]], list[int]]"


class Registers(ctypes.Structure):
    """struct tpa_regs."""

    _fields_ = (
        ("gpr", ctypes.c_uint64 * 16),
        ("xmm", ctypes.c_uint64 * 8),
        ("slot", ctypes.c_uint64),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run operations on registers: the words that they give."""
    directory = tmp_path_factory.mktemp("capture")
    source, library = directory / "capture.c", directory / "capture.so"
    source.write_text(
        f'#include "{NATIVE}/agent/capture.c"\n'
        "struct tpa_state tpa;\n"
        "uint64_t tpa_final_return(uint64_t real) { return real; }\n"
        "void begin(int pid) { tpa.pid = pid; }\n"
    )
    includes = [f"-I{NATIVE / name}" for name in ("include", "engine", "agent")]
    command = ["gcc", "-O1", "-shared", "-fPIC", "-D_GNU_SOURCE", *includes, source, "-o", library]
    subprocess.run(command, check=True)
    code = ctypes.CDLL(str(library))
    code.begin(os.getpid())
    stack = (ctypes.c_uint64 * 1)(CALLER)

    def run_ops(ops: bytes, registers: dict[int, int]) -> list[int]:
        state = Registers(slot=ctypes.addressof(stack))
        for number, value in registers.items():
            state.gpr[number] = value & MASK
        words = (ctypes.c_uint64 * MOST_WORDS)()
        count = len(ops) // OP_BYTES
        used = code.tpa_capture(ops, count, ctypes.byref(state), True, words, MOST_WORDS)
        return list(words[:used])

    return run_ops


def test_a_read(run: Run) -> None:
    program = program_of(FUNCTIONS["pread"])
    registers = {RDI: 0xFFFFFFFF00000007, RSI: 0x1000, RDX: 512, RCX: -1}
    assert run(program.entry_ops, registers) == [CALLER, 7, 512, MASK]
    assert run(program.exit_ops, {RAX: -1}) == [MASK]
    assert program.entry_layout == (
        ("caller", "caller"),
        ("fd", "i32"),
        ("count", "u64"),
        ("offset", "i64"),
    )


def test_a_path_and_one_that_cannot_be_read(run: Run) -> None:
    program = program_of(FUNCTIONS["open"])
    text = ctypes.create_string_buffer(b"/var/log/messages")
    words = run(program.entry_ops, {RDI: ctypes.addressof(text), RSI: 0o100})
    data = b"".join(word.to_bytes(8, "little") for word in words[1:17])
    assert len(words) == program.entry_words == 18
    assert data.rstrip(b"\0") == b"/var/log/messages"
    assert words[17] == 0o100
    words = run(program.entry_ops, {RDI: 8, RSI: 0})
    assert words[1] == int.from_bytes(b"<fault>\0", "little")


def test_results_of_int_functions_have_their_sign(run: Run) -> None:
    program = program_of(FUNCTIONS["close"])
    assert run(program.exit_ops, {RAX: 0xFFFFFFFF}) == [MASK]


def test_a_set_of_signals_and_none(run: Run) -> None:
    program = program_of(FUNCTIONS["pthread_sigmask"])
    signals = ctypes.c_uint64(0x4002)
    at = ctypes.addressof(signals)
    assert run(program.entry_ops, {RDI: 2, RSI: at}) == [CALLER, 2, at, 0x4002]
    assert run(program.entry_ops, {RDI: 2, RSI: 0}) == [CALLER, 2, 0, 0]


def test_copies_name_where_they_go(run: Run) -> None:
    program = program_of(FUNCTIONS["copy_file_range"])
    registers = {RDI: 3, RSI: 0, RDX: 4, RCX: 0, R8: 100}
    assert run(program.entry_ops, registers) == [CALLER, 4, 3, 100]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_every_function_has_a_program_that_fits(run: Run, function: Function) -> None:
    program = program_of(function)
    assert len(program.entry_ops) // OP_BYTES <= MOST_OPS
    assert len(run(program.entry_ops, {})) == program.entry_words <= MOST_WORDS
    assert len(run(program.exit_ops, {})) == program.exit_words == 1
