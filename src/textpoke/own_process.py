# SPDX-License-Identifier: Apache-2.0
"""`with textpoke.trace(...)`: native functions that the calling process itself runs."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
from typing import TYPE_CHECKING, Self

from textpoke import waiting
from textpoke._errors import TextpokeError
from textpoke._native import lib
from textpoke.own_calls import OwnCalls
from textpoke.own_modules import folders_of, import_them, patterns_of
from textpoke.python_lines import LineNotes
from textpoke.tracer import this_process
from textpoke.tracer_names import GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from textpoke.one_trace import Trace
    from textpoke.tracer import Target

RING_BYTES = 1 << 22
"""A burst of 130,000 calls a thread, between two looks."""
_RINGS = 64  # of more, or larger ones, our own view would take the place where pads belong
_DRAIN_S = 0.02


class OwnTrace(OwnCalls):
    """A trace of the process that makes it, and its results; see `trace`.

    The results can be read after the block, and within it as far as they have come.

    Attributes:
        functions: How many are traced.
        refused: (site, reason) of those that cannot be.
    """

    def __init__(
        self,
        include: Sequence[str],
        exclude: Sequence[str],
        *,
        modules: Sequence[str],
        tracer: str,
        lines: bool,
        depth: int,
        ring_bytes: int,
        progress: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self.functions = 0
        self._include, self._exclude, self._modules = include, exclude, modules
        self._tracer, self._depth, self._ring_bytes = tracer, depth, ring_bytes
        self._lines = LineNotes() if lines else None
        self._progress, self._doing = progress, ""
        self._stack = contextlib.ExitStack()
        self._trace: Trace | None = None
        self._one_at_a_time = threading.Lock()
        self._end = threading.Event()
        self._failure: TextpokeError | None = None
        self._drainer = threading.Thread(target=self._drain, name="tp-drain", daemon=True)

    def __enter__(self) -> Self:
        import_them(self._modules)
        try:
            with self._at_work("looking for functions"), contextlib.ExitStack() as stack:
                target = stack.enter_context(
                    this_process(ring_bytes=self._ring_bytes, rings=_RINGS)
                )
                made = self._made(target)
                self._doing = f"switching {len(made.chosen):,} functions on"
                self._trace = stack.enter_context(made)
                self._stack = stack.pop_all()
        except BaseException:
            self._forget_file()
            raise
        self.functions = self._trace.function_count
        self.refused = list(self._trace.refused)
        self._drainer.start()
        if self._lines is not None:
            self._lines.skip += tuple(f for name in self._modules for f in folders_of(name))
            self._lines.start()
        self._since = int(lib.tp_rdtsc())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._until = int(lib.tp_rdtsc())
        if self._lines is not None:
            self._lines.stop()
        self._end.set()
        self._drainer.join()
        trace, self._trace = self._trace, None
        if trace is None:
            return
        is_ours = trace.target.agent.is_ours  # else a forked child leaves: all is its parent's
        try:
            with self._at_work(f"putting {self.functions:,} functions back, reading calls"):
                self._stack.__exit__(exc_type, exc, traceback)
                if is_ours:
                    self._take(trace.lost, self._lines)
        finally:
            if is_ours:
                self._forget_file()
        if self._failure is not None and exc_type is None:
            raise self._failure

    @contextlib.contextmanager
    def _at_work(self, text: str) -> Iterator[None]:
        """Who waits for long is told for what.

        Hundreds of thousands of objects are made and none of them is garbage: looking for some
        would take a sixth of the time, and more in a process with many objects of its own.
        """
        self._doing, collects = text, gc.isenabled()
        gc.disable()
        try:
            with waiting.said(lambda: self._doing, self._progress):
                yield
        finally:
            if collects:
                gc.enable()

    def _made(self, target: Target) -> Trace:
        chosen = [p for name in self._modules for p in patterns_of(name, target.modules)]
        handle, self._file = tempfile.mkstemp(prefix=f"textpoke-{os.getpid()}-", suffix=".tptrace")
        os.close(handle)
        return target.trace(
            [*self._include, *chosen],
            self._exclude,
            everything=True,
            output=self._file,
            force=True,
            tracer=self._tracer,
            depth=self._depth,
        )

    def _drain(self) -> None:
        while not self._end.wait(_DRAIN_S):
            try:
                self._drain_now()
            except TextpokeError as exc:
                self._failure = exc
                return

    def _drain_now(self) -> None:
        with self._one_at_a_time:
            if self._trace is not None:
                self._trace.drain()

    def _look(self) -> None:
        """Within the block: what has been recorded so far."""
        if self._trace is None:
            return
        self._drain_now()
        self._take(self._trace.lost, self._lines)


def trace(
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    *,
    modules: str | Sequence[str] = (),
    tracer: str = GRAPH,
    lines: bool = False,
    depth: int = 0,
    ring_bytes: int = RING_BYTES,
    progress: Callable[[str], None] | None = None,
) -> OwnTrace:
    """Trace native functions of the calling process while a `with` block runs.

        >>> with textpoke.trace(modules=["zlib"]) as t:
        ...     zlib.compress(b"x" * 1000)
        >>> t.calls("libz!deflate")
        1

    Args:
        include: Functions: 'GLOB' or 'MODULE!GLOB', one or several.
        exclude: The same; wins.
        modules: Python packages, all of whose native functions are traced, or names of shared
            objects ("libz"); packages are imported.
        tracer: "function_graph" (calls with durations) or "function".
        lines: Note too which line of Python each thread is at (sys.settrace: Python code runs some
            ten times slower meanwhile), so that results tell which line spent its time where. Not
            lines of `modules` themselves: it is the line that called them that is told.
        depth: Calls below each other that are followed; 0 for all.
        ring_bytes: Bytes of events that a thread can record between two looks, 20 ms.
        progress: Told by a thread of its own what is being done when that takes longer than a
            second, as with tens of thousands of functions. None: stderr is, where it is a terminal
            or a notebook's.

    Returns:
        A context manager; its results are `OwnCalls`.

    Raises:
        UnknownFunction, NoSites, NotPatchable: On entering: there is nothing to trace.
        TargetError, AgentError: As `this_process`.
    """
    if not include and not modules:
        raise ValueError("nothing chosen: give functions ('libz!deflate') or modules=['numpy']")
    return OwnTrace(
        _several(include),
        _several(exclude),
        modules=_several(modules),
        tracer=tracer,
        lines=lines,
        depth=depth,
        ring_bytes=ring_bytes,
        progress=progress or waiting.to_somebody(),
    )


def _several(words: str | Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)
