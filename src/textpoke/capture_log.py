# SPDX-License-Identifier: Apache-2.0
"""What is written to a capture besides events while a trace runs: names, clocks, the end."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from textpoke import target
from textpoke._errors import CaptureWrite, TargetError
from textpoke._native import lib
from textpoke.capture import CaptureWriter
from textpoke.poke import RECORD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textpoke.poke import Poked

_NOTE_S = 1.0


def clock_point() -> dict[str, int]:
    """One moment on three clocks: TSC ticks, monotonic and real time in nanoseconds."""
    return {
        "tsc": int(lib.tp_rdtsc()),
        "monotonic_ns": time.monotonic_ns(),
        "realtime_ns": time.time_ns(),
    }


class CaptureLog:
    """The capture of one running trace.

    Args:
        path: The file, or one that is open and empty.
        pid: The target.
        force: Overwrite an existing capture.

    Raises:
        CaptureExists, CaptureWrite: From every method: it cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str] | CaptureWriter, pid: int, *, force: bool
    ) -> None:
        self._writer = path if isinstance(path, CaptureWriter) else CaptureWriter(path, force=force)
        self._pid = pid
        self._names: dict[int, str] = {}
        self._next_note = 0.0
        self._failure: CaptureWrite | None = None

    @property
    def fd(self) -> int:
        """Where the ring reader appends blocks of events."""
        return self._writer.fd

    @property
    def thread_names(self) -> dict[int, str]:
        """Names of the threads that there were so far."""
        return dict(self._names)

    def begin(self, meta: Mapping[str, object]) -> None:
        """Write the first block, and the names of the threads that there are."""
        try:
            self._writer.meta(meta)
            self._note_threads()
        except BaseException:
            self._writer.close()
            raise

    def note(self) -> None:
        """Once a second a clock point and new threads: a capture that is cut off keeps both."""
        self._require_whole()
        if time.monotonic() >= self._next_note:
            self._next_note = time.monotonic() + _NOTE_S
            self._note_threads()
            self._writer.clock(clock_point())

    def more_sites(
        self, rows: Sequence[Sequence[object]], notes: Mapping[str, object] | None = None
    ) -> None:
        """Name sites that were switched on later: [return address, module, function] each.

        Args:
            rows: The names.
            notes: Further fields of the block: layouts of what calls there carry, and the like.
        """
        self._writer.sites(rows, notes)

    def pokes(self, poked: Poked) -> None:
        """Note what a batch has written.

        A batch is no place for an error of ours: what cannot be written now is told later.
        """
        rows = poked.rows()
        ticks = poked.from_tsc, poked.to_tsc
        try:
            self._writer.pokes(ticks, rows, len(rows) // RECORD.size, failed=poked.failed)
        except CaptureWrite as exc:
            self._failure = self._failure or exc

    def _require_whole(self) -> None:
        if self._failure is not None:
            raise self._failure

    def failed(self, code: int) -> CaptureWrite:
        """The error to raise after a block of events could not be written; cuts the file back."""
        return self._writer.failed(code)

    def finish(self, end: Mapping[str, object]) -> None:
        """Write the last block and close."""
        with contextlib.closing(self._writer):
            self._require_whole()
            self._note_threads()
            self._writer.end(end)

    def discard(self) -> None:
        """Nothing was recorded: remove the file."""
        self._writer.close()
        with contextlib.suppress(OSError):
            os.unlink(self._writer.path)

    def _note_threads(self) -> None:
        try:
            names = {t.tid: t.name for t in target.read_threads(self._pid)}
        except TargetError:  # it has ended: the names that we have are all there will be
            return
        fresh = {tid: name for tid, name in names.items() if self._names.get(tid) != name}
        if fresh:
            self._names.update(fresh)
            self._writer.threads(fresh)
