# SPDX-License-Identifier: Apache-2.0
"""Files that verbs write: whole or not there, never the capture itself; closed streams."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import captures
import pytest

from textpoke.capture import Capture
from textpoke.cli import main
from textpoke.report.counts import count

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return captures.write(tmp_path / "x.tptrace", captures.SMALL)


@pytest.mark.parametrize("words", [("report", "--html"), ("export", "-f", "perfetto", "-o")])
def test_a_capture_is_not_replaced_by_what_is_made_of_it(
    capture: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    before = capture.read_bytes()
    force = "-f" if words[0] == "report" else "--force"
    assert main([*words, str(capture), force, str(capture)]) == 2
    assert "is the capture itself: give another name" in capsys.readouterr().err
    assert capture.read_bytes() == before


def test_a_page_is_whole_or_not_there(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = capture.with_suffix(".html")
    page.write_text("the old one")
    # A limit on the size of files, in a process of its own.
    words = ["prlimit", "--fsize=4096", sys.executable, "-m", "textpoke", "report", "--html"]
    done = subprocess.run(
        [*words, page, "-f", capture], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(page) in done.stderr
    assert page.read_text() == "the old one"
    assert sorted(p.name for p in page.parent.iterdir()) == ["x.html", "x.tptrace"]
    assert main(["report", "--html", str(page), "-f", str(capture)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == f"written: {page}\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_mistake(capture: Path, closed: str) -> None:
    line = f"exec {sys.executable} -m textpoke report {capture} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_rates_are_of_the_time_when_functions_were_on(tmp_path: Path) -> None:
    with captures.CaptureWriter(tmp_path / "y") as writer:
        writer.meta(captures.meta())
        writer.sites([], {"switched_on": captures.START_TSC + 1_500_000_000})
        writer.end(captures.end())
    with Capture(tmp_path / "y") as opened:
        found = count(opened)
    assert (found.duration_ns, found.on_ns) == (2_000_000_000, 500_000_000)
    assert found.rate(3) == 2.0
