# SPDX-License-Identifier: Apache-2.0
"""Four threads that keep Python's C code busy, round after round; every line must be the same."""

from __future__ import annotations

import bz2
import hashlib
import itertools
import json
import math
import random
import re
import struct
import sys
import threading
import zlib
from decimal import Decimal, localcontext
from fractions import Fraction

THREADS = 4
WORDS = [f"{(i * 7919) % 10007:05d}-{'x' * (i % 13)}" for i in range(2000)]


def compress(number: int) -> str:
    text = " ".join(WORDS[number:]).encode() * 3
    packed = zlib.compress(text, 1 + number * 2)
    assert zlib.decompress(packed) == text
    assert bz2.decompress(bz2.compress(text[:20000])) == text[:20000]
    return f"{zlib.crc32(packed):08x}{zlib.adler32(text):08x}"


def digest(number: int) -> str:
    data = b"".join(struct.pack("<IdHq", i, i / 7, i & 0xFFFF, -i) for i in range(number, 3000))
    names = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b", "blake2s")
    return "".join(hashlib.new(name, data).hexdigest()[:8] for name in names)


def sort(number: int) -> str:
    chooser = random.Random(number)
    rows = [(chooser.random(), chooser.choice(WORDS), i) for i in range(4000)]
    rows.sort(key=lambda row: (row[1], row[0]))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(rows))
    document = {"rows": rows, "sets": sorted({row[1] for row in rows})}
    assert json.loads(json.dumps(document))["rows"] == [list(row) for row in rows]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def calculate(number: int) -> str:
    with localcontext() as context:
        context.prec = 60
        total = sum((Decimal(i).sqrt() for i in range(1, 400 + number)), Decimal(0))
    fraction = sum((Fraction(1, i) for i in range(1, 120 + number)), Fraction(0))
    wave = math.fsum(math.sin(i) * math.exp(-i / 100) for i in range(1000 + number))
    big = pow(3, 20_000 + number) % (10**40 + 7)
    found = re.findall(r"(\d{2})(\d+)-(x{2,4})\b", " ".join(WORDS))
    odd = 0
    for i in range(300):  # exceptions unwind
        try:
            odd += int(WORDS[i]) if i % 2 else i
        except ValueError as wrong:
            odd += len(str(wrong))
    return f"{total:.50f}{fraction.numerator % 10**9}{wave!r}{big}{len(found)}{odd}"


def work(number: int, answers: list[str], begin: threading.Barrier, end: threading.Barrier) -> None:
    while True:
        begin.wait()
        parts = [part(number) for part in (compress, digest, sort, calculate)]
        answers[number] = hashlib.sha256("|".join(parts).encode()).hexdigest()
        end.wait()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else -1
    answers = [""] * THREADS
    begin, end = threading.Barrier(THREADS + 1), threading.Barrier(THREADS + 1)
    for number in range(THREADS):
        words = (number, answers, begin, end)
        threading.Thread(target=work, args=words, daemon=True).start()
    while rounds:
        answers[:] = [""] * THREADS
        begin.wait()
        end.wait()
        print(hashlib.sha256("".join(answers).encode()).hexdigest(), flush=True)
        rounds -= 1


if __name__ == "__main__":
    main()
