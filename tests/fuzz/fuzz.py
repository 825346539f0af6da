# SPDX-License-Identifier: Apache-2.0
"""Runs all fuzzers, those in C and those in Python, and prints one table: `make fuzz`.

A case is a number: it seeds the generator, so a finding is run again by `--only NAME --first CASE
--cases 1`. What counts as a finding: any exception but textpoke's own, a sanitizer's complaint, a
crash, a case that takes longer than `CASE_S` seconds or more memory than `MEMORY_BYTES`.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import readers

from textpoke import TextpokeError

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
C_PROGRAMS = HERE.parent.parent / "build" / "sanitize" / "native" / "tests"
C_FUZZERS = ("ring_read", "unpack", "classify")
CASE_S = 10
MEMORY_BYTES = 2 << 30
SHOWN = 5
_PROGRESS = struct.Struct("<QQQ")  # next case, findings, when the case began (seconds)


@dataclass
class Result:
    """One line of the table."""

    name: str
    cases: int
    findings: int
    seconds: float


class TooLongError(BaseException):
    """A case took longer than CASE_S."""


def run_case(name: str, case: int) -> str:
    """Run one case of a fuzzer in Python; returns "" or the finding's text."""
    rng = random.Random(case)
    try:
        readers.FUZZERS[name].run(rng)
    except TextpokeError as exc:
        return "" if str(exc) else f"{type(exc).__name__} without a word"
    except (Exception, TooLongError):  # noqa: BLE001  # whatever it is, it is the finding
        return traceback.format_exc(limit=-6)
    return ""


def _too_long(*_: object) -> None:
    raise TooLongError


def limit_memory() -> None:
    """From here on an allocation that makes no sense fails instead of taking the machine down."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)


def _work(name: str, end: int, progress: mmap.mmap) -> None:
    limit_memory()
    signal.signal(signal.SIGALRM, _too_long)
    case, findings, _ = _PROGRESS.unpack_from(progress)
    while case < end:
        _PROGRESS.pack_into(progress, 0, case, findings, int(time.monotonic()))
        signal.setitimer(signal.ITIMER_REAL, CASE_S)
        text = run_case(name, case)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if text:
            findings += 1
            if findings <= SHOWN:
                print(f"{name}, case {case}:\n{text}", file=sys.stderr, flush=True)
        case += 1
    _PROGRESS.pack_into(progress, 0, case, findings, 0)


def _worker(name: str, end: int, progress: mmap.mmap) -> int:
    """Fork a process that runs the cases from `progress` on; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _work(name, end, progress)
        code = 0
    finally:
        os._exit(code)


def _watch(name: str, end: int, progress: mmap.mmap, pid: int) -> int:
    """Wait for a worker; one that hangs in C or dies is a finding, and a new one goes on behind it.

    Returns the pid of the worker that goes on, 0 when all is done.
    """
    done, status = os.waitpid(pid, os.WNOHANG)
    case, findings, since_s = _PROGRESS.unpack_from(progress)
    if not done:
        if not since_s or time.monotonic() - since_s < 2 * CASE_S:
            return pid
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if status == 0:
        return 0
    print(f"{name}, case {case}: the process ended with {status:#x}", file=sys.stderr, flush=True)
    _PROGRESS.pack_into(progress, 0, case + 1, findings + 1, 0)
    return _worker(name, end, progress)


def run_python(name: str, first: int, cases: int, jobs: int) -> Result:
    """Run a fuzzer in Python in `jobs` processes."""
    started = time.monotonic()
    readers.FUZZERS[name].prepare()
    borders = [first + cases * i // jobs for i in range(jobs + 1)]
    progress = [mmap.mmap(-1, mmap.PAGESIZE) for _ in range(jobs)]
    for page, border in zip(progress, borders, strict=False):
        _PROGRESS.pack_into(page, 0, border, 0, 0)
    ends = borders[1:]
    pids = [_worker(name, end, page) for end, page in zip(ends, progress, strict=True)]
    try:
        while any(pids):
            time.sleep(0.01)
            for i, pid in enumerate(pids):
                if pid:
                    pids[i] = _watch(name, ends[i], progress[i], pid)
    finally:
        for pid in filter(None, pids):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    findings = sum(_PROGRESS.unpack_from(page)[1] for page in progress)
    return Result(name, cases, findings, time.monotonic() - started)


def run_c(name: str, first: int, cases: int) -> Result:
    """Run a fuzzer in C; the sanitizers end it at the first finding of theirs."""
    started = time.monotonic()
    words = [str(C_PROGRAMS / f"fuzz_{name}"), str(cases), str(first)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    ran, findings = map(int, done.stdout.split() or (0, 1))
    findings = max(findings, int(done.returncode != 0))
    return Result(name, ran, findings, time.monotonic() - started)


def run_all(args: argparse.Namespace) -> Iterator[Result]:
    """Run what was asked for; fuzzers in Python whose cases are dear get their share of them."""
    for name in C_FUZZERS:
        if args.only in ("", name):
            yield run_c(name, args.first, args.cases)
    for name, fuzzer in readers.FUZZERS.items():
        if args.only in ("", name):
            cases = args.cases if args.only else max(int(args.cases * fuzzer.share), 1)
            yield run_python(name, args.first, cases, min(args.jobs, cases))


def main() -> int:
    """Print the table; 1 when anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    print(f"{'FUZZER':<12}{'CASES':>12}{'FINDINGS':>10}{'SECONDS':>10}", flush=True)
    total = 0
    for result in run_all(args):
        total += result.findings
        print(
            f"{result.name:<12}{result.cases:>12,}{result.findings:>10}{result.seconds:>10.1f}",
            flush=True,
        )
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
