# SPDX-License-Identifier: Apache-2.0
"""Captures for the tests of every export format."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import captures
from captures import GET, INFLATE, SET, Recipe, Ring

from textpoke.capture import Capture
from textpoke.export.formats import FORMATS
from textpoke.export.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN, OUT = 1, 2
US = 3_000  # ticks
TWO_THREADS = [
    Ring(
        [
            (0, SET, IN),
            (2 * US, GET, IN),
            (4 * US, GET, OUT),
            (5 * US, INFLATE, IN),
            (6 * US, GET, IN),
            (20 * US, GET, OUT),
            (30 * US, INFLATE, OUT),
            (100 * US, SET, OUT),
            (200 * US, GET, IN),  # left by longjmp, or by nobody knows what
            (210 * US, INFLATE, IN),
            (213 * US, INFLATE, OUT),
        ]
    ),
    Ring([(50 * US, INFLATE, IN), (54 * US, INFLATE, OUT)], tid=101, ring=1),
]
"""(name, start, end) in us; SET 0-100, with GET 2-4 and INFLATE 5-30 with GET 6-20; GET 200- with
INFLATE 210-213. In the other thread INFLATE 50-54."""
NESTED = [
    (100, "setCommand", 0, 100_000),
    (100, "getCommand", 2_000, 4_000),
    (100, "inflate [libz.so.1]", 5_000, 30_000),
    (100, "getCommand", 6_000, 20_000),
    (100, "getCommand", 200_000, 213_000),
    (100, "inflate [libz.so.1]", 210_000, 213_000),
    (101, "inflate [libz.so.1]", 50_000, 54_000),
]
"""The same in ns, a call without an end up to the last moment that is known inside of it."""
WITH_LOSS = [
    Ring([(0, SET, IN), (US, GET, IN), (2 * US, INFLATE, IN)], lost=7),
    Ring(
        [(10 * US, INFLATE, IN), (12 * US, INFLATE, OUT), (20 * US, SET, OUT)],
        sequence=10,
    ),
]
"""What GET and the first INFLATE did after the loss nobody knows: the second is SET's."""
HOSTILE = "</script><b>&\"'\u2028;x\n"
PARTS = (1, 3, 1 << 16)
"""Rows at once: results are the same whatever it is."""


def graph(path: Path, rings: list[Ring] | None = None, **changes: object) -> Path:
    meta = captures.meta(tracer="function_graph", **changes)
    recipe = Recipe(TWO_THREADS if rings is None else rings, meta=meta)
    return captures.write(path, recipe)


def function(path: Path, **changes: object) -> Path:
    """The function tracer's: entries alone."""
    recipe = Recipe(captures.SMALL.rings, meta=captures.meta(**changes))
    return captures.write(path, recipe)


def hostile(path: Path) -> Path:
    return graph(path, sites=[[SET, "redis-server", HOSTILE], *captures.SITES[1:]])


@contextlib.contextmanager
def source(path: Path) -> Iterator[Source]:
    with Capture(path) as capture:
        yield Source(capture)


def exported(path: Path, name: str) -> bytes:
    file = io.BytesIO()
    with source(path) as found:
        FORMATS[name].write(found, file)
    return file.getvalue()
