# SPDX-License-Identifier: Apache-2.0
"""Names that a target chose (functions, files, threads, arguments) never steer a terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from observe import command_line, recording

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Clears the screen, changes the title, turns the text around, ends the line, is no UTF-8.
EVIL = b"\x1b[2J\x1b]0;x\x07\xe2\x80\xae\xe2\x81\xa6\r\n\xc2\x9b\xff\xfe\x08~"
PLACEHOLDER = b"x" * len(EVIL)
SOURCE = b"""
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
#define PLAIN __attribute__((patchable_function_entry(0)))
__attribute__((noipa)) int TRACED(int a) { return a + 1; }
PLAIN int main(int argc, char **argv)
{
	int sum = 0;
	prctl(PR_SET_NAME, argv[1]);
	alarm(100);
	puts("ready");
	fflush(stdout);
	for (;;) {
		sum += TRACED(sum);
		usleep(2000);
	}
}
"""


@pytest.fixture(scope="module")
def evil_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose only traced function, and whose file, bear the evil name."""
    directory = tmp_path_factory.mktemp("evil")
    source = directory / "evil.c"
    source.write_bytes(SOURCE.replace(b"TRACED", PLACEHOLDER))
    plain = directory / "plain"
    flags = ("-O1", "-fpatchable-function-entry=5", "-fPIE", "-pie")
    subprocess.run(["gcc", *flags, "-o", plain, source], check=True)
    content = plain.read_bytes()
    assert content.count(PLACEHOLDER) >= 1
    program = directory / os.fsdecode(EVIL)
    program.write_bytes(content.replace(PLACEHOLDER, EVIL))
    shutil.copymode(plain, program)
    return program


@pytest.fixture
def evil(evil_program: Path) -> Iterator[int]:
    words = [str(evil_program), os.fsdecode(EVIL[:15])]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def clean(*words: object, cwd: Path, code: int = 0) -> str:
    """Run the command line; all that it says must print. Returns stdout."""
    done = subprocess.run(
        command_line(*words), capture_output=True, cwd=cwd, check=False, timeout=60
    )
    for line in (done.stdout + done.stderr).decode("utf-8").split("\n"):
        assert line.isprintable(), (words, line)
    assert done.returncode == code, done
    return done.stdout.decode()


def test_every_verb_escapes_what_the_target_is_called(
    evil: int, evil_program: Path, tmp_path: Path
) -> None:
    capture = tmp_path / "x.tptrace"
    shown = "\\x1b[2J"
    assert shown in clean("sites", evil_program, cwd=tmp_path)
    assert shown in clean("sites", "-p", evil, cwd=tmp_path)
    assert shown in clean("doctor", "-p", evil, cwd=tmp_path)
    clean("sites", "-p", evil, "-i", "nothing*", cwd=tmp_path, code=1)
    clean("record", "-p", evil, "-i", os.fsdecode(EVIL) + "?", cwd=tmp_path, code=1)
    with recording("-p", evil, "-o", capture) as record:
        assert shown in clean("status", "-p", evil, cwd=tmp_path)
        clean("record", "-p", evil, cwd=tmp_path, code=3)
        record.interrupt()
        assert record.errors.read_text().replace("\n", "").isprintable()
    clean("detach", "-p", evil, cwd=tmp_path)
    for form in ((), ("--text",), ("--by", "thread")):
        assert shown in clean("report", *form, capture, cwd=tmp_path)
    for words in (("report", "--json", capture), ("sites", "--json", evil_program)):
        assert json.loads(clean(*words, cwd=tmp_path))


def test_a_capture_gets_a_name_that_can_be_typed(evil: int, tmp_path: Path) -> None:
    clean("record", "-p", evil, "-d", "50ms", cwd=tmp_path)
    (name,) = os.listdir(tmp_path)
    assert name.isprintable()
    assert name.endswith(f"-{evil}.tptrace")


def test_a_terminal_without_our_letters_gets_escapes(evil_program: Path, tmp_path: Path) -> None:
    capture = tmp_path / "é.tptrace"
    capture.write_bytes(b"")
    for words in (("sites", evil_program), ("report", capture)):
        done = subprocess.run(
            [sys.executable, "-m", "textpoke", *words],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert (done.stdout + done.stderr).isascii()
