# SPDX-License-Identifier: Apache-2.0
"""Fuzzer of what is made of libc's calls: every report of damaged captures of three tracers."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import files

from textpoke.report import blk, latency

import call_tables  # isort: skip - files knows where

if TYPE_CHECKING:
    import random

    from files import Seed


@functools.cache
def seeds() -> list[Seed]:
    """A small capture of each tracer, with the places of its block headers and events."""
    recipes = (
        call_tables.recipe("blk", call_tables.IO, fds=call_tables.FDS),
        call_tables.recipe("irqsoff", call_tables.LOCKS, masks={"101": 2}),
        call_tables.recipe("wakeup_rt", call_tables.WAKES, functions={"5": "read"}),
        call_tables.recipe("wakeup_rt", call_tables.CROWD, waiting=call_tables.WAITING),
    )
    return [files.seed(data) for recipe in recipes for data in files.written(recipe)]


def fuzz_analyses(rng: random.Random) -> None:
    """Make every report of a damaged capture."""
    with files.open_capture(files.damaged(rng, seeds())) as capture:
        if capture.meta.tracer == "blk":
            lines = [line for by in blk.TABLES for line in blk.lines(capture, by=by)]
            lines += "".join(blk.text(capture)).splitlines()
            found = blk.records(capture)
        else:
            lines = list(latency.lines(capture))
            found = latency.records(capture)
    for line in lines:
        assert line.isprintable(), line
    json.dumps(found, allow_nan=False)
