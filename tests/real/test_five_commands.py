# SPDX-License-Identifier: Apache-2.0
"""The five commands of the site's first page, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORT = "7777"


def commands() -> list[str]:
    """From the page, without their prompts."""
    page = (ROOT / "docs/index.md").read_text("utf-8")
    [block] = re.findall(r"<!-- five -->\n```console\n(.*?)```", page, re.DOTALL)
    return [line.removeprefix("$ ") for line in block.splitlines()]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture
def source(tmp_path):
    """What a newcomer has: the source, nothing built."""
    left = shutil.ignore_patterns(".git", ".venv", "build", "dist", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "source", ignore=left)
    return tmp_path / "source"


@pytest.mark.timeout(300)
def test_from_nothing_to_a_flame_graph_of_a_running_redis(source, tmp_path, figure):
    port = free_port()
    lines = [line.replace(PORT, port) for line in commands()]
    assert len(lines) <= 5
    environment = {**os.environ, "HOME": str(tmp_path)}
    said = tmp_path / "said"
    try:
        for line in lines:
            # Not by -c: pgrep -f would find the shell by its own words. And what stays in the
            # background keeps its output open: no pipe.
            with said.open("w") as file:
                code = subprocess.run(
                    ["bash", "-e"], input=line, text=True, cwd=source, env=environment,
                    stdout=file, stderr=file, check=False,
                ).returncode  # fmt: skip
            assert code == 0, (line, said.read_text())
    finally:
        for name in ("redis-benchmark -p ", r"redis-server.*:"):
            found = subprocess.run(
                ["pgrep", "-f", name + port], capture_output=True, text=True, check=False
            )
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
    assert "open it in a browser: redis.html" in said.read_text()
    page = (source / "redis.html").read_text("utf-8")
    for name in ("readQueryFromClient", "processCommand"):
        assert name in page
    figure(f"a flame graph of {len(page):,} bytes by {len(lines)} commands")
