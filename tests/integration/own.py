# SPDX-License-Identifier: Apache-2.0
"""Scripts that trace their own Python, while its threads are at work in C extensions."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A Python of its own, with three threads at work in C extensions from beginning to end.
PREAMBLE = """
import contextlib, ctypes, hashlib, json, os, random, signal, sys, threading, time, zlib
import textpoke

EXTENSIONS = ("libz*!*", "zlib*!*", "_json*!*", "_hashlib*!*")
data = bytes(range(256)) * 40
rows = json.dumps({"rows": list(range(300))})
right = (zlib.compress(data), hashlib.sha256(data).digest())
busy, wrong, done = threading.Event(), [], []

def work():
    while not busy.is_set():
        if (zlib.compress(data), hashlib.sha256(data).digest()) != right:
            wrong.append("bytes")
        if json.dumps(json.loads(rows)) != rows:
            wrong.append("rows")
        done.append(1)

workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for worker in workers:
    worker.start()

def others():
    "Our children, zombies too."
    found = open("/proc/thread-self/children").read().split()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that was joined may be about to go
            found += open(f"/proc/self/task/{task}/children").read().split()
    return found

def end(target, **more):
    busy.set()
    for worker in workers:
        worker.join()
    report = target.report
    print(json.dumps({
        "wrong": wrong, "worked": len(done) > 0, "residue": report.residue,
        "differing": len(report.text.differing), "children": others(), **more,
    }))
"""
# From 3.12 on a fork with threads is warned of.
PYTHON = (sys.executable, "-W", "ignore::DeprecationWarning", "-c")
CLEAN = {"wrong": [], "worked": True, "residue": [], "differing": 0, "children": []}


def run(
    body: str, *words: object, under: Sequence[str] = (), new_session: bool = False
) -> dict[str, object]:
    """Run a script in a new Python; returns the object that it prints."""
    done = subprocess.run(
        [*under, *PYTHON, PREAMBLE + textwrap.dedent(body), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        start_new_session=new_session,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, object] = json.loads(done.stdout)
    return result
