# SPDX-License-Identifier: Apache-2.0
"""From the rings to the capture, where triggers, thread filters or a budget are at work.

The ring reader writes to a tap instead of the capture; what passes goes on to the capture from
here. Without any of these a recording needs none of this and stays as fast as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke._site_lookup import SiteLookup
from textpoke.flight import FlightRecorder, Kept, Past, write_kept
from textpoke.packing import Packer
from textpoke.streams import ENTRY, RawBlock, Tap, total_events
from textpoke.trigger_engine import FOREVER, Hit, TriggerEngine
from textpoke.triggers import Command

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from textpoke.ring_flight import Stretch

_MOST_COUNTED = 1 << 14
"""Events of a block; the rest is taken to be alike."""
_MOST_SNAPSHOTS = 4
"""In one drain: each holds all that the recorder holds."""


@dataclass(slots=True)
class Flowed:
    """What one drain has come to.

    Attributes:
        hits: Triggers that did something, in the order of time.
        kept: Stretches that were written to the capture for `keep`.
        snapshots: What snapshot and dump want, each with its hit: for the owner to write, print.
        events: Events that were written to the capture.
        skipped: Calls of functions with triggers that were too many to act upon.
        remarks: What its owner should be told.
        turned: When recording was switched by hand, and whether on.
    """

    hits: list[Hit] = field(default_factory=list)
    kept: list[Stretch] = field(default_factory=list)
    snapshots: list[tuple[Hit, Kept]] = field(default_factory=list)
    events: int = 0
    skipped: int = 0
    remarks: list[str] = field(default_factory=list)
    turned: list[tuple[int, bool]] = field(default_factory=list)

    def notes(self) -> list[dict[str, object]]:
        """For the capture's JSON: every hit and switch, and every stretch that was kept."""
        return [
            *(hit.as_dict() for hit in self.hits),
            *(turned_note(tsc, on=on) for tsc, on in self.turned),
            *(kept.as_dict() for kept in self.kept),
        ]


def turned_note(tsc: int, *, on: bool) -> dict[str, object]:
    """What a switch by hand leaves in the capture's JSON."""
    return {"command": str(Command.TRACEON if on else Command.TRACEOFF), "tsc": tsc}


class Flow:
    """The way of one recording's events.

    Args:
        engine: Its triggers.
        recorder: Holds the past for snapshot, dump and keep.
        fd: The capture; -1 counts events and throws them away. Everything is written, `keep` is
            but a mark.
        older: Rings lose their oldest events, not their newest ones.

    Attributes:
        tap: Where the ring reader must write to.
        tids: Threads whose events are recorded; None for all.
        counter: Counts calls for the governor; None when nobody asks.
        holds: Something may ask for the past.
    """

    def __init__(
        self, engine: TriggerEngine, recorder: FlightRecorder, fd: int, *, older: bool = False
    ) -> None:
        self.engine = engine
        self.recorder = recorder
        self.tap = Tap()
        self.tids: set[int] | None = None
        self.counter: CallCounter | None = None
        self.holds = True
        self._fd = fd
        self._past = Past()
        self._packer = Packer()
        self._older = older

    def write_to(self, fd: int) -> None:
        """Send what comes from now on to another capture."""
        self._fd = fd

    def feed(self, watermark: int, *, complete: bool = True) -> Flowed:
        """Take what a drain has written to the tap.

        Args:
            watermark: Ticks read before that drain began; `FOREVER` after the last one.
            complete: The drain found no event half written (`Drained.incomplete` is 0).

        Raises:
            OSError: The capture cannot be written.
        """
        blocks = self.tap.borrow()
        if self.counter is not None:
            self.counter.add(blocks)
        fed = self.engine.feed(blocks, watermark, complete=complete)
        passed = [b for b in fed.blocks if self.tids is None or b.tid in self.tids]
        if self.holds:
            self.recorder.add(passed, fed.watermark)
        flowed = Flowed(fed.hits, skipped=fed.skipped, turned=fed.turned)
        for tsc, on in fed.turned:
            self._past.add(tsc, turned_note(tsc, on=on))
        for hit in fed.hits:
            self._past.add(hit.tsc, hit.as_dict())
            self._act(hit, flowed)
        self._write(Kept(passed, 0, fed.watermark, 0), flowed)
        return flowed

    def finish(self) -> Flowed:
        """Take the last events; stretches that end in the future end here."""
        return self.feed(FOREVER)

    def close(self) -> None:
        """Close the tap; a second call does nothing."""
        self.tap.close()

    def _act(self, hit: Hit, flowed: Flowed) -> None:
        command = hit.trigger.command
        if command in (Command.SNAPSHOT, Command.DUMP):
            if len(flowed.snapshots) >= _MOST_SNAPSHOTS:
                flowed.skipped += 1
                return
            kept = self.recorder.snapshot(hit.as_dict(), to_tsc=hit.tsc)
            flowed.snapshots.append((hit, self._past.given_to(kept)))

    def _write(self, kept: Kept, flowed: Flowed) -> None:
        flowed.events += total_events(kept.blocks)
        if self._fd >= 0:
            write_kept(self._fd, kept, self._packer, older=self._older)


class CallCounter:
    """Counts calls of each function in what is drained, for the governor.

    Args:
        addresses: Return addresses of the functions.
    """

    def __init__(self, addresses: Iterable[int]) -> None:
        self._addresses = list(addresses)
        self._lookup = SiteLookup(self._addresses)
        self._size = len(self._addresses) + 1
        self._unseen = 0
        self._counts = self._nothing()

    def _nothing(self) -> NDArray[np.int64]:
        return np.zeros(self._size, np.int64)

    def add(self, blocks: Iterable[RawBlock]) -> None:
        """Take in some blocks."""
        for block in blocks:
            part = block.part(0, min(len(block.rows), _MOST_COUNTED))
            calls = part.addresses[part.kinds == ENTRY]
            if len(calls):
                self._counts += np.bincount(self._lookup.find(calls) + 1, minlength=self._size)
                self._unseen += len(calls) * (len(block.rows) - len(part.rows)) // len(part.rows)

    def take(self, lost: int = 0) -> dict[int, int]:
        """Calls by return address since the last time.

        Args:
            lost: Events that were lost meanwhile: they were calls too, and cost as much. They are
                shared out in proportion.
        """
        counts, self._counts = self._counts[1:], self._nothing()
        total = int(counts.sum())
        lost, self._unseen = lost + self._unseen, 0
        if lost > 0 and total:
            counts = np.rint(counts * (1 + lost / total)).astype(np.int64)
        called = np.flatnonzero(counts)
        return {
            self._addresses[i]: n
            for i, n in zip(called.tolist(), counts[called].tolist(), strict=True)
        }
