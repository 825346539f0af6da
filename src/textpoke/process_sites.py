# SPDX-License-Identifier: Apache-2.0
"""The sites of all modules of a process: `sites` applied to every file that it has mapped."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from textpoke import elf, sites, target
from textpoke._errors import BadElf, ModuleUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke.model import Module, Site


def process_sites(pid: int, modules: Sequence[Module]) -> list[Site]:
    """Every site of `modules` of process `pid`, refused ones included, in address order.

    A module whose file is gone or unreadable has none.
    """
    found: list[Site] = []
    for module in modules:
        with contextlib.suppress(ModuleUnavailable, BadElf):
            found += module_sites(pid, module)
    return sorted(found, key=lambda site: site.address)


def module_sites(pid: int, module: Module) -> list[Site]:
    """Every site of one module of a process.

    Raises:
        ModuleUnavailable, BadElf: Its file cannot be read.
    """
    with elf.Image.open(target.open_module(pid, module)) as image:
        return sites.find_sites(image, module)
