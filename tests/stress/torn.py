# SPDX-License-Identifier: Apache-2.0
"""The torn-execution target from the tool's side: build it, start it, toggle it, count."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torn_sites

from textpoke.engine import run_request
from textpoke.poke import Outcome, Poke, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from textpoke import Target

TARGETS = Path(__file__).parent.parent / "targets"
UNSURE, OLD, NEW = 0, 1, 2
PATIENCE_S = 60.0


def _arrays(**sizes: int) -> list[tuple[str, str, int]]:
    return [(name, "u1", size) for name, size in sizes.items()]


_SLOT = np.dtype(
    [
        ("entry", "<u8"),
        ("site", "<u8"),
        ("handler", "<u8"),
        ("len", "u1"),
        ("kind", "u1"),
        *_arrays(new=15, rest=23),
    ]
)
_TALLY = np.dtype(
    [(name, "<u8") for name in ("made", "old", "new", "torn", "stale", "done_old", "done_new")]
    + [(name, "<u8") for name in ("traced_unsure", "traced_off", "traced_on", "traced_wrong")]
    + [(name, "<u8") for name in ("bad_site", "bad_result", "bad_word", "rounds", "tid")]
    + [("rest", "<u8", 16)]
)
_POKE = np.dtype(  # struct tp_poke of native/include/wire.h
    [
        ("addr", "<u8"),
        ("handler", "<u8"),
        ("target", "<u8"),
        ("index", "<u4"),
        ("len", "u1"),
        ("flags", "u1"),
        ("outcome", "u1"),
        ("emulate", "u1"),
        *_arrays(old=16, new=16),
    ]
)
_HEADER_BYTES, _MOST_THREADS, _MOST_SITES = 4096, 64, 16384
_WORDS_AT = _HEADER_BYTES + _MOST_THREADS * _TALLY.itemsize
_SLOTS_AT = _WORDS_AT + 4 * _MOST_SITES
_BOARD_BYTES = _SLOTS_AT + _MOST_SITES * _SLOT.itemsize


def _poke(row: np.void) -> Poke:
    size = int(row["len"])
    old, new = row["old"][:size].tobytes(), row["new"][:size].tobytes()
    return Poke(int(row["addr"]), old, new, int(row["handler"]))


def build(directory: Path, copies: int) -> Path:
    """Compile the target with `copies` sites of each kind at each place in a cache line."""
    program = directory / f"torn-{copies}"
    assembly = directory / f"torn-{copies}.S"
    directory.mkdir(parents=True, exist_ok=True)
    assembly.write_text(torn_sites.assembly(copies), encoding="ascii")
    command = ["gcc", "-O2", "-g", "-fPIE", "-pie", str(TARGETS / "torn.c"), str(assembly)]
    subprocess.run([*command, "-o", f"{program}.{os.getpid()}", "-pthread"], check=True)
    os.replace(f"{program}.{os.getpid()}", program)
    return program


class Violation(Exception):
    """What must never be was seen."""


@dataclass
class Counts:
    """Everything that was done to a target and seen in it, added up."""

    site_pokes: int = 0
    batches: int = 0
    syncs: int = 0
    writes: int = 0
    traps: int = 0
    late_traps: int = 0
    undrained: int = 0
    calls: int = 0
    torn: int = 0
    lost_calls: int = 0
    stale: int = 0
    traced_calls: int = 0
    events: int = 0
    lost_events: int = 0
    trace_rounds: int = 0
    attaches: int = 0
    crashes: int = 0
    violations: list[str] = field(default_factory=list)

    def note(self, outcome: Outcome) -> None:
        """Add what a batch did."""
        self.site_pokes += outcome.finished
        self.batches += 1
        for name in ("syncs", "writes", "traps", "late_traps", "undrained"):
            setattr(self, name, getattr(self, name) + int(getattr(outcome, name)))

    def add(self, other: Counts) -> None:
        """Add another run's counts."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Sites:
    """The sites of a running target, to be turned.

    Attributes:
        pid: The process.
        slots: What it can be made to do, one row a site.
        tallies: What its threads have counted.
        state: OLD or NEW for every site, as the last batch left it.
    """

    def __init__(self, pid: int, path: str) -> None:
        self.pid = pid
        self.path = path
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BOARD_BYTES)
        self._head = np.frombuffer(self._map, "<u8", 6)
        self.tallies = np.frombuffer(self._map, _TALLY, _MOST_THREADS, _HEADER_BYTES)
        count = int(self._head[0])
        self._words = np.frombuffer(self._map, "<u4", count, _WORDS_AT)
        self.slots = np.frombuffer(self._map, _SLOT, count, _SLOTS_AT).copy()
        self.state = np.full(count, OLD, "u1")
        self._change = random.getrandbits(28)  # others may write words too: never the same ones
        self._pairs = self._read_pairs()
        self._pokes = [[_poke(row) for row in way] for way in self._pairs]

    def _read_pairs(self) -> np.ndarray:
        """Records that turn each site from OLD (row 0) to NEW, and from NEW (row 1) to OLD."""
        rows = np.zeros((2, len(self.slots)), _POKE)
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for i, slot in enumerate(self.slots):
                size = int(slot["len"])
                old = os.pread(memory.fileno(), size, int(slot["site"]))
                rows["old"][0, i, :size] = rows["new"][1, i, :size] = np.frombuffer(old, "u1")
                rows["new"][0, i, :size] = rows["old"][1, i, :size] = slot["new"][:size]
        for name, source in (("addr", "site"), ("handler", "handler"), ("len", "len")):
            rows[name][:] = self.slots[source]
        return rows

    def request(self, chosen: np.ndarray) -> Request:
        """The batch that turns each chosen site to what it is not."""
        rows = self._pairs[(self.state[chosen] == NEW).astype("u1"), chosen]
        rows["index"] = np.arange(len(chosen))
        pokes = [self._pokes[int(self.state[i] == NEW)][i] for i in chosen]
        return Request(tuple(pokes), rows.tobytes())

    def toggle(self, target: Target, chosen: np.ndarray, counts: Counts) -> Outcome:
        """Turn the chosen sites; calls meanwhile may show either instruction."""
        request = self.request(chosen)
        self.say(chosen, sure=False)
        outcome = run_request(target.agent, request)
        self._done(chosen, outcome, counts)
        return outcome

    def toggle_queued(self, target: Target, chosen: np.ndarray, counts: Counts) -> Outcome:
        """The same through the public `target.batch()`."""
        batch = target.batch()
        for i in chosen:
            row = self._pairs[int(self.state[i] == NEW), i]
            size, handler = int(row["len"]), int(row["handler"])
            old, new = row["old"][:size].tobytes(), row["new"][:size].tobytes()
            batch.queue(int(row["addr"]), new, old, handler=handler)
        self.say(chosen, sure=False)
        outcome = batch.commit()
        self._done(chosen, outcome, counts)
        return outcome

    def _done(self, chosen: np.ndarray, outcome: Outcome, counts: Counts) -> None:
        self.state[chosen] = OLD + NEW - self.state[chosen]
        self.say(chosen, sure=True)
        counts.note(outcome)
        if outcome.finished != len(chosen) or outcome.conflicts:
            raise Violation(f"a batch of {len(chosen)} sites ended as {outcome}")

    def handled_and_new(self) -> np.ndarray:
        """Sites that are new and whose traps go to a handler."""
        return np.flatnonzero((self.slots["handler"] != 0) & (self.state == NEW))

    def emulated(self) -> np.ndarray:
        """Sites whose traps go to no handler: any tool can undo them."""
        return np.flatnonzero(self.slots["handler"] == 0)

    def is_old(self) -> None:
        """Every site is as it was (after a detach)."""
        self.state[:] = OLD
        self.say(np.arange(len(self.state)), sure=True)
        self.say_traced(OLD)

    def is_unsure(self) -> None:
        """Before somebody undoes what was left."""
        self.say(np.arange(len(self.state)), sure=False)
        self.say_traced(UNSURE)

    def say(self, chosen: np.ndarray, *, sure: bool) -> None:
        """Tell the threads what to expect at the chosen sites: `state`, or either."""
        self._change += 1
        words = np.full(len(chosen), self._change * 4 % 2**32, "<u4")
        if sure:
            words += self.state[chosen]
        self._words[chosen] = words

    def say_traced(self, state: int) -> None:
        """The tracer is off (OLD), on (NEW), or on its way (UNSURE)."""
        self._change += 1
        self._head[5] = self._change * 4 + state

    def traced(self) -> tuple[int, int, int]:
        """Calls of the tracer's functions: unsure, off, on."""
        names = ("traced_unsure", "traced_off", "traced_on")
        return tuple(int(self.tallies[name].sum()) for name in names)  # type: ignore[return-value]

    def wrong(self) -> bool:
        """Whether a thread has seen what must never be."""
        return any(bool(self.tallies[n].any()) for n in ("torn", "stale", "traced_wrong"))


class Torn(Sites):
    """A running target with hot threads; a context manager that ends it.

    Attributes:
        process: The program.
        threads: How many run.
    """

    def __init__(self, program: Path, threads: int, *, life_s: int = 110) -> None:
        handle, path = tempfile.mkstemp(prefix="torn-", dir=program.parent)
        os.close(handle)
        self.process = subprocess.Popen(
            [str(program), path, str(life_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.threads = threads
        if self._hear() != "ready":
            raise RuntimeError("the torn target cannot prepare its sites")
        super().__init__(self.process.pid, path)
        self.is_old()
        self.tell(f"run {threads}")
        if self._hear() != "running":
            raise RuntimeError("the torn target does not run")
        deadline = time.monotonic() + PATIENCE_S
        # A newborn thread has all signals blocked until it runs for the first time.
        while not self.tallies["rounds"][:threads].all() and time.monotonic() < deadline:
            time.sleep(0.001)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
        os.unlink(self.path)

    @property
    def alive(self) -> bool:
        """Whether it runs on."""
        return self.process.poll() is None

    def tell(self, line: str) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No thread calls anything."""
        self._head[3] = 1
        self._wait(self.threads)
        yield
        self._head[3] = 0
        self._wait(0)

    def _wait(self, held: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while int(self._head[4]) != held:
            if not self.alive:
                raise Violation(f"the target ended: {self.process.returncode}")
            if time.monotonic() > deadline:
                raise Violation("a thread of the target does not come to rest, or does not go on")
            time.sleep(0.0005)

    def finish(self, counts: Counts) -> None:
        """End the threads, add their counts, check them."""
        if self.alive:
            with contextlib.suppress(OSError):
                self.tell("stop")
            if self._hear() != "end":
                self.process.wait()
        if not self.alive:
            counts.crashes += 1
            counts.violations.append(f"the target ended with {self.process.returncode}")
        self._sum(counts)

    def _sum(self, counts: Counts) -> None:
        t = {name: int(self.tallies[name].sum()) for name in _TALLY.names[:11]}
        counts.calls += t["made"]
        counts.torn += t["torn"]
        counts.stale += t["stale"]
        counts.lost_calls += abs(t["made"] - t["old"] - t["new"] - t["torn"])
        counts.traced_calls += t["traced_unsure"] + t["traced_off"] + t["traced_on"]
        if t["torn"] or t["stale"]:
            for row in self.tallies[(self.tallies["torn"] + self.tallies["stale"]) > 0]:
                counts.violations.append(self._blame(row))
        if self.alive and (t["done_old"], t["done_new"]) != (t["old"], t["new"]):
            counts.lost_calls += abs(t["done_old"] - t["old"]) + abs(t["done_new"] - t["new"])
            counts.violations.append(f"executed and returned do not agree: {t}")
        if t["traced_wrong"]:
            counts.violations.append(f"{t['traced_wrong']} wrong results of traced functions")

    def _blame(self, row: np.void) -> str:
        number = int(row["bad_site"])
        slot = self.slots[number]
        kind = torn_sites.kinds()[int(slot["kind"])].name
        return (
            f"thread {row['tid']}: {row['torn']} torn, {row['stale']} stale; first: slot {number} "
            f"({kind}) at {int(slot['site']):#x} gave {int(row['bad_result']):#x}, "
            f"word {int(row['bad_word']):#x}"
        )


class Chooser:
    """Which sites come next: all, many, a stretch, few; from a seed."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._random = random.Random(seed)
        self._numpy = np.random.default_rng(seed)

    def next(self) -> np.ndarray:
        """Site numbers, in no order."""
        what = self._random.random()
        if what < 0.4:
            return np.arange(self._count)
        if what < 0.7:
            return np.flatnonzero(self._numpy.random(self._count) < self._random.random())
        size = self._random.randint(1, self._count if what < 0.9 else 8)
        start = self._random.randrange(self._count)
        return (start + np.arange(size)) % self._count
