# SPDX-License-Identifier: Apache-2.0
"""Where a function's return can be redirected, and what must then know of it.

A probe that waits for the return of a call puts the address of a trampoline in the place of the
return address. Three kinds of code forbid it: what is no call (the word at the stack pointer is no
return address), what returns twice or looks at its own return address, and unwinders. Code that
unwinds, walks or leaves a part of the stack gets a guard: a probe that puts the return addresses
back first (native/agent/unwind.c).
"""

from __future__ import annotations

import bisect
import fnmatch
import re
from typing import TYPE_CHECKING

from textpoke import elf, functions, sites, symbols, target, unwind
from textpoke._errors import SiteError
from textpoke._native import lib
from textpoke.model import SiteKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from textpoke.model import Module, Site

GUARDED = {
    "_Unwind_RaiseException": lib.TP_UNWIND_BEGINS,
    "_Unwind_Resume": lib.TP_UNWIND_BEGINS,
    "_Unwind_Resume_or_Rethrow": lib.TP_UNWIND_BEGINS,
    "_Unwind_ForcedUnwind": lib.TP_UNWIND_BEGINS,
    "__pthread_unwind": lib.TP_UNWIND_BEGINS,
    "pthread_exit": lib.TP_UNWIND_BEGINS,
    "_Unwind_Backtrace": lib.TP_UNWIND_WALKS,
    "backtrace": lib.TP_UNWIND_WALKS,
    # Every unwinder asks one of these for its tables before its first step: those without a name,
    # and those that are loaded later.
    "_dl_find_object": lib.TP_UNWIND_BEGINS,
    "dl_iterate_phdr": lib.TP_UNWIND_BEGINS,
    "unw_init_local": lib.TP_UNWIND_WALKS,
    "unw_init_local2": lib.TP_UNWIND_WALKS,
    "_ULx86_64_init_local": lib.TP_UNWIND_WALKS,
    "_ULx86_64_init_local2": lib.TP_UNWIND_WALKS,
    "unw_step": lib.TP_UNWIND_WALKS,
    "_ULx86_64_step": lib.TP_UNWIND_WALKS,
    "__cxa_begin_catch": lib.TP_UNWIND_CAUGHT,
    "objc_begin_catch": lib.TP_UNWIND_CAUGHT,
    "__rust_panic_cleanup": lib.TP_UNWIND_CAUGHT,
    "longjmp": lib.TP_UNWIND_JUMPS,
    "_longjmp": lib.TP_UNWIND_JUMPS,
    "siglongjmp": lib.TP_UNWIND_JUMPS,
    "__longjmp_chk": lib.TP_UNWIND_JUMPS,
}
"""Functions that need a guard: what they do to the stack (enum tp_unwind)."""

_WALKED = ("caml_program",)  # its runtime walks frames by tables of return addresses: OCaml

_TABLES = ("_dl_find_object", "dl_iterate_phdr")
_LOOKING = (lib.TP_UNWIND_BEGINS, lib.TP_UNWIND_WALKS)
_TWICE = frozenset(
    (
        *("setjmp", "_setjmp", "__setjmp", "sigsetjmp", "__sigsetjmp", "vfork", "__vfork"),
        *("getcontext", "__getcontext", "swapcontext", "__swapcontext", "__morestack"),
        *("setcontext", "__setcontext", "__start_context"),
        *("clone", "__clone", "clone3", "__clone3", "_start"),
    )
)
_LOOKERS = frozenset(("dlopen", "dlsym", "dlvsym", "dlmopen", "mcount", "_mcount", "__fentry__"))
_UNWINDERS = re.compile(r"_Unwind_|uw_|unw_|_U\w*x86_64_|\w*_personality_v0")
_UNWINDER_FILES = re.compile(r"lib(gcc_s|unwind)[^/]*\.so")
_LOADERS = re.compile(r"ld(-linux|-musl|-)[^/]*\.so|ld\.so")
_COPIERS = ("_greenlet*.so", "libguile-*.so*", "continuation.so")
_UNWINDER_NAMES = ("_Unwind_Resume", "_dl_find_object")
_COMPILED = (SiteKind.NOP_RUN, SiteKind.NOP5)


class Returns:
    """Tells for the sites of one process whether their returns can be redirected.

    Args:
        pid: The process.
        modules: Its modules.
    """

    def __init__(self, pid: int, modules: Sequence[Module]) -> None:
        self._pid = pid
        self._modules = {module.name: module for module in modules}
        self._starts: dict[str, list[int]] = {}

    def why_not(self, site: Site) -> str:
        """Return why a call's return must be left alone; "" where it can be redirected."""
        why = _why_not_by_name(site.symbol.partition("@")[0], site.module)
        if why or site.kind in _COMPILED:
            return why
        if site.source == "plt":
            return "a slot of the procedure linkage table"
        if not self._has_frame(site):
            return "no unwind entry says that it begins as after a CALL"
        return ""

    def _has_frame(self, site: Site) -> bool:
        starts = self._starts.get(site.module)
        if starts is None:
            starts = self._starts[site.module] = self._read(site.module)
        vaddr = site.vaddr - (site.address - site.entry)
        at = bisect.bisect_left(starts, vaddr)
        return at < len(starts) and starts[at] == vaddr

    def _read(self, name: str) -> list[int]:
        module = self._modules.get(name)
        if module is None:
            return []
        try:
            with elf.Image.open(target.open_module(self._pid, module)) as image:
                return sorted(unwind.function_starts(image))
        except SiteError:
            return []


def guards(pid: int, modules: Iterable[Module]) -> dict[int, str]:
    """Runtime addresses of the functions that need a guard: their names (of GUARDED)."""
    found: dict[int, str] = {}
    for module in modules:
        try:
            with elf.Image.open(target.open_module(pid, module)) as image:
                names = symbols.addresses(image, GUARDED.keys(), hidden=True)
        except SiteError:
            continue
        for name, vaddr in names.items():
            found[vaddr + module.bias] = name
    return found


def callers(pid: int, module: Module) -> list[tuple[int, int]]:
    """[start, end) of the code of a module whose calls' returns may be redirected, as it is mapped.

    What `functions.callers` finds, and code in which a compiler of C has left NOPs; nothing where
    tables of return addresses have a form that is not known, or the file cannot be read.
    """
    try:
        with elf.Image.open(target.open_module(pid, module)) as image:
            found = functions.callers(image, module.path)
            walked = symbols.addresses(image, _WALKED, hidden=True).values()
            if any(start <= vaddr < end for vaddr in walked for start, end in found):
                return []
            found += _gaps_with(image, _compiled(image, module), found)
    except SiteError:
        return []
    return [(start + module.bias, end + module.bias) for start, end in found]


def _compiled(image: elf.Image, module: Module) -> list[int]:
    """ELF addresses in functions that a compiler of C has prepared for tracing, ascending."""
    try:
        return sorted(site.vaddr for site in sites.find_sites(image, module))
    except SiteError:
        return []


def _gaps_with(
    image: elf.Image, vaddrs: Sequence[int], found: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """What of a module's code lies in no stretch and holds one of these addresses."""
    gaps: list[tuple[int, int]] = []
    for vaddr, content in image.code:
        end = vaddr + len(content)
        inside = [e for stretch in found for e in stretch if vaddr <= stretch[0] < end]
        edges = [vaddr, *inside, end]
        gaps += zip(edges[::2], edges[1::2], strict=True)
    return [
        (low, high)
        for low, high in gaps
        if bisect.bisect_left(vaddrs, low) < bisect.bisect_left(vaddrs, high)
    ]


def why_unguarded(names: Mapping[int, str], guarded: Collection[int]) -> str:
    """Return why no return can be redirected, with these guards in place; "" when it can.

    Whoever walks a stack asks for tables before its first step: that guard does for all. Jumps and
    handlers can do without: frames that were left are found dead later.

    Args:
        names: Of functions that need a guard, by address.
        guarded: Addresses of those that have one.
    """
    tables = [address for address, name in names.items() if name in _TABLES]
    need = tables or [a for a, name in names.items() if GUARDED[name] in _LOOKING]
    for address in need:
        if address not in guarded:
            return f"{names[address]} at {address:#x} cannot be given a guard"
    return ""


def why_no_returns(pid: int, modules: Iterable[Module]) -> str:
    """Return why no return of this process can be redirected; "" when it can."""
    for module in modules:
        if any(fnmatch.fnmatchcase(module.name, pattern) for pattern in _COPIERS):
            return f"{module.name} copies stacks away and back"
        if module.is_main and _has_nameless_unwinder(pid, module):
            return f"{module.name} is linked statically and its unwinder has no name"
    return ""


def _has_nameless_unwinder(pid: int, module: Module) -> bool:
    """Whether a program brings an unwinder of its own that nobody can find: static and stripped."""
    try:
        with elf.Image.open(target.open_module(pid, module)) as image:
            names = {section.name for section in image.sections}
            if ".interp" in names or (names and ".gcc_except_table" not in names):
                return False
            return not symbols.addresses(image, _UNWINDER_NAMES, hidden=True)
    except SiteError:
        return False


def _why_not_by_name(name: str, module: str) -> str:
    if name in GUARDED or _UNWINDERS.match(name) or _UNWINDER_FILES.match(module):
        return "it unwinds the stack"
    if name in _TWICE:
        return "it returns twice, or never"
    if name in _LOOKERS:
        return "it looks at its return address"
    return "a part of the loader" if _LOADERS.match(module) else ""
