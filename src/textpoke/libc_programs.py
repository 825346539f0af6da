# SPDX-License-Identifier: Apache-2.0
"""The words of libc's functions as programs for the agent: what `-A` makes by DWARF, by ABI."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from textpoke._native import lib
from textpoke.arguments import CaptureProgram
from textpoke.payload import words_of

if TYPE_CHECKING:
    from textpoke.libc_calls import Function, Word

_OP = struct.Struct("<8B2H5i")
_ARGUMENTS = (5, 4, 1, 2, 8, 9)  # rdi, rsi, rdx, rcx, r8, r9 as DWARF counts them
_RAX = 0
_NARROW_BITS = {"i32": 32, "u32": 32}


def program_of(function: Function) -> CaptureProgram:
    """What the agent runs when a function is entered, and when it returns."""
    return CaptureProgram(
        entry_ops=b"".join(map(_op, function.entry)),
        exit_ops=b"".join(map(_op, function.exit)),
        entry_layout=tuple((word.name, word.kind) for word in function.entry),
        exit_layout=tuple((word.name, word.kind) for word in function.exit),
    )


def _op(word: Word) -> bytes:
    source, number = lib.TP_CAPTURE_GPR, _RAX
    if word.source == "caller":
        source, number = lib.TP_CAPTURE_CALLER, 0
    elif word.source != "result":
        number = _ARGUMENTS[int(word.source[-1]) - 1]
    what, size, most = lib.TP_CAPTURE_VALUE, 8, 0
    if word.source.startswith("*"):
        what = lib.TP_CAPTURE_LOAD
    if word.kind.startswith("str:"):
        what, size, most = lib.TP_CAPTURE_STRING, 0, 8 * words_of(word.kind)
    width = 0 if most else _NARROW_BITS.get(word.kind, 64)
    flags = lib.TP_CAPTURE_SIGNED if word.kind.startswith("i") else 0
    return _OP.pack(source, number, 0, what, size, 0, width, flags, most, 0, 0, 0, 0, 0, 0)
