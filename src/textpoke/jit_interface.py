# SPDX-License-Identifier: Apache-2.0
"""gdb's JIT interface: a program's list of code that no file holds, with an entry of ours.

A debugger that attaches later reads the list (gdb's manual, "JIT Interface"). Only programs that
contain a JIT (LLVM's, V8's, ...) have one. The entry lies in the agent's image;
native/control/jit.c links it in while all threads are held, and leave.c takes it out again before
it unmaps.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING

from textpoke import elf, symbols, target
from textpoke._errors import AgentFailed, SiteError
from textpoke._native import ffi, lib
from textpoke.agent import error_text
from textpoke.plan import PAGE, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from textpoke.agent import Agent
    from textpoke.model import Module

DESCRIPTOR, REGISTER = "__jit_debug_descriptor", "__jit_debug_register_code"
_TRIES = 20
_PAUSE_S = 0.005
_NAMES = frozenset((DESCRIPTOR, REGISTER))


class JitInterface:
    """Our entry in one process's list.

    Attributes:
        module: Name of the module that has the list; "" where there is none.
        problem: Why nothing is linked; "" while something is.
        regions: Starts of the mappings that hold objects.
    """

    def __init__(self, agent: Agent, modules: Iterable[Module]) -> None:
        self._agent = agent
        self._start = self._room = 0
        self._linked = False
        self.regions: set[int] = set()
        self.module, self._descriptor = find_descriptor(agent.pid, modules)
        self.problem = "" if self._descriptor else "no module has one"
        if self._descriptor and agent.pid == os.getpid():
            self.problem = "a process cannot hold its own threads for it"

    @property
    def available(self) -> bool:
        """Whether there is a list that we may change, and have not failed to."""
        return not self.problem

    def publish(self, make: Callable[[int], bytes]) -> None:
        """Put an object in the target's memory and link it in, in the place of an earlier one.

        Where that cannot be done, `problem` says why; the program's list is then as it was.

        Args:
            make: Makes the object for the address at which it is to lie; always of one length.

        Raises:
            TargetExited: The target has ended.
        """
        size = len(make(0))
        try:
            if size > self._room:
                self._map(size)
            data = make(self._start)
            self._agent.fill_code([(self._start, data)])
            self._link(len(data))
        except AgentFailed as exc:
            self.problem = str(exc)

    def _map(self, size: int) -> None:
        room = max(-(-size // PAGE) * PAGE, 2 * self._room)  # an agent has few regions
        base = self._agent.base
        start = Space(target.read_maps(self._agent.pid)).room_near(base, base, room)
        if start is None:
            raise AgentFailed("finding room for a debugger's object", errno.ENOMEM)
        self._agent.map_data(start, room)
        self._start, self._room = start, room
        self.regions.add(start)

    def _link(self, size: int) -> None:
        if self._linked:
            at = self._agent.image_at + ffi.offsetof("struct tp_image", "jit_entry")
            at += ffi.offsetof("struct tp_jit_entry", "object")
            self._agent.fill_code([(at, struct.pack("<QQ", self._start, size))])
            return
        request = ffi.new("struct tp_jit_link *")
        request.pid, request.mem_fd = self._agent.pid, self._agent.mem_fd
        request.is_held = self._agent.held is not None
        request.descriptor, request.image_at = self._descriptor, self._agent.image_at
        request.object, request.object_bytes = self._start, size
        error = -errno.EAGAIN
        for _ in range(_TRIES):
            error = int(lib.tp_link_jit(request))
            if error != -errno.EAGAIN:
                break
            time.sleep(_PAUSE_S)
        if error:
            self._agent.require_alive("linking our code into its JIT interface")
            raise AgentFailed(f"linking ({error_text(-error)})", -error)
        self._linked = True


def find_descriptor(pid: int, modules: Iterable[Module]) -> tuple[str, int]:
    """Name of the first module that has the interface, and where its list is; ("", 0) for none.

    The main program comes first: its symbols hide a library's, as the loader has it.
    """
    for module in modules:
        try:
            with elf.Image.open(target.open_module(pid, module)) as image:
                found = symbols.addresses(image, _NAMES, hidden=True)
        except SiteError:
            continue
        if found.keys() == _NAMES:
            return module.name, found[DESCRIPTOR] + module.bias
    return "", 0
