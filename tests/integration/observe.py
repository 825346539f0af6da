# SPDX-License-Identifier: Apache-2.0
"""What the integration tests see of a target without textpoke's help: proc, its own words."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGENT = "textpoke"
SIGTRAP_BIT = 1 << 4
EXIT_CANNOT_TRACE = 3
# For root: its user id and none of its powers.
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Result:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str


def command_line(*words: object) -> list[str]:
    """The installed command line, to be run."""
    return [sys.executable, "-m", "textpoke", *map(str, words)]


def textpoke(*words: object, prefix: tuple[str, ...] = (), stdin: str = "") -> Result:
    """Run the installed command line and wait for it."""
    done = subprocess.run(
        [*prefix, *command_line(*words)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def is_one_error_line(result: Result, code: int, *parts: str) -> None:
    """Assert what every refusal owes its user: one line, the right exit code, no traceback."""
    lines = result.err.splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("textpoke: error: "), result
    assert result.code == code, result
    assert result.out == "", result
    for part in parts:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"


def ask(process: subprocess.Popen[str], line: str) -> str:
    """Send a target one line and return the line that it answers."""
    tell(process, line)
    return hear(process)


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a target one line."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    """Return a target's next line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.endswith("\n"), f"the target ended with {process.wait()} after {line!r}"
    return line[:-1]


def hear_until_end(process: subprocess.Popen[str]) -> list[list[int]]:
    """Return the numbers of all lines up to the line "end"."""
    return [[int(word) for word in line.split()] for line in iter(lambda: hear(process), "end")]


def wait_until(fact: Callable[[], object], what: str) -> None:
    """Wait until `fact()` is true; a test fails when it does not become true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def status(pid: int, task: int | None = None) -> dict[str, str]:
    """Fields of proc/PID/status, or of one thread's."""
    path = Path(f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status")
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {key: value.strip() for key, _, value in pairs}


def tasks(pid: int) -> list[int]:
    """Thread ids."""
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


def doctor_line(out: str, check: str) -> str:
    """The line of doctor's output that is about one check."""
    return next(line for line in out.splitlines() if check in line)


def agent_task(pid: int) -> int | None:
    """The agent's thread id; None when there is none."""
    for tid in tasks(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/task/{tid}/comm").read_text() == f"{AGENT}\n":
                return tid
    return None


def maps(pid: int) -> list[str]:
    """Lines of proc/PID/maps."""
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def in_call(pid: int, number: int, tid: int | None = None) -> bool:
    """Tell whether a thread sleeps in this system call."""
    words = Path(f"/proc/{pid}/task/{tid or pid}/syscall").read_text().split()
    return words[0] == str(number)


@dataclass(frozen=True)
class Facts:
    """What a detach must leave as it was."""

    maps: tuple[str, ...]
    tasks: tuple[int, ...]
    caught: int
    ignored: int
    blocked: int
    text: dict[str, str]


def facts(pid: int) -> Facts:
    """Read what a detach must leave as it was."""
    fields = status(pid)
    numbers = (int(fields[name], 16) for name in ("SigCgt", "SigIgn", "SigBlk"))
    return Facts(tuple(_settled_maps(pid)), tuple(tasks(pid)), *numbers, _digests(pid))


def _digests(pid: int) -> dict[str, str]:
    return {line: hashlib.sha256(code).hexdigest() for line, code in text(pid).items()}


def text(pid: int) -> dict[str, bytes]:
    """Every executable mapping's bytes, by its line in maps."""
    found: dict[str, bytes] = {}
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps(pid):
            span, perms, *_ = line.split()
            start, end = (int(word, 16) for word in span.split("-"))
            if "x" in perms and "[vsyscall]" not in line:
                found[line] = os.pread(memory.fileno(), end - start, start)
    return found


def text_equals_files(pid: int) -> bool:
    """Compare every executable mapping of a file with that file."""
    for line, ours in text(pid).items():
        words = line.split(None, 5)
        if len(words) == 6 and words[5].startswith("/"):
            whole = Path(words[5]).read_bytes()
            offset = int(words[2], 16)
            if ours != whole[offset : offset + len(ours)].ljust(len(ours), b"\0"):
                return False
    return True


def _settled_maps(pid: int) -> Iterator[str]:
    # A heap and a stack grow when the program likes; that they are there is enough.
    for line in maps(pid):
        grows = line.endswith(("[heap]", "[stack]"))
        yield line.split()[-1] if grows else line


def _settled(pid: int) -> Facts:
    while True:
        first = facts(pid)
        time.sleep(0.005)
        if tasks(pid) == list(first.tasks):
            return first


@contextlib.contextmanager
def untouched(process: subprocess.Popen[str]) -> Iterator[None]:
    """Assert that the target of the block runs on and is, afterwards, what it was before."""
    before = _settled(process.pid)
    yield
    assert process.poll() is None
    # A thread that was joined may still be seen for a moment.
    wait_until(lambda: tasks(process.pid) == list(before.tasks), "the threads are those of before")
    # A call that waits for signals unblocks them only once it has been entered again.
    wait_until(lambda: facts(process.pid).blocked == before.blocked, "it blocks what it blocked")
    after = facts(process.pid)
    for name in Facts.__dataclass_fields__:
        assert getattr(after, name) == getattr(before, name), name
    assert text_equals_files(process.pid)


@dataclass(frozen=True)
class Recording:
    """`textpoke record` in the background."""

    process: subprocess.Popen[str]
    errors: Path

    def tell(self, line: str) -> None:
        """Give the traced command a line."""
        tell(self.process, line)

    def interrupt(self, number: int = signal.SIGINT) -> Result:
        """Send the tool a signal and wait for its end."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> Result:
        """Wait for its end, which must be near."""
        out, _ = self.process.communicate(timeout=_PATIENCE_S)
        return Result(self.process.returncode, out, self.errors.read_text())

    def kill(self) -> None:
        """End it as nobody can be prepared for."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def recording(*words: object, stdin: str = "") -> Iterator[Recording]:
    """Run `textpoke record`; the block begins when the functions are traced."""
    with tempfile.TemporaryDirectory() as directory:
        errors = Path(directory) / "stderr"
        with errors.open("w") as file:
            process = subprocess.Popen(
                command_line("record", *words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        try:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.flush()
            wait_until(lambda: process.poll() is not None or errors.stat().st_size, "it speaks")
            assert errors.read_text().startswith("tracing "), errors.read_text()
            yield Recording(process, errors)
        finally:
            process.kill()
            process.communicate()


def only_child(pid: int) -> int:
    """The child of a process, as soon as it has one."""
    deadline_s = time.monotonic() + 20
    while True:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            words = file.read().split()
        if words:
            return int(words[0])
        assert time.monotonic() < deadline_s, "no child"
        time.sleep(0.001)
