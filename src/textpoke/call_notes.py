# SPDX-License-Identifier: Apache-2.0
"""What captures of blk, wakeup_rt and irqsoff say besides sites: layouts, open files, masks."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from textpoke import libc_calls, proc
from textpoke._errors import TextpokeError
from textpoke.payload import layouts_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textpoke.libc_calls import Function


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


def _masks(pid: int) -> dict[str, int]:
    # Signals that each thread has masked, where it is any.
    masks: dict[str, int] = {}
    for tid, status in proc.read_statuses(pid):
        mask = int(status.get("SigBlk", "0"), 16)
        if mask:
            masks[str(tid)] = mask
    return masks
