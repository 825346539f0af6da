# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test directory shares: compile a program of tests/targets, run it, end it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = Path(__file__).parent / "targets"
# Surveys of what is compiled here belong into nobody's cache.
os.environ["TEXTPOKE_CACHE"] = "off"
# Without job control, and under nohup, these begin ignored, for all that we start too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Compile(Protocol):
    """Compile tests/targets/NAME with extra flags; the same request twice compiles once."""

    def __call__(self, name: str, *flags: str) -> Path: ...


class Start(Protocol):
    """Run a program and wait until it has printed "ready"; killed when the test ends."""

    def __call__(self, program: Path, *arguments: str) -> subprocess.Popen[str]: ...


@pytest.fixture(scope="session")
def compile_target(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return the function that turns a source of tests/targets into a program."""
    directory = tmp_path_factory.mktemp("targets")
    known: dict[tuple[str, ...], Path] = {}

    def compile_one(name: str, *flags: str) -> Path:
        key = (name, *flags)
        if key not in known:
            program = directory / f"{Path(name).stem}-{len(known)}"
            compiler = "g++" if name.endswith(".cc") else "gcc"
            command = [compiler, "-O2", "-g", *flags, str(TARGETS / name), "-o", str(program)]
            subprocess.run([*command, "-pthread", "-ldl"], check=True)
            known[key] = program
        return known[key]

    return compile_one


@pytest.fixture
def start_target() -> Iterator[Start]:
    """Return the function that starts a program; every one is killed and reaped at the end."""
    running: list[subprocess.Popen[str]] = []

    def start(program: Path, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready"), f"{program.name} said {line!r} instead of ready"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()
