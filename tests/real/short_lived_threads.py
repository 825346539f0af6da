# SPDX-License-Identifier: Apache-2.0
"""Compress with zstd in threads that live for a moment each; a line per generation of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import zstandard

THREADS = 3
LIFE_S = 0.06
CHUNK_BYTES = 16 << 10


def work(text: bytes, wrong: list[int]) -> None:
    end_s = time.monotonic() + LIFE_S
    start = 0
    while time.monotonic() < end_s:
        chunk = text[start : start + CHUNK_BYTES]
        packed = zstandard.ZstdCompressor(level=3).compress(chunk)
        if zstandard.ZstdDecompressor().decompress(packed) != chunk:
            wrong.append(start)
        start = (start + CHUNK_BYTES) % len(text)


def main() -> None:
    sources = sorted(Path(threading.__file__).parent.glob("*.py"))
    text = b"".join(path.read_bytes() for path in sources)
    wrong: list[int] = []
    while True:
        threads = [threading.Thread(target=work, args=(text, wrong)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{len(wrong)} wrong", flush=True)


if __name__ == "__main__":
    main()
