# SPDX-License-Identifier: Apache-2.0
"""What captures of blk, wakeup_rt and irqsoff say besides sites: layouts, open files, masks."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from textpoke import libc_calls, proc
from textpoke._errors import TextpokeError
from textpoke._native import lib
from textpoke.payload import layouts_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textpoke.libc_calls import Function

_MORE_LOOKS = 10
_BETWEEN_LOOKS_S = 0.00002  # with what the kernel adds, 0.1 ms
_LOOKS_AFTER_S = (0.005, 0.02, 0.1)


def at_start(pid: int, tracer: str, found: Mapping[int, Function]) -> dict[str, object]:
    """The fields of META, to be taken when the recording has begun.

    Args:
        pid: The target.
        tracer: "blk", "wakeup_rt" or "irqsoff".
        found: The functions by the return addresses of their sites.

    Raises:
        NoSuchTarget: The process is gone.
    """
    return of_sites(found) | moment(pid, tracer)


def moment(pid: int, tracer: str) -> dict[str, object]:
    """The fields of META that depend on the moment. Raises NoSuchTarget."""
    fields: dict[str, object] = {}
    if tracer == "blk":
        fields |= open_files(pid)
    if tracer == "irqsoff":
        fields["masks"] = _masks(pid)
    return fields


def of_sites(found: Mapping[int, Function]) -> dict[str, object]:
    """The fields of META, or of a SITES block, about sites alone."""
    layouts = {address: function.layout for address, function in found.items()}
    return {"layouts": layouts_json(layouts), "functions": libc_calls.function_names(found)}


def open_files(pid: int) -> dict[str, object]:
    """A look at proc/PID/fd: field `fds` of META, of any SITES block, and of END.

    The time is that of its begin: what is opened or closed meanwhile, the calls tell. Empty when
    the process is gone or may not be looked at.
    """
    began_ns = time.monotonic_ns()
    files: dict[str, str] = {}
    try:
        directory = f"{proc.ROOT}/{pid}/{proc.living_task(pid)}fd"
        for fd in os.listdir(directory):
            try:
                name = os.readlink(f"{directory}/{fd}")
            except FileNotFoundError:
                continue  # closed meanwhile
            files[fd] = os.fsencode(name).decode("utf-8", "backslashreplace")
    except (OSError, TextpokeError):
        return {}
    return {"fds": [{"monotonic_ns": began_ns, "files": files}]}


class Waiting:
    """Looks at proc/PID/task/*/syscall, after wakeup_rt was switched on: field `waiting`.

    Of waits that had begun before no call will tell. Threads that were held a moment ago are on
    their way back into their calls, so who runs is looked at again, a few times. The time is always
    that of the first look's begin: of what began since, the calls tell.
    """

    def __init__(self) -> None:
        self._began = 0
        self._unsettled: list[int] = []
        self._due: list[float] = []

    def begin(self, pid: int) -> dict[str, object]:
        """The first look; empty when nobody is blocked, or the process is gone."""
        self._began = int(lib.tp_rdtsc())
        now = time.monotonic()
        self._due = [now + after_s for after_s in _LOOKS_AFTER_S]
        try:
            self._unsettled = list(proc.task_ids(pid))
        except TextpokeError:
            self._unsettled = []  # the recording will see that
        threads = self._look(pid)
        for _ in range(_MORE_LOOKS):
            if not self._unsettled:
                break
            time.sleep(_BETWEEN_LOOKS_S)
            threads |= self._look(pid)
        return self._field(threads)

    def more(self, pid: int) -> dict[str, object]:
        """A later look, when it is time for one; empty as of `begin`."""
        if not (self._unsettled and self._due and time.monotonic() >= self._due[0]):
            return {}
        del self._due[0]
        return self._field(self._look(pid))

    def _look(self, pid: int) -> dict[str, int]:
        found = {tid: proc.read_futex_wait(pid, tid) for tid in self._unsettled}
        self._unsettled = [tid for tid, address in found.items() if address is None]
        return {str(tid): address for tid, address in found.items() if address}

    def _field(self, threads: dict[str, int]) -> dict[str, object]:
        return {"waiting": {"tsc": self._began, "threads": threads}} if threads else {}


def _masks(pid: int) -> dict[str, int]:
    # Signals that each thread has masked, where it is any.
    masks: dict[str, int] = {}
    for tid, status in proc.read_statuses(pid):
        mask = int(status.get("SigBlk", "0"), 16)
        if mask:
            masks[str(tid)] = mask
    return masks
