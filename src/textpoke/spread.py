# SPDX-License-Identifier: Apache-2.0
"""How values are spread, group by group: count, sum, median, 99th percentile, maximum; exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Spread:
    """Columns with one row per group, the largest sum first; all int64, in the values' unit.

    Attributes:
        key: The groups.
        count: Values in each.
        total: Their sums.
        p50: Their medians: the smallest value that half of them do not exceed.
        p99: The smallest value that 99 % of them do not exceed.
        largest: Their maxima.
    """

    key: NDArray[np.int64]
    count: NDArray[np.int64]
    total: NDArray[np.int64]
    p50: NDArray[np.int64]
    p99: NDArray[np.int64]
    largest: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.key)

    def rows(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Key, count, total, median, 99th percentile and maximum, group by group."""
        columns = (self.key, self.count, self.total, self.p50, self.p99, self.largest)
        return zip(*(column.tolist() for column in columns), strict=True)


def spread(key: NDArray[np.int64], value: NDArray[np.int64]) -> Spread:
    """Group values by their keys."""
    order = np.lexsort((value, key))
    key, value = key[order], value[order]
    groups, first, count = np.unique(key, return_index=True, return_counts=True)
    total = np.add.reduceat(value, first) if len(value) else value
    last = first + count - 1
    rank = [first + (count * percent + 99) // 100 - 1 for percent in (50, 99)]
    by_total = np.argsort(-total, kind="stable")
    columns = (groups, count, total, value[rank[0]], value[rank[1]], value[last])
    return Spread(*(column[by_total] for column in columns))


def spread_of_all(value: NDArray[np.int64]) -> Spread:
    """All values as one group with key 0."""
    return spread(np.zeros(len(value), dtype=np.int64), value)


def histogram(value: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Powers of two as (from, up to but not, count), from the first that is not empty to the last.

    Args:
        value: int64, not negative, below 2**53.
    """
    exponent = np.frexp(value.astype(np.float64))[1]  # 0 for 0, 1 for 1, 2 for 2 and 3, ...
    counts = np.bincount(exponent).tolist()
    first = next((i for i, count in enumerate(counts) if count), 0)
    return [
        (1 << i - 1 if i else 0, 1 << i, count)
        for i, count in enumerate(counts[first:], start=first)
    ]
