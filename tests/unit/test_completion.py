# SPDX-License-Identifier: Apache-2.0
"""What shells complete: verbs, options, files; by scripts that the shells themselves accept."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from textpoke.cli import _parser, completion, main

if TYPE_CHECKING:
    from pathlib import Path

SHELLS = [shell for shell in completion.SHELLS if shutil.which(shell)]  # bash is everywhere


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("completion")
    found = {shell: directory / shell for shell in completion.SHELLS}
    for shell, path in found.items():
        words = [sys.executable, "-m", "textpoke", "completion", shell]
        path.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return found


@pytest.fixture
def complete(scripts: dict[str, Path]):
    """What a real bash completes a line to."""

    def complete(*words: str, where: Path | None = None) -> set[str]:
        line = shlex.join(words)
        asked = (
            f"source {scripts['bash']}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            f"COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; "
            'set -- textpoke "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
            '_shtab_textpoke "$@"; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        bash = ["bash", "--norc", "-c", asked]
        done = subprocess.run(bash, cwd=where, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return complete


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(scripts: dict[str, Path], shell: str) -> None:
    command = [shell, "-n", scripts[shell]]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_knows_every_verb_and_option(scripts: dict[str, Path], shell: str) -> None:
    script = scripts[shell].read_text()
    for verb, parser in _parser.parsers(_parser.tree()).items():
        assert verb in script
        for option in parser._option_string_actions:
            # fish has them without dashes: -l threshold
            assert option.lstrip("-") in script, f"{verb} {option}"


def test_bash_completes_verbs(complete) -> None:
    assert complete("textpoke", "") >= set(_parser.VERBS)
    assert complete("textpoke", "tri") == {"trigger"}


def test_bash_completes_options_of_one_verb(complete) -> None:
    assert complete("textpoke", "record", "--thr") == {"--threshold", "--thread"}
    assert complete("textpoke", "detach", "--thr") == set()


def test_bash_completes_tracers_and_pids(complete) -> None:
    assert complete("textpoke", "record", "-t", "func") == {"function", "function_graph"}
    assert complete("textpoke", "switch", "irq") == {"irqsoff"}
    assert "1" in complete("textpoke", "record", "-p", "1")


def test_bash_completes_files(complete, tmp_path: Path) -> None:
    (tmp_path / "one.tptrace").touch()
    assert complete("textpoke", "report", "on", where=tmp_path) == {"one.tptrace"}
    assert complete("textpoke", "record", "-o", "on", where=tmp_path) == {"one.tptrace"}


def test_without_its_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "pip install 'textpoke[completion]'" in err
