# SPDX-License-Identifier: Apache-2.0
"""A capture with exits as text in the manner of ftrace's function_graph, in bounded memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke.calls import FOREVER, layouts_by_site, times_without_exits
from textpoke.decode import DATA, ENTRY, EXIT, Decoder
from textpoke.payload import CALLER, DURATION, Formatter, Layout, count_words, split
from textpoke.report.names import function_labels, padded_label
from textpoke.report.stacks import ShownStack, Stacks
from textpoke.report.text import header
from textpoke.trigger_notes import resumptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from textpoke.capture import Capture
    from textpoke.decode import Clock, Events, Loss
    from textpoke.payload import Field

_MARKS = (
    (1_000_000_000, "$"),
    (100_000_000, "@"),
    (10_000_000, "*"),
    (1_000_000, "#"),
    (100_000, "!"),
    (10_000, "+"),
)
_BLANK = " " * 15
_DURATION_WIDTH = 12
_NUMBER_WIDTH = 7
_LABEL_WIDTH = 25
_TIME_WIDTH = 17
_INDENT = "  "
_MOST_INDENTED = 200
"""Deeper calls are not moved further: a line of a recursion 100,000 deep would not be read."""
_MOST_FRAMES = 1 << 20
_NO_LAYOUT = Layout()


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """What is shown of the calls.

    Attributes:
        depth: Calls down to this depth only, 1 for the outermost.
        threshold_ns: Only calls that took as long; they are shown at their end alone.
        below: Only calls of these sites and what they call; None for all.
        abstime: A column with the time.
        tail: The name at every closing brace.
        flat: A line per call, at its end, without indentation.
    """

    depth: int | None = None
    threshold_ns: int = 0
    below: frozenset[int] | None = None
    abstime: bool = False
    tail: bool = False
    flat: bool = False

    @property
    def ends_only(self) -> bool:
        """Whether a call is shown at its end alone."""
        return self.flat or self.threshold_ns > 0


@dataclass(slots=True)
class _Call:
    """An open call."""

    site: int
    start_ns: int
    depth: int
    hidden: bool
    words: tuple[int, ...] = ()


@dataclass(slots=True)
class _Line:
    """A line whose place is fixed while its text waits for the thread's next event."""

    place: int
    call: _Call
    time_ns: int
    end_ns: int | None = None  # set: it has ended
    is_leaf: bool = False  # without an end: nothing was to tell when it ends
    is_orphan: bool = False
    words: tuple[int, ...] = ()  # of the exit


@dataclass(slots=True)
class _Thread:
    label: str
    stack: list[_Call] = field(default_factory=list)
    open: Counter[int] = field(default_factory=Counter)  # by site, calls on the stack
    line: _Line | None = None
    below: int = 0  # open calls of the sites that are asked for
    breaks: list[int] = field(default_factory=list)  # times over which no call reaches
    next_break: int = 0
    sink: _Call | _Line | None = None  # to which the payload belongs that comes next


def graph(
    capture: Capture,
    options: GraphOptions | None = None,
    *,
    symbol: Callable[[int], str | None] | None = None,
) -> Iterator[str]:
    """The header and the calls, many lines at a time.

    As in the kernel, but for the CPU, which is not recorded: the task has its column instead.
    A call stands where it began; one that calls nothing has a line to itself, and so have calls
    of a time when the tracer was function. Where its entry is not in the capture the name stands
    behind the brace. What `stacktrace` triggers noted is a comment behind its event.

    Args:
        capture: Open.
        options: What to show; everything by default.
        symbol: Gives names for callers' addresses.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    writer = _Writer(capture, options or GraphOptions(), symbol)
    yield writer.header()
    for events in writer.decoder.merged():
        yield writer.chunk(events)
    yield writer.rest()


class _Writer:
    def __init__(
        self,
        capture: Capture,
        options: GraphOptions,
        symbol: Callable[[int], str | None] | None,
    ) -> None:
        self.decoder = Decoder(capture)
        self._capture = capture
        self._options = options
        self._layouts = layouts_by_site(capture)
        clock = self.decoder.clock
        rate = clock.ns_per_tick if clock.known else None
        self._formatter = Formatter(capture.meta.enums, symbol, rate)
        self._stacks = Stacks(capture, clock, symbol)
        self._ns_per_tick = clock.ns_per_tick
        self._start_ns = clock.start_ns
        self._functions = function_labels(capture)
        self._without_exits_ns = _bounds_ns(times_without_exits(capture), clock)
        self._resumed_ns = clock.ns(np.array(resumptions(capture), np.uint64)).tolist()
        self._threads = {tid: self._thread(tid) for tid in self.decoder.tids}
        self._lines: list[str] = []

    def _thread(self, tid: int) -> _Thread:
        starts_ns = self.decoder.stretch_starts_ns(tid)
        breaks = sorted([*self._resumed_ns, *starts_ns]) if starts_ns else self._resumed_ns
        return _Thread(padded_label(self._capture, tid), breaks=breaks)

    def header(self) -> str:
        """The lines above the first event."""
        time = f"{'TIME':^{_TIME_WIDTH}}" if self._options.abstime else ""
        bars = f"{'|':^{_TIME_WIDTH}}" if self._options.abstime else ""
        label = "#" + "TASK-PID".rjust(_LABEL_WIDTH - 6)
        under = "#" + "| |".rjust(_LABEL_WIDTH - 8)
        lines = [
            *header(self._capture, self.decoder),
            f"{label:<{_LABEL_WIDTH + 2}}{time}  DURATION                  FUNCTION CALLS",
            f"{under:<{_LABEL_WIDTH + 2}}{bars}   |   |                     |   |   |   |",
        ]
        return "".join(f"{line}\n" for line in lines)

    def chunk(self, events: Events) -> str:
        """The lines of some events; nothing waits for the next chunk but the open calls."""
        self._lines = []
        words = events.words if events.has_data else np.zeros(len(events), np.uint64)
        columns = (events.ts_ns, events.tid, events.site, events.type, words)
        lists = [column.tolist() for column in columns]
        start = 0
        for row, between in self._between(events):
            self._take([column[start:row] for column in lists])
            if isinstance(between, ShownStack):
                self._show_stack(between)
            else:
                self._lose(between.tid, between.count)
            start = max(start, row)
        self._take([column[start:] for column in lists])
        for thread in self._threads.values():
            self._settle(thread)
        return "".join(self._lines)

    def rest(self) -> str:
        """The lines behind the last event."""
        self._lines = []
        for stack in self._stacks.rest():
            self._show_stack(stack)
        return "".join(self._lines)

    def _between(self, events: Events) -> list[tuple[int, Loss | ShownStack]]:
        # What stands before which row.
        losses = ((int(np.searchsorted(events.ts_ns, x.ts_ns)), x) for x in events.losses)
        found: list[tuple[int, Loss | ShownStack]] = [*losses]
        return sorted([*found, *self._stacks.before_end_of(events)], key=lambda place: place[0])

    def _take(self, columns: list[list[int]]) -> None:
        for ts_ns, tid, site, kind, word in zip(*columns, strict=True):
            thread = self._threads[tid]
            if kind == DATA:
                if thread.sink is not None:
                    thread.sink.words += (word,)
                continue
            if thread.breaks:
                self._pass_breaks(thread, ts_ns)
            if kind == ENTRY:
                self._enter(thread, site, ts_ns)
            elif kind == EXIT:
                self._leave(thread, site, ts_ns)

    def _pass_breaks(self, thread: _Thread, ts_ns: int) -> None:
        before, breaks = thread.next_break, thread.breaks
        while thread.next_break < len(breaks) and breaks[thread.next_break] <= ts_ns:
            thread.next_break += 1
        if thread.next_break > before:
            while thread.stack:
                self._unfinished(thread, breaks[before])

    def _lose(self, tid: int, count: int) -> None:
        thread = self._threads[tid]
        self._settle(thread)
        self._lines.append(f"{thread.label}[LOST {count} EVENTS]\n")

    def _show_stack(self, stack: ShownStack) -> None:
        thread = self._threads.get(stack.tid) or _Thread(padded_label(self._capture, stack.tid))
        self._settle(thread)
        depth = 0 if self._options.ends_only or not thread.stack else thread.stack[-1].depth + 1
        self._lines += [
            self._line(thread, depth, stack.ts_ns, _BLANK, f"/* {stack.title}"),
            *(f"{frame}\n" for frame in stack.frames),
            " */\n",
        ]

    def _level(self, thread: _Thread, site: int) -> tuple[int, bool]:
        # The depth at which a call is shown that begins now, and whether it is hidden.
        options, stack = self._options, thread.stack
        depth = stack[-1].depth + 1 if stack else 0
        outside = False
        if options.below is not None and not thread.below:
            outside = site not in options.below
            depth = 0  # those that are asked for begin at the left
        return depth, outside or (options.depth is not None and depth >= options.depth)

    def _enter(self, thread: _Thread, site: int, ts_ns: int) -> None:
        options, stack = self._options, thread.stack
        depth, hidden = self._level(thread, site)
        if bisect_right(self._without_exits_ns, ts_ns) % 2:
            self._enter_for_good(thread, _Call(site, ts_ns, depth, hidden))
            return
        if options.below is not None and site in options.below:
            thread.below += 1
        call = _Call(site, ts_ns, depth, hidden)
        if len(stack) == _MOST_FRAMES:  # of functions whose exits do not come
            del stack[: _MOST_FRAMES // 2]
            thread.open = Counter(call.site for call in stack)
        stack.append(call)
        thread.open[site] += 1
        thread.sink = call
        if not hidden and not options.ends_only:
            self._settle(thread)
            thread.line = self._place(_Line(len(self._lines), call, ts_ns))

    def _enter_for_good(self, thread: _Thread, call: _Call) -> None:
        # The function tracer saw it: nobody knows when it ends, or what is inside of it.
        thread.sink = call
        if call.hidden or self._options.threshold_ns:
            return
        self._settle(thread)
        line = _Line(len(self._lines), call, call.start_ns, is_leaf=True)
        thread.line = self._place(line)

    def _leave(self, thread: _Thread, site: int, ts_ns: int) -> None:
        thread.sink = None
        if self._layouts and self._layouts.get(site, _NO_LAYOUT).is_threshold:
            self._leave_long(thread, site, ts_ns)
            return
        stack = thread.stack
        if not thread.open[site]:
            self._orphan(thread, site, ts_ns)
            return
        while stack[-1].site != site:
            self._unfinished(thread, ts_ns)
        call = self._pop(thread)
        if call.hidden:
            return
        line = thread.line
        if line is not None and line.call is call:
            line.is_leaf = True
            line.end_ns = ts_ns
        elif ts_ns - call.start_ns >= self._options.threshold_ns:
            self._settle(thread)
            line = thread.line = self._place(_Line(len(self._lines), call, ts_ns, ts_ns))
        else:
            return
        thread.sink = line

    def _pop(self, thread: _Thread) -> _Call:
        call = thread.stack.pop()
        thread.open[call.site] -= 1
        if self._options.below is not None and call.site in self._options.below:
            thread.below -= 1
        return call

    def _unfinished(self, thread: _Thread, ts_ns: int) -> None:
        # Left by longjmp or an exception, or its exit is not here: the brace has no duration.
        call = self._pop(thread)
        if call.hidden or self._options.ends_only:
            return
        self._settle(thread)
        self._lines.append(
            self._line(thread, call.depth, ts_ns, _BLANK, f"}} /* {self._name(call)}: no exit */")
        )

    def _orphan(self, thread: _Thread, site: int, ts_ns: int) -> None:
        options = self._options
        if options.below is not None or options.ends_only:
            return  # nobody knows below what it was, or how long it took
        stack = thread.stack
        depth = stack[-1].depth + 1 if stack else 0
        if options.depth is not None and depth >= options.depth:
            return
        self._settle(thread)
        call = _Call(site, ts_ns, depth, hidden=False)
        line = _Line(len(self._lines), call, ts_ns, ts_ns, is_orphan=True)
        thread.line = self._place(line)
        thread.sink = line

    def _leave_long(self, thread: _Thread, site: int, ts_ns: int) -> None:
        # Recorded at its end alone: the first word of its payload is the duration.
        self._settle(thread)
        if self._options.below is not None and site not in self._options.below:
            return
        call = _Call(site, ts_ns, 0, hidden=False)
        thread.line = self._place(_Line(len(self._lines), call, ts_ns, ts_ns, is_orphan=True))
        thread.sink = thread.line

    def _place(self, line: _Line) -> _Line:
        self._lines.append("")
        return line

    def _settle(self, thread: _Thread) -> None:
        line, thread.line = thread.line, None
        if line is not None:
            self._lines[line.place] = self._text(thread, line)

    def _text(self, thread: _Thread, line: _Line) -> str:
        call = line.call
        layout = self._layouts.get(call.site, _NO_LAYOUT) if self._layouts else _NO_LAYOUT
        if line.end_ns is None:
            brace = ";" if line.is_leaf else " {"
            text = f"{self._begin(call, layout)}{brace}{self._caller(call, layout)}"
            depth = 0 if self._options.flat else call.depth
            return self._line(thread, depth, line.time_ns, _BLANK, text)
        took_ns: int | None = line.end_ns - call.start_ns
        if line.is_orphan:
            took_ns = self._long_ns(line, layout)
        result = self._result(layout, line.words)
        if (took_ns or 0) < self._options.threshold_ns:
            return ""
        duration = _BLANK if took_ns is None else _duration(took_ns)
        depth = 0 if self._options.flat else call.depth
        if line.is_leaf or self._options.flat:
            text = f"{self._begin(call, layout)}{result};{self._caller(call, layout)}"
        else:
            named = self._options.tail or self._options.ends_only or line.is_orphan
            text = f"}}{result}" + (f" /* {self._name(call)} */" if named else "")
        return self._line(thread, depth, line.time_ns, duration, text)

    def _long_ns(self, line: _Line, layout: Layout) -> int | None:
        if not layout.is_threshold or not line.words:
            return None
        return round(line.words[0] * self._ns_per_tick)

    def _line(self, thread: _Thread, depth: int, time_ns: int, duration: str, text: str) -> str:
        time = ""
        if self._options.abstime:
            seconds, rest_ns = divmod(time_ns + self._start_ns, 1_000_000_000)
            time = f"{seconds:>6}.{rest_ns // 1000:06d} |  "
        indent = _INDENT * min(depth, _MOST_INDENTED)
        return f"{thread.label}| {time}{duration}|  {indent}{text}\n"

    def _name(self, call: _Call) -> str:
        return self._functions[call.site]

    def _begin(self, call: _Call, layout: Layout) -> str:
        if not call.words:
            return f"{self._name(call)}()"
        fields = [
            (held, words)
            for held, words in self._parts(layout.entry, call.words)
            if held.kind != CALLER
        ]
        return f"{self._name(call)}({self._formatter.joined(fields)})"

    def _caller(self, call: _Call, layout: Layout) -> str:
        for held, words in self._parts(layout.entry, call.words) if call.words else ():
            if held.kind == CALLER:
                return f" /* <-{self._formatter.text(held.kind, words)} */"
        return ""

    def _result(self, layout: Layout, words: tuple[int, ...]) -> str:
        if not words:
            return ""
        fields = [
            (held, words)
            for held, words in self._parts(layout.exit, words)
            if held.kind != DURATION
        ]
        if not fields:
            return ""
        if len(fields) == 1:
            return f" = {self._formatter.text(fields[0][0].kind, fields[0][1])}"
        return f" = {{{self._formatter.joined(fields)}}}"

    @staticmethod
    def _parts(
        fields: tuple[Field, ...], words: tuple[int, ...]
    ) -> Iterator[tuple[Field, Sequence[int]]]:
        # A payload that is not whole is not shown: its words may belong to another event.
        if fields and words and len(words) == count_words(fields):
            yield from split(fields, words)


def _bounds_ns(spans: list[tuple[int, int]], clock: Clock) -> list[int]:
    # Begin, end, begin, end: an odd number of them lies before what is inside.
    bounds: list[int] = []
    for span in spans:
        first, last = clock.ns(np.array(span, np.uint64)).tolist()
        last = np.iinfo(np.int64).max if span[1] == FOREVER else last
        if bounds and first <= bounds[-1]:
            bounds[-1] = max(bounds[-1], last)
        elif first < last:
            bounds += [first, last]
    return bounds


def _duration(took_ns: int) -> str:
    # As the kernel: a mark, and seven characters of microseconds at most.
    mark = " "
    if took_ns > _MARKS[-1][0]:
        mark = next(mark for limit, mark in _MARKS if took_ns > limit)
    us, ns = divmod(took_ns, 1000)
    number = f"{us}.{ns:03d}"[: max(_NUMBER_WIDTH, len(str(us)))].rstrip(".")
    return f" {mark} {f'{number} us':<{_DURATION_WIDTH}}"
