# SPDX-License-Identifier: Apache-2.0
"""textpoke on a real program: trace the zstd library in a process that is compressing data.

Run by `make demo`. Every figure was measured in the run that prints it. The exit code is 0 only
when the program under trace never noticed, and nothing of textpoke is left in it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import zstd_library
from compressor_process import Compressor, CompressorError
from demo_output import Story, in_words, toggle_time, us

import textpoke
from textpoke.proc import read_maps, read_threads
from textpoke.status import read_status

if TYPE_CHECKING:
    from textpoke import Outcome, Target

FUNCTIONS = "backend_c*!*"
RECORD_S = 2.0
TOGGLES = 20
RING_BYTES, RINGS = 4 << 20, 16


@dataclass(frozen=True)
class Seen:
    """A process from outside: its threads, and its mappings without heap and stacks."""

    mappings: tuple[tuple[int, int, str, str], ...]
    threads: tuple[int, ...]
    agent_tid: int

    @classmethod
    def now(cls, pid: int) -> Seen:
        # Anonymous memory comes and goes as Python allocates: left out, unless it holds code.
        heap = ("", "[heap]", "[stack]")
        kept = [m for m in read_maps(pid) if m.path not in heap or "x" in m.perms]
        return cls(
            tuple((m.start, m.end, m.perms, m.path) for m in kept),
            tuple(sorted(thread.tid for thread in read_threads(pid))),
            read_status(pid).agent_tid,
        )


@dataclass
class Batches:
    """The outcomes of all batches, in the order in which they were run."""

    on: list[Outcome] = field(default_factory=list)
    off: list[Outcome] = field(default_factory=list)

    def add(self, trace: textpoke.Trace) -> None:
        assert trace.on is not None
        assert trace.off is not None
        self.on.append(trace.on)
        self.off.append(trace.off)


def trace_it(story: Story, target: Target, capture: Path) -> tuple[textpoke.Trace, Batches]:
    batches = Batches()
    trace = target.trace(FUNCTIONS, output=capture)
    with story.step("switch on every function of the zstd library, in one batch") as say:
        trace.start()
        assert trace.on is not None
        say += [f"{trace.on.sites:,} functions", in_words(trace.on)]
    with story.step(f"record {RECORD_S:.0f} seconds") as say:
        trace.run(seconds=RECORD_S)
        trace.reason = "duration"
        say.append(f"{trace.events:,} events")
    with story.step("switch off") as say:
        trace.stop()
        batches.add(trace)
        say += [f"{batches.off[0].sites:,} functions", in_words(batches.off[0])]
    with story.step("switch on and off again while it works") as say:
        for _ in range(TOGGLES):
            with target.trace(FUNCTIONS) as again:
                again.run(seconds=0.02)
            batches.add(again)
        traps = sum(outcome.traps for outcome in batches.on[1:] + batches.off[1:])
        say += [f"{TOGGLES} times", f"{traps:,} times a thread came by in the middle of it"]
    return trace, batches


def demo(story: Story, compressor: Compressor, capture: Path) -> bool:
    with story.step("start a Python process that compresses in two threads") as say:
        compressor.work(1.0)
        say += [f"pid {compressor.pid}", "the standard library's sources, every byte checked"]
    before = Seen.now(compressor.pid)
    speeds = [compressor.work(1.0)]
    with story.step("attach to it from outside") as say:
        target = textpoke.attach(compressor.pid, ring_bytes=RING_BYTES, rings=RINGS)
        say.append(f"one thread held for {us(target.hold_ns)} us")
    try:
        started_s = time.monotonic()
        trace, batches = trace_it(story, target, capture)
        speeds.append(compressor.speed(started_s, started_s + RECORD_S))
    finally:
        with story.step("detach") as say:
            report = target.detach()
            say.append(f"all threads stopped for {report.hold_ms:.1f} ms for a last look")
    after = Seen.now(compressor.pid)
    speeds.append(compressor.work(1.0))
    code = compressor.finish()
    story.hottest(capture)
    story.figures(
        [
            toggle_time("switch on for the first time", batches.on[:1]),
            toggle_time("switch on again, median", batches.on[1:]),
            toggle_time("switch off, median", batches.off),
            ("hold of one thread at attach", f"{us(target.hold_ns)} us", ""),
            ("events", f"{trace.events:,}", f"{trace.lost:,} lost"),
            *(
                (f"compressor {when}", f"{speed:,.0f} MB", "a CPU second")
                for when, speed in zip(("before", "traced", "after"), speeds, strict=True)
            ),
        ]
    )
    return story.proof(checks(report, before, after, compressor, code))


def checks(
    report: textpoke.DetachReport, before: Seen, after: Seen, compressor: Compressor, code: int
) -> list[tuple[bool, str]]:
    text, end = report.text, compressor.lines[-1]
    same = "the same" if after.mappings == before.mappings else "NOT the same"
    gone = report.clean and not after.agent_tid and after.threads == before.threads
    return [
        (
            0 < text.equal == text.pages and not text.skipped,
            f"text: {text.equal:,} of {text.pages:,} pages equal to their files",
        ),
        (
            gone,
            f"agent: its thread, its handler and its {report.unmapped} mappings are gone"
            if gone
            else f"agent: {'; '.join(report.residue) or 'something is left'}",
        ),
        (
            after.mappings == before.mappings,
            f"mappings: {len(before.mappings)} before, {len(after.mappings)} after, {same}",
        ),
        (
            code == 0 and end.wrong == 0,
            f"compressor: {end.round_trips:,} round trips to its own end, {end.wrong} wrong",
        ),
    ]


def main() -> int:
    story = Story()
    try:
        with story.step(f"build {zstd_library.PACKAGE} from its sources") as say:
            took_s = zstd_library.build()
            say += [
                f"{took_s:.0f} s" if took_s else "done before",
                f'CFLAGS="{zstd_library.CFLAGS}"',
            ]
        with (
            tempfile.TemporaryDirectory(prefix="textpoke-demo-") as scratch,
            contextlib.closing(Compressor(zstd_library.DIRECTORY)) as compressor,
        ):
            return 0 if demo(story, compressor, Path(scratch) / "zstd.tptrace") else 1
    except textpoke.TextpokeError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return exc.exit_code
    except (zstd_library.BuildError, CompressorError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
