# SPDX-License-Identifier: Apache-2.0
"""How fast a capture is read: events decoded, entries and exits paired, in millions a second."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import common
import numpy as np
from common import Goal, figure, median

from textpoke.calls import Pairing
from textpoke.capture import Capture, CaptureWriter
from textpoke.decode import Decoder
from textpoke.packing import Packer
from textpoke.payload import Field, Layout, layouts_json
from textpoke.report.times import times
from textpoke.streams import RawBlock

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

ABOUT = """
A capture is made of nested calls of many functions by two threads, who take turns every 64 Ki
events, as a drain leaves them, packed; it is read once before the clock starts, so the file is in
memory. One process, one thread; its own CPU time counts, so others may want the CPU too.

  decode   columns of times, threads and sites (function captures are counted this way)
  sums     entries and exits paired, times added up by function: `textpoke report`
  columns  a row for every call: what analysers and --tree read
  table    everything that `textpoke report` computes, from opening the file

plain: entries and exits; payload: every call with two words at its entry and one at its exit.
"""
GOAL_MEPS = 20.0
_BLOCK_EVENTS = 1 << 16
_THREADS = 2
_SITES = 4000
_DEPTH = 8
_FIRST = 0x401000
_ENTRY, _EXIT, _DATA = 1, 2, 3
_TSC = 1_000_000
_LAYOUT = Layout((Field("a", "u64"), Field("b", "ptr")), (Field("ret", "i32"),))


@dataclass(slots=True)
class Row:
    """One way to read one capture."""

    capture: str
    what: str
    events: int
    seconds: list[float] = field(default_factory=list)

    def meps(self) -> float:
        return self.events / median(self.seconds) / 1e6

    def cells(self) -> list[str]:
        ns = 1e3 / self.meps()
        return [self.capture, self.what, f"{self.events:,}", figure(self.meps()), figure(ns)]

    def as_dict(self) -> dict[str, object]:
        return {
            "capture": self.capture,
            "what": self.what,
            "events": self.events,
            "seconds": self.seconds,
            "million_events_per_s": self.meps(),
        }


HEAD = ("capture", "what", "events", "M events/s", "ns/event")


def thread_events(count: int, seed: int, *, payload: bool) -> NDArray[np.uint64]:
    """Calls that nest to a depth of eight and come back, at random sites; (n, 2) words."""
    rng = np.random.default_rng(seed)
    each = 5 if payload else 2
    calls = count // each // _DEPTH * _DEPTH
    sites = _FIRST + 16 * rng.integers(0, _SITES, (calls // _DEPTH, _DEPTH), dtype=np.uint64)
    down = sites << np.uint64(16) | np.uint64(_ENTRY)
    up = sites[:, ::-1] << np.uint64(16) | np.uint64(_EXIT)
    if payload:
        heads = [0x200, 0x201], [0x10100]
        down, up = (_with_data(w, h) for w, h in zip((down, up), heads, strict=True))
    words = np.concatenate([down, up], axis=1).reshape(-1)
    ticks = np.cumsum(rng.integers(20, 400, len(words), dtype=np.uint64)) + np.uint64(_TSC)
    return np.stack([ticks, words], axis=1)


def _with_data(words: NDArray[np.uint64], heads: list[int]) -> NDArray[np.uint64]:
    data = [np.full_like(words, head << 16 | _DATA) for head in heads]
    return np.stack([words, *data], axis=2).reshape(len(words), -1)


def make(path: Path, events: int, *, payload: bool) -> int:
    """Write the capture. Returns how many events it holds."""
    threads = [thread_events(events // _THREADS, i, payload=payload) for i in range(_THREADS)]
    last = max(int(rows[-1, 0]) for rows in threads if len(rows))
    addresses = [_FIRST + 16 * i for i in range(_SITES)]
    clock = {"tsc": _TSC, "monotonic_ns": 0, "realtime_ns": 0}
    meta: dict[str, object] = {
        "tracer": "function_graph",
        "mode": "drop",
        "clock": clock,
        "sites": [[address, "many", f"f{i}"] for i, address in enumerate(addresses)],
    }
    if payload:
        meta["layouts"] = layouts_json(dict.fromkeys(addresses, _LAYOUT))
    packer = Packer()
    with CaptureWriter(path) as writer:
        writer.meta(meta)
        for start in range(0, max(map(len, threads)), _BLOCK_EVENTS):
            for i, rows in enumerate(threads):
                part = rows[start : start + _BLOCK_EVENTS]
                RawBlock(part, 100 + i, i, sequence=start).write(writer.fd, packer)
        ticks = last - _TSC
        writer.end({"clock": {"tsc": last, "monotonic_ns": ticks // 3, "realtime_ns": 0}})
    return sum(map(len, threads))


def read_decoded(path: Path) -> None:
    with Capture(path) as capture:
        decoder = Decoder(capture)
        for tid in decoder.tids:
            for _ in decoder.thread(tid):
                pass


def read_sums(path: Path) -> None:
    with Capture(path) as capture:
        pairing = Pairing(capture, with_sums=True)
        for tid in pairing.decoder.tids:
            pairing.take_thread(tid)
        pairing.sums()


def read_columns(path: Path) -> None:
    with Capture(path) as capture:
        pairing = Pairing(capture)
        for tid in pairing.decoder.tids:
            Pairing(capture, pairing.decoder).columns([tid])


def read_table(path: Path) -> None:
    with Capture(path) as capture:
        times(capture)


READERS: dict[str, Callable[[Path], None]] = {
    "decode": read_decoded,
    "sums": read_sums,
    "columns": read_columns,
    "table": read_table,
}


def measure(path: Path, name: str, events: int, rounds: int) -> list[Row]:
    """Every reader, taking turns, after one round that only warms up."""
    rows = [Row(name, what, events) for what in READERS]
    for turn in range(rounds + 1):
        for row in rows:
            start = time.process_time()
            READERS[row.what](path)
            if turn:
                row.seconds.append(time.process_time() - start)
    return rows


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "decode")
    made.add_argument("--events", type=int, metavar="N", help="20,000,000 (quick: 1,000,000)")
    made.add_argument("--rounds", type=int, metavar="COUNT", help="of every reader (5, quick: 2)")
    return made.parse_args()


def main() -> int:
    """Measure both captures."""
    args = arguments()
    events = args.events or (1_000_000 if args.quick else 20_000_000)
    facts = common.machine()
    common.say_machine(facts)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ("plain", "payload"):
            path = Path(directory) / f"{name}.tptrace"
            count = make(path, events, payload=name == "payload")
            rows += measure(path, name, count, args.rounds or (2 if args.quick else 5))
            path.unlink()
    print("\n" + common.table(HEAD, [row.cells() for row in rows]))
    aims = [
        Goal(f"{row.capture}, {row.what}", row.meps(), GOAL_MEPS, "M events/s", at_least=True)
        for row in rows
        if row.what in ("sums", "columns")
    ]
    common.say_goals(aims)
    result = {"machine": facts, "quick": args.quick, "rows": [row.as_dict() for row in rows]}
    result["goals"] = [goal.as_dict() for goal in aims]
    common.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
