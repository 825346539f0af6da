# SPDX-License-Identifier: Apache-2.0
"""The calls of a capture added up by the way that led to them: one tree for all threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from textpoke.calls import UNFINISHED, Pairing
from textpoke.report.layout import columns, time_text
from textpoke.report.names import function_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.capture import Capture

DEEPEST = 100
"""Levels that are kept apart where nothing else is asked for; a recursion would go on for ever."""


@dataclass(slots=True)
class Node:
    """The calls of a site under one way of callers.

    Attributes:
        site: Index into the capture's sites; -1 for addresses that no site has.
        calls: How many, finished or not.
        total_ns: From entry to exit; of an unfinished call what its finished calls took.
        self_ns: Without the time in recorded calls.
        children: By site.
    """

    site: int
    calls: int = 0
    total_ns: int = 0
    self_ns: int = 0
    children: dict[int, Node] = field(default_factory=dict)


def call_tree(capture: Capture, depth: int | None = None) -> Node:
    """The tree; its root is no call, and its total is that of all outermost calls.

    The calls of one thread at a time are in memory (60 bytes each).

    Args:
        capture: Open.
        depth: Levels; what is deeper is left out. `DEEPEST` by default.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    root = Node(-1)
    pairing = Pairing(capture)
    for tid in pairing.decoder.tids:
        calls = Pairing(capture, pairing.decoder).columns([tid])
        _add(root, calls, depth or DEEPEST)
    root.total_ns = sum(node.total_ns for node in root.children.values())
    return root


def tree(capture: Capture, root: Node, *, known: bool, limit: int | None = None) -> Iterator[str]:
    """The lines of the tree, a header first; of the calls at one place the longest stand first.

    Args:
        capture: Gives the names.
        root: From `call_tree`.
        known: Whether times are nanoseconds, not ticks.
        limit: At most so many functions under one.
    """
    names = function_labels(capture)
    rows = [
        [
            f"{node.calls:,}",
            time_text(node.total_ns, known=known),
            time_text(node.self_ns, known=known),
            f"{node.total_ns / root.total_ns:.1%}" if root.total_ns else "-",
            f"{bars}{names[node.site]}",
        ]
        for bars, node in _walk(root, limit)
    ]
    return columns(["CALLS", "TOTAL", "SELF", "%", "FUNCTION"], rows, left=["FUNCTION"])


def tree_records(capture: Capture, node: Node) -> list[dict[str, object]]:
    """What is under a node as plain data, for JSON."""
    sites = capture.meta.sites
    return [
        {
            "module": sites[child.site].module if child.site >= 0 else None,
            "function": sites[child.site].function if child.site >= 0 else None,
            "calls": child.calls,
            "total_ns": child.total_ns,
            "self_ns": child.self_ns,
            "children": tree_records(capture, child),
        }
        for child in _longest_first(node, None)
    ]


def _walk(root: Node, limit: int | None) -> Iterator[tuple[str, Node]]:
    # Not by recursion of Python's own: a tree may be as deep as the calls.
    waiting = [("", "", node) for node in reversed(_longest_first(root, limit))]
    while waiting:
        bars, below, node = waiting.pop()
        yield bars, node
        children = _longest_first(node, limit)
        for i, child in enumerate(reversed(children)):
            is_last = i == 0
            waiting.append((f"{below} +-", f"{below}{'   ' if is_last else ' | '}", child))


def _longest_first(node: Node, limit: int | None) -> list[Node]:
    found = sorted(node.children.values(), key=lambda n: (-n.total_ns, -n.calls, n.site))
    return found[:limit]


def _add(root: Node, calls: Calls, depth: int) -> None:
    # Level by level: the calls of a level whose parents are one node and that are of one site
    # are a node. Nothing here is done call by call.
    total = _totals(calls)
    nodes = [root]
    place = np.zeros(len(calls), np.int64)  # of each call: index in `nodes`
    order = np.argsort(calls.depth, kind="stable")
    bounds = np.searchsorted(calls.depth[order], np.arange(min(depth, _levels(calls)) + 1))
    for start, stop in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
        rows = order[start:stop]
        parents = calls.parent[rows]
        above = np.where(parents < 0, 0, place[parents])
        span = int(calls.site.max()) + 2
        keys, inverse, counts = np.unique(
            above * span + calls.site[rows].astype(np.int64) + 1,
            return_inverse=True,
            return_counts=True,
        )
        first = len(nodes)
        sums = [np.zeros(len(keys), np.int64) for _ in range(2)]
        np.add.at(sums[0], inverse, total[rows])
        np.add.at(sums[1], inverse, calls.self_ns[rows])
        lists: list[NDArray[Any]] = [keys // span, keys % span - 1, counts, *sums]
        for parent, site, count, total_ns, self_ns in zip(
            *(column.tolist() for column in lists), strict=True
        ):
            node = nodes[parent].children.setdefault(site, Node(site))
            node.calls += count
            node.total_ns += total_ns
            node.self_ns += self_ns
            nodes.append(node)
        place[rows] = first + inverse


def _levels(calls: Calls) -> int:
    return int(calls.depth.max()) + 1 if len(calls) else 0


def _totals(calls: Calls) -> NDArray[np.int64]:
    total = calls.duration_ns()
    is_open = calls.end_ns == UNFINISHED
    total[is_open] = 0
    if not is_open.any():
        return total
    # From the inside: a call comes after its parent, so that the last rows are complete first.
    rows = np.flatnonzero((calls.parent >= 0) & is_open[calls.parent])
    for level in np.unique(calls.depth[rows])[::-1].tolist():
        chosen = rows[calls.depth[rows] == level]
        np.add.at(total, calls.parent[chosen], total[chosen])
    return total
