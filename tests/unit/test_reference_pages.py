# SPDX-License-Identifier: Apache-2.0
"""Pages that are made from the code hold all of it: verbs, options, refusals, public names."""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import textpoke
from textpoke import checks, functions
from textpoke.cli import _parser

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import manpage  # noqa: E402
import reference_pages  # noqa: E402

MAN = "\n".join(manpage.manpage()) + "\n"
RENDERERS = {
    "mandoc": ["mandoc", "-T", "lint", "-W", "error"],
    "man": ["man", "--warnings=w", "-l"],
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference_pages.pages()


def plain(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", markdown)


def options() -> list[tuple[str, str]]:
    return [
        (verb, option)
        for verb, parser in _parser.parsers(_parser.tree()).items()
        for option, action in parser._option_string_actions.items()
        if action.help != argparse.SUPPRESS
    ]


def test_every_verb_has_a_page_with_its_options_and_examples(pages: dict[str, str]) -> None:
    for verb, option in options():
        assert re.search(rf"`{option}[` ]", pages[f"verbs/{verb}"]), f"{verb} {option}"
    for verb, text in _parser.VERBS.items():
        assert f"textpoke {verb}" in pages[f"verbs/{verb}"].partition("## Examples")[2]
        assert text in plain(pages["verbs"])


def test_pages_that_nobody_makes_any_more_go(tmp_path: Path) -> None:
    (tmp_path / "verbs").mkdir()
    old = tmp_path / "verbs" / "gone.md"
    old.touch()
    reference_pages.write(tmp_path)
    assert not old.exists()
    assert {path.stem for path in (tmp_path / "verbs").iterdir()} == set(_parser.VERBS)


def test_every_refusal_is_told(pages: dict[str, str]) -> None:
    page = plain(pages["refusals"])
    for name, reason, _ in checks._CHECKS:
        if reason:
            assert f"| {name} | `{reason}` |" in page
    for text in functions.REASONS.values():
        assert f"- {text}" in page


def test_every_check_that_can_fail_has_a_cure() -> None:
    cured = {case.partition(" (")[0] for case in checks.CURES}
    never_fail = {"SIGTRAP blocked", "SIGTRAP ignored"}
    assert cured == {name for name, _, _ in checks._CHECKS} - never_fail


def test_every_public_name_is_in_the_api_page(pages: dict[str, str]) -> None:
    names = re.findall(r"^\.\. auto\w+:: textpoke\.(\w+)$", pages["api"], re.MULTILINE)
    assert sorted([*names, "__version__"]) == sorted(textpoke.__all__)


def test_man_page_has_every_verb_and_option() -> None:
    shown = MAN.replace("\\-", "-").replace("\\(aq", "'")
    sections = dict(
        re.findall(r"^\.SS textpoke (\S+)\n(.*?)(?=^\.S)", shown, re.MULTILINE | re.DOTALL)
    )
    assert list(sections) == list(_parser.VERBS)
    for verb, option in options():
        assert re.search(rf"^\.B .*{option}\b", sections[verb], re.MULTILINE), f"{verb} {option}"


def test_no_words_of_ours_are_requests_of_troff() -> None:
    assert manpage.text(".SH 'x' -- \\fB") == "\\&.SH \\(aqx\\(aq \\-\\- \\efB"


@pytest.mark.parametrize("renderer", [name for name in RENDERERS if shutil.which(name)])
def test_man_page_renders_without_complaint(renderer: str, tmp_path: Path) -> None:
    path = tmp_path / "textpoke.1"
    path.write_text(MAN, encoding="utf-8")
    command = [*RENDERERS[renderer], path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_links_between_pages_lead_somewhere() -> None:
    made = {f"generated/{name}.md" for name in reference_pages.pages()}
    for page in (ROOT / "docs").glob("*.md"):
        text = html.unescape(page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert link in made or (page.parent / link).exists(), f"{page.name}: {link}"


def test_pictures_are_whole_and_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert pictures
    for picture in pictures:
        root = ET.parse(picture).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.findtext("{http://www.w3.org/2000/svg}title")
        assert f":file: images/{picture.name}\n" in text


def test_every_page_is_in_the_contents() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    entries = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    listed = {re.sub(r".*<(.*)>", r"\1", entry) for entry in entries}
    written = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {name for name in listed if "/" not in name} == written
