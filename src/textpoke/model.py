# SPDX-License-Identifier: Apache-2.0
"""The frozen dataclasses that are handed down the pipe from finding sites to reports."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields, make_dataclass
from typing import Any


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
        name: Basename of the path; of the main program, of the link by which it was started.
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

    @property
    def key(self) -> tuple[str, int, int]:
        """Tells it from every other module that a process has, or has had at that place."""
        return self.path, self.bias, self.mappings[0].inode if self.mappings else 0


class SiteKind(enum.Enum):
    """How a site may be patched."""

    NOP_RUN = "nop-run"
    """Five or more one-byte NOPs (0x90) in a row; the first five are the site."""
    NOP5 = "nop5"
    """One single NOP instruction of five bytes or more; the site is that instruction."""
    ENTRY = "entry"
    """A function's first instructions, as the compiler left them; the first five bytes change."""
    PUN = "pun"
    """A first instruction whose opcode alone becomes a JMP's: the bytes behind it are the distance.
    Only where memory can be mapped there."""
    TRAP = "trap"
    """A first instruction under an int3 that stays: every call costs a signal. Only on request."""
    BRANCH = "branch"
    """Instructions with conditional branches; their first five bytes change."""


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
        source: What named the site: "patchable" or "mcount" (tables of compiler NOPs), "symtab",
            "dynsym", "frame" (unwind entry), "debugfile", "debugdata" or "plt".
        reason: None when it can be patched, else why not.
        entry: Runtime address of the function's first byte.
        displaced: Of an unmodified entry: the whole instructions that go elsewhere, from the site.
        heads: Bit i says that an instruction begins i bytes (1 to 4) into them.
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
    displaced: bytes = b""
    heads: int = 0

    @property
    def patchable(self) -> bool:
        """True when nothing speaks against patching this site."""
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.module}!{self.function}"


@dataclass(frozen=True, slots=True)
class Branch:
    """One conditional branch.

    Attributes:
        address: Runtime address of the instruction.
        target: Where it goes when it is taken.
        vaddr: ELF virtual address of the instruction.
        module: Name of the module.
        function: Demangled name of the function.
        entry: Runtime address of the function's first byte.
        reason: Why it cannot be counted; None when it can.
    """

    address: int
    target: int
    vaddr: int
    module: str
    function: str
    entry: int
    reason: str | None

    def __str__(self) -> str:
        return f"{self.module}!{self.function}+{self.address - self.entry:#x}"


@dataclass(frozen=True, slots=True)
class BranchRow:
    """How often one branch was taken, and how often not.

    Attributes:
        address: Runtime address of the branch.
        module: Name of its module.
        function: Demangled name of its function.
        offset: Bytes from the function's entry to the branch; a part that the compiler has split
            off counts from its own begin.
        file: Source file, "" where there is no debug information.
        line: Line in it, 0 where there is none.
        taken: Times that it went to its target.
        not_taken: Times that it fell through.
    """

    address: int
    module: str
    function: str
    offset: int
    file: str
    line: int
    taken: int
    not_taken: int

    @property
    def total(self) -> int:
        """Times that it was executed."""
        return self.taken + self.not_taken


@dataclass(frozen=True, slots=True)
class BranchSite(Site):
    """Whole instructions that give way to one JMP, to count the branches among them.

    Attributes:
        branches: In address order.
        live: Of each, two bits: the flags are looked at when it is not taken, when it is taken.
    """

    branches: tuple[Branch, ...] = ()
    live: int = 0


# A frozen dataclass sets its fields by one slow call each: 2 to 4 us for a Site. Its unfrozen
# twin has the same slots, takes a quarter of that, and becomes a Site when it is filled.
_SiteDraft = make_dataclass(
    "_SiteDraft", [(field.name, object) for field in fields(Site)], slots=True
)


def make_site(*values: object) -> Site:
    """A Site from its fields in order, all of them: for those who make thousands."""
    draft: Any = _SiteDraft(*values)
    draft.__class__ = Site
    site: Site = draft
    return site


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
