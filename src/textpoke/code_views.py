# SPDX-License-Identifier: Apache-2.0
"""What other tools are told of our code in a process, on request: perf's map, an object for gdb.

Both are made anew whenever more code has been placed. The files stay when we leave, because they
are read later; what is in the target's memory goes.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from textpoke import elf, perf_map, target
from textpoke._errors import SiteError, ViewError
from textpoke.code_object import make_object
from textpoke.jit_interface import JitInterface
from textpoke.unwind_tables import UnwindTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.agent import Agent
    from textpoke.code_object import Symbol
    from textpoke.model import Module, Site
    from textpoke.placed import FindTable, PlacedCode

_FRAMES_OFFSET = 64  # of .eh_frame in the object: behind the header
_MODE = 0o644


class CodeViews:
    """What is told of our code in one process.

    Attributes:
        perf_map: Path of perf's map as the target sees it; "" when none is wanted.
        gdb_object: Path of the object for gdb; "" when none is wanted.
        jit_module: Module whose JIT interface lists our code for gdb; "" for none.
        problems: What went wrong after the first time, one line each.
    """

    def __init__(
        self,
        agent: Agent,
        modules: Sequence[Module],
        *,
        with_perf_map: bool,
        gdb_object: str,
        force: bool = False,
    ) -> None:
        self._agent = agent
        self._named: set[Symbol] = set()
        self._with_perf_map = with_perf_map
        self._jit = JitInterface(agent, modules) if gdb_object else None
        self._replace = force
        self.perf_map = ""
        self.gdb_object = os.path.abspath(gdb_object) if gdb_object else ""
        self.problems: list[str] = []

    @property
    def names(self) -> int:
        """How many names perf's map has got from us."""
        return len(self._named)

    @property
    def jit_module(self) -> str:
        """Module whose JIT interface lists our code; "" for none."""
        return self._jit.module if self._jit is not None and self._jit.available else ""

    def refresh(self, placed: PlacedCode, modules: Sequence[Module]) -> None:
        """Tell of everything that is placed now.

        Raises:
            ViewError: A file cannot be written.
            TargetExited: The target has ended.
        """
        if self._with_perf_map:
            fresh = [symbol for symbol in placed.symbols() if symbol not in self._named]
            if fresh:
                self.perf_map = perf_map.append(self._agent.pid, fresh).path
                self._named.update(fresh)
        if self.gdb_object:
            self._refresh_object(placed, modules)

    def _refresh_object(self, placed: PlacedCode, modules: Sequence[Module]) -> None:
        head = self._agent.image()
        regions = [(head.base, placed.image.head_offset)]
        ours = (head.regions[i] for i in range(head.region_count))
        objects = self._jit.regions if self._jit is not None else ()
        regions += [(r.start, r.bytes) for r in ours if r.start not in objects]
        symbols = placed.symbols()
        with _tables(self._agent.pid, modules) as find_table:
            frames = placed.frames(find_table)

        def make(at: int) -> bytes:
            return make_object(regions, symbols, frames, at + _FRAMES_OFFSET)

        if self._jit is not None and self._jit.available:
            self._jit.publish(make)
        # Of this file, gdb wants an address for the rows themselves: one of ours without code.
        _write(self.gdb_object, make(self._agent.image_at), replace=self._replace)
        self._replace = True


@contextlib.contextmanager
def _tables(pid: int, modules: Sequence[Module]) -> Iterator[FindTable]:
    """A function that finds the unwind table of a site's module, while the block lasts."""
    by_place = {(module.name, module.bias): module for module in modules}
    known: dict[tuple[str, int], UnwindTable | None] = {}
    with contextlib.ExitStack() as files:

        def find(site: Site) -> UnwindTable | None:
            key = site.module, site.address - site.vaddr
            if key not in known:
                known[key] = None
                module = by_place.get(key)
                if module is not None:
                    with contextlib.suppress(SiteError):
                        path = target.open_module(pid, module)
                        known[key] = UnwindTable(files.enter_context(elf.Image.open(path)))
            return known[key]

        yield find


def _write(path: str, data: bytes, *, replace: bool) -> None:
    """Write the file at once or not at all; raises ViewError."""
    draft = f"{path}.new" if replace else path
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_EXCL
    try:
        if replace:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
        fd = os.open(draft, flags, _MODE)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        if replace:
            os.replace(draft, path)
    except FileExistsError as exc:
        raise ViewError(path, "it exists; overwrite it with -f", exc.errno or 0) from exc
    except OSError as exc:
        raise ViewError(path, exc.strerror or str(exc), exc.errno or 0) from exc
