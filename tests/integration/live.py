# SPDX-License-Identifier: Apache-2.0
"""A recording that runs in the test, and other tools that speak to it meanwhile."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import TYPE_CHECKING, Any

import observe

import textpoke
from textpoke.control import ControlServer
from textpoke.recording import Recording
from textpoke.session import RecordSession

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.arguments import Spec
    from textpoke.governor import Budget

RING_BYTES = 1 << 22
OUTPUT = "first.tptrace"


class Running:
    """A recording of a program, and other tools beside it."""

    def __init__(self, session: RecordSession, server: ControlServer) -> None:
        self.session, self.server = session, server
        self.recording = session.recordings[""]
        self.trace = self.recording.trace

    def drain(self, seconds: float) -> None:
        """Let it record for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()

    def step(self) -> None:
        """What the driver of a recording does every few milliseconds."""
        self.recording.drain()
        self.session.drain()
        self.server.poll()
        time.sleep(0.002)

    def tool(self, verb: str, *words: str, code: int = 0) -> str:
        """What another textpoke prints; its error line where it is to fail."""
        command = observe.command_line(verb, "-p", self.session.pid, *words)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            self.step()
        out, err = process.communicate()
        assert process.returncode == code, err
        return out if not code else err


@contextlib.contextmanager
def running(
    process: subprocess.Popen[str],
    *include: str,
    tracer: str = "function",
    budget: Budget | None = None,
    everything: bool = False,
    arguments: Sequence[Spec] = (),
) -> Iterator[Running]:
    """Record a program into OUTPUT; the caller sees to XDG_RUNTIME_DIR and the directory."""
    with textpoke.attach(process.pid, ring_bytes=RING_BYTES) as target:
        session = RecordSession(target, everything=everything)
        trace = target.trace(
            include, tracer=tracer, output=OUTPUT, everything=everything, arguments=arguments
        )
        recording = session.recordings[""] = Recording(trace, session.names, budget=budget)
        recording.start()
        with ControlServer(session) as server:
            yield Running(session, server)
        session.close()
        recording.stop()


def marks(capture: textpoke.Capture) -> list[dict[str, Any]]:
    """What triggers have noted, in the order of time."""
    return [mark for data in capture.notes for mark in data.get("notes", [])]
