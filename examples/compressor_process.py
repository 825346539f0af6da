# SPDX-License-Identifier: Apache-2.0
"""The program that the demo traces, seen from outside: examples/compressor.py in its process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0


class CompressorError(Exception):
    """The compressor does not run as it should; the message is for a person."""


@dataclass(frozen=True)
class Progress:
    """One line of the compressor."""

    at_s: float
    cpu_s: float
    alive: int
    bytes: int
    round_trips: int
    wrong: int


class Compressor:
    """The program under trace: examples/compressor.py as a process of its own."""

    def __init__(self, library: Path) -> None:
        program = Path(__file__).with_name("compressor.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(library)},
        )
        self.pid = self.process.pid
        self.lines: list[Progress] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(Progress(**json.loads(line)))

    def work(self, seconds: float) -> float:
        """Let it work for so long; returns its speed in that time, as `speed`.

        Raises:
            CompressorError: It has ended, or makes no progress.
        """
        first = len(self.lines)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self.lines[first:] or self.lines[-1].at_s < self.lines[first].at_s + seconds:
            if self.process.poll() is not None:
                raise CompressorError(f"the compressor ended with {self.process.returncode}")
            if time.monotonic() > deadline_s:
                raise CompressorError("the compressor makes no progress")
            time.sleep(0.02)
        return self.speed(self.lines[first].at_s, self.lines[-1].at_s)

    def speed(self, start_s: float, end_s: float) -> float:
        """Megabytes compressed and decompressed per second of CPU time, between two times."""
        inside = [line for line in self.lines if start_s <= line.at_s <= end_s]
        if len(inside) < 2:
            return 0.0
        first, last = inside[0], inside[-1]
        return (last.bytes - first.bytes) / 1e6 / (last.cpu_s - first.cpu_s)

    def finish(self) -> int:
        """Ask it to end and return its exit code."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(END_TIMEOUT_S)
        return code

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
