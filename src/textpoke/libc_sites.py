# SPDX-License-Identifier: Apache-2.0
"""Where the functions of libc are, in one process, on which blk, wakeup_rt and irqsoff stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke import elf, libc_calls, target
from textpoke._errors import NoSites, SiteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textpoke.libc_calls import Function
    from textpoke.model import Module, Site
    from textpoke.process_sites import Finder


def find(
    pid: int, modules: Iterable[Module], finder: Finder, tracer: str
) -> list[tuple[Site, Function]]:
    """The sites of a tracer's functions, refused ones too.

    Args:
        pid: The process.
        modules: Its modules: libc's are looked at, and the main program when it is static.
        finder: Finds sites at the entries of all functions.
        tracer: "blk", "wakeup_rt" or "irqsoff".

    Raises:
        NoSites: The process has no such functions: no libc, or one that was stripped into it.
    """
    functions = libc_calls.TRACERS[tracer]
    found: dict[int, tuple[Site, Function]] = {}
    modules = list(modules)
    libcs = [m for m in modules if libc_calls.is_libc(m.name)] or [m for m in modules if m.is_main]
    for module in libcs:
        try:
            with elf.Image.open(target.open_module(pid, module)) as image:
                places = libc_calls.find(image, functions)
        except SiteError:
            continue
        entries = {vaddr + module.bias: function for vaddr, function in places.items()}
        for site in finder.of_module(module):
            if site.entry in entries:
                found[site.address] = site, entries[site.entry]
    if not found:
        where = f"pid {pid}"
        raise NoSites(where, f"{tracer} stands on functions of libc, and there are none")
    return [found[address] for address in sorted(found)]
