# SPDX-License-Identifier: Apache-2.0
"""The tutorial: its commands are ones that the verbs take, and it is made again by running them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from textpoke.cli import _parser

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import tutorial  # noqa: E402

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def commands(line: str) -> list[list[str]]:
    """The words of every command of a line that a shell would split at ; & and |."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|>"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def test_verbs_take_the_arguments_that_are_shown() -> None:
    shown = PAGE.replace("\\\n", " ").replace("$REDIS", "1234")
    lines = [words for line in tutorial.COMMAND.findall(shown) for words in commands(line)]
    verbs = [words[1:] for words in lines if words and words[0] == "textpoke"]
    assert {verb for verb, *_ in verbs} > {"sites", "record", "report", "filter", "detach"}
    for verb, *words in verbs:
        assert _parser.parse(verb, _parser._load(verb), words)


def test_there_are_ten_and_each_has_been_run() -> None:
    assert len(re.findall(r"^## \d+\. ", PAGE, re.MULTILINE)) == 10
    for _, what, _, _, body, _ in tutorial.BLOCK.findall(PAGE):
        lines = body.splitlines()
        assert what == "file" or [line for line in lines if not line.startswith("$ ")]
    for word in ("Traceback", "textpoke: error", "no such job", "command not found"):
        assert word not in PAGE


def test_a_page_is_filled_by_one_shell(tmp_path: Path) -> None:
    page = (
        "<!-- file two.txt -->\n```text\nb\na\n```\n"
        "<!-- run -->\n```console\n$ WORD=kept\nold\n$ sort \\\n    two.txt\nold\n```\n"
        "<!-- run, 2 lines -->\n```console\n$ echo $WORD; seq 5\n```\n"
        "```console\n$ false, and not run\n```\n"
    )
    assert tutorial.fill(page, str(tmp_path)) == (
        "<!-- file two.txt -->\n```text\nb\na\n```\n"
        "<!-- run -->\n```console\n$ WORD=kept\n$ sort \\\n    two.txt\na\nb\n```\n"
        "<!-- run, 2 lines -->\n```console\n$ echo $WORD; seq 5\nkept\n1\n...\n```\n"
        "```console\n$ false, and not run\n```\n"
    )


def test_errors_are_shown_where_they_come(tmp_path: Path) -> None:
    page = "<!-- run -->\n```console\n$ cat nothing.txt\n```\n"
    assert "No such file or directory" in tutorial.fill(page, str(tmp_path))
