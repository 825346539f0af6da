# SPDX-License-Identifier: Apache-2.0
"""A program at work: two threads compress the standard library's sources with zstd, and check.

Every chunk is compressed, decompressed and compared. A line of JSON every tenth of a second says
how far they are; the end of stdin ends the program, with 1 if a single byte was ever wrong.
"""

from __future__ import annotations

import json
import os
import select
import sys
import sysconfig
import threading
import time
from pathlib import Path

import zstandard

CORPUS_BYTES = 16 << 20
CHUNK_BYTES = 128 << 10
LEVELS = tuple(range(1, 10))
THREADS = 2
REPORT_S = 0.1


def corpus() -> bytes:
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        text += path.read_bytes()
        if len(text) >= CORPUS_BYTES:
            break
    return bytes(text)


class Worker(threading.Thread):
    def __init__(self, number: int, text: bytes, stop: threading.Event) -> None:
        super().__init__(name=f"zstd-{number + 1}")
        self.number, self.text, self.stop = number, text, stop
        self.bytes = self.round_trips = self.wrong = 0

    def run(self) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self.name)
        packers = [zstandard.ZstdCompressor(level=level) for level in LEVELS]
        unpacker = zstandard.ZstdDecompressor()
        start = self.number * len(self.text) // THREADS
        while not self.stop.is_set():
            chunk = self.text[start : start + CHUNK_BYTES]
            packed = packers[self.round_trips % len(packers)].compress(chunk)
            self.wrong += unpacker.decompress(packed) != chunk
            self.round_trips += 1
            self.bytes += len(chunk)
            start = start + CHUNK_BYTES if start + CHUNK_BYTES < len(self.text) else 0


def report(workers: list[Worker]) -> None:
    sums = {
        name: sum(getattr(worker, name) for worker in workers)
        for name in ("bytes", "round_trips", "wrong")
    }
    alive = sum(worker.is_alive() for worker in workers)
    times = {"at_s": time.monotonic(), "cpu_s": time.process_time()}
    print(json.dumps({**times, "alive": alive, **sums}), flush=True)


def main() -> int:
    stop = threading.Event()
    text = corpus()
    workers = [Worker(number, text, stop) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    while not select.select([sys.stdin], [], [], REPORT_S)[0] or os.read(0, 1):
        report(workers)
    stop.set()
    for worker in workers:
        worker.join()
    report(workers)
    return int(any(worker.wrong for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
