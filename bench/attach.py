# SPDX-License-Identifier: Apache-2.0
"""How long an attach holds a busy program; how long `textpoke record` takes to its first event."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import common
from common import Goal, figure, median, percentile
from targets.many import BUILD, Many

from textpoke import tracer
from textpoke._native import lib
from textpoke.capture import Capture
from textpoke.decode import Decoder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

ABOUT = """
Attach to a program under load and detach again, many times; then start `textpoke record -v` on it
a few times. Without -p the program is one of 1,000 tiny functions and two hot threads. Detach
proves each time that nothing is left.

  attach hold    one thread held, from the request to stop to the release (pokes nothing)
  attach wall    checks, injection, start of the agent, as the tool sees it
  detach hold    all threads held for the last look
  detach wall    undo, comparison of all text with its files, removal
  first event    from the start of the command to the time stamp of the first event in its capture;
                 the parts are what the command itself says under -v

For the figure that issue 2 asks for, point -p at a Redis under redis-benchmark.
"""
HOLD_LIMIT_MS = 1.0
FIRST_EVENT_LIMIT_MS = 300.0
_SAID = re.compile(r"from start to first event (\d+) ms: (.*)")
_PART = re.compile(r"([A-Za-z]+) (\d+)")
_PAUSE_S = 0.02

Figures = dict[str, list[float]]


def attach_and_detach(pid: int, figures: Figures) -> list[str]:
    """One attach and one detach. Returns what the detach has left behind."""
    start = time.perf_counter()
    target = tracer.attach(pid)
    attached = time.perf_counter()
    timings = target.agent.timings
    report = target.detach()
    end = time.perf_counter()
    for name, value in (
        ("attach hold", timings.hold_ns / 1e6),
        ("attach wall", (attached - start) * 1e3),
        ("attach: checks", timings.checks_ms),
        ("attach: inject", timings.inject_ms),
        ("attach: agent", timings.start_ms),
        ("detach hold", report.hold_ms),
        ("detach wall", (end - attached) * 1e3),
    ):
        figures.setdefault(name, []).append(value)
    return report.residue


def record(pid: int, include: list[str], duration: str, figures: Figures) -> list[str]:
    """One `textpoke record -v`. Returns what it complains about."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        output = f"{folder}/run.tptrace"
        words = [sys.executable, "-m", "textpoke", "record", "-v", "-p", str(pid), "-d", duration]
        chosen = [word for pattern in include for word in ("-i", pattern)]
        start_tsc = lib.tp_rdtsc()
        done = subprocess.run(
            [*words, *chosen, "-o", output], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return [f"record ended with {done.returncode}: {done.stderr.strip()}"]
        first_ms = first_event_ms(output, start_tsc)
    if first_ms is not None:
        figures.setdefault("first event", []).append(first_ms)
    return _take_parts(done.stderr, figures)


def first_event_ms(path: str, start_tsc: int) -> float | None:
    """Milliseconds from `start_tsc` to the earliest event; None when there is none."""
    with Capture(path) as capture:
        if not capture.events:
            return None
        first, last = capture.meta.clock, capture.clocks[-1]
        ns_per_tick = (last.monotonic_ns - first.monotonic_ns) / (last.tsc - first.tsc)
        since_ns = Decoder(capture).all().ts_ns  # the capture's first clock point is 0
    if not len(since_ns):
        return None
    return ((first.tsc - start_tsc) * ns_per_tick + float(since_ns.min())) / 1e6


def _take_parts(said: str, figures: Figures) -> list[str]:
    found = _SAID.search(said)
    if not found:
        return [f"record -v does not say where its time went: {said!r}"]
    figures.setdefault("record says", []).append(float(found[1]))
    for name, ms in _PART.findall(found[2]):
        figures.setdefault(f"record: {name}", []).append(float(ms))
    warnings = [line for line in said.splitlines() if line.startswith(("warning", "left"))]
    return [line for line in warnings if "left out" not in line]


@contextlib.contextmanager
def target_of(args: argparse.Namespace) -> Iterator[tuple[int, str, list[str]]]:
    """The process to attach to, what it is called, and the functions to record."""
    if args.pid:
        name = Path(f"/proc/{args.pid}/comm").read_text(encoding="utf-8").strip()
        yield args.pid, f"{name} (pid {args.pid})", args.include
        return
    with Many("nop-run", args.sites, args.threads) as many:
        about = f"{args.sites:,} tiny functions, {args.threads} hot threads"
        yield many.pid, about, args.include or [many.pattern]
        if many.wrong_threads():
            raise RuntimeError("the program's results are wrong")


def measure(args: argparse.Namespace, figures: Figures) -> tuple[str, list[str]]:
    """All attaches and commands. Returns what the target was, and what went wrong."""
    problems = []
    with target_of(args) as (pid, name, include):
        for _ in range(args.attaches):
            problems += attach_and_detach(pid, figures)
            time.sleep(_PAUSE_S)
        for _ in range(args.commands):
            problems += record(pid, include, args.duration, figures)
    return name, problems


def goals(figures: Figures) -> list[Goal]:
    """What issue 2 asks for."""

    def middle(name: str) -> float | None:
        return median(figures[name]) if name in figures else None

    return [
        Goal("attach hold, median", middle("attach hold"), HOLD_LIMIT_MS, "ms"),
        Goal("command to first event, median", middle("first event"), FIRST_EVENT_LIMIT_MS, "ms"),
    ]


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "attach")
    made.add_argument("-p", "--pid", type=int, help="a program under load, instead of our own")
    made.add_argument("-i", "--include", action="append", default=[], metavar="PATTERN")
    made.add_argument("--attaches", type=int, help="(50, quick: 10)")
    made.add_argument("--commands", type=int, help="runs of textpoke record (9, quick: 3)")
    made.add_argument("--duration", default="20ms", help="of one recording (20ms)")
    made.add_argument("--sites", type=int, default=1000, help="of our own program (1000)")
    made.add_argument("--threads", type=int, default=2, help="of our own program (2)")
    args = made.parse_args()
    if args.attaches is None:
        args.attaches = 10 if args.quick else 50
    if args.commands is None:
        args.commands = 3 if args.quick else 9
    return args


def main() -> int:
    """Measure; returns 1 when something is wrong, not when it is slow."""
    args = arguments()
    facts = common.machine()
    common.say_machine(facts)
    BUILD.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    name, problems = measure(args, figures)
    print(f"{name}: {args.attaches} attaches, {args.commands} commands\n")
    head = ("ms", "median", "p90", "least", "most")
    rows = [
        [n, *map(figure, (median(v), percentile(v, 90), min(v), max(v)))]
        for n, v in figures.items()
    ]
    print(common.table(head, rows))
    aims = goals(figures)
    common.say_goals(aims)
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    common.write_json(
        args.json,
        {
            "machine": facts,
            "quick": args.quick,
            "target": name,
            "figures_ms": figures,
            "goals": [goal.as_dict() for goal in aims],
            "problems": problems,
        },
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
