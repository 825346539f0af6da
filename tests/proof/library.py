# SPDX-License-Identifier: Apache-2.0
"""The shared library of native/tests/proof.h: the shipped engine, fake memory, the fetch model."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from batches import Mode, Windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batches import Batch, Code, Site

LIBRARY = Path(__file__).parents[2] / "build/proof/native/tests/libproof.so"


class _Code(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_ubyte * 16),
        ("reach", ctypes.c_int64),
        ("starts", ctypes.c_uint16),
        ("pops", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("condition", ctypes.c_uint8),
        ("heads", ctypes.c_uint8),
        ("padding", ctypes.c_uint8),
    )


class _Site(ctypes.Structure):
    _fields_ = (
        ("offset", ctypes.c_uint32),
        ("len", ctypes.c_uint8),
        ("is_null", ctypes.c_uint8),
        ("has_handler", ctypes.c_uint8),
        ("is_busy", ctypes.c_uint8),
        ("code", _Code * 2),
        ("copies", ctypes.c_uint8 * 5),
        ("is_one", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 2),
    )


class _Settings(ctypes.Structure):
    _fields_ = (
        ("pages", ctypes.c_uint32),
        ("window_pages", ctypes.c_uint32),
        ("all_or_nothing", ctypes.c_uint8),
        ("has_finish", ctypes.c_uint8),
        ("has_predicate", ctypes.c_uint8),
        ("mode", ctypes.c_uint8),
        ("leave_busy", ctypes.c_uint8),
        ("is_blind", ctypes.c_uint8),
    )


COUNTS = (
    "runs",
    "turns",
    "single_faults",
    "double_faults",
    "stranger_writes",
    "refusals",
    "broken",
    "inside",
    "left",
    "operations",
    "mixes",
    "positions",
    "traps",
    "late_traps",
    "heads",
    "head_traps",
    "late_head_traps",
    "looks",
    "busy",
)


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in COUNTS)


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ.get("TP_PROOF_LIBRARY", str(LIBRARY)))
    library.proof_open.restype = ctypes.c_void_p
    library.proof_open.argtypes = (
        ctypes.POINTER(_Settings),
        ctypes.POINTER(_Site),
        ctypes.c_size_t,
    )
    library.proof_close.restype = None
    library.proof_close.argtypes = (ctypes.c_void_p,)
    library.proof_count.restype = ctypes.POINTER(_Counts)
    library.proof_count.argtypes = (ctypes.c_void_p,)
    library.proof_controls.restype = ctypes.c_size_t
    library.proof_control_name.restype = ctypes.c_char_p
    library.proof_control_name.argtypes = (ctypes.c_size_t,)
    library.proof_control_is_wrong.restype = ctypes.c_bool
    library.proof_control_is_wrong.argtypes = (ctypes.c_size_t,)
    library.proof_control_batch.restype = ctypes.c_uint32
    library.proof_control_batch.argtypes = (ctypes.c_size_t,)
    library.proof_control_windows.restype = ctypes.c_uint32
    library.proof_control_windows.argtypes = (ctypes.c_size_t,)
    library.proof_some_in_turn.restype = ctypes.c_char_p
    library.proof_some_in_turn.argtypes = (
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_uint32),
        ctypes.c_size_t,
    )
    for name, arguments in (
        ("there_and_back", 1),
        ("single_faults", 0),
        ("double_faults", 2),
        ("strangers", 0),
        ("control", 1),
    ):
        function = getattr(library, f"proof_{name}")
        function.restype = ctypes.c_char_p
        function.argtypes = (ctypes.c_void_p, *[ctypes.c_size_t] * arguments)
    return library


_LIBRARY = _load()


class Control(NamedTuple):
    """One control: is its engine a wrong one, that must be caught, and what batch does it take?"""

    name: str
    wrong: bool
    mode: Mode
    windows: Windows


def controls() -> list[Control]:
    """Return every control, by number."""
    return [
        Control(
            _LIBRARY.proof_control_name(i).decode(),
            _LIBRARY.proof_control_is_wrong(i),
            Mode(_LIBRARY.proof_control_batch(i)),
            Windows(_LIBRARY.proof_control_windows(i)),
        )
        for i in range(_LIBRARY.proof_controls())
    ]


def _code(code: Code, window: bool) -> _Code:
    filled = (ctypes.c_ubyte * 16)(*code.data)
    starts = sum(1 << at for at in code.starts)
    heads = starts & ~1 if window else 0
    return _Code(filled, code.reach, starts, code.pops, code.kind, code.condition, heads)


def _sites(sites: Sequence[Site]) -> ctypes.Array[_Site]:
    array = (_Site * max(len(sites), 1))()
    for i, site in enumerate(sites):
        window = bool(site.copies)
        both = (_Code * 2)(_code(site.old, window), _code(site.new, window))
        copies = (ctypes.c_uint8 * 5)(*site.copies)
        length = len(site.old.data)
        array[i] = _Site(
            site.offset, length, site.null, site.handler, site.busy, both, copies, site.one
        )
    return array


class Violation(AssertionError):
    """The engine, or a proof about it, is wrong."""


class Proof:
    """One batch on fake memory; every method raises Violation, close() gives the counts."""

    def __init__(self, batch: Batch) -> None:
        settings = _Settings(
            batch.pages,
            batch.window_pages,
            batch.all_or_nothing,
            batch.finish,
            batch.predicate,
            batch.mode,
            batch.leave_busy,
            batch.blind,
        )
        self.batch = batch
        self._proof = _LIBRARY.proof_open(settings, _sites(batch.sites), len(batch.sites))

    def close(self) -> dict[str, int]:
        counts = _LIBRARY.proof_count(self._proof).contents
        found = {name: getattr(counts, name) for name in COUNTS}
        _LIBRARY.proof_close(self._proof)
        return found

    def _hold(self, text: bytes | None) -> None:
        if text is not None:
            raise Violation(f"{text.decode()}\n{self.batch}")

    def there_and_back(self, turns: int) -> None:
        self._hold(_LIBRARY.proof_there_and_back(self._proof, turns))

    def some_in_turn(self, masks: Sequence[int]) -> None:
        array = (ctypes.c_uint32 * max(len(masks), 1))(*masks)
        self._hold(_LIBRARY.proof_some_in_turn(self._proof, array, len(masks)))

    def single_faults(self) -> None:
        self._hold(_LIBRARY.proof_single_faults(self._proof))

    def double_faults(self, stride: int, phase: int) -> None:
        self._hold(_LIBRARY.proof_double_faults(self._proof, stride, phase))

    def strangers(self) -> None:
        self._hold(_LIBRARY.proof_strangers(self._proof))

    def control(self, number: int) -> str:
        """Return what was found wrong with control @number; empty: nothing."""
        text = _LIBRARY.proof_control(self._proof, number)
        return text.decode() if text else ""
