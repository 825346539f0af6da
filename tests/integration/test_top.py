# SPDX-License-Identifier: Apache-2.0
"""textpoke top on real programs: its numbers are theirs, and however it ends, nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from fcntl import ioctl
from typing import TYPE_CHECKING

import programs
import pytest
from observe import (
    agent_task,
    ask,
    command_line,
    is_one_error_line,
    textpoke,
    untouched,
    wait_until,
)

import textpoke as api
from textpoke.top.model import Model
from textpoke.top.source import Choice, LiveSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Compile, Start

ROUNDS = 40
CALLS = ("outer_work", "inner_work", "leaf_work")


@pytest.fixture
def known(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("known.c", *programs.PIE))


@pytest.fixture
def busy(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("triggers.c", *programs.PIE), "1")


@contextlib.contextmanager
def source_of(process: subprocess.Popen[str], *include: str) -> Iterator[LiveSource]:
    with untouched(process), api.attach(process.pid) as target:
        with LiveSource(target, Choice(include)) as source:
            yield source
        assert target.detach().clean


def numbers(source: LiveSource, name: str) -> int:
    (found,) = (i for i, f in enumerate(source.functions) if f.name == name)
    return found


class Screen:
    """A `textpoke top` in a terminal of its own, and all that it has written there."""

    def __init__(self, *words: object) -> None:
        self.terminal, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            command_line("top", *words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(theirs)
        self.shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other side any more
            while data := os.read(self.terminal, 65536):
                self.shown += data

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text.encode() in self.shown, f"{text!r} on the screen")

    def keys(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def end(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join()
        os.close(self.terminal)
        return code


def test_its_numbers_are_those_of_the_program(known: subprocess.Popen[str]) -> None:
    with source_of(known, *CALLS) as source:
        model = Model(source.ns_per_tick)
        model.step(source.sample(), source.functions)
        own = json.loads(ask(known, f"calls {ROUNDS}"))
        table = model.step(source.sample(), source.functions)
        for name in CALLS:
            place, (calls, ns) = numbers(source, name), own[name]
            assert table.calls[place] == calls
            assert table.total[place] * table.seconds * 1e9 == pytest.approx(ns, rel=0.05)
            assert table.average[place] == pytest.approx(ns / calls, rel=0.05)
        assert (table.lost, table.missed, source.patched) == (0, 0, 3)
        assert 0 < table.overhead < 1


def test_a_function_goes_off_and_on(known: subprocess.Popen[str]) -> None:
    with source_of(known, *CALLS) as source:
        leaf, inner = numbers(source, "leaf_work"), numbers(source, "inner_work")
        source.switch(leaf, on=False)
        ask(known, f"calls {ROUNDS}")
        assert (source.off, source.patched) == ({leaf}, 2)
        assert source.sample().function.tolist() == sorted({inner, numbers(source, "outer_work")})
        source.switch(leaf, on=True)
        ask(known, f"calls {ROUNDS}")
        sample = source.sample()
        counts = dict(zip(sample.function.tolist(), sample.calls.tolist(), strict=True))
        assert (counts[leaf], counts[inner]) == (2 * ROUNDS, 2 * ROUNDS)
        for place in range(3):
            source.switch(place, on=False)
        ask(known, f"calls {ROUNDS}")
        assert source.sample().calls.tolist() == sample.calls.tolist()


def test_functions_go_off_where_others_were_refused(busy: subprocess.Popen[str]) -> None:
    with source_of(busy, "work", "libc!*") as source:
        patched, work = source.patched, numbers(source, "work")
        source.switch(work, on=False)
        assert source.patched == patched - 1
        before = source.sample()
        source.wait(0.2)
        after = source.sample()
        counts = [dict(zip(s.function, s.calls, strict=True)) for s in (before, after)]
        assert counts[0][work] == counts[1][work]
        assert sum(counts[0].values()) < sum(counts[1].values())
        source.switch(work, on=True)
        assert source.patched == patched


def test_calls_alone_are_counted_too(known: subprocess.Popen[str]) -> None:
    with source_of(known, *CALLS) as source:
        place = numbers(source, "leaf_work")
        for turn in range(1, 4):
            ask(known, f"calls {ROUNDS}")
            sample = source.sample()
            row = sample.function.tolist().index(place)
            assert sample.calls[row] == 2 * ROUNDS * turn
            assert sample.timed[row] == 2 * ROUNDS * (turn if turn < 2 else turn - 1)
            source.switch_times()


def test_a_stretch_shows_callers_and_callees(known: subprocess.Popen[str]) -> None:
    with source_of(known, *CALLS) as source:
        threading.Timer(0.1, ask, (known, f"calls {ROUNDS}")).start()
        found = source.look_into(numbers(source, "inner_work"))
        assert found.lost == 0
        assert [share.name for share in found.callers] == ["outer_work"]
        assert [share.name for share in found.callees] == ["leaf_work"]
        assert found.callees[0].calls in range(2 * found.calls - 1, 2 * found.calls + 1)
        assert found.calls > 0


def test_once_prints_a_table(busy: subprocess.Popen[str]) -> None:
    with untouched(busy):
        words = ("top", "-p", busy.pid, "--once", "--interval", "300ms", "--sort", "calls")
        shown = textpoke(*words)
        data = json.loads(textpoke(*words, "--json", "--limit", 1).out)
    assert shown.code == 0
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[3][-1] == "FUNCTION"
    assert rows[4][-1].endswith("!work")
    assert [function["function"] for function in data["functions"]] == ["work"]
    assert data["functions"][0]["calls_per_s"] > 1000


@pytest.mark.parametrize("how", ["q", "\x03", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_clean(busy: subprocess.Popen[str], how: str | signal.Signals) -> None:
    with untouched(busy):
        screen = Screen("-p", busy.pid)
        screen.wait_for("quiet")
        assert agent_task(busy.pid) is not None
        if isinstance(how, str):
            screen.keys(how)
        else:
            screen.process.send_signal(how)
        assert screen.end() == 0
        assert b"all undone" in screen.shown
        assert agent_task(busy.pid) is None


def test_a_terminal_that_goes_away_ends_it(busy: subprocess.Popen[str]) -> None:
    with untouched(busy):
        screen = Screen("-p", busy.pid)
        screen.wait_for("quiet")
        os.close(screen.terminal)
        screen.process.wait(timeout=30)
        assert agent_task(busy.pid) is None


def test_a_program_that_ends_leaves_the_last_screen(busy: subprocess.Popen[str]) -> None:
    screen = Screen("-p", busy.pid)
    screen.wait_for("quiet")
    busy.kill()
    busy.wait()
    screen.wait_for("HAS ENDED")
    assert screen.process.poll() is None
    screen.keys("q")
    assert screen.end() == 0
    after = screen.shown.rpartition(b"has ended; its last seconds:")[2].decode()
    assert "CALLS/S" in after
    assert "!quiet" in after


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "add --once"),
        (("--json",), "go with --once"),
        (("--once", "--interval", "1ms"), "100ms at least"),
        (("--once", "--sort", "size"), "invalid choice: 'size'"),
    ],
)
def test_nonsense_is_one_line(
    busy: subprocess.Popen[str], words: tuple[str, ...], part: str
) -> None:
    with untouched(busy):
        is_one_error_line(textpoke("top", "-p", busy.pid, *words), 2, part)


def test_a_missing_library_is_one_line_and_nothing_was_patched(
    busy: subprocess.Popen[str],
) -> None:
    code = "import sys; sys.modules['textual'] = None; import textpoke.cli as c; sys.exit(c.main())"
    terminal, theirs = pty.openpty()
    command = [*command_line()[:1], "-c", code, "top", "-p", str(busy.pid)]
    with untouched(busy):
        done = subprocess.run(
            command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, check=False, timeout=60
        )
    os.close(terminal)
    os.close(theirs)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "textpoke: error: textual is not installed: pip install 'textpoke[top]'"
    ]
