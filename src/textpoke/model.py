# SPDX-License-Identifier: Apache-2.0
"""The frozen dataclasses that are handed down the pipe from finding sites to reports."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of proc/PID/maps; `end` is exclusive, `path` is "" for anonymous memory."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class Module:
    """A file that is mapped with an executable part: the main program or a shared object.

    Attributes:
        name: Basename of the path.
        path: As proc/PID/maps gives it (the target's view of the file system).
        bias: Runtime address minus ELF virtual address, in bytes; 0 without PIE.
        is_main: True for the main program.
        mappings: All mappings of the file, in address order.
    """

    name: str
    path: str
    bias: int
    is_main: bool
    mappings: tuple[Mapping, ...]


class SiteKind(enum.Enum):
    """How a site may be patched."""

    NOP_RUN = "nop-run"
    """Five or more one-byte NOPs (0x90) in a row; the first five are the site."""
    NOP5 = "nop5"
    """One single NOP instruction of five bytes or more; the site is that instruction."""


@dataclass(frozen=True, slots=True)
class Site:
    """One place in code that can be patched, or the reason why not.

    Attributes:
        address: Runtime address of the first byte that may change.
        length: Bytes that belong to the site (of a refused one: the bytes shown in `old`).
        kind: How it may be patched; None when refused.
        module: Name of the module.
        function: Demangled name of the function.
        symbol: Raw name of the function.
        vaddr: ELF virtual address of the site.
        old: The file's bytes at the site.
        source: The table that named the site: "patchable" or "mcount".
        reason: None when it can be patched, else why not.
        entry: Runtime address of the function's first byte.
    """

    address: int
    length: int
    kind: SiteKind | None
    module: str
    function: str
    symbol: str
    vaddr: int
    old: bytes
    source: str
    reason: str | None
    entry: int

    @property
    def patchable(self) -> bool:
        """True when nothing speaks against patching this site."""
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.module}!{self.function}"


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread of a process, from proc/PID/task/TID/status.

    Attributes:
        tid: Thread id.
        name: The thread's comm.
        state: One letter: R, S, D, T, t, Z, X, I.
        sig_blocked: Blocked signals; bit n-1 stands for signal n.
        sig_pending: Signals pending for this thread, same bits.
        tracer_pid: Pid of the process that traces it with ptrace, 0 for none.
        seccomp: 0 off, 1 strict, 2 filter.
    """

    tid: int
    name: str
    state: str
    sig_blocked: int
    sig_pending: int
    tracer_pid: int
    seccomp: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`: what was checked, whether it holds, the value read, and the cure."""

    check: str
    ok: bool
    value: str
    cure: str
