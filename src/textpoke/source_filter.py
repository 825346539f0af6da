# SPDX-License-Identifier: Apache-2.0
"""What `:file:` in a filter asks: the source file of each site's function, module by module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from textpoke import elf
from textpoke._errors import BadElf, ModuleUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from textpoke.model import Module, Site


class FilesOf(Protocol):
    """Reads the line tables of one file (`source_lines.files_of`)."""

    def __call__(self, image: elf.Image, path: str, vaddrs: Iterable[int], /) -> Mapping[int, str]:
        """Source files of the functions that begin at these ELF virtual addresses."""
        ...


class ModuleSources:
    """A `filters.SourceFiles` for the modules of a process; each function is looked up once.

    Args:
        modules: Gives the modules that there are now.
        open_path: Gives the path by which a module's file can be read; raises ModuleUnavailable.
        files_of: Reads line tables.
    """

    def __init__(
        self,
        modules: Callable[[], Sequence[Module]],
        open_path: Callable[[Module], str],
        files_of: FilesOf,
    ) -> None:
        self._modules = modules
        self._open_path = open_path
        self._files_of = files_of
        self._known: dict[tuple[str, int, int], dict[int, str]] = {}

    def __call__(self, sites: Sequence[Site]) -> list[str]:
        """The path of the source of each site's function, "" where it is not known."""
        modules = {(module.name, module.bias): module for module in self._modules()}
        wanted: dict[tuple[str, int], list[int]] = {}
        for site in sites:
            wanted.setdefault(_place(site), []).append(_start(site))
        found = {
            place: self._of_module(modules[place], starts)
            for place, starts in wanted.items()
            if place in modules
        }
        return [found.get(_place(site), {}).get(_start(site), "") for site in sites]

    def _of_module(self, module: Module, starts: list[int]) -> Mapping[int, str]:
        known = self._known.setdefault(module.key, {})
        fresh = set(starts).difference(known)
        if fresh:
            known.update(dict.fromkeys(fresh, ""))
            known.update(self._read(module, fresh))
        return known

    def _read(self, module: Module, starts: set[int]) -> Mapping[int, str]:
        try:
            with elf.Image.open(self._open_path(module)) as image:
                return self._files_of(image, module.path, sorted(starts))
        except (ModuleUnavailable, BadElf):
            return {}  # nothing is known of it


def _place(site: Site) -> tuple[str, int]:
    return site.module, site.address - site.vaddr


def _start(site: Site) -> int:
    # Of the function: the first line of what was inlined may be in a header.
    return site.vaddr - (site.address - site.entry)
