# SPDX-License-Identifier: Apache-2.0
"""The last events of every thread in bounded memory, where everything is drained.

`snapshot` and `dump` take all that is held, up to their event; a snapshot goes into a file of its
own, numbered, as ftrace's snapshot is a buffer of its own. Where nothing is drained, the rings
themselves hold the past: `ring_flight`.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from textpoke.capture import CaptureWriter
from textpoke.packing import Packer
from textpoke.streams import RawBlock, Times, block_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

_FOREVER = (1 << 64) - 1
_PIECE_EVENTS = 1 << 14
"""Blocks are held in pieces of a quarter MiB: what is thrown away at once."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A stretch of time that was taken out of the recorder.

    Attributes:
        blocks: Its events, each ring's in its order.
        from_tsc: Where it begins: what was asked for, or behind what was handed out before.
        to_tsc: Where it ends, this tick included.
        complete_from_tsc: From here on nothing is missing for want of room or of history;
            `from_tsc` when all is there.
        marker: What asked for it, for the capture's JSON.
        notes: What triggers have done by then, for the capture's JSON.
    """

    blocks: list[RawBlock]
    from_tsc: int
    to_tsc: int
    complete_from_tsc: int
    marker: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[Mapping[str, object]] = ()

    @property
    def events(self) -> int:
        """How many events there are."""
        return sum(len(block.rows) for block in self.blocks)

    def as_dict(self) -> dict[str, object]:
        """The marker as it stands in the capture's JSON."""
        return {
            **self.marker,
            "from_tsc": self.from_tsc,
            "to_tsc": self.to_tsc,
            "complete_from_tsc": self.complete_from_tsc,
            "events": self.events,
        }


class Past:
    """The last notes of a recording: a snapshot needs those of its stretch of time."""

    _MOST = 4096

    def __init__(self) -> None:
        self._held: deque[tuple[int, Mapping[str, object]]] = deque(maxlen=self._MOST)

    def add(self, tsc: int, note: Mapping[str, object]) -> None:
        """Take in what has happened."""
        self._held.append((tsc, note))

    def given_to(self, kept: Kept) -> Kept:
        """The stretch with the notes of what had happened before its end."""
        return replace(kept, notes=[note for tsc, note in self._held if tsc <= kept.to_tsc])


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    block: RawBlock
    times: NDArray[np.uint64]
    first: int
    last: int


class FlightRecorder:
    """Holds the last events of every thread.

    Args:
        hold_ticks: How far back it must be possible to look. Older events are let go.
        most_bytes: What is held at most; beyond that the oldest go, however young.
        start_tsc: When recording began: there is nothing before.

    Attributes:
        held_bytes: What is held now.
        dropped: Events that went for want of room although they were young enough.
    """

    def __init__(self, hold_ticks: int, most_bytes: int, start_tsc: int = 0) -> None:
        self.hold_ticks = hold_ticks
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self.dropped = 0
        self._pieces: deque[_Piece] = deque()
        self._times = Times()
        self._frontier = start_tsc
        self._complete_from = start_tsc
        self._given_to = -1

    def add(self, blocks: Iterable[RawBlock], watermark: int = _FOREVER) -> None:
        """Take in drained blocks; the rows are copied.

        Args:
            blocks: Each ring's in its order.
            watermark: No event is taken to be later: the target writes the times and may lie.
        """
        for block in blocks:
            for start in range(0, max(len(block.rows), 1), _PIECE_EVENTS):
                part = block.part(start, min(start + _PIECE_EVENTS, len(block.rows)))
                self._add(part, np.uint64(watermark))
        self._let_go()

    def keep(
        self,
        from_tsc: int,
        to_tsc: int,
        marker: Mapping[str, object] | None = None,
        *,
        again: bool = False,
    ) -> Kept:
        """Take a stretch of time out, trimmed to the event.

        Args:
            from_tsc: Its first tick.
            to_tsc: Its last tick.
            marker: What asks for it.
            again: Hand out what was handed out before too (for a file of its own).
        """
        if not again:
            from_tsc = max(from_tsc, self._given_to + 1)
            self._given_to = max(self._given_to, to_tsc)
        low, high = np.uint64(max(from_tsc, 0)), np.uint64(min(to_tsc, _FOREVER))
        blocks = []
        for piece in self._pieces:
            if from_tsc <= piece.last and piece.first <= to_tsc:
                part = self._trim(piece, low, high)
                if part is not None:
                    blocks.append(part)
        complete = max(from_tsc, self._complete_from)
        return Kept(blocks, from_tsc, to_tsc, complete, marker or {})

    def snapshot(
        self, marker: Mapping[str, object] | None = None, *, to_tsc: int | None = None
    ) -> Kept:
        """Everything that is held, up to a tick; it stays."""
        first = min((piece.first for piece in self._pieces), default=self._frontier)
        last = self._frontier if to_tsc is None else to_tsc
        return self.keep(first, max(first, last), marker, again=True)

    def clear(self) -> None:
        """Forget everything, as a switch of tracers does."""
        self._pieces.clear()
        self.held_bytes = 0
        self._complete_from = max(self._complete_from, self._frontier)

    @staticmethod
    def _trim(piece: _Piece, low: np.uint64, high: np.uint64) -> RawBlock | None:
        if not len(piece.times):
            return piece.block
        inside = (piece.times >= low) & (piece.times <= high)
        return piece.block.only(inside, lost=bool(inside[-1]))

    def _add(self, block: RawBlock, watermark: np.uint64) -> None:
        if not len(block.rows) and not block.lost:
            return
        owned = RawBlock(
            block.rows.copy(), block.tid, block.ring, block.generation, block.sequence, block.lost
        )
        times = np.minimum(self._times.of(owned), watermark)
        if len(times):
            first, last = int(times.min()), int(times.max())
        else:
            first = last = min(self._times.last(block.ring), int(watermark))
        self._pieces.append(_Piece(owned, times, first, last))
        self._frontier = max(self._frontier, last)
        self.held_bytes += _piece_bytes(owned)

    def _let_go(self) -> None:
        # Pieces of several rings stand in the order of their drains, which is nearly that of
        # their times.
        oldest = self._frontier - self.hold_ticks
        while self._pieces:
            piece = self._pieces[0]
            if piece.last >= oldest and self.held_bytes <= self.most_bytes:
                return
            self._pieces.popleft()
            self.held_bytes -= _piece_bytes(piece.block)
            self._complete_from = max(self._complete_from, piece.last + 1)
            if piece.last >= oldest:
                self.dropped += len(piece.block.rows)


def _piece_bytes(block: RawBlock) -> int:
    return block_bytes(block) + len(block.rows) * 8  # and the times


def write_kept(fd: int, kept: Kept, packer: Packer, *, older: bool = False) -> None:
    """Append the blocks to a capture; arguments as of `RawBlock.write`.

    Raises:
        OSError: It cannot be written.
    """
    for block in kept.blocks:
        block.write(fd, packer, older=older)


def snapshot_path(output: str, number: int) -> str:
    """The name of a snapshot beside the capture: "x.snapshot-1.tptrace" for "x.tptrace"."""
    stem, suffix = os.path.splitext(output)
    return f"{stem}.snapshot-{number}{suffix}"


def write_snapshot(
    path: str,
    kept: Kept,
    meta: Mapping[str, object],
    threads: Mapping[int, str],
    end: Mapping[str, object],
    *,
    force: bool = False,
) -> None:
    """Write a capture of its own that holds a stretch of time.

    Args:
        path: The file.
        kept: What it holds.
        meta: META of the recording that it is from.
        threads: Names of threads.
        end: END's fields ("clock" at least); events, losses and the marker are added.
        force: Overwrite an existing file.

    Raises:
        CaptureExists, CaptureWrite: It cannot be written.
    """
    with CaptureWriter(path, force=force) as writer:
        writer.meta(meta)
        writer.threads(threads)
        try:
            write_kept(writer.fd, kept, Packer())
        except OSError as exc:
            raise writer.failed(exc.errno or 0) from exc
        lost = sum(block.lost for block in kept.blocks)
        totals = {"events": kept.events, "lost": lost, "markers": [kept.as_dict()]}
        notes = {"notes": list(kept.notes)} if kept.notes else {}
        writer.end({"reason": "snapshot", **end, **totals, **notes})
