# SPDX-License-Identifier: Apache-2.0
"""What a call of an unmodified function costs, by how it was patched."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import common
from common import figure, median

import textpoke
from textpoke import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

ABOUT = """
Two tiny functions without NOPs, called in a loop: off, on, off. One gives way to a JMP; the other
has a loop into its first five bytes, so it is patched by a natural pun where memory is free at the
place that its bytes tell, and on request by an int3 that stays. Medians of 100,000 calls each.
"""
LINES = 15
HEAD = ("method", "off ns", "on ns", "more ns", "lost")


def measure(lines: int) -> Iterator[list[str]]:
    """One row for each method that is possible here."""
    program = common.build_helper("entries")
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def times() -> list[float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("x" * lines)
            process.stdin.flush()
            rows = [process.stdout.readline().split() for _ in range(lines)]
            return [median(float(row[i]) for row in rows) for i in range(2)]

        times()
        for most_puns in (plan._MOST_PUNS, 0):
            plan._MOST_PUNS = most_puns
            off = times()
            with (
                textpoke.attach(process.pid) as target,
                target.trace(["displaced", "branched"], traps=True, overwrite=True) as trace,
            ):
                on = times()
            assert trace.plan is not None
            methods = {p.site.function: p.method.value for p in trace.plan.sites}
            for i, name in enumerate(("displaced", "branched")):
                if i or most_puns:
                    cells = map(figure, (off[i], on[i], on[i] - off[i]))
                    yield [methods[name], *cells, f"{trace.lost:,}"]
        assert process.stdin is not None
        process.stdin.close()


def main() -> int:
    """Print the table, write the JSON."""
    args = common.parser(ABOUT, "entries").parse_args()
    facts = common.machine()
    common.say_machine(facts)
    rows = list(measure(3 if args.quick else LINES))
    print("\n" + common.table(HEAD, rows))
    common.write_json(
        args.json,
        {
            "machine": facts,
            "quick": args.quick,
            "rows": [dict(zip(HEAD, row, strict=True)) for row in rows],
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
