# SPDX-License-Identifier: Apache-2.0
"""The public face: `attach`, `launch`, `this_process`, and the `Target` they give.

This module wires the others together and holds no logic of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING, Self

from textpoke import clock, leave, libc_sites, process_sites, startup, target, tracers
from textpoke._errors import (
    AgentFailed,
    NotPatchable,
    SiteError,
    TargetExited,
    TraceExists,
    UnsupportedTarget,
    ViewError,
)
from textpoke._native import ffi, lib
from textpoke.agent import error_text
from textpoke.agent_image import Probe, load_image
from textpoke.engine import Batch
from textpoke.inject import DEFAULT_RING_BYTES, load
from textpoke.modes import Mode
from textpoke.one_trace import Trace
from textpoke.placing import Placing
from textpoke.proc import read_code
from textpoke.records import Records
from textpoke.redirection import Redirection
from textpoke.returns import Returns
from textpoke.ring_sets import RingSets
from textpoke.tracer_names import BLK, BRANCH, FUNCTION

if TYPE_CHECKING:
    from collections import abc
    from collections.abc import Collection, Sequence
    from types import TracebackType

    from textpoke.agent import Agent
    from textpoke.arguments import Captures, Resolver, Spec
    from textpoke.branch_counts import BranchCounts
    from textpoke.capture import CaptureWriter
    from textpoke.code_views import CodeViews
    from textpoke.libc_calls import Function
    from textpoke.model import Mapping, Module, Site
    from textpoke.plan import Plan
    from textpoke.poke import Outcome


class Target:
    """A process with our agent in it; a context manager that detaches at the end.

    Made by `attach`, `launch` or `this_process`.

    Attributes:
        pid: Its process id.
        agent: The connection to the agent.
        keep: What is patched stays when this tool ends without `detach`.
        repaired: Sites that a killed tool had left patched and that were put back on attach.
        report: What the detach did and proved; None before.
        views: What other tools are told of our code; None unless `describe_code` was called.
    """

    def __init__(self, agent: Agent, *, keep: bool = False) -> None:
        self.agent = agent
        self.keep = keep
        self.pid = agent.pid
        self.repaired = 0
        self.report: leave.DetachReport | None = None
        self.views: CodeViews | None = None
        self.exe = _exe(self.pid)
        self.command_line = _command_line(self.pid)
        self._modules: list[Module] | None = None
        self._maps: Sequence[Mapping] = ()  # at the last look
        self._code = b""  # likewise
        self._files: list[Mapping] = []  # what was mapped when the modules were read
        self._finders = {
            (everything, traps): process_sites.of_process(
                self.pid, everything=everything, traps=traps
            )
            for everything in (False, True)
            for traps in (False, True)
        }
        default = Probe(lib.TP_PROBE_FUNCTION)
        self.placing = Placing(agent, default)
        self.records = Records(agent, self.placing, default)
        self.placing.forget = self.records.forget_leads
        self.ring_sets = RingSets(agent)
        self.redirection = Redirection(agent, self.placing, self.records)
        self.traces: dict[str, Trace] = {}
        self.counting: set[int] = set()  # who counts branches now
        self.counting_turns = 0  # how often somebody began or ended that
        self._resolver: Resolver | None = None
        self._left_over = ""  # why an earlier tool's redirected returns could not be let go
        self._returns: tuple[frozenset[tuple[str, int, int]], Returns] | None = None
        self._repair()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.keep or not self.agent.is_ours:
            self.agent.close()
        else:
            self.detach()

    @property
    def program(self) -> str:
        """Name of the program: of its file, or of the link by which it was started."""
        main = next((module.name for module in self.modules if module.is_main), "")
        return main or os.path.basename(self.exe)

    @property
    def modules(self) -> list[Module]:
        """The main program and every shared object that is mapped now."""
        code = read_code(self.pid)
        if self._modules is not None and code and code == self._code:
            return self._modules
        modules, files, maps = self._modules, self._files, target.read_mappings(self.pid)
        if modules is None or maps is not self._maps:
            files = [m for m in maps if m.inode and "x" in m.perms]
        if modules is None or files != self._files:
            if modules is not None:
                self._forget_replaced(files)
            modules = target.read_modules(self.pid)
        # All at once, and last: what has changed meanwhile is seen the next time.
        self._code = code if code == read_code(self.pid) else b""
        self._modules, self._files, self._maps = modules, files, maps
        return modules

    def _forget_replaced(self, files: list[Mapping]) -> None:
        """Where a file has been mapped since, nothing of ours stands any more."""
        known = {(m.inode, m.start - m.offset) for m in self._files}
        fresh = [m for m in files if (m.inode, m.start - m.offset) not in known]
        if fresh:
            self.records.forget_in(fresh)
            for trace in self.traces.values():
                trace.forget_in(fresh)

    @property
    def hold_ns(self) -> int:
        """How long one thread was held for the attach, in nanoseconds."""
        return self.agent.timings.hold_ns

    def all_sites(self, *, everything: bool = False, traps: bool = False) -> list[Site]:
        """What is traced without patterns, refused sites included, in address order.

        That is the main program, and every module that was compiled for tracing.

        Args:
            everything: As for `sites`.
            traps: As for `sites`.
        """
        found = self._finders[everything, traps].usual(self.modules)
        self.agent.require_alive("the search for sites")
        return found

    def sites(
        self,
        include: str | Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        everything: bool = False,
        traps: bool = False,
    ) -> list[Site]:
        """Patchable sites by pattern.

        Args:
            include: 'GLOB' or 'MODULE!GLOB', one or several; empty for the main program and every
                module that was compiled for tracing. A name without MODULE is looked for there
                first, then in every module.
            exclude: The same; wins over `include`.
            everything: Functions without NOPs too, in modules that were compiled for tracing.
            traps: Functions too that nothing but an int3 that stays can patch (`SiteKind.TRAP`):
                each call of one costs a signal, some 2,500 ns. Never where SIGTRAP may be blocked.

        Raises:
            UnknownFunction: A pattern matches nothing.
            NoSites: Nothing in this process can be patched.
            NotPatchable: Nothing that the patterns choose can be patched.
        """
        patterns = [include] if isinstance(include, str) else list(include)
        where = f"pid {self.pid} ({self.program})"
        finder = self._finders[everything, traps]
        try:
            chosen = finder.choose(self.modules, patterns, list(exclude), where)
        except SiteError as exc:
            if not target.read_maps(self.pid):  # memory goes first, the pidfd tells later
                raise TargetExited(self.pid, "the search for sites") from exc
            raise
        self.agent.require_alive("the search for sites")
        patchable = [site for site in chosen if site.patchable]
        if not patchable:
            raise NotPatchable(chosen[0], chosen[0].reason or "")
        return patchable

    def batch(
        self,
        *,
        mode: Mode | str = Mode.AUTO,
        all_or_nothing: bool = True,
        one_by_one: bool = False,
    ) -> Batch:
        """Pokes of your own, run together when the `with` block ends.

        Args:
            mode: "auto", "int3", "direct" or "stop" (`Mode`).
            all_or_nothing: Roll finished sites back too when the batch fails.
            one_by_one: A protocol run a site (for measurement).
        """
        return Batch(self.agent, mode=mode, all_or_nothing=all_or_nothing, one_by_one=one_by_one)

    def trace(  # noqa: PLR0913 - a caller names the few that it wants
        self,
        include: str | Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        everything: bool = False,
        traps: bool = False,
        output: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        force: bool = False,
        command: Sequence[str] = (),
        mode: Mode | str = Mode.AUTO,
        tracer: str = FUNCTION,
        depth: int = 0,
        threshold_us: float = 0.0,
        arguments: Sequence[Spec] = (),
        name: str = "",
    ) -> Trace:
        """A trace of the chosen sites; nothing happens before it is entered.

        Args:
            include: As for `sites`.
            exclude: As for `sites`.
            everything: As for `sites`.
            traps: As for `sites`.
            output: Capture file; None counts events and throws them away.
            overwrite: Keep the last events of every thread (flight recorder) instead of
                draining; full rings then overwrite the oldest events instead of dropping new ones.
            force: Overwrite an existing capture.
            command: Words to note in the capture as the traced command.
            mode: How sites are written: "auto", "int3", "direct" or "stop" (`Mode`).
            tracer: What is recorded (`tracers.TRACERS`); `Trace.tracer` switches it later.
            depth: With function_graph: calls below each other that are followed; 0 for all.
            threshold_us: With function_graph: shorter calls leave no event, in microseconds.
            arguments: What calls shall tell of their arguments and results (`arguments.parse`).
            name: Tells it from other traces of this target that run at the same time.

        Raises:
            UnknownFunction, NoSites: As `sites`.
            UnknownTracer: There is no such tracer.
        """
        finder = self._finders[everything, traps]
        if tracer == BLK and not include:
            chosen = []  # it looks at libc alone
        elif tracer == BRANCH:  # functions whose entries cannot be patched have branches, too
            self.functions(include, exclude)
            chosen = self._sites_in(self.modules, include, exclude, finder)
        else:
            chosen = self.sites(include, exclude, everything=everything, traps=traps)

        def find_in(modules: Sequence[Module]) -> list[Site]:
            return self._sites_in(modules, trace.filter, trace.notrace, finder)

        trace = Trace(
            self,
            chosen,
            output,
            overwrite=overwrite,
            force=force,
            command=command,
            mode=Mode(mode),
            find_in=find_in,
            functions=lambda: self.functions(include, exclude),
            everything=everything,
            traps=traps,
            tracer=tracer,
            options=tracers.Options(depth, _ticks(threshold_us)),
            arguments=arguments,
            name=name,
            filters=([include] if isinstance(include, str) else include, exclude),
        )
        return trace

    def trace_of(
        self,
        chosen: Sequence[Site],
        output: str | os.PathLike[str] | CaptureWriter | None,
        *,
        tracer: str = FUNCTION,
        name: str = "",
    ) -> Trace:
        """As `trace`, of sites that are chosen already."""
        return Trace(self, list(chosen), output, tracer=tracer, name=name)

    def sites_of(
        self, modules: Collection[str], *, everything: bool = False, traps: bool = False
    ) -> list[Site]:
        """All sites of the modules of these names, refused ones too. Args as for `sites`."""
        finder = self._finders[everything, traps]
        return [s for m in self.modules if m.name in modules for s in finder.of_module(m)]

    def add_trace(self, trace: Trace) -> None:
        """A trace begins. Raises TraceExists when one of that name is running."""
        if trace.name in self.traces:
            raise TraceExists(self.pid, trace.name)
        self.traces[trace.name] = trace

    def remove_trace(self, trace: Trace) -> None:
        """It has ended."""
        if self.traces.get(trace.name) is trace:
            del self.traces[trace.name]

    @property
    def returns(self) -> Returns:
        """Which returns can be redirected, of the modules that are mapped now."""
        keys = frozenset(module.key for module in self.modules)
        if self._returns is None or self._returns[0] != keys:
            self._returns = keys, Returns(self.pid, self.modules)
        return self._returns[1]

    def libc_sites(self, tracer: str) -> list[tuple[Site, Function]]:
        """Where the functions are that blk, wakeup_rt or irqsoff stands on. Raises NoSites."""
        return libc_sites.find(self.pid, self.modules, self._finders[True, False], tracer)

    def captures(
        self, specs: Sequence[Spec], sites: Sequence[Site], *, strict: bool = True
    ) -> Captures:
        """What to capture at `sites`, as `arguments.parse` has read it.

        Args:
            specs: What is asked for.
            sites: The functions.
            strict: As for `Resolver.programs`.

        Raises:
            ArgumentSpec, UnknownFunction: As `Resolver.programs`.
        """
        from textpoke.arguments import Resolver  # here: most recordings do without

        if self._resolver is None:
            self._resolver = Resolver(lambda module: target.open_module(self.pid, module))
        return self._resolver.programs(specs, sites, self.modules, strict=strict)

    def make_ready_for_returns(self, mode: Mode) -> None:
        """Whatever must be in place before returns are redirected. Raises as `Redirection`."""
        if self._left_over:
            _, _, self._left_over = leave.put_all_back(self.agent)
        if self._left_over:
            why = f"an earlier tool's code is still in use: {self._left_over}"
            raise UnsupportedTarget(self.pid, "returns", why)
        self.redirection.make_ready(self.modules, self._finders[True, False], mode)
        self._tell_views()

    def merge(self, plan: Plan, mode: Mode = Mode.AUTO) -> Outcome | None:
        """Make planned runs of NOPs one instruction (`Placing.merge`)."""
        return self.placing.merge(plan, self.modules, mode)

    def branches(
        self,
        include: str | Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        mode: Mode | str = Mode.AUTO,
    ) -> BranchCounts:
        """Counts of the branches of chosen functions; nothing happens before it is entered.

        Functions whose entries cannot be patched are counted too.

        Args:
            include: As for `sites`.
            exclude: As for `sites`.
            mode: How sites are written: "auto", "int3", "direct" or "stop" (`Mode`).

        Raises:
            UnknownFunction, NoSites: As `sites`.
            ModuleUnavailable, BadElf: A module's file cannot be read.
        """
        from textpoke.branch_counts import BranchCounts  # here: only this tracer needs numpy

        functions = self.functions(include, exclude)
        counts = BranchCounts(self, functions, Mode(mode))
        if not counts.found.sites:
            raise NotPatchable(functions[0], "none of its branches can be counted")
        return counts

    def functions(
        self, include: str | Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> list[Site]:
        """A site of every function by pattern, those that cannot be patched too.

        Raises:
            UnknownFunction, NoSites: As `sites`.
        """
        patterns = [include] if isinstance(include, str) else list(include)
        where = f"pid {self.pid} ({self.program})"
        chosen = self._finders[True, False].choose(self.modules, patterns, list(exclude), where)
        self.agent.require_alive("the search for functions")
        return chosen

    def _sites_in(
        self,
        modules: Sequence[Module],
        include: Sequence[str],
        exclude: Sequence[str],
        finder: process_sites.Finder,
    ) -> list[Site]:
        """Patchable sites of some modules by pattern; none is no error here."""
        chosen: list[Site] = []
        for pattern in include or [""]:
            with contextlib.suppress(SiteError):
                chosen += finder.choose(modules, [pattern] if pattern else [], list(exclude))
        by_address = {site.address: site for site in chosen if site.patchable}
        return [by_address[address] for address in sorted(by_address)]

    def prepare(self, chosen: Sequence[Site], *, traps: bool = False) -> Plan:
        """Plan CALLs to the thunk at `chosen` sites and map the code that they need.

        Raises as `Placing.prepare`.
        """
        plan = self.placing.prepare(chosen, traps=traps)
        self._tell_views()
        return plan

    def _tell_views(self) -> None:
        if self.views is None:
            return
        try:
            self._refresh_views(self.views)
        except (ViewError, AgentFailed) as exc:  # the trace itself is none the worse for it
            self.views.problems.append(str(exc))

    def describe_code(
        self, *, perf_map: bool = False, gdb: str | os.PathLike[str] = "", force: bool = False
    ) -> CodeViews:
        """Tell profilers and debuggers of our code: now, and whenever more of it is placed.

        The files are left when we leave; what is in the target's memory goes.

        Args:
            perf_map: Add names to /tmp/perf-PID.map, as the target sees that path, for perf.
            gdb: File to write: an ELF object with names and unwind rows, for gdb's
                `add-symbol-file`. If the program has gdb's JIT interface, the object is linked in
                there too, while all threads are held for a moment.
            force: Overwrite the file.

        Raises:
            ViewError: A file cannot be written.
        """
        from textpoke.code_views import CodeViews  # here: most recordings do without

        self.views = CodeViews(
            self.agent,
            self.modules,
            with_perf_map=perf_map,
            gdb_object=os.fspath(gdb),
            force=force,
        )
        self._refresh_views(self.views)
        return self.views

    def _refresh_views(self, views: CodeViews) -> None:
        from textpoke.placed import PlacedCode, Trampolines

        placing, head = self.placing, self.agent.image()
        count = head.shadow_count * lib.TP_SHADOW_DEPTH
        trampolines = Trampolines(head.shadow_returns, count, head.shadow_frames)
        placed = PlacedCode(
            load_image(),
            self.agent.base,
            placing.planner,
            placing.copies.placed,
            trampolines if count else None,
        )
        views.refresh(placed, self.modules)

    def release(self) -> None:
        """Let a launched program run."""
        self.agent.release()

    def discard(self) -> None:
        """End a launched program that has not run yet; every other one is left alone."""
        if self.agent.held is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def detach(self) -> leave.DetachReport:
        """Undo everything, prove it, remove the agent. A second call returns the same report."""
        if self.report is None:
            self.report = leave.detach(self.agent)
        return self.report

    def _repair(self) -> None:
        """An earlier tool was killed and left its sites on: start from what the files say.

        Not what a tool has left on purpose.
        """
        kept = bool(self.agent.image().keep)
        if kept and not self.keep:
            raise UnsupportedTarget(
                self.pid,
                "kept",
                "an earlier tool has left its patches here on purpose; attach with keep=True, or "
                f"remove them: textpoke detach -p {self.pid}",
            )
        if self.keep:
            self.agent.keep(on=True)
        if kept:
            return
        left_on = leave.undo_request(leave.known_sites(self.agent))
        if left_on.pokes:
            self.agent.record(on=False)
            _, _, self._left_over = leave.put_all_back(self.agent)
            self.repaired = len(left_on.pokes)


def attach(
    pid: int,
    *,
    ring_bytes: int = DEFAULT_RING_BYTES,
    rings: int | None = None,
    keep: bool = False,
) -> Target:
    """Attach to a running process: one thread of it is held for under a millisecond.

    Args:
        pid: The process.
        ring_bytes: Bytes of events that one thread can record before they are drained; a power
            of two from 64 KiB to 64 MiB.
        rings: Threads that can record at the same time; None: twice as many as there are now, 128
            at least and 1,024 at most.
        keep: What is patched stays when this tool ends, until somebody detaches. Without it the
            agent turns recording and patches off within two seconds of losing its tool.

    Raises:
        TargetError: It cannot be traced; the message says why and what helps.
        AgentError: A step inside the target failed; nothing was left behind.
    """
    return _target(load(pid, ring_bytes=ring_bytes, rings=rings), keep=keep)


def this_process(*, ring_bytes: int = DEFAULT_RING_BYTES, rings: int | None = None) -> Target:
    """Attach to the calling process itself. Raises as `attach`.

    Where its threads must be stopped (functions without NOPs, stop mode, the detach), a helper
    process does it: a child that is started when it is first needed, in 50 ms or so, and that ends
    with the connection. `os.wait()` sees it. Where there can be none, sites of several
    instructions are refused, and what needs stop mode raises UnsupportedTarget ("no-helper").
    """
    return attach(os.getpid(), ring_bytes=ring_bytes, rings=rings)


def launch(
    command: Sequence[str],
    *,
    ring_bytes: int = DEFAULT_RING_BYTES,
    rings: int | None = None,
    environment: abc.Mapping[str, str] | None = None,
) -> Target:
    """Start a program, stopped at its start with the agent in it; `release` lets it run.

    Its libraries are mapped, and no constructor has run, where the loader tells that it is so far
    (glibc's does); else it stands at its own entry point.

    Raises:
        FileNotFoundError, PermissionError, OSError: It cannot be executed.
        TargetError, AgentError: As `attach`; the program is then killed.
    """
    path = shutil.which(command[0])
    if path is None:
        raise FileNotFoundError(2, "no such program", command[0])
    held = lib.tp_held_create()
    words = [ffi.new("char[]", os.fsencode(word)) for word in command]
    env = os.environ if environment is None else environment
    pairs = [ffi.new("char[]", os.fsencode(k) + b"=" + os.fsencode(v)) for k, v in env.items()]
    error = lib.tp_launch(
        held,
        ffi.new("char[]", os.fsencode(path)),
        ffi.new("char *[]", [*words, ffi.NULL]),
        ffi.new("char *[]", [*pairs, ffi.NULL]),
    )
    if error:
        lib.tp_held_destroy(held)
        raise OSError(-error, error_text(-error), command[0])
    pid = lib.tp_held_pid(held)
    try:
        error = lib.tp_run_to_start(held, *startup.loaded_place(pid))
        if error:
            raise AgentFailed("running the program to its start", -error)
        return _target(load(pid, ring_bytes=ring_bytes, rings=rings, held=held))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        raise


def _target(agent: Agent, *, keep: bool = False) -> Target:
    try:
        return Target(agent, keep=keep)
    except UnsupportedTarget:  # not ours to undo
        agent.close()
        raise
    except BaseException:
        leave.quietly(agent)
        raise


def _ticks(us: float) -> int:
    """Microseconds in ticks of the time stamp counter."""
    return round(us * 1e3 / clock.ns_per_tick()) if us else 0


def _exe(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words[:-1]]
