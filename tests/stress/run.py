# SPDX-License-Identifier: Apache-2.0
"""What make stress, soak and kills run: progress, figures, exit code 1 on any violation."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import kills
import soak
import steps
import toggle
import torn

if TYPE_CHECKING:
    from collections.abc import Callable

BUILD = Path(__file__).parents[2] / "build" / "stress"
WHOLE_S, CYCLES, KILLS = 600.0, 1000, 200
GOAL_POKES = 10_000_000  # in a whole run
_TOGGLE_SHARE = 0.5  # of the time of a whole run; soak and kills take the rest
_TOGGLE_COPIES, _OTHER_COPIES, _STEP_COPIES = 10, 4, 1
_STEP_SHARE = 0.1  # of all steps, in a whole run
_SAY_S = 10.0


class Progress:
    """A line now and then."""

    def __init__(self) -> None:
        self._start = self._said = time.monotonic()

    def say(self, text: Callable[[], str]) -> None:
        """Print `text()` unless a line was printed a moment ago."""
        now = time.monotonic()
        if now - self._said >= _SAY_S:
            self._said = now
            print(f"{now - self._start:6.0f} s  {text()}", flush=True)


def _of_counts(c: torn.Counts) -> str:
    return (
        f"{c.site_pokes:,} site-pokes in {c.batches:,} batches, {c.traps:,} traps, "
        f"{c.late_traps:,} late traps, {c.calls:,} calls, {c.torn + c.stale} torn, "
        f"{c.lost_calls} lost calls, {c.crashes} crashes"
    )


def run_toggle(
    seconds: float, seed: int, progress: Progress
) -> tuple[dict[str, object], list[str]]:
    """Toggle under 1, 2, 8 and 64 threads, a quarter of the time each."""
    program = torn.build(BUILD, _TOGGLE_COPIES)
    total, stages = torn.Counts(), {}
    for threads in toggle.THREADS:

        def tick(counts: torn.Counts, threads: int = threads) -> None:
            progress.say(lambda: f"{threads:2} threads: {_of_counts(counts)}")

        stage = toggle.Stage(program, threads, seconds / len(toggle.THREADS), seed + threads)
        counts = stage.run(tick)
        stages[str(threads)] = vars(counts)
        total.add(counts)
    print(f"toggle: {_of_counts(total)}")
    print(
        f"trace: {total.trace_rounds:,} traces on and off, {total.events:,} events, "
        f"{total.lost_events:,} counted as lost, every call accounted for"
        if not total.violations
        else f"trace: {total.trace_rounds:,} traces on and off"
    )
    bad = list(total.violations)
    bad += [f"{total.torn} torn"] * bool(total.torn) + [f"{total.stale} stale"] * bool(total.stale)
    bad += [f"{total.lost_calls} lost calls"] * bool(total.lost_calls)
    bad += ["no thread ever met an int3"] * (total.traps == 0)
    if seconds >= WHOLE_S * _TOGGLE_SHARE and total.site_pokes < GOAL_POKES:
        bad.append(f"{total.site_pokes:,} site-pokes are fewer than {GOAL_POKES:,}")
    return {"total": vars(total), "threads": stages}, bad


def run_soak(cycles: int, seed: int, progress: Progress) -> tuple[dict[str, object], list[str]]:
    """Attach-detach cycles on one process."""

    def tick(result: soak.Soak) -> None:
        lines = len(result.residue)
        progress.say(lambda: f"soak: {result.cycles:,} cycles, residue {lines} lines")

    result = soak.soak(torn.build(BUILD, _OTHER_COPIES), cycles, seed, tick)
    found = result.as_dict()
    print(
        f"soak: {result.cycles:,} attach-detach cycles, residue {len(result.residue)}; "
        f"anonymous KiB {found['anonymous_kib']}, dirty text KiB {found['dirty_text_kib']}, "
        f"mappings {found['mappings']}, threads {found['threads']}, files {found['files']} "
        f"(after the first and the last); hold median {found['hold_us_median']:.0f} us; "
        f"{result.counts.traps:,} traps, {result.counts.torn + result.counts.stale} torn"
    )
    return found, result.residue + result.counts.violations


def run_kills(count: int, seed: int, progress: Progress) -> tuple[dict[str, object], list[str]]:
    """Kills of the tool and of the target."""

    def tick(k: kills.Kills) -> None:
        bad = len(k.violations)
        progress.say(lambda: f"kills: {k.tool} tools, {k.target} targets, {bad} violations")

    result = kills.kill_all(torn.build(BUILD, _OTHER_COPIES), count, count, seed, tick)
    print(
        f"kills: {result.tool} tools killed ({result.left} agents and {result.patched:,} patched "
        f"sites left for the next tool), {result.target} targets killed "
        f"(tools ended with {dict(sorted(result.exits.items()))}), "
        f"{len(result.violations)} violations"
    )
    return result.as_dict(), result.violations


def run_steps(share: float, seed: int, progress: Progress) -> tuple[dict[str, object], list[str]]:
    """Deaths at every step, or an even part of them."""

    def tick(k: kills.Kills) -> None:
        bad = len(k.violations)
        progress.say(lambda: f"steps: {k.tool} tools, {k.target} targets, {bad} violations")

    result = kills.Kills()
    program = torn.build(BUILD, _STEP_COPIES)
    steps.StepKills(program, steps.build(BUILD), result, share, seed).run(tick)
    print(
        f"steps: {result.tool} tools killed at as many steps of record and detach, "
        f"{result.target} targets (tools ended with {dict(sorted(result.exits.items()))}), "
        f"{len(result.violations)} violations"
    )
    return result.as_dict(), result.violations


def main() -> int:
    """Returns 1 on any violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("all", "toggle", "soak", "kills", "steps"))
    parser.add_argument("--seconds", type=float, default=WHOLE_S, help="for all, or for toggle")
    parser.add_argument("--cycles", type=int, help="of the soak")
    parser.add_argument("--kills", type=int, help="of the tool, and as many of the target")
    parser.add_argument("--share", type=float, help="of all steps, up to 1.0")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    share = args.seconds / WHOLE_S
    cycles = args.cycles or max(10, round(CYCLES * share))
    count = args.kills or max(6, round(KILLS * share))
    seconds = args.seconds * (_TOGGLE_SHARE if args.what == "all" else 1.0)
    progress = Progress()
    print(f"seed {args.seed}, {os.cpu_count()} cores, Linux {platform.release()}", flush=True)
    results: dict[str, object] = {"seed": args.seed, "cores": os.cpu_count()}
    bad: list[str] = []
    parts = {
        "toggle": lambda: run_toggle(seconds, args.seed, progress),
        "soak": lambda: run_soak(cycles, args.seed, progress),
        "kills": lambda: run_kills(count, args.seed, progress),
        "steps": lambda: run_steps(args.share or _STEP_SHARE * share, args.seed, progress),
    }
    for name, step in parts.items():
        if args.what in ("all", name):
            results[name], wrong = step()
            bad += [f"{name}: {line}" for line in wrong]
    results["violations"] = bad
    path = BUILD / f"{args.what}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(bad[:40]), file=sys.stderr, end="\n" if bad else "")
    print(f"{len(bad)} violations; {path}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
