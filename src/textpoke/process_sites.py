# SPDX-License-Identifier: Apache-2.0
"""The sites of all modules of a process, and the choice among them by pattern.

A module that was compiled for tracing is traced as it was compiled: at its NOPs. Every other one
can be patched at the entries of its functions. Who names no module means the program itself, and
what was compiled for tracing; libraries join when they are named, or when a name is found nowhere
else.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from textpoke import elf, functions, sites, target
from textpoke._errors import BadElf, ModuleUnavailable, UnknownFunction
from textpoke.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from textpoke.model import Module, Site


class Finder:
    """Finds the sites of modules, each module read once.

    Args:
        open_path: Gives the path by which a module's file can be read; raises ModuleUnavailable.
        everything: Count functions without NOPs too, in modules that were compiled for tracing.
        traps: An int3 may stay where nothing else is possible.

    Attributes:
        failures: The modules whose files could not be read, and why.
    """

    def __init__(
        self,
        open_path: Callable[[Module], str],
        *,
        everything: bool = False,
        traps: bool = False,
    ) -> None:
        self._open_path = open_path
        self.everything = everything
        self.traps = traps
        self.failures: list[tuple[Module, ModuleUnavailable | BadElf]] = []
        self._compiled: dict[tuple[str, int, int], list[Site]] = {}
        self._entries: dict[tuple[str, int, int], list[Site]] = {}

    def compiled(self, module: Module) -> list[Site]:
        """The sites at compiler NOPs, refused ones too; none of a file that cannot be read."""
        key = module.key
        if key not in self._compiled:
            self._compiled[key] = self._read(module, sites.find_sites)
        return self._compiled[key]

    def entries(self, module: Module) -> list[Site]:
        """The entries of all functions, refused ones too; none of a file that cannot be read.

        Slots of the procedure linkage table are among them (source "plt").
        """
        key = module.key
        if key not in self._entries:
            self._entries[key] = self._read(module, self._all_entries)
        return self._entries[key]

    def read(self, module: Module, find: Callable[[elf.Image, Module], list[Site]]) -> list[Site]:
        """What `find` finds in a module's file. Raises ModuleUnavailable, BadElf."""
        with elf.Image.open(self._open_path(module)) as image:
            return find(image, module)

    def _all_entries(self, image: elf.Image, module: Module) -> list[Site]:
        found = functions.find_functions(image, module)
        return found.sites(found, traps=self.traps)

    def _read(self, module: Module, find: Callable[[elf.Image, Module], list[Site]]) -> list[Site]:
        try:
            return self.read(module, find)
        except (ModuleUnavailable, BadElf) as exc:
            self.failures.append((module, exc))
            return []

    def of_module(self, module: Module, *, slots: bool = False) -> list[Site]:
        """How a module is traced when it is named: at its NOPs, else at its functions' entries.

        Without slots of its procedure linkage table, unless they are asked for: a call through one
        is counted where it arrives.
        """
        compiled = self.compiled(module)
        good = [site for site in compiled if site.patchable]
        if good and not (self.everything or slots):
            return compiled
        compiled = good  # of refused ones, the entries say what can be done instead
        taken = {site.entry for site in compiled}
        more = (s for s in self.entries(module) if s.entry not in taken)
        found = compiled + [site for site in more if slots or site.source != "plt"]
        return sorted(found, key=lambda site: site.address)

    def usual(self, modules: Iterable[Module]) -> list[Site]:
        """What is traced when no module is named."""
        found: list[Site] = []
        for module in modules:
            found += self.of_module(module) if module.is_main else self.compiled(module)
        return sorted(found, key=lambda site: site.address)

    def choose(
        self,
        modules: Sequence[Module],
        include: Sequence[str],
        exclude: Sequence[str] = (),
        where: str = "the target",
    ) -> list[Site]:
        """Choose sites, refused ones too, by 'MODULE!GLOB' patterns; `exclude` wins.

        A pattern for a module that is not there is passed over when another one matches: it may
        come later.

        Raises:
            NoSites, UnknownFunction: As `sites.match`.
        """
        usual = self.usual(modules)
        if not include:
            return sites.match(usual, (), exclude, where)
        chosen: dict[int, Site] = {}
        absent: list[str] = []
        for text in include:
            pattern = Pattern(text)
            if pattern.names_module and not any(pattern.matches_module(m.name) for m in modules):
                absent.append(text)
                continue
            for site in self._matching(modules, usual, text, where):
                chosen[site.address] = site
        if absent and not chosen:
            return self._matching(modules, usual, absent[0], where)
        found = sorted(chosen.values(), key=lambda site: site.address)
        return sites.match(found, (), exclude, where) if exclude else found

    def _matching(
        self, modules: Sequence[Module], usual: list[Site], text: str, where: str
    ) -> list[Site]:
        pattern = Pattern(text)
        if not pattern.names_module:
            with contextlib.suppress(UnknownFunction):
                return sites.match(usual, [text], (), where)
        named = [module for module in modules if pattern.matches_module(module.name)]
        slots = "@" in text
        found = [site for module in named for site in self.of_module(module, slots=slots)]
        if not found:  # for the names to propose
            found = [*usual, *(site for m in modules for site in self.of_module(m))]
        return sites.match(found, [text], (), where)


def of_process(pid: int, *, everything: bool = False, traps: bool = False) -> Finder:
    """A finder for the modules of process `pid`."""
    return Finder(
        lambda module: target.open_module(pid, module), everything=everything, traps=traps
    )


def module_sites(pid: int, module: Module) -> list[Site]:
    """Every site at compiler NOPs of one module of a process.

    Raises:
        ModuleUnavailable, BadElf: Its file cannot be read.
    """
    return of_process(pid).read(module, sites.find_sites)
