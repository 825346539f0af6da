# SPDX-License-Identifier: Apache-2.0
"""What a counted branch costs: loops of one branch each, counted and not.

Best of several runs: the machine has other things to do. A branch behind which the flags are dead
costs one locked increment; else the flags are kept around it.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import textpoke

HERE = Path(__file__).parent


def run(process: subprocess.Popen[str], kind: str, turns: int, threads: int, tries: int) -> float:
    """Nanoseconds of a turn, the best of some tries."""
    best = float("inf")
    for _ in range(tries):
        process.stdin.write(f"{kind} {turns} {threads}\n")
        process.stdin.flush()
        best = min(best, int(process.stdout.readline()) / turns)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000_000)
    parser.add_argument("--tries", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "branchy"
        source = HERE / "targets" / "branchy.c"
        subprocess.run(["gcc", "-O2", "-pthread", source, "-o", program], check=True)
        process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        print("flags  threads  plain ns  counted ns  cost ns")
        with textpoke.attach(process.pid) as target:
            for kind in ("dead", "live"):
                for threads in (1, 2):
                    plain = run(process, kind, options.turns, threads, options.tries)
                    with target.branches(kind) as counts:
                        counted = run(process, kind, options.turns, threads, options.tries)
                        total = sum(row.total for row in counts.read(lines=False))
                    assert total == options.turns * threads * options.tries
                    print(
                        f"{kind:5}  {threads:7}  {plain:8.2f}  {counted:10.2f}  "
                        f"{counted - plain:7.2f}"
                    )
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
