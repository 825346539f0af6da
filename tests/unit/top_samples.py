# SPDX-License-Identifier: Apache-2.0
"""Samples that are made up: functions that were called so often, each call so long."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from textpoke._errors import ControlFailed, TargetExited
from textpoke.profile_rows import BUCKETS, bucket_of
from textpoke.top.model import Function, Model, Sample
from textpoke.top.stretch import Neighbours, Share

FUNCTIONS = [
    Function("prog", "setCommand"),
    Function("prog", "getCommand"),
    Function("libc.so.6", "malloc"),
    Function("libc.so.6", "free"),
]


def sample(at_s: float, calls: dict[int, int], ticks: int = 100, **facts: float) -> Sample:
    """What there is when functions were called so often, each time for so many ticks."""
    function = np.array(sorted(f for f, n in calls.items() if n), np.int64)
    count = np.array([calls[f] for f in function], np.int64)
    buckets = np.zeros((len(function), BUCKETS), np.uint32)
    buckets[:, bucket_of(ticks)] = count
    total = count * ticks
    return Sample(at_s, function, count, count, total, total // 2, buckets, **facts)  # type: ignore[arg-type]


def model(calls: dict[int, int], seconds: float = 1.0) -> Model:
    """A model that has seen these calls in its last interval."""
    found = Model(1.0)
    found.step(sample(0.0, {}), FUNCTIONS)
    found.step(sample(seconds, calls), FUNCTIONS)
    return found


@dataclass
class FakeSource:
    """A source whose functions are called on and on; it notes what is asked of it."""

    functions: list[Function] = field(default_factory=lambda: list(FUNCTIONS))
    calls: dict[int, int] = field(default_factory=lambda: {0: 10, 1: 20, 2: 30})
    off: set[int] = field(default_factory=set)
    with_times: bool = True
    refuses: bool = False
    pid: int = 4711
    program: str = "prog"
    patched: int = 4
    refused: int = 1
    ns_per_tick: float = 1.0
    samples: int = 0
    gone: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        if self.gone.wait(seconds):
            raise TargetExited(self.pid, "the watch")

    def sample(self) -> Sample:
        self.samples += 1
        calls = {f: n * self.samples for f, n in self.calls.items()}
        return sample(time.monotonic(), calls)

    def switch(self, function: int, *, on: bool) -> None:
        if self.refuses:
            raise ControlFailed("switch", "somebody else has changed it")
        (self.off.discard if on else self.off.add)(function)

    def switch_times(self) -> None:
        self.with_times = not self.with_times

    def look_into(self, function: int) -> Neighbours:
        return Neighbours(0.3, 7, [Share(f"caller_of_{self.functions[function].name}", 7, 700)])
