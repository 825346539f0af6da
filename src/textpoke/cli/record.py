# SPDX-License-Identifier: Apache-2.0
"""`textpoke record`: trace functions of a process, or of a command, into a capture file."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from textpoke._errors import CaptureExists, TargetExited, ViewError
from textpoke.cli import _parser
from textpoke.cli._console import Console, escape
from textpoke.report.names import file_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from textpoke.trace import Trace
    from textpoke.tracer import Target

_LIVE_S = 0.25
_DRAIN_S = 0.002
_UNITS = {"k": 1 << 10, "m": 1 << 20}
_SMALLEST_RING, _LARGEST_RING = 1 << 16, 1 << 26


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _parser.add_target(parser)
    _parser.add_filters(parser)
    _parser.add_everything(parser)
    _parser.add_duration(parser)
    _parser.add_output(parser, "PROGRAM-PID.tptrace")
    parser.add_argument(
        "--buffer",
        type=_ring_bytes,
        default=4 << 20,
        metavar="SIZE",
        help="memory for one thread's events, 64K to 64M (default: 4M)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="flight recorder: keep each thread's last events, written at the end",
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "int3", "direct", "stop"),
        default="auto",
        help="how code is written: int3 stops nobody; direct and stop need no trap (default: auto)",
    )
    _parser.add_views(parser)
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke record -p 1234 -d 2s                     the program's functions, two seconds",
        "textpoke record -p 1234 -i 'nginx!*' -i 'libc!*'  libc's too",
        "textpoke record -p 1234 -i 'redis!*Command'       some, until Ctrl-C",
        "textpoke record -p 1234 -i 'libzstd!*' -x '*hash*'",
        "textpoke record -o run.tptrace -- ./server --port 80",
        "textpoke record -p 1234 --perf-map --gdb our.o    names of our code for perf and gdb",
    )


def _ring_bytes(text: str) -> int:
    import argparse

    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    size = int(number) * _UNITS.get(unit, 0 if unit else 1) if number.isdecimal() else 0
    if not _SMALLEST_RING <= size <= _LARGEST_RING or size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 64K to 64M")
    return size


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from textpoke import tracer  # here, so that the time it takes counts as Python's own

    console = Console.from_args(args)
    stop = threading.Event()
    restore = _stop_on_signals(stop)
    started = time.perf_counter()
    try:
        if args.output and os.path.lexists(args.output) and not args.force:
            raise CaptureExists(args.output)
        if args.gdb and os.path.lexists(args.gdb) and not args.force:
            raise ViewError(args.gdb, "it exists; overwrite it with -f", errno.EEXIST)
        if args.command:
            target = tracer.launch(args.command, ring_bytes=args.buffer)
        else:
            target = tracer.attach(args.pid, ring_bytes=args.buffer)
        child = target.pid if args.command else 0
        try:
            trace = _record(args, console, target, stop, started)
        except BaseException:
            target.discard()
            raise
        finally:
            report = target.detach()
        _say_end(console, args, target, trace)
        for line in report.residue:
            console.warn(escape(f"left in the target: {line}"))
        return _child_status(child) if child else 0
    finally:
        restore()


def _stop_on_signals(stop: threading.Event) -> Callable[[], None]:
    """Ctrl-C and SIGTERM end the recording cleanly; returns what puts the handlers back."""
    old = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    return restore


def _record(
    args: argparse.Namespace,
    console: Console,
    target: Target,
    stop: threading.Event,
    started: float,
) -> Trace:
    name = file_name(os.path.basename(target.exe))
    output = args.output or f"{name}-{target.pid}.tptrace"
    attached = time.perf_counter()
    trace = target.trace(
        args.include,
        args.exclude,
        everything=args.everything,
        traps=args.traps,
        output=output,
        overwrite=args.overwrite,
        force=args.force,
        command=args.command,
        mode=args.mode,
    )
    found = time.perf_counter()
    if args.perf_map or args.gdb:
        target.describe_code(perf_map=args.perf_map, gdb=args.gdb or "", force=args.force)
    with trace:
        target.release()
        _say_start(console, target, trace, (started, attached, found, trace.switched_on))
        _say_views(console, target)
        _watch(args, console, trace, stop)
    return trace


def _watch(args: argparse.Namespace, console: Console, trace: Trace, stop: threading.Event) -> None:
    start = shown = time.monotonic()
    shown_events = 0
    trace.reason = "duration" if args.duration_ns else "interrupted"
    deadline = start + args.duration_ns / 1e9 if args.duration_ns else float("inf")
    try:
        while not stop.is_set() and time.monotonic() < deadline:
            trace.run(seconds=min(_LIVE_S, max(deadline - time.monotonic(), 0.0)), stop=stop)
            now = time.monotonic()
            if now - shown >= _LIVE_S:
                rate = (trace.events - shown_events) / (now - shown)
                shown, shown_events = now, trace.events
                console.live(_live_line(now - start, trace, rate))
    except TargetExited:
        trace.reason = "target exited"
    if stop.is_set():
        trace.reason = "interrupted"
    console.end_live()


def _live_line(elapsed: float, trace: Trace, rate: float) -> str:
    return (
        f"{elapsed:6.1f} s  {trace.events:,} events  {rate:,.0f} events/s  {trace.lost:,} lost"
        "  (Ctrl-C ends)"
    )


def _say_start(
    console: Console, target: Target, trace: Trace, times: tuple[float, float, float, float]
) -> None:
    started, attached, found, on = times
    chosen = len(trace.chosen) - len(trace.refused)
    console.say(
        escape(
            f"tracing {chosen:,} functions of {os.path.basename(target.exe)} "
            f"(pid {target.pid}) into {trace.output}"
        )
    )
    if target.repaired:
        console.warn(f"put back {target.repaired:,} sites that a killed textpoke had left on")
    if trace.refused:
        site, reason = trace.refused[0]
        console.warn(escape(f"{len(trace.refused)} functions left out: {site}: {reason}, ..."))
    for choice in trace.on.choices if trace.on else ():
        if choice.why:
            line = f"{choice.mode} mode for {len(choice.indexes):,} sites: {choice.why}"
            console.say(escape(line))
    timings, outcome = target.agent.timings, trace.on
    if timings.hold_ns:
        console.detail(f"one thread held for {timings.hold_ns / 1e3:,.0f} us")
    if outcome is not None:
        console.detail(
            f"switched on in one batch: {outcome.sites:,} sites in "
            f"{outcome.total_ns / 1e3:,.0f} us "
            f"({outcome.ns_per_site:.0f} ns a site), {outcome.syncs} syncs, "
            f"{outcome.writes} writes on {outcome.pages} pages, {outcome.traps} traps"
        )
    console.detail(
        f"from start to first event {(on - _process_start()) * 1e3:.0f} ms: "
        f"Python {(started - _process_start()) * 1e3:.0f}, "
        f"attach {(attached - started) * 1e3:.0f} (checks {timings.checks_ms:.0f}, "
        f"inject {timings.inject_ms:.0f}, agent {timings.start_ms:.0f}), "
        f"ELF {(found - attached) * 1e3:.0f}, plan {trace.timings_ms['plan']:.0f}, "
        f"file {trace.timings_ms['open']:.0f}, batch {trace.timings_ms['batch']:.0f}"
    )


def _say_views(console: Console, target: Target) -> None:
    views = target.views
    if views is None:
        return
    if views.perf_map:
        console.say(
            escape(f"for perf: {views.names:,} names in {views.perf_map} of the target; it stays")
        )
    if views.gdb_object:
        console.say(escape(f"for gdb: add-symbol-file {views.gdb_object}"))
    if views.jit_module:
        console.say(
            escape(f"for gdb: until we leave, {views.jit_module}'s JIT interface has the same")
        )
    for problem in views.problems:
        console.warn(escape(problem))


def _process_start() -> float:
    """When this process was started, on the clock of time.perf_counter()."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - age


def _say_end(console: Console, args: argparse.Namespace, target: Target, trace: Trace) -> None:
    report = target.report
    if args.json:
        console.json(
            {
                "output": os.fspath(trace.output or ""),
                "pid": target.pid,
                "reason": trace.reason,
                "events": trace.events,
                "lost": trace.totals.lost,
                "lost_no_ring": trace.lost_no_ring,
                "overruns": trace.overruns,
                "hold_ns": target.hold_ns,
                "on": trace.on.as_dict() if trace.on else None,
                "off": trace.off.as_dict() if trace.off else None,
                "detach": report.as_dict() if report else None,
            }
        )
        return
    deep = f", {trace.overruns:,} calls too deep" if trace.overruns else ""
    console.say(f"{trace.events:,} events, {trace.lost:,} lost{deep} ({trace.reason})")
    if trace.lost:
        console.say("to lose fewer: a larger --buffer, or fewer functions with -i and -x")
    console.say(escape(f"textpoke report {trace.output}"))


def _child_status(pid: int) -> int:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
