# SPDX-License-Identifier: Apache-2.0
"""The conditional branches of functions, and the sites at which they can be counted.

Bulk work is in native/code/branches.c: it surveys the module, follows the code of each function,
and decides which instructions around a branch can give way to a jump.
"""

from __future__ import annotations

import collections
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke import elf, functions
from textpoke._function_tables import FunctionTables
from textpoke._native import ffi, lib
from textpoke.model import Branch, BranchSite, SiteKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textpoke.model import Module, Site

REASONS: dict[int, str] = {
    lib.TP_REFUSE_SIGRETURN: functions.REASONS[lib.TP_REFUSE_SIGRETURN],
    lib.TP_REFUSE_GO: functions.REASONS[lib.TP_REFUSE_GO],
    lib.TP_REFUSE_SHORT: "the code around it is shorter than five bytes",
    lib.TP_REFUSE_CALL: "a call is among the instructions around it, and not the last",
    lib.TP_REFUSE_SYSCALL: "a system call is among the instructions around it",
    lib.TP_REFUSE_TRAP: "an instruction that traps is among those around it",
    lib.TP_REFUSE_BRANCH: "a branch of the module goes to the instructions around it",
    lib.TP_REFUSE_TABLE: "a jump table, pointer or landing pad goes to the instructions around it",
    lib.TP_REFUSE_DECODE: "code of its function is no instructions that we know",
    lib.TP_REFUSE_MOVE: "an instruction around it works in no other place",
    lib.TP_REFUSE_UNREACHED: "nothing that we know leads there: it may be data",
    lib.TP_REFUSE_JUMPS: "its function jumps through a table that we have not found",
    lib.TP_REFUSE_FULL: "too many branches and bytes stand together",
}
"""Why a branch cannot be counted, by enum tp_refusal: a clause for people."""

_BRANCH = struct.Struct("<QQIBBBx")  # struct tp_branch
_WINDOW = struct.Struct("<QIBBBB")  # struct tp_branch_window
_SITE_BYTES = 5
_COMPILED = (SiteKind.NOP_RUN, SiteKind.NOP5)  # by a compiler of C
_RESTARTABLE = "its function holds a restartable sequence, which the kernel knows by its place"
_FOREIGN = "its function has no unwind entry: a runtime may jump to any place in it"
_WHY_NOT_MAPPED = "its address is not in the module's code as it is mapped"


@dataclass(slots=True)
class Found:
    """The branches of some functions.

    Attributes:
        branches: All of them, in address order within a function.
        sites: Where those that can be counted are patched.
        owners: For each site, the first byte of the function that was asked for: parts of it that
            the compiler has split off have an entry of their own.
    """

    branches: list[Branch] = field(default_factory=list)
    sites: list[BranchSite] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    @property
    def countable(self) -> int:
        """How many can be counted."""
        return sum(branch.reason is None for branch in self.branches)

    @property
    def by_reason(self) -> dict[str, int]:
        """How many cannot, by reason, the most frequent one first."""
        counts = collections.Counter(b.reason for b in self.branches if b.reason is not None)
        return dict(counts.most_common())

    def add(self, other: Found) -> None:
        """Take those of another module."""
        self.branches += other.branches
        self.sites += other.sites
        self.owners += other.owners


def find_branches(image: elf.Image, module: Module, entries: Mapping[int, Site]) -> Found:
    """Find the branches of chosen functions of one module.

    The parts of a function that compilers have split off (`f.cold`) belong to it.

    Args:
        image: The module's file; it may be closed afterwards.
        module: Gives the runtime addresses.
        entries: The chosen functions: ELF virtual address of the first byte to a site of it.

    Raises:
        BadElf: A table in the file points outside of it, or has more rows than a program has.
    """
    known = functions.find_functions(image, module)
    names = _chosen(known, module, entries)
    if not names:
        return Found()
    indexes = sorted(names)
    survey = functions.Survey(image, FunctionTables(image, module.path))
    raw = ffi.new("struct tp_branches *")
    try:
        array = ffi.new("uint32_t[]", indexes)
        error = lib.tp_find_branches(survey.raw, array, len(indexes), raw)
        functions.require_native(image, error)
        rows = bytes(ffi.buffer(raw.rows, raw.count * _BRANCH.size)) if raw.count else b""
        size = raw.window_count * _WINDOW.size
        windows = bytes(ffi.buffer(raw.windows, size)) if size else b""
    finally:
        lib.tp_free_branches(raw)
    others = [known.vaddr(i) for i in indexes if names[i].kind not in _COMPILED]
    unsafe = dict.fromkeys(map(known.index_of, survey.without_frames(others)), _FOREIGN)
    for vaddr in elf.pointers(image, "__rseq_cs"):
        unsafe[known.last_before(vaddr)] = _RESTARTABLE
    return _found(known, module, names, rows, windows, unsafe)


def _chosen(
    known: functions.Functions, module: Module, entries: Mapping[int, Site]
) -> dict[int, Site]:
    """Indexes of the functions and of their split parts, each with its site."""
    chosen = {known.index_of(vaddr): site for vaddr, site in entries.items()}
    chosen.pop(-1, None)
    by_name = {site.symbol: site for site in chosen.values()}
    parts = [i for i in known if known.flags(i) & lib.TP_FUNCTION_COLD and i not in chosen]
    for index, name in zip(parts, known.names(parts), strict=True):
        owner = by_name.get(name.partition(".cold")[0]) or by_name.get(name.rpartition("+")[0])
        if owner is not None and owner.module == module.name:
            chosen[index] = owner
    return chosen


def _found(
    known: functions.Functions,
    module: Module,
    names: Mapping[int, Site],
    rows: bytes,
    windows: bytes,
    unsafe: Mapping[int, str],
) -> Found:
    """Args as they come from the native side; `unsafe`: functions to leave alone, and why.

    A thread that is preempted in a stub would not be sent to the abort handler of the sequence
    (rseq(2)) that the stub's instructions come from.
    """
    found = Found()
    bias = module.bias
    is_mapped = functions.mapped(module)
    branches = [
        Branch(
            vaddr + bias,
            target + bias,
            vaddr,
            module.name,
            names[index].function,
            known.entry(index),
            unsafe.get(index) or (REASONS[reason] if reason else None),
        )
        for vaddr, target, index, _, reason, _ in _BRANCH.iter_unpack(rows)
    ]
    owners = [row[2] for row in _BRANCH.iter_unpack(rows)]
    for vaddr, first, count, size, heads, live in _WINDOW.iter_unpack(windows):
        if owners[first] in unsafe:
            continue
        if not is_mapped(vaddr + bias, size):
            for i in range(first, first + count):
                branches[i] = _refused(branches[i], _WHY_NOT_MAPPED)
            continue
        owner = names[owners[first]]
        content = known.code_at(vaddr, size)
        found.owners.append(owner.entry)
        found.sites.append(
            BranchSite(
                vaddr + bias,
                _SITE_BYTES,
                SiteKind.BRANCH,
                module.name,
                owner.function,
                owner.symbol,
                vaddr,
                content[:_SITE_BYTES],
                owner.source,
                None,
                known.entry(owners[first]),
                content,
                heads,
                tuple(branches[first : first + count]),
                live,
            )
        )
    found.branches = branches
    return found


def _refused(branch: Branch, why: str) -> Branch:
    return Branch(
        branch.address,
        branch.target,
        branch.vaddr,
        branch.module,
        branch.function,
        branch.entry,
        why,
    )


def entries_of(module: Module, sites: Iterable[Site]) -> dict[int, Site]:
    """Those of some sites that are in a module, by the virtual address of their function."""
    starts = [(m.start, m.end) for m in module.mappings]
    return {
        site.entry - module.bias: site
        for site in sites
        if site.module == module.name
        and site.source != "plt"
        and any(start <= site.entry < end for start, end in starts)
    }
