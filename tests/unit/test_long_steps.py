# SPDX-License-Identifier: Apache-2.0
"""A word on what takes long: for a terminal or a notebook, and only when it does."""

from __future__ import annotations

import io
import threading

import pytest

from textpoke import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Notebook(io.StringIO):
    pub_thread = None


def test_what_takes_long_is_said_once_and_as_it_stands_then() -> None:
    told, heard, doing = [], threading.Event(), "first"

    def say(text: str) -> None:
        told.append(text)
        heard.set()

    with waiting.said(lambda: doing, say, 0.05):
        doing = "second"
        assert heard.wait(30)
    assert told == ["second"]


def test_what_is_quick_is_not_said_and_leaves_no_thread() -> None:
    threads, told = threading.active_count(), []
    with pytest.raises(KeyError), waiting.said(lambda: "x", told.append):
        raise KeyError
    with waiting.said(lambda: "x", None):
        assert threading.active_count() == threads
    assert (threading.active_count(), told) == (threads, [])


@pytest.mark.parametrize("stream", [Terminal(), Notebook()])
def test_a_terminal_and_a_notebook_are_told(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    say = waiting.to_somebody()
    assert say is not None
    say("switching 7 functions on")
    assert stream.getvalue() == "textpoke: switching 7 functions on ...\n"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_file_and_nobody_are_not_told(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    assert waiting.to_somebody() is None
