# SPDX-License-Identifier: Apache-2.0
"""`make proof`: the engine under the fetch model and fault injection, at size; prints the counts.

Usage: run.py [BATCHES] [SEED]. Ends with 1 on the first violation and prints the smallest batch
that shows it. The default takes about two minutes.
"""

from __future__ import annotations

import collections
import random
import sys
import time
from typing import TYPE_CHECKING

from batches import Batch, Mode, batches, control_batches, turns
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from library import COUNTS, Proof, Violation, controls

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_BATCHES = 3000
STRIDE = 4  # of the first of two faults: hypothesis says where a batch begins
CONTROL_SHARE = 30  # batches for one control run

ROWS = (
    ("batches", "batches generated"),
    ("for_controls", "of them for controls"),
    ("sites", "sites in them"),
    ("windows", "of them windows: several instructions and a JMP"),
    ("refusals", "batches that had to be refused, and were"),
    ("turns", "batches of some of the sites, in turn"),
    ("runs", "runs of the engine"),
    ("operations", "operations looked at"),
    ("mixes", "fetch mixes looked at"),
    ("positions", "thread positions"),
    ("traps", "threads sent through an int3"),
    ("late_traps", "late traps"),
    ("looks", "looks whether somebody is inside of a window"),
    ("busy", "windows that they found somebody in"),
    ("left", "of these left, and the others written"),
    ("inside", "batches failed for these, as they must"),
    ("heads", "thread positions at later heads of windows"),
    ("head_traps", "threads sent from there to their copy"),
    ("late_head_traps", "late traps there"),
    ("single_faults", "faults injected, one in a run"),
    ("double_faults", "faults injected, two in a run"),
    ("broken", "recoveries made to fail; int3s all handled"),
    ("stranger_writes", "bytes written by a stranger"),
    ("caught", "controls caught"),
    ("wrong", "of controls (wrong engines)"),
    ("passed", "right engines passed"),
    ("right", "of right engines"),
)


class Totals(collections.Counter[str]):
    """Sums over all batches, and what the controls gave."""

    def prove(self, batch: Batch, work: Callable[[Proof], None]) -> None:
        proof = Proof(batch)
        windows = sum(bool(site.copies) for site in batch.sites)
        counts = {"batches": 1, "sites": len(batch.sites), "windows": windows}
        self.count(batch.mode, counts)
        try:
            work(proof)
        finally:
            counts = proof.close()
            self.count(batch.mode, {name: counts[name] for name in COUNTS})

    def count(self, mode: Mode, counts: dict[str, int]) -> None:
        """Add to the sums over all batches, and over those of @mode."""
        self.update(counts)
        self.update({f"{mode.name} {name}": value for name, value in counts.items()})

    def table(self) -> str:
        """Return a line a count: of all batches, then by their mode (turns take any mode)."""
        heads = ["all", *(mode.name.lower() for mode in Mode)]
        lines = ["".join(f"{head:>15}" for head in heads)]
        for key, text in ROWS:
            keys = [key, *(f"{mode.name} {key}" for mode in Mode)]
            lines.append("".join(f"{self[key]:>15,}" for key in keys) + f"  {text}")
        return "\n".join(lines)


def _prove_batches(totals: Totals, count: int, start: int) -> None:
    def work(proof: Proof, masks: list[int], phase: int) -> None:
        proof.there_and_back(4)
        proof.some_in_turn(masks)
        proof.single_faults()
        proof.double_faults(STRIDE, phase)
        if phase == 0:
            proof.strangers()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.integers(0, 7).flatmap(lambda n: batches(refusable=n == 0)),
        turns(),
        st.integers(0, STRIDE - 1),
    )
    def run(batch: Batch, masks: list[int], phase: int) -> None:
        totals.prove(batch, lambda proof: work(proof, masks, phase))

    run()


def _prove_control(totals: Totals, number: int, count: int, start: int) -> None:
    name, wrong, mode, windows = controls()[number]

    def work(proof: Proof) -> None:
        found = proof.control(number)
        totals.count(mode, {"for_controls": 1, "wrong" if wrong else "right": 1})
        if bool(found) != wrong:
            what = "is not caught" if wrong else f"does not pass: {found}"
            raise Violation(f"control: {name}: {what}\n{proof.batch}")
        totals.count(mode, {"caught" if wrong else "passed": 1})

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(control_batches(mode, windows))
    def run(batch: Batch) -> None:
        totals.prove(batch, work)

    run()


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BATCHES
    start = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    began = time.monotonic()
    totals = Totals()
    try:
        for number in range(len(controls())):
            _prove_control(totals, number, max(count // CONTROL_SHARE, 5), start)
        _prove_batches(totals, count, start)
    except Violation as violation:
        print(f"VIOLATION (seed {start}): {violation}")
        return 1
    print(totals.table())
    print(
        f"no violation; {len(controls())} kinds of control, seed {start}, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
