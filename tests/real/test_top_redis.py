# SPDX-License-Identifier: Apache-2.0
"""textpoke top in a terminal, on a loaded Redis: every key of its help, and every end."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from debian_programs import install
from processes import TEXTPOKE, verb
from redis_server import Load
from tmux import PATIENCE_S, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

SITES = 3900
GUARDS = 20
INTERVAL_S = 0.2
SORTS = ("calls", "total", "self", "avg", "p50", "p99", "function", "module")
NUMBER = re.compile(r"(<?)([\d.]+)(%|ns|us|ms|s|k|M|G)?$")
SCALE = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}
SIZES = [(80, 24), (200, 60)]


@pytest.fixture(scope="module", autouse=True)
def _tmux_is_there():
    install("tmux")


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path, SIZES[0]) as made:
        yield made


class Top:
    """`textpoke top` in a terminal; what it shows, by the meaning of its parts."""

    def __init__(self, terminal: Terminal, pid: int) -> None:
        self.terminal = terminal
        terminal.run(TEXTPOKE, "top -p", pid, f'--interval {INTERVAL_S}s; echo "code $?"')
        terminal.wait_until(self._has_rates, "functions and their rates")

    def _has_rates(self) -> bool:
        rows = self.rows()
        return len(rows) > 10 and rows[0].split()[0] != "0"

    def rows(self) -> list[str]:
        """The lines of functions."""
        lines = self.terminal.lines()
        begin = next((i for i, line in enumerate(lines) if " FUNCTION" in line), len(lines))
        return [line for line in lines[begin + 1 : -1] if line.strip()]

    def header(self) -> str:
        return next((line for line in self.terminal.lines() if " FUNCTION" in line), "")

    def selected(self) -> int:
        """Place of the row that is selected."""
        chosen = self.terminal.reversed().rstrip()
        rows = [row.rstrip() for row in self.rows()]
        return rows.index(chosen) if chosen in rows else -1

    def press(self, *keys: str, shows: str) -> None:
        self.terminal.keys(*keys)
        self.terminal.wait_for(shows)

    def press_until(self, key: str, place: int) -> None:
        self.terminal.keys(key)
        self.terminal.wait_until(lambda: self.selected() == place, f"{key}: row {place}")

    def column(self, name: str) -> list[float]:
        """A column of numbers; what is not known is left out."""
        end = re.search(rf"\b{name.upper()}[v^]?", self.header())
        assert end, self.header()
        words = [row[: end.end()].rstrip().rpartition(" ")[2] for row in self.rows()]
        found = [NUMBER.match(word) for word in words]
        return [float(f[2]) * SCALE.get(f[3] or "", 1) / (2 if f[1] else 1) for f in found if f]

    def pid(self) -> int:
        """Its process: the shell's only child."""
        shell = self.terminal.pane_pid()
        (child,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(child)


@pytest.mark.timeout(120)
def test_every_key(redis, untouched, terminal):
    unchanged = untouched(redis.pid)
    fresh, modes = terminal.state(), terminal.answer("stty -g")
    with Load(redis) as load:
        top = Top(terminal, redis.pid)
        patched = re.search(r"([\d,]+) functions patched", terminal.lines()[0])
        assert int(patched[1].replace(",", "")) >= SITES
        pause(top)
        select(top)
        sort(top)
        go_on(top)
        search(top)
        switch(top)
        calls_only(top)
        details(top)
        show_help(top)
        terminal.keys("q")
        terminal.wait_for("code 0")
        assert "all undone" in "\n".join(terminal.lines())
        unchanged(None)
    load.require_no_failure()
    assert terminal.state() == fresh
    assert terminal.answer("stty -g") == modes
    assert "nothing is patched" in verb("status", "-p", redis.pid).stdout


def pause(top: Top) -> None:
    top.press("Space", shows="PAUSED")
    before = top.terminal.lines()
    time.sleep(3 * INTERVAL_S)
    assert top.terminal.lines() == before


def go_on(top: Top) -> None:
    top.terminal.keys("Space")
    top.terminal.wait_until(lambda: "PAUSED" not in "\n".join(top.terminal.lines()), "no PAUSED")
    before = top.rows()
    top.terminal.wait_until(lambda: top.rows() != before, "other numbers")


def select(top: Top) -> None:
    assert top.selected() == 0
    for key, place in (("Down", 1), ("j", 2), ("Up", 1), ("k", 0)):
        top.press_until(key, place)
    last = len(top.rows()) - 1
    first = top.rows()[0]
    top.press_until("NPage", last)
    top.press_until("PPage", 0)
    top.press_until("End", last)
    assert first not in top.rows()
    top.press_until("Home", 0)
    assert top.rows()[0] == first
    top.press_until("G", last)
    top.press_until("g", 0)


def sort(top: Top) -> None:
    for number, name in enumerate(SORTS, 1):
        if name == "total":  # it begins so: by the same column again it is turned round
            continue
        top.press(str(number), shows=f"by {name} ")
        assert f"{name.upper()}v" in top.header()
        check_order(top, name, backwards=False)
        top.press("r", shows=f"by {name}, backwards ")
        assert f"{name.upper()}^" in top.header()
        check_order(top, name, backwards=True)
    top.press("2", shows="by total ")
    check_order(top, "total", backwards=False)
    top.press("s", shows="by self ")
    top.press("2", shows="by total ")


def check_order(top: Top, name: str, *, backwards: bool) -> None:
    if name in SORTS[:6]:
        found = top.column(name)
        assert found == sorted(found, reverse=not backwards)
        assert found


def search(top: Top) -> None:
    before = len(top.rows())
    top.terminal.keys("/")
    top.terminal.type("DICTfind")
    top.terminal.wait_for("search: DICTfind")
    # The last line is what is typed.
    top.terminal.wait_until(lambda: all("dictFind" in row for row in top.rows()[:-1]), "dictFind")
    top.press("Enter", shows="d off e on")
    assert top.rows()
    assert all("dictFind" in row for row in top.rows())
    top.press("Escape", shows="functions  by total")
    top.terminal.wait_until(lambda: len(top.rows()) == before, "all functions")
    top.terminal.keys("/")
    top.terminal.type("redis*![c]all")
    top.terminal.wait_until(lambda: len(top.rows()) == 2, "one")
    top.press("Enter", shows="d off e on")


def switch(top: Top) -> None:
    def calls() -> str:
        return top.rows()[0].split()[0]

    assert calls() != "0"
    top.press("d", shows="redis-server!call off")
    top.terminal.wait_until(lambda: calls() == "0", "no calls")
    assert " off " in top.rows()[0]
    assert ", 1 off" in top.terminal.lines()[0]
    top.press("e", shows="redis-server!call on")
    top.terminal.wait_until(lambda: calls() != "0", "calls")
    assert " off" not in top.terminal.lines()[0]


def calls_only(top: Top) -> None:
    def cells() -> list[str]:
        return top.rows()[0].split()

    top.press("t", shows="calls only: a third of the cost")
    top.terminal.wait_until(lambda: cells()[0] != "0" and cells().count("-") == 5, "no times")
    top.press("t", shows="times, too")
    top.terminal.wait_until(lambda: cells()[0] != "0" and "-" not in cells(), "times")


def details(top: Top) -> None:
    def callers() -> object:
        """Scroll down: they come later, and in 80x24 they stand below the histogram."""
        top.terminal.keys("End")
        shown = "\n".join(top.terminal.lines())
        return re.search(r"Called by:\W+[\d,]+ +[\d.]+us each  processCommand\b", shown)

    top.press("Enter", shows="How long calls took, since the start:")
    top.terminal.wait_for("redis-server!call")
    top.terminal.wait_for("█")
    top.terminal.wait_until(callers, "who calls it")
    top.press("Escape", shows="d off e on")


def show_help(top: Top) -> None:
    top.press("?", shows="undo everything and quit")
    top.press("Escape", shows="d off e on")
    top.press("h", shows="undo everything and quit")
    top.terminal.keys("q")  # closes the box alone
    top.terminal.wait_until(lambda: "undo everything" not in "\n".join(top.terminal.lines()), "no")
    top.press("Escape", shows="functions  by total")


def wait_for_the_end_of(pid: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", ["C-c", "SIGHUP"])
def test_other_ends(redis, untouched, small, key):
    unchanged = untouched(redis.pid)
    with Load(redis) as load:
        pid = Top(small, redis.pid).pid()
        if key == "SIGHUP":
            small.close()
        else:
            small.keys(key)
            small.wait_for("code 0")
        wait_for_the_end_of(pid)
        unchanged(None)
    load.require_no_failure()


@pytest.mark.timeout(60)
def test_after_a_kill_the_agent_switches_off_and_detach_removes_it(redis, untouched, small):
    unchanged = untouched(redis.pid)
    with Load(redis) as load:
        os.kill(Top(small, redis.pid).pid(), signal.SIGKILL)
        small.wait_for("code 137")

        def status() -> dict[str, object]:
            return json.loads(verb("status", "-p", redis.pid, "--json").stdout)

        # Guards of returns that are redirected stay: only a tool can let frames go.
        small.wait_until(lambda: len(status()["patched"]) < GUARDS, "functions switched off")
        assert (status()["owner"], status()["turned_off"]) == ("", 1)
        detached = verb("detach", "-p", redis.pid)
        assert detached.returncode == 0, detached
        unchanged(None)
    load.require_no_failure()
