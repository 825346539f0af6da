# SPDX-License-Identifier: Apache-2.0
"""The tracers that there are, each with a line of what it is for."""

from __future__ import annotations

FUNCTION, GRAPH, PROFILE, BRANCH, NOP = "function", "function_graph", "profile", "branch", "nop"
BLK, WAKEUP, IRQSOFF = "blk", "wakeup_rt", "irqsoff"
LIBC = (BLK, WAKEUP, IRQSOFF)
"""Tracers that stand on functions of libc."""

TRACERS = {
    "function": "every call of the chosen functions: when, in which thread",
    "function_graph": "calls and returns: durations, the tree of calls, arguments, return values",
    "blk": "reads, writes, syncs and opens by libc: which file, how much, how long, who",
    "branch": "how often each conditional branch of the chosen functions is taken, by source line",
    "wakeup_rt": "from a wake to the woken thread running; the longest is kept",
    "irqsoff": "critical sections: locks held, signals masked; the longest is kept",
    "nop": "nothing: what is patched is taken back, the trace stays",
    "profile": "hits, times and a histogram per function in the target's memory, no events",
}
"""By name; the first seven are those of the kernel's own benchmark."""
