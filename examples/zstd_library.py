# SPDX-License-Identifier: Apache-2.0
"""Fetch the zstandard package and build it with NOPs at every function's entry, once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PACKAGE = "zstandard==0.25.0"
DIRECTORY = Path(__file__).resolve().parent.parent / "build" / "demo" / "zstandard"
CFLAGS = "-O2 -fpatchable-function-entry=5"
TIMEOUT_S = 600


class BuildError(Exception):
    """The package could not be built; the message is for a person."""


def build() -> float:
    """Build into DIRECTORY unless it is there; returns the seconds that it took.

    Raises:
        BuildError: With the end of pip's output.
    """
    stamp = DIRECTORY / "stamp"
    wanted = f"{PACKAGE} {CFLAGS} {sys.version}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return 0.0
    started = time.monotonic()
    fresh = DIRECTORY.with_suffix(".new")
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    _install(fresh)
    (fresh / "stamp").write_text(wanted)
    fresh.rename(DIRECTORY)
    return time.monotonic() - started


def _install(directory: Path) -> None:
    # Without pip's cache: it does not know CFLAGS, and would hand out a wheel without NOPs.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps"]
    command += ["--no-binary", "zstandard", "--disable-pip-version-check"]
    command += ["--config-settings=--build-option=--no-cffi-backend"]  # a second copy of zstd
    command += ["--target", str(directory), PACKAGE]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "CFLAGS": CFLAGS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"pip did not build {PACKAGE} within {TIMEOUT_S} s") from exc
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise BuildError(f"pip could not build {PACKAGE} (it needs PyPI and gcc):\n{tail}")
