# SPDX-License-Identifier: Apache-2.0
"""`textpoke record`: trace functions of a process, or of a command, into a capture file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from textpoke._errors import (
    CaptureExists,
    ControlBusy,
    ControlUnsafe,
    TargetExited,
    TextpokeError,
    UnsupportedTarget,
    ViewError,
)
from textpoke.cli import _parser
from textpoke.cli._console import Console, escape
from textpoke.cli._options import require_meaning
from textpoke.report.names import file_name
from textpoke.tracer_names import BRANCH, FUNCTION, PROFILE, TRACERS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from textpoke.control import ControlServer
    from textpoke.governor import Budget
    from textpoke.one_trace import Trace
    from textpoke.recording import Recording
    from textpoke.session import RecordSession
    from textpoke.tracer import Target

_LIVE_S = 0.25
_DRAIN_S = 0.002
_MOST_HITS = 5  # shown of one drain
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
        help="how code is written: int3 stops nobody, refused where it could kill (libc is left to "
        "auto); direct and stop need no trap (default: auto)",
    )
    _add_tracing(parser)
    _parser.add_views(parser)
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke record -p 1234 -d 2s                     the program's functions, two seconds",
        "textpoke record -p 1234 -i 'nginx!*' -i 'libc!*'  libc's too",
        "textpoke record -p 1234 -i 'redis!*Command'       some, until Ctrl-C",
        "textpoke record -p 1234 -i 'libzstd!*' -x '*hash*'",
        "textpoke record -o run.tptrace -- ./server --port 80",
        "textpoke record -p 1234 -t function_graph --threshold 100us",
        "textpoke record -p 1234 -t function_graph -A 'setCommand(c->id, c->argc)' -R call",
        "textpoke record -p 1234 -t blk -d 5s               what it reads and writes",
        "textpoke record -p 1234 -t branch -i '*Command'    which way its branches go, by line",
        "textpoke record -p 1234 -t irqsoff                 the longest lock held",
        "textpoke record -p 1234 -t function_graph --flight --trigger 'handle>5ms:keep=200ms'",
        "textpoke record -p 1234 --budget 5%                the hottest functions go off first",
        "textpoke record -p 1234 --perf-map --gdb our.o    names of our code for perf and gdb",
    )


def _add_tracing(parser: _parser.VerbParser) -> None:
    tracing = parser.add_argument_group("what is recorded")
    tracing.add_argument(
        "-t",
        "--tracer",
        choices=tuple(TRACERS),
        default=FUNCTION,
        metavar="TRACER",
        help="function, function_graph, profile, blk, ...: see textpoke tracers",
    )
    tracing.add_argument(
        "-A",
        "--arguments",
        action="append",
        default=[],
        metavar="'FUNC(EXPR, ...)'",
        help="arguments of a function: 'f', 'f(c->id, n/x, arg2/s)'; docs/tracing.md",
    )
    tracing.add_argument(
        "-R",
        "--result",
        action="append",
        default=[],
        metavar="FUNC",
        help="what a function returns: 'f', 'f/s', 'f/x'",
    )
    tracing.add_argument(
        "--depth",
        type=_parser.positive,
        default=0,
        metavar="N",
        help="with function_graph, profile: follow so many calls deep",
    )
    tracing.add_argument(
        "--threshold",
        type=_parser.span_ns,
        default=0,
        metavar="TIME",
        help="with function_graph: only calls that take longer, as in 100us, 5ms",
    )
    tracing.add_argument(
        "--sample",
        type=_parser.positive,
        default=1,
        metavar="N",
        help="one of so many calls of a function",
    )
    for option, name in (("--thread", "thread"), ("--no-thread", "no_thread")):
        tracing.add_argument(
            option,
            dest=name,
            action="append",
            default=[],
            metavar="THREAD",
            help="these threads only, by id or name" if name == "thread" else "not these; wins",
        )
    tracing.add_argument("--follow", action="store_true", help="threads that begin meanwhile, too")
    tracing.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="'FUNC[>TIME]:CMD[:N]'",
        help="traceon, traceoff, snapshot, stacktrace, dump, keep=TIME; docs/tracing.md",
    )
    tracing.add_argument(
        "--flight",
        action="store_true",
        help="write nothing but what triggers keep: the flight recorder",
    )
    tracing.add_argument(
        "--budget",
        type=_budget,
        metavar="SHARE",
        help="what tracing may cost: 5%% of a core, '5%% of process'",
    )


def _budget(text: str) -> Budget:
    import argparse

    from textpoke.governor import Budget

    try:
        return Budget.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


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

    require_meaning(args)
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
        try:
            recording = _record(args, console, target, stop, started)
        except BaseException:
            target.discard()
            raise
        finally:
            report = target.detach()
        _say_end(console, args, target, recording)
        for line in report.residue:
            console.warn(escape(f"left in the target: {line}"))
        return _child_status(console, target) if args.command else 0
    finally:
        restore()


def _stop_on_signals(stop: threading.Event) -> Callable[[], None]:
    """Ctrl-C, SIGTERM and a terminal that goes away end the recording cleanly (not under nohup).

    Returns what puts the handlers back.
    """
    old = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
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
) -> Recording:
    name = file_name(target.program)
    output = args.output or f"{name}-{target.pid}.tptrace"
    attached = time.perf_counter()
    from textpoke.session import RecordSession

    session = RecordSession(target, everything=args.everything, traps=args.traps)
    recording = _recording(args, session, output)
    trace = recording.trace
    found = time.perf_counter()
    if args.perf_map or args.gdb:
        target.describe_code(perf_map=args.perf_map, gdb=args.gdb or "", force=args.force)
    session.recordings[""] = recording
    recording.start()
    try:
        target.release()
        _say_start(console, target, trace, (started, attached, found, trace.switched_on))
        _say_views(console, target)
        with _control(console, session) as control:
            _watch(args, console, session, control, stop)
    except BaseException:
        trace.reason = "error"
        with contextlib.suppress(TextpokeError):
            session.close()
        recording.stop()
        raise
    session.close()
    recording.stop()
    _say_remarks(console, recording)
    return recording


def _safe_mode(target: Target, mode: str) -> str:
    """No int3 where it could kill: `auto` writes them wherever they are safe, and never in libc.

    Raises UnsupportedTarget ("sigtrap-masked") where they are safe nowhere.
    """
    if mode != "int3":
        return mode
    from textpoke import modes

    why = modes.why_masking(target.agent)
    if why:
        detail = f"--mode int3 could kill it ({why}); leave --mode out, then nobody meets an int3"
        raise UnsupportedTarget(target.pid, "sigtrap-masked", detail)
    return "auto"


def _recording(args: argparse.Namespace, session: RecordSession, output: str) -> Recording:
    """What is to be recorded, by the words of the command line."""
    from textpoke.arguments import parse as parse_arguments
    from textpoke.filters import FilterSet, Threads
    from textpoke.recording import Recording
    from textpoke.triggers import TriggerSet

    arguments = [parse_arguments(text) for text in args.arguments]
    arguments += [parse_arguments(text, returns=True) for text in args.result]
    threads = Threads(tuple(args.thread), tuple(args.no_thread), args.follow)
    filters = FilterSet.of(args.include, args.exclude, threads=threads, sample=args.sample)
    triggers = TriggerSet.of(args.trigger)
    plain = all(rule.is_plain for rule in (*filters.trace, *filters.notrace))
    trace = session.target.trace(
        args.include if plain else (),
        args.exclude if plain else (),
        everything=args.everything,
        traps=args.traps,
        output=output,
        overwrite=args.overwrite,
        force=args.force,
        command=args.command,
        mode=_safe_mode(session.target, args.mode),
        tracer=args.tracer,
        depth=args.depth,
        threshold_us=args.threshold / 1e3,
        arguments=arguments,
    )
    recording = Recording(
        trace, session.names, filters, triggers, only_kept=args.flight, budget=args.budget
    )
    if not plain:
        recording.set_filters(filters)
    return recording


@contextlib.contextmanager
def _control(console: Console, session: RecordSession) -> Iterator[ControlServer | None]:
    """Where other tools can speak to this recording; it goes on without where that cannot be."""
    from textpoke.control import ControlServer

    try:
        server = ControlServer(session)
    except (ControlBusy, ControlUnsafe, OSError) as exc:
        console.warn(escape(f"switch, filter and trigger cannot reach this recording: {exc}"))
        yield None
        return
    with server:
        yield server


def _watch(
    args: argparse.Namespace,
    console: Console,
    session: RecordSession,
    control: ControlServer | None,
    stop: threading.Event,
) -> None:
    recording = session.recordings[""]
    trace = recording.trace
    start = shown = time.monotonic()
    shown_taken = 0
    trace.reason = "duration" if args.duration_ns else "interrupted"
    deadline = start + args.duration_ns / 1e9 if args.duration_ns else float("inf")
    try:
        while not stop.is_set() and (now := time.monotonic()) < deadline:
            recording.drain()
            session.drain()
            if control is not None:
                control.poll()
            _say_hits(console, recording)
            session.target.agent.require_alive("the recording")
            if now - shown >= _LIVE_S:
                taken, unit = _taken_so_far(trace)
                rate = max(taken - shown_taken, 0) / (now - shown)
                shown, shown_taken = now, taken
                console.live(_live_line(now - start, taken, unit, rate, trace.lost))
            time.sleep(_DRAIN_S)
    except TargetExited:
        trace.reason = "target exited"
    if stop.is_set():
        trace.reason = "interrupted"
    console.end_live()


def _say_hits(console: Console, recording: Recording) -> None:
    """What triggers have done, as it comes."""
    hits, recording.hits = recording.hits, []
    if hits:
        names = {address: str(site) for site, address in recording.trace.sites_by_return()}
    for hit in hits[:_MOST_HITS]:
        console.say(escape(f"trigger: {names.get(hit.address, '?')}: {hit.trigger.command}"))
    if len(hits) > _MOST_HITS:
        console.say(f"trigger: and {len(hits) - _MOST_HITS:,} more")
    _say_remarks(console, recording)


def _say_remarks(console: Console, recording: Recording) -> None:
    for line in recording.remarks[recording.remarks_shown :]:
        console.say(escape(line))
    recording.remarks_shown = len(recording.remarks)


def _taken_so_far(trace: Trace) -> tuple[int, str]:
    return (trace.counted.calls, "calls") if trace.tracer == PROFILE else (trace.events, "events")


def _live_line(elapsed: float, taken: int, unit: str, rate: float, lost: int) -> str:
    return f"{elapsed:6.1f} s  {taken:,} {unit}  {rate:,.0f} {unit}/s  {lost:,} lost  (Ctrl-C ends)"


def _say_start(
    console: Console, target: Target, trace: Trace, times: tuple[float, float, float, float]
) -> None:
    started, attached, found, on = times
    console.say(
        escape(
            f"tracing {trace.function_count:,} functions of {target.program} "
            f"(pid {target.pid}) into {trace.output}"
        )
    )
    if target.repaired:
        console.warn(f"put back {target.repaired:,} sites that a killed textpoke had left on")
    if trace.refused:
        site, reason = trace.refused[0]
        more = f", and {len(trace.refused) - 1} more" if len(trace.refused) > 1 else ""
        console.warn(escape(f"left out: {site}: {reason}{more}"))
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


def _say_end(
    console: Console, args: argparse.Namespace, target: Target, recording: Recording
) -> None:
    report, trace, overhead = target.report, recording.trace, recording.overhead
    if args.json:
        console.json(
            {
                "output": str(trace.output or ""),
                "pid": target.pid,
                "reason": trace.reason,
                "events": trace.events,
                "lost": trace.totals.lost,
                "counted": asdict(trace.counted),
                "lost_no_ring": trace.lost_no_ring,
                "overruns": trace.overruns,
                "hold_ns": target.hold_ns,
                "overhead": overhead.as_dict(),
                "remarks": recording.remarks,
                "on": trace.on.as_dict() if trace.on else None,
                "off": trace.off.as_dict() if trace.off else None,
                "detach": report.as_dict() if report else None,
            }
        )
        return
    console.say(f"{_taken(trace)} ({trace.reason})")
    if trace.overruns:
        console.say(
            f"{trace.overruns:,} calls were not followed: too deep, on a stack that is not their "
            "thread's own, or from code that its runtime walks by itself"
        )
    console.say(str(overhead))
    if trace.lost:
        console.say(_lose_fewer(trace))
    for by in sorted(_counting(trace) - {args.tracer}):
        console.say(escape(f"textpoke report --by {by} {trace.output}"))
    console.say(escape(f"textpoke report {trace.output}"))


def _counting(trace: Trace) -> set[str]:
    """The tracers at work, now or before, that count and write no events."""
    counted = {PROFILE: trace.counted.calls, BRANCH: trace.branch_counts(lines=False)}
    return {tracer for tracer, found in counted.items() if found or trace.tracer == tracer}


def _lose_fewer(trace: Trace) -> str:
    if 2 * trace.lost_no_ring > trace.lost:
        return (
            f"{trace.lost_no_ring:,} of them are of threads that came when every ring was taken: "
            "start again, rings are made for twice the threads that there are"
        )
    return "to lose fewer: a larger --buffer, or fewer functions with -i and -x"


def _taken(trace: Trace) -> str:
    """What there is in the end."""
    parts: list[str] = []
    counting, counted = _counting(trace), trace.counted
    if PROFILE in counting:
        parts.append(
            f"{counted.calls:,} calls of {counted.functions:,} functions counted, "
            f"{counted.lost:,} lost"
        )
    if BRANCH in counting:
        branches = trace.branch_counts(lines=False)
        executed = [row.total for row in branches if row.total]
        parts.append(
            f"{len(branches):,} branches counted, {len(executed):,} executed, "
            f"{sum(executed):,} times"
        )
    if trace.events or trace.lost or not parts:
        parts.append(f"{trace.events:,} events, {trace.lost:,} lost")
    return "; ".join(parts)


def _child_status(console: Console, target: Target) -> int:
    try:
        ended, status = os.waitpid(target.pid, os.WNOHANG)
        if not ended:
            console.say(escape(f"waiting for {target.program} (pid {target.pid}) to end"))
            _, status = os.waitpid(target.pid, 0)
    except ChildProcessError:
        return 0
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
