# SPDX-License-Identifier: Apache-2.0
"""Redis on loopback, and redis-benchmark beside it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Self

from processes import LOGS, Program, free_port

if TYPE_CHECKING:
    from pathlib import Path

BENCHMARK_TIMEOUT_S = 240


class Redis(Program):
    """A redis-server of our own that saves nothing."""

    def __init__(self, directory: Path, log: str) -> None:
        self.directory = directory
        self.port = free_port()
        words = [directory / "redis-server", "--port", self.port, "--bind", "127.0.0.1"]
        words += ["--save", "", "--dir", LOGS.parent, "--enable-debug-command", "local"]
        super().__init__(words, log)

    def wait_until_up(self) -> None:
        def answers() -> bool:
            with contextlib.suppress(OSError):
                return self.ask("PING") == "+PONG"
            return False

        self.wait_for(answers)

    def ask(self, *words: str) -> str:
        """Send one command; returns the answer, for a bulk answer without its length."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as answer:
                first = answer.readline().decode().rstrip()
                return answer.read(int(first[1:])).decode() if first.startswith("$") else first

    def info(self, section: str) -> dict[str, str]:
        lines = self.ask("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def command(self, name: str) -> dict[str, int]:
        """Redis's own figures of one command: calls, failed_calls, rejected_calls."""
        fields = self.info("commandstats").get(f"cmdstat_{name}", "")
        pairs = (field.split("=") for field in fields.split(",") if field)
        return {key: int(float(value)) for key, value in pairs}

    def benchmark(self, *words: object) -> list[str]:
        """The command line of redis-benchmark against this server."""
        return [str(self.directory / "redis-benchmark"), "-p", str(self.port), *map(str, words)]


class Load:
    """redis-benchmark, started again as long as the `with` block lasts.

    The end of the block waits for the last run, so that every request of every run counts.

    Attributes:
        runs: Finished runs, each (exit code, output).
    """

    def __init__(self, redis: Redis, requests: int = 100_000) -> None:
        self.redis, self.requests = redis, requests
        self.runs: list[tuple[int, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_again_and_again)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline_s = time.monotonic() + 20
        while self.redis.command("set").get("calls", 0) < 1000:
            assert time.monotonic() < deadline_s, "redis-benchmark does not begin"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run_again_and_again(self) -> None:
        words = self.redis.benchmark("-c", 50, "-n", self.requests, "-t", "set,get", "--csv")
        while not self._stop.is_set():
            try:
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=BENCHMARK_TIMEOUT_S, check=False
                )
            except subprocess.TimeoutExpired:
                self.runs.append((-1, f"did not end within {BENCHMARK_TIMEOUT_S} s"))
                return
            self.runs.append((done.returncode, done.stdout + done.stderr))

    def require_no_failure(self) -> None:
        """No run failed, and Redis has counted every request and no error."""
        assert self.runs
        for code, output in self.runs:
            assert code == 0, output
            rows = [line.split('"')[1] for line in output.splitlines() if line.startswith('"')]
            assert rows[1:] == ["SET", "GET"], output
            assert "rror" not in output
        for name in ("set", "get"):
            figures = self.redis.command(name)
            assert figures["calls"] == len(self.runs) * self.requests
            assert figures["failed_calls"] == figures["rejected_calls"] == 0
        assert self.redis.info("stats")["total_error_replies"] == "0"
