# SPDX-License-Identifier: Apache-2.0
"""A capture of a hundred million events: written as fast as rings fill, small, and read at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import common
import numpy as np
import zstandard
from common import Goal, figure
from subject import CHUNK, Subject, complaints

from textpoke.capture import Capture
from textpoke.decode import Decoder
from textpoke.packing import MOST_EVENTS, Packer, Unpacker

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

ABOUT = """
One thread calls a thousand tiny functions round robin as fast as it can, under function (an event a
call) and under function_graph (two). First its rings overwrite and nobody reads them: ring speed.
Then all goes to a capture, drained and packed while the thread runs.

  M ev/s     events by second of the clock, written by the thread
  of ring    the capture's rate by that of the rings alone: 1 is ring speed
  lost       events that did not fit into the ring
  B/event    of the capture; an event in a ring has 16
  open s     from nothing to names, losses and all blocks known
  decode     M events/s of CPU time into columns, one process and one thread
  peak MiB   of that process, the interpreter and numpy included

Then the packing itself, beside general compressors on the same events (a sample): M events/s there
and back, and bytes an event.
"""
_EVENTS = 100_000_000
_RING = 1 << 26
_SITES = 1000
_DRAIN_S = 0.0005
_SAMPLE = 1 << 21
_EACH = {"function": 1, "function_graph": 2}

READ = r"""
import re, sys, time
from textpoke.capture import Capture
from textpoke.decode import Decoder
start = time.perf_counter()
with Capture(sys.argv[1]) as capture:
    decoder = Decoder(capture)
    opened = time.perf_counter() - start
    start = time.process_time()
    events = sum(len(chunk) for tid in decoder.tids for chunk in decoder.thread(tid))
    spent = time.process_time() - start
# ru_maxrss would count what the process before the exec had.
peak = re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read()).group(1)
print(opened, spent, events, int(peak) / 1024)
"""


@dataclass(slots=True)
class Row:
    """One tracer's capture."""

    tracer: str
    events: int
    lost: int
    ring_meps: float
    meps: float
    bytes_per_event: float
    open_s: float
    decode_meps: float
    peak_mib: float

    @property
    def of_ring(self) -> float:
        """How near to the rings' own speed."""
        return self.meps / self.ring_meps

    def cells(self) -> list[str]:
        numbers = (self.ring_meps, self.meps, self.of_ring)
        more = (self.bytes_per_event, self.open_s, self.decode_meps, self.peak_mib)
        head = [self.tracer, f"{self.events:,}", *map(figure, numbers), f"{self.lost:,}"]
        return [*head, *map(figure, more)]


HEAD = (
    *("tracer", "events", "ring M ev/s", "M ev/s", "of ring", "lost", "B/event"),
    *("open s", "decode", "peak MiB"),
)
PACK_HEAD = ("codec", "events", "pack M/s", "unpack M/s", "B/event")


def timed(subject: Subject, calls: int, drain: Callable[[], object] | None = None) -> float:
    """Seconds of the clock for so many calls."""
    start = time.perf_counter()
    subject.many.give(calls)
    while drain is not None and not subject.many.all_idle():
        drain()
        time.sleep(_DRAIN_S)
    subject.many.wait_idle()
    return time.perf_counter() - start


def record(subject: Subject, tracer: str, events: int, path: Path) -> Row:
    """Ring speed, then the capture, then a reader in a process of its own."""
    calls = -(-events // _EACH[tracer] // CHUNK) * CHUNK
    events = calls * _EACH[tracer]
    target, pattern = subject.target, subject.many.pattern
    with target.trace(pattern, overwrite=True, tracer=tracer):
        timed(subject, 256 * CHUNK)  # pages of rings are new, and caches cold
        alone_s = timed(subject, calls)
    with target.trace(pattern, output=path, tracer=tracer) as trace:
        taken_s = timed(subject, calls, trace.drain)
    opened, spent, found, peak = map(
        float, subprocess.check_output([sys.executable, "-c", READ, path], text=True).split()
    )
    if int(found) != trace.events or trace.events + trace.lost != events:
        raise RuntimeError(f"{found} read, {trace.events} written, {trace.lost} lost, {calls}")
    size = path.stat().st_size / max(trace.events, 1)
    rates = events / alone_s / 1e6, events / taken_s / 1e6
    return Row(tracer, trace.events, trace.lost, *rates, size, opened, found / spent / 1e6, peak)


@dataclass(slots=True)
class Codec:
    """One way to pack the same events."""

    name: str
    events: int
    pack_meps: float
    unpack_meps: float
    bytes_per_event: float

    def cells(self) -> list[str]:
        numbers = (self.pack_meps, self.unpack_meps, self.bytes_per_event)
        return [self.name, f"{self.events:,}", *map(figure, numbers)]


def sample(path: Path, most: int) -> NDArray[np.uint64]:
    """The first events of a capture, as they are in a ring."""
    with Capture(path) as capture:
        decoder = Decoder(capture)
        parts = [raw.copy() for raw, _ in decoder.raw(decoder.tids[0])]
    return np.concatenate(parts)[:most]


def spent(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def codecs(events: NDArray[np.uint64]) -> list[Codec]:
    """Ours beside zlib and zstd at their fastest."""
    raw = events.tobytes()
    parts = [raw[i : i + MOST_EVENTS * 16] for i in range(0, len(raw), MOST_EVENTS * 16)]
    found = [_ours(parts, len(events))]
    pack = zstandard.ZstdCompressor(level=1)
    unpack = zstandard.ZstdDecompressor()
    for name, there, back in (
        ("zstd -1", pack.compress, unpack.decompress),
        ("zlib -1", lambda part: zlib.compress(part, 1), zlib.decompress),
    ):
        packed: list[bytes] = []
        there_s = spent(lambda there=there, packed=packed: packed.extend(map(there, parts)))
        back_s = spent(lambda back=back, packed=packed: [back(part) for part in packed])
        found.append(_codec(name, len(events), there_s, back_s, sum(map(len, packed))))
    return found


def _ours(parts: list[bytes], count: int) -> Codec:
    packer, unpacker = Packer(), Unpacker()
    packed: list[bytes] = []

    def there() -> None:
        packed.extend(bytes(packer.pack(memoryview(p), len(p) // 16)) for p in parts)

    def back() -> None:
        room = memoryview(bytearray(MOST_EVENTS * 16))
        for payload, part in zip(packed, parts, strict=True):
            unpacker.payload(len(payload))[:] = payload
            if not unpacker.unpack(len(payload), room, len(part) // 16):
                raise RuntimeError("a payload of our own is damaged")

    there_s, back_s = spent(there), spent(back)
    return _codec("textpoke", count, there_s, back_s, sum(map(len, packed)))


def _codec(name: str, events: int, there_s: float, back_s: float, size: int) -> Codec:
    return Codec(name, events, events / there_s / 1e6, events / back_s / 1e6, size / events)


def goals(rows: list[Row], *, quick: bool) -> list[Goal]:
    """What issue 6 asks for."""
    found = []
    for row in rows:
        found += [
            Goal(f"{row.tracer}: of ring speed", row.of_ring, 0.9, at_least=True),
            Goal(f"{row.tracer}: lost", row.lost, 0, "events"),
            Goal(f"{row.tracer}: opened", row.open_s, 1, "s"),
            Goal(f"{row.tracer}: decoded", row.decode_meps, 20, "M events/s", at_least=True),
            Goal(f"{row.tracer}: peak memory of the reader", row.peak_mib, 256, "MiB"),
        ]
        if not quick:
            found.append(Goal(f"{row.tracer}: events", row.events, _EVENTS, at_least=True))
    return found


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "capture")
    made.add_argument("--events", type=int, metavar="N", help=f"{_EVENTS:,} (quick: 2,000,000)")
    return made.parse_args()


def main() -> int:
    """Measure both tracers; returns 1 when something is wrong, not when it is slow."""
    args = arguments()
    events = args.events or (2_000_000 if args.quick else _EVENTS)
    facts = common.machine()
    common.say_machine(facts)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.tptrace"
        with Subject("nop5", _SITES, 1, quota=0, ring_bytes=_RING) as subject:
            for tracer in _EACH:
                path.unlink(missing_ok=True)
                rows.append(record(subject, tracer, events, path))
        packers = codecs(sample(path, _SAMPLE))
    problems = complaints([subject])
    print("\n" + common.table(HEAD, [row.cells() for row in rows]))
    print("\n" + common.table(PACK_HEAD, [codec.cells() for codec in packers]))
    for line in problems:
        print(line, file=sys.stderr)
    aims = goals(rows, quick=args.quick)
    common.say_goals(aims)
    result = {"machine": facts, "quick": args.quick, "rows": [asdict(row) for row in rows]}
    result["codecs"] = [asdict(codec) for codec in packers]
    result["goals"] = [goal.as_dict() for goal in aims]
    common.write_json(args.json, result)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
