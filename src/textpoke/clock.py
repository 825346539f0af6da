# SPDX-License-Identifier: Apache-2.0
"""The rate of the time stamp counter, measured against the monotonic clock."""

from __future__ import annotations

import functools
import time

from textpoke._native import lib

_MEASURE_S = 0.005


@functools.cache
def ns_per_tick() -> float:
    """Nanoseconds of a tick; takes 5 ms the first time, right within some parts in 10,000."""
    first_tsc, first_ns = int(lib.tp_rdtsc()), time.monotonic_ns()
    time.sleep(_MEASURE_S)
    last_tsc, last_ns = int(lib.tp_rdtsc()), time.monotonic_ns()
    return (last_ns - first_ns) / (last_tsc - first_tsc)
