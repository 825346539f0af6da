# SPDX-License-Identifier: Apache-2.0
"""Find and judge every function of large libraries, then patch all of one in one batch."""

from __future__ import annotations

import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import common
from common import Goal, figure, median
from targets.many import BUILD

import textpoke

if TYPE_CHECKING:
    import argparse

ABOUT = """
Find every function of a library and decide how its entry can be patched: with nothing known of it
(cold), and from the cache; each in a process of its own. One library is made here, of 300,000
functions with the prologues that compilers make; the others are the largest that are installed.

Then a process that has opened the made one gets all of its functions switched on in one batch, and
off, over and over, while a thread of it runs.
"""
FUNCTIONS = 300_000
PLACES = ("libLLVM-*.so.1", "libLLVM.so.*", "libclang-cpp.so.*", "libcrypto.so.*")
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/firefox-esr", "/usr/lib/llvm-*/lib")
PROLOGUES = (
    "push %rbp\nmov %rsp, %rbp\npush %r15\npush %r14",
    "push %r15\npush %r14\npush %rbx\nmov %rdi, %rbx",
    "sub $24, %rsp\nmov %rdi, 8(%rsp)",
    "mov ${number}, %eax",
    "lea word(%rip), %rax",
    "test %rdi, %rdi\nje 1f",
    "mov (%rdi), %rax\nmov 8(%rax), %rax",
    "xor %eax, %eax\ncmp $3, %esi\nja 1f",
)
# What a child does; its last line is JSON.
CHILD = """
import json, resource, sys, time
from textpoke import elf
from textpoke.functions import find_functions
from textpoke.model import Module
began, cpu = time.perf_counter(), time.process_time()
with elf.Image.open(sys.argv[1]) as image:
    found = find_functions(image, Module("x", sys.argv[1], 0, True, ()))
print(json.dumps({
    "wall_s": time.perf_counter() - began,
    "cpu_s": time.process_time() - cpu,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "functions": len(found),
    "displaceable": found.displaceable,
    "refused": found.by_reason,
}))
"""
HOST = """
import ctypes, sys, threading, zlib
library = ctypes.CDLL(sys.argv[1])
def work():
    while True: zlib.crc32(bytes(1000))
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass
class Planned:
    """Seconds and mebibytes of one library."""

    library: str
    code_mib: float
    functions: int
    displaceable: int
    cold_s: float
    cold_cpu_s: float
    cached_s: float
    peak_mib: float


def make_library() -> Path:
    """A library of FUNCTIONS functions; made once."""
    path = BUILD / f"functions-{FUNCTIONS}.so"
    if path.exists():
        return path
    BUILD.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    source = BUILD / "functions.S"
    with source.open("w", encoding="ascii") as file:
        file.write('.section .note.GNU-stack, "", @progbits\n.data\nword: .quad 5\n.text\n')
        for number in range(FUNCTIONS):
            prologue = chance.choice(PROLOGUES).replace("{number}", str(number))
            filler = "\n".join(["add $1, %rax"] * chance.randrange(2, 30))
            file.write(
                f".p2align 4\n.globl f{number}\n.type f{number}, @function\nf{number}:\n"
                f".cfi_startproc\n{prologue}\n{filler}\n1: ud2\n.cfi_endproc\n"
                f".size f{number}, . - f{number}\n"
            )
    subprocess.run(["gcc", "-shared", "-o", f"{path}.new", source], check=True)
    source.unlink()
    os.replace(f"{path}.new", path)
    return path


def installed() -> list[Path]:
    """The largest libraries of some names, and Firefox's, where they are installed."""
    names = [f"{folder}/{place}" for folder in FOLDERS for place in (*PLACES, "libxul.so")]
    found = {os.path.realpath(path) for name in names for path in glob.glob(name)}
    return sorted(map(Path, found), key=lambda path: -path.stat().st_size)[:3]


def run_child(path: Path, environment: dict[str, str]) -> dict[str, float]:
    words = [sys.executable, "-c", CHILD, str(path)]
    output = subprocess.check_output(words, env={**os.environ, **environment}, text=True)
    return json.loads(output.splitlines()[-1])


def measure(path: Path, times: int) -> Planned:
    """The median of several runs; the peak of the coldest."""
    cold = [run_child(path, {"TEXTPOKE_CACHE": "off"}) for _ in range(times)]
    with tempfile.TemporaryDirectory() as directory:
        cache = {"XDG_CACHE_HOME": directory, "TEXTPOKE_CACHE": "on"}
        run_child(path, cache)
        warm = [run_child(path, cache) for _ in range(times)]
    return Planned(
        path.name,
        path.stat().st_size / (1 << 20),
        int(cold[0]["functions"]),
        int(cold[0]["displaceable"]),
        median(run["wall_s"] for run in cold),
        median(run["cpu_s"] for run in cold),
        median(run["wall_s"] for run in warm),
        max(run["peak_mib"] for run in cold + warm),
    )


def measure_batch(path: Path, toggles: int) -> dict[str, float]:
    """All functions of the library in a process that runs: nanoseconds a site, first and median."""
    words = [sys.executable, "-c", HOST, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ons, offs, holds = [], [], []
        with textpoke.attach(process.pid, ring_bytes=1 << 16) as target:
            for _ in range(toggles + 1):
                began = time.perf_counter()
                trace = target.trace(f"{path.name}!*")
                with trace:
                    pass
                assert trace.on is not None
                assert trace.off is not None
                ons.append(trace.on.ns_per_site)
                offs.append(trace.off.ns_per_site)
                holds.append(trace.on.hold_ns / 1e6)
                whole_s = time.perf_counter() - began
        clean = target.report is not None and target.report.clean
        process.kill()
    return {
        "sites": trace.on.sites,
        "first_ns": ons[0],
        "on_ns": median(ons[1:]),
        "off_ns": median(offs[1:]),
        "hold_ms": median(holds[1:]),
        "syncs": trace.on.syncs,
        "modes": {str(choice.mode): len(choice.indexes) for choice in trace.on.choices},
        "clean": float(clean),
        "whole_s": whole_s,
    }


def goals(rows: list[Planned], batch: dict[str, float]) -> list[Goal]:
    made = rows[0]
    return [
        Goal("300,000 functions, cold", made.cold_s, 5, "s"),
        Goal("300,000 functions, from the cache", made.cached_s, 0.5, "s"),
        Goal("peak memory", max(row.peak_mib for row in rows), 1024, "MiB"),
        Goal("all of them in one batch, again", batch["on_ns"], 100, "ns/site"),
        Goal("all of them off", batch["off_ns"], 100, "ns/site"),
    ]


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "plan")
    made.add_argument("files", nargs="*", type=Path, help="libraries besides the one made here")
    return made.parse_args()


def main() -> int:
    """Measure; returns 1 when something is wrong, not when it is slow."""
    args = arguments()
    facts = common.machine()
    common.say_machine(facts)
    library = make_library()
    times = 1 if args.quick else 3
    rows = [measure(path, times) for path in [library, *(args.files or installed())]]
    head = (
        "library",
        "MiB",
        "functions",
        "displaceable",
        "cold s",
        "CPU s",
        "cached s",
        "peak MiB",
    )
    cells = [
        [
            row.library,
            f"{row.code_mib:,.0f}",
            f"{row.functions:,}",
            f"{row.displaceable:,}",
            *map(figure, (row.cold_s, row.cold_cpu_s, row.cached_s, row.peak_mib)),
        ]
        for row in rows
    ]
    print(common.table(head, cells))
    batch = measure_batch(library, 2 if args.quick else 10)
    print(
        f"\n{batch['sites']:,} sites in one batch: first {batch['first_ns']:.0f} ns a site, "
        f"again {batch['on_ns']:.0f}, off {batch['off_ns']:.0f}; {batch['syncs']} syncs, "
        f"{batch['modes']}, all threads held {batch['hold_ms']:.1f} ms"
    )
    aims = goals(rows, batch)
    common.say_goals(aims)
    common.write_json(
        args.json,
        {
            "machine": facts,
            "quick": args.quick,
            "libraries": [asdict(row) for row in rows],
            "batch": batch,
            "goals": [goal.as_dict() for goal in aims],
        },
    )
    return 0 if batch["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
