# SPDX-License-Identifier: Apache-2.0
"""A program of N tiny functions with compiler NOPs, called round robin by T hot threads."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "bench"
CHUNK = 4096  # calls between two looks at the quota, as in many.c
ENDLESS = 1 << 63

# How the NOPs come about. -mnop-mcount works without PIE only; a NOP run of a program that is not
# PIE has no room for landing pads and must be merged first.
KINDS = {
    "nop-run": ("-fpatchable-function-entry=5", "-fPIE", "-pie"),
    "nop5": ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-fno-pie", "-no-pie"),
    "merged": ("-fpatchable-function-entry=5", "-fno-pie", "-no-pie"),
}
# What other tracers need; bench/peers.py.
PEERS = {
    "bare": ("-fno-pie", "-no-pie"),
    "pg": ("-pg", "-fno-pie", "-no-pie"),
    "fentry": ("-pg", "-mfentry", "-fno-pie", "-no-pie"),
    "instrument-empty": ("-finstrument-functions", "-fno-pie", "-no-pie"),
    "instrument-record": ("-finstrument-functions", "-fno-pie", "-no-pie"),
}
_HOOKS = {"instrument-empty": (), "instrument-record": ("-DRECORD",)}  # compiled from hooks.c
_LINK_ONLY = ("-pie", "-no-pie")
_PAGE_BYTES = 4096
_HEAD = struct.Struct("<QQQ104x")
_TALLY = struct.Struct("<QQQQQQ80x")
_READ_TRIES = 1000
_READ_PAUSE_S = 0.0002
_START_S = 10.0
_PIECE = 2500  # functions in one file, so that all cores compile


def functions_source(first: int, last: int) -> str:
    """C text of the functions from f<first> to before f<last>; f3 adds 3 to what it gets."""
    lines = [f"unsigned f{i}(unsigned x) {{ return x + {i}u; }}" for i in range(first, last)]
    return "\n".join([*lines, ""])


def table_source(count: int) -> str:
    """C text of the table of all functions."""
    declared = "\n".join(f"unsigned f{i}(unsigned);" for i in range(count))
    names = ",\n".join(f"f{i}" for i in range(count))
    table = f"unsigned (*const table[])(unsigned) = {{\n{names}\n}};"
    return "\n".join([declared, table, f"const unsigned table_size = {count}u;", ""])


def build(kind: str, count: int) -> Path:
    """The program with `count` functions; compiled once, until this directory changes."""
    program = BUILD / "targets" / f"many-{kind}-{count}"
    sources = (HERE / "many.c", HERE / "hooks.c", __file__)
    newest = max(os.path.getmtime(path) for path in sources)
    if program.exists() and program.stat().st_mtime > newest:
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = (KINDS | PEERS)[kind]
    code = [flag for flag in flags if flag not in _LINK_ONLY]
    link = [flag for flag in flags if flag in _LINK_ONLY]
    plain = [flag for flag in code if "pie" in flag.lower()]
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        pieces = _write_pieces(folder, count)
        jobs = [(*code, "-c", piece, "-o", f"{piece}.o") for piece in pieces]
        jobs += [(*plain, "-c", str(HERE / "many.c"), "-o", f"{folder}/many.o")]
        jobs += [(*plain, "-c", f"{folder}/table.c", "-o", f"{folder}/table.o")]
        if kind in _HOOKS:
            hooks = (*plain, *_HOOKS[kind], "-c", str(HERE / "hooks.c"))
            jobs += [(*hooks, "-o", f"{folder}/hooks.o")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_gcc, jobs))
        objects = [job[-1] for job in jobs]
        _gcc([*link, "-pthread", *objects, "-o", f"{folder}/program"])
        os.replace(f"{folder}/program", program)
    return program


def _write_pieces(folder: str, count: int) -> list[str]:
    pieces = []
    for first in range(0, count, _PIECE):
        pieces.append(f"{folder}/functions-{first}.c")
        text = functions_source(first, min(first + _PIECE, count))
        Path(pieces[-1]).write_text(text, encoding="ascii")
    Path(f"{folder}/table.c").write_text(table_source(count), encoding="ascii")
    return pieces


def _gcc(words: Sequence[str]) -> None:
    subprocess.run(["gcc", "-O2", *words], check=True)


@dataclass(frozen=True, slots=True)
class Tally:
    """One thread's counts; `clock_calls` of its calls had cost `clock_ns` of CPU time."""

    calls: int
    value: int
    clock_calls: int
    clock_ns: int
    tid: int


class Many:
    """A running program; a context manager that ends it.

    Args:
        kind: How it is compiled, a key of `KINDS` or `PEERS`.
        sites: Tiny functions.
        threads: Hot threads; they run without a break unless `quota` says otherwise.
        quota: Calls that each thread may make at first.
        under: A command that runs the program.
    """

    def __init__(
        self,
        kind: str,
        sites: int,
        threads: int,
        *,
        quota: int = ENDLESS,
        under: Sequence[str] = (),
    ) -> None:
        self.kind, self.sites, self.threads = kind, sites, threads
        self._under = under
        self.program = build(kind, sites)
        self._given = quota

    def __enter__(self) -> Self:
        # Not a file on disk: its writeback would stop the hot threads now and then.
        fd = os.memfd_create("many")
        os.ftruncate(fd, _PAGE_BYTES)
        os.pwrite(fd, _HEAD.pack(self._given, 0, 0), 0)
        self._map = mmap.mmap(fd, _PAGE_BYTES)
        words = [*self._under, str(self.program), f"/proc/self/fd/{fd}", str(self.threads)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd]
        )
        os.close(fd)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise RuntimeError(f"{self.program.name} did not start")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate(timeout=_START_S)
        self.process.kill()
        self.process.wait()
        self._map.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def pattern(self) -> str:
        """What chooses the tiny functions and nothing else."""
        return f"{self.program.name}!f*"

    def tally(self, thread: int) -> Tally:
        """What one thread has counted, without disturbing it."""
        offset = _HEAD.size + thread * _TALLY.size
        for _ in range(_READ_TRIES):
            seq, *rest = _TALLY.unpack_from(self._map, offset)
            if seq % 2 == 0 and _TALLY.unpack_from(self._map, offset)[0] == seq:
                return Tally(*rest)
            time.sleep(_READ_PAUSE_S)  # the thread may have lost its processor while it wrote
        raise RuntimeError(f"thread {thread} of pid {self.pid} does not stop writing")

    def tallies(self) -> list[Tally]:
        """What every thread has counted."""
        return [self.tally(i) for i in range(self.threads)]

    def calls(self) -> int:
        """Calls of all threads so far."""
        return sum(tally.calls for tally in self.tallies())

    def give(self, calls: int) -> None:
        """Let each thread make this many calls more, then idle; a multiple of CHUNK."""
        assert calls % CHUNK == 0
        assert self._given != ENDLESS
        self._given += calls
        struct.pack_into("<Q", self._map, 0, self._given)

    def all_idle(self) -> bool:
        """True when every thread has used up its quota and has said so with its CPU time."""
        return all(tally.clock_calls == self._given for tally in self.tallies())

    def wait_idle(self, timeout_s: float = 120.0) -> None:
        """Wait until `all_idle`."""
        deadline = time.monotonic() + timeout_s
        while not self.all_idle():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"pid {self.pid} does not come to the end of its quota")
            time.sleep(0.0005)

    def wrong_threads(self) -> list[int]:
        """Threads whose calls did not all happen exactly once: f0 to f(N-1) add 0 to N-1."""
        lap = self.sites * (self.sites - 1) // 2
        wrong = []
        for tally in self.tallies():
            laps, rest = divmod(tally.calls, self.sites)
            if (laps * lap + rest * (rest - 1) // 2 - tally.value) % (1 << 32):
                wrong.append(tally.tid)
        return wrong
