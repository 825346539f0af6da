# SPDX-License-Identifier: Apache-2.0
"""The calls of a capture added up by stack: a tree whose nodes are columns.

Memory grows with the number of different stacks, besides the calls of one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.export.source import Source

DEEPEST = 1024
"""Levels that are kept apart: the agent follows 1,023 open calls of a thread."""
DEEPER = "[deeper]"
"""Frame that everything below `DEEPEST` levels is in."""


class Stacks:
    """A tree of frames; node 0 is its root, and a node comes after its parent.

    The frames below the root are the names of threads: threads of one name are one.

    Attributes:
        frames: Their labels: by site index, then others.
        parent: By node, its parent; -1 of the root.
        frame: By node, index into `frames`; -1 of the root.
        calls: By node, calls in exactly this stack.
        self_ns: By node, time in exactly this stack.
        has_times: False when calls have no ends: `self_ns` is 0 everywhere.
    """

    def __init__(self, labels: list[str], *, has_times: bool) -> None:
        self.frames = [*labels, DEEPER]
        self.parent = [-1]
        self.frame = [-1]
        self.calls = [0]
        self.self_ns = [0]
        self.has_times = has_times
        self._unknown = len(labels) - 1
        self._deeper = len(labels)
        self._nodes: dict[tuple[int, int], int] = {}
        self._extra: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def weights(self) -> list[int]:
        """By node: nanoseconds, or calls where there are no times."""
        return self.self_ns if self.has_times else self.calls

    def extra_frame(self, label: str) -> int:
        """Index of a frame that is no site."""
        if label not in self._extra:
            self._extra[label] = len(self.frames)
            self.frames.append(label)
        return self._extra[label]

    def node(self, parent: int, frame: int) -> int:
        """The node of a frame under another node, made where it is missing."""
        found = self._nodes.get((parent, frame))
        if found is None:
            found = self._nodes[parent, frame] = len(self.parent)
            self.parent.append(parent)
            self.frame.append(frame)
            self.calls.append(0)
            self.self_ns.append(0)
        return found

    def add(self, thread: str, calls: Calls) -> None:
        """Add calls of one thread, all callers among them."""
        top = self.node(0, self.extra_frame(thread))
        place = np.full(len(calls), top, np.int64)  # node of each call
        order = np.argsort(calls.depth, kind="stable")
        levels = np.flatnonzero(np.diff(calls.depth[order])) + 1
        for rows in np.split(order, levels):
            if len(rows):
                self._add_level(calls, rows, place, top)

    def _add_level(
        self, calls: Calls, rows: NDArray[np.intp], place: NDArray[np.int64], top: int
    ) -> None:
        # Calls of one site below one node are a node. Nothing here is done call by call.
        parents = calls.parent[rows]
        above = np.where(parents < 0, top, place[parents])
        frame = np.where(calls.site[rows] < 0, self._unknown, calls.site[rows]).astype(np.int64)
        depth = int(calls.depth[rows[0]])
        if depth >= DEEPEST:
            frame[:] = self._deeper
        span = len(self.frames)
        keys, inverse = np.unique(above * span + frame, return_inverse=True)
        nodes = np.empty(len(keys), np.int64)
        for i, key in enumerate(keys.tolist()):
            parent = key // span
            nodes[i] = parent if depth > DEEPEST else self.node(parent, key % span)
        counts = np.bincount(inverse, minlength=len(keys))
        times = np.zeros(len(keys), np.int64)
        np.add.at(times, inverse, calls.self_ns[rows])
        for node, count, self_ns in zip(
            nodes.tolist(), counts.tolist(), times.tolist(), strict=True
        ):
            self.calls[node] += count
            self.self_ns[node] += self_ns
        place[rows] = nodes[inverse]

    def totals(self, weights: list[int]) -> list[int]:
        """By node, the sum of the weights of all nodes below it, its own included."""
        found = list(weights)
        for node in range(len(found) - 1, 0, -1):
            found[self.parent[node]] += found[node]
        return found

    def preorder(self) -> Iterator[tuple[int, int]]:
        """(node, depth), each before what is below it, the heaviest child first; root: depth 0."""
        total = self.totals(self.weights)
        children: list[list[int]] = [[] for _ in self.parent]
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                children[parent].append(node)
        waiting = [(0, 0)]
        while waiting:
            node, depth = waiting.pop()
            yield node, depth
            below = sorted(children[node], key=lambda n: (total[n], self.frames[self.frame[n]]))
            waiting += [(child, depth + 1) for child in below]


def stacks_of(source: Source) -> Stacks:
    """All calls of a capture by stack.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    stacks = Stacks(source.labels, has_times=source.has_exits)
    for tid in source.tids():
        for calls in source.calls(tid):
            stacks.add(source.thread_name(tid), calls)
            source.wrote(len(calls))
    return stacks
