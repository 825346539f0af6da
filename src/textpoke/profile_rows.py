# SPDX-License-Identifier: Apache-2.0
"""What the profile tracer counts of a function: sums, and a histogram of times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self

BUCKETS = 112
"""TP_PROFILE_BUCKETS of native/include/wire.h; a test holds the two together."""
_TO_MIDDLE = 0.5
_MOST = 1 << 64
_NONE = (1 << 32) - 1  # in bucket 0 of a row that no call has used


@dataclass(slots=True)
class ProfileRow:
    """What was measured of one function, over all threads; times in TSC ticks.

    Attributes:
        address: The return address that names its site.
        hits: Calls that have returned.
        total: Their time.
        self: Of that, not in calls below that are measured too.
        max: The longest.
        squares: Sum of the squares of the times.
        overruns: 0: calls that found no room on the shadow stack are counted for the whole trace.
        buckets: How many calls took how long: bucket 0 is below 16 ticks, then four to an octave.
    """

    address: int
    hits: int = 0
    total: int = 0
    self: int = 0
    max: int = 0
    squares: int = 0
    overruns: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    @property
    def average(self) -> float:
        """Ticks of a call on average."""
        return self.total / self.hits if self.hits else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the times, in ticks."""
        if self.hits < 2:
            return 0.0
        spread = self.squares * self.hits - self.total * self.total  # exact: integers
        return math.sqrt(max(spread, 0) / (self.hits * (self.hits - 1)))

    def quantile(self, share: float) -> float:
        """Ticks that a `share` of the calls did not exceed: by the histogram, within an eighth."""
        wanted, seen = share * sum(self.buckets), 0
        for number, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                low, high = bucket_range(number)
                return min(low + (high - low) * _TO_MIDDLE, float(self.max))
        return 0.0

    def as_dict(self, ns_per_tick: float) -> dict[str, object]:
        """Plain data for JSON, times in nanoseconds."""
        return {
            "address": self.address,
            "calls": self.hits,
            "total_ns": self.total * ns_per_tick,
            "self_ns": self.self * ns_per_tick,
            "average_ns": self.average * ns_per_tick,
            "p50_ns": self.quantile(0.5) * ns_per_tick,
            "p99_ns": self.quantile(0.99) * ns_per_tick,
            "max_ns": self.max * ns_per_tick,
            "stddev_ns": self.deviation * ns_per_tick,
            "overruns": self.overruns,
        }

    @classmethod
    def from_json(cls, row: list[Any]) -> Self:
        """A row as a capture has it. Raises ValueError, TypeError, IndexError for nonsense."""
        address, hits, total, own, most, squares, overruns, buckets = row
        numbers = [address, hits, total, own, most, int(squares), overruns]
        if not all(type(n) is int and n >= 0 for n in numbers) or max(numbers[:5]) >= _MOST:
            raise ValueError(f"impossible numbers {numbers}")
        found = cls(address, hits, total, own, most, int(squares), overruns)
        for number, count in buckets.items():
            if type(count) is not int or not 0 <= count < _MOST:
                raise ValueError(f"impossible count {count!r}")
            found.buckets[int(number)] = count
        return found

    def add(self, values: tuple[int, ...]) -> None:
        """Add another thread's row, as the target has it: without its last call (wire.h)."""
        _, hits, total, own, most, low, high, last, *buckets = values
        self.hits += hits
        self.total += total
        self.self += own
        self.max = max(self.max, most)
        self.squares += low + (high << 64) + last * last
        buckets[bucket_of(last)] += 1
        buckets[0] &= _NONE
        if buckets[0] == _NONE:  # the first call has come, and what makes up for it not yet
            buckets[0] = 0
        self.buckets = [a + b for a, b in zip(self.buckets, buckets, strict=True)]


def bucket_of(ticks: int) -> int:
    """The bucket of a call, as profile.S finds it."""
    if ticks < 16:
        return 0
    octave = ticks.bit_length() - 3
    return min(4 * octave - 11 + (ticks >> octave), BUCKETS - 1)


def bucket_range(number: int) -> tuple[int, int]:
    """[low, high) of a bucket, in ticks; the last one has no end but twice its start."""
    if number == 0:
        return 0, 16
    octave, part = divmod(number - 1, 4)
    return (4 + part) << (octave + 2), (5 + part) << (octave + 2)
