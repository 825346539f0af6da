# SPDX-License-Identifier: Apache-2.0
"""Real programs as processes: build them, start them, end them, look at them from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
BUILT = REPOSITORY / "build" / "real"
LOGS = BUILT / "logs"
TEXTPOKE = Path(sys.executable).with_name("textpoke")
BUILD_TIMEOUT_S = 900
START_TIMEOUT_S = 20
VERB_TIMEOUT_S = 60
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ (\d+) *(.*)\n")
_SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)


def built(name: str) -> Path:
    """Build a program with tools/build_real.sh, unless it is there; returns its directory."""
    script = REPOSITORY / "tools" / "build_real.sh"
    subprocess.run([str(script), name], check=True, timeout=BUILD_TIMEOUT_S)
    return BUILT / name


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def verb(*words: object) -> subprocess.CompletedProcess[str]:
    """Run one verb of textpoke to its end."""
    command = [str(TEXTPOKE), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=VERB_TIMEOUT_S, check=False
    )


class Program:
    """A process with its output in a file of build/real/logs; a context manager that ends it."""

    def __init__(
        self,
        words: Sequence[object],
        log: str,
        environment: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{log}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.runs:
            self.process.kill()
        self.process.wait()

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def lines(self) -> list[str]:
        """What it has printed so far, whole lines only."""
        return self.log.read_text(errors="replace").split("\n")[:-1]

    def wait_for(self, question: Callable[[], object], seconds: float = START_TIMEOUT_S) -> None:
        """Ask until the answer is true; the program must run meanwhile."""
        deadline_s = time.monotonic() + seconds
        while not question():
            assert self.runs, f"ended with {self.process.returncode}: see {self.log}"
            assert time.monotonic() < deadline_s, f"nothing within {seconds} s: see {self.log}"
            time.sleep(0.02)

    def wait_for_lines(self, count: int, seconds: float = START_TIMEOUT_S) -> list[str]:
        """Wait until it has printed `count` more lines; returns all."""
        there = len(self.lines())
        self.wait_for(lambda: len(self.lines()) >= there + count, seconds)
        return self.lines()


@dataclass(frozen=True)
class Seen:
    """What a process looks like from outside, told by the kernel and not by textpoke.

    Attributes:
        mappings: Lines of proc/PID/maps without heap and stacks, which change by themselves.
        threads: Thread ids.
        catches_sigtrap: It has a handler for SIGTRAP.
    """

    mappings: tuple[str, ...]
    threads: tuple[int, ...]
    catches_sigtrap: bool

    @classmethod
    def now(cls, pid: int) -> Self:
        maps = Path(f"/proc/{pid}/maps").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
        assert caught
        return cls(
            tuple(line[0] for line in _MAP.finditer(maps) if _is_fixed(line)),
            tuple(sorted(map(int, os.listdir(f"/proc/{pid}/task")))),
            bool(int(caught[1], 16) & _SIGTRAP_BIT),
        )


def _is_fixed(line: re.Match[str]) -> bool:
    return "x" in line[3] or line[6] not in ("", "[heap]", "[stack]")


def held(pid: int) -> bool:
    """Is any of its threads in the hands of a tracer?"""
    states = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return any(not re.search(r"^TracerPid:\t0$", state, re.MULTILINE) for state in states)


def differing_text(pid: int) -> list[str]:
    """Executable mappings that differ from their files: `detach`'s proof, done once more."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in _MAP.finditer(maps):
            if "x" not in line[3] or not line[6].startswith("/"):
                continue
            start, end, offset = int(line[1], 16), int(line[2], 16), int(line[4], 16)
            ours = os.pread(memory.fileno(), end - start, start)
            file = Path(line[6]).read_bytes()[offset : offset + end - start]
            if ours != file.ljust(end - start, b"\0"):
                found.append(line[0].rstrip())
    return found
