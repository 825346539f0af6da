# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests on real programs, and the figures that they measure, in the summary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from processes import BUILD_TIMEOUT_S, REPOSITORY, Seen, built, differing_text
from redis_server import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    import textpoke

FIGURES = pytest.StashKey[list[str]]()
TABLE = pytest.StashKey[list[tuple[dict[str, str], list[str]]]]()


class Figure(Protocol):
    """Say a measured figure in the summary of the test run."""

    def __call__(self, text: str) -> None: ...


class Table(Protocol):
    """Add a row to the table in the summary: cells by column, and lines below the table."""

    def __call__(self, cells: dict[str, str], details: list[str]) -> None: ...


class Untouched(Protocol):
    """Assert that a process is as it was at the start of the test."""

    def __call__(self, report: textpoke.DetachReport | None) -> None: ...


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []
    config.stash[TABLE] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.stash[FIGURES]:
        terminalreporter.section("figures")
        for line in config.stash[FIGURES]:
            terminalreporter.line(line)
    if config.stash[TABLE]:
        terminalreporter.section("table")
        for line in _table(config.stash[TABLE]):
            terminalreporter.line(line)


def _table(rows: list[tuple[dict[str, str], list[str]]]) -> list[str]:
    columns = list(rows[0][0])
    cells = [columns, *([row[name] for name in columns] for row, _ in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(map(str.rjust, row, widths)) for row in cells]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return lines + [f"{row[columns[0]]}: {text}" for row, details in rows for text in details]


@pytest.fixture
def table(pytestconfig: pytest.Config) -> Table:
    def say(cells: dict[str, str], details: list[str]) -> None:
        pytestconfig.stash[TABLE].append((cells, details))

    return say


@pytest.fixture
def figure(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Figure:
    def say(text: str) -> None:
        pytestconfig.stash[FIGURES].append(f"{request.node.name}: {text}")

    return say


@pytest.fixture(scope="session")
def redis_directory() -> Path:
    if os.getuid():
        pytest.fail("make test-real needs root: apt installs what the programs are built with")
    return built("redis")


@pytest.fixture
def redis(redis_directory: Path, request: pytest.FixtureRequest) -> Iterator[Redis]:
    with Redis(redis_directory, f"redis-{request.node.name}") as server:
        server.wait_until_up()
        yield server
        assert server.runs, f"redis ended with {server.process.returncode}: see {server.log}"
        assert "BUG REPORT" not in server.log.read_text(errors="replace")


@pytest.fixture(scope="session")
def zstandard() -> Path:
    """Return the directory of the package that the demo traces, built by the demo's own means."""
    program = "import zstd_library as z; z.build(); print(z.DIRECTORY)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY / "examples",
        check=True,
        timeout=BUILD_TIMEOUT_S,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(done.stdout.strip())


@pytest.fixture
def untouched() -> object:
    """Return a function that remembers a process; what it returns compares."""

    def remember(pid: int) -> Untouched:
        before = Seen.now(pid)
        assert not differing_text(pid)

        def compare(report: textpoke.DetachReport | None) -> None:
            if report is not None:
                assert report.clean, report.residue
                assert not report.text.skipped
                assert 0 < report.text.equal == report.text.pages
            assert not differing_text(pid)
            assert Seen.now(pid) == before

        return compare

    return remember
