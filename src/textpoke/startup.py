# SPDX-License-Identifier: Apache-2.0
"""Where a program starts for us: its libraries are mapped, and no code of it or of them has run."""

from __future__ import annotations

from textpoke import elf, proc, symbols, target
from textpoke._errors import BadElf, ModuleUnavailable

_AT_BASE = 7
# glibc's loader calls this empty function, for debuggers, whenever its list of modules changes
# (struct r_debug in link.h).
_NOTIFY, _STATE = "_dl_debug_state", "_r_debug"
_R_STATE_OFFSET = 24


def loaded_place(pid: int) -> tuple[int, int]:
    """Where the loader of a program that has not begun says that all libraries are there.

    Returns:
        The address of the function that it calls, and of an int that is 0 once all are there;
        (0, 0) for a program without a loader, or one whose loader does not tell.
    """
    base = proc.read_auxv(pid).get(_AT_BASE, 0)
    loaders = [m for m in target.read_modules(pid) if m.bias == base and not m.is_main]
    if not base or not loaders:
        return 0, 0
    try:
        with elf.Image.open(target.open_module(pid, loaders[0])) as image:
            found = symbols.addresses(image, (_NOTIFY, _STATE))
    except (BadElf, ModuleUnavailable):
        return 0, 0
    if len(found) < 2:
        return 0, 0
    return base + found[_NOTIFY], base + found[_STATE] + _R_STATE_OFFSET
