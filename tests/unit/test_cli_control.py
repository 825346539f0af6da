# SPDX-License-Identifier: Apache-2.0
"""The verbs that speak to a running recording: tracers, switch, filter, trigger, instances."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from fake_session import FakeSession, Serving

from textpoke import control_place
from textpoke.cli import main
from textpoke.tracer_names import TRACERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PID = 4_194_304  # nobody's
P = ("-p", str(PID))


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and captures of this test alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.setattr(control_place, "RUNTIME", os.fspath(tmp_path / "none"))
    monkeypatch.setattr(control_place, "TEMPORARY", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def session() -> Iterator[FakeSession]:
    with Serving(FakeSession(PID)) as serving:
        yield serving.session


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capsys.readouterr()

    return run


def test_tracers_lists_the_seven_and_profile(run) -> None:
    code, out, _ = run("tracers")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(TRACERS)
    assert len(TRACERS) == 8
    assert json.loads(run("tracers", "--json")[1])["tracers"] == TRACERS


@pytest.mark.usefixtures("session")
def test_tracers_of_a_recording(run) -> None:
    assert "branch" not in json.loads(run("tracers", *P, "--json")[1])["tracers"]


@pytest.mark.parametrize(
    "words",
    [
        ("tracers", *P),
        ("switch", *P, "nop"),
        ("filter", *P),
        ("trigger", *P),
        ("instances", *P),
        ("instances", *P, "--create", "x"),
    ],
)
def test_nobody_records(run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (3, "")
    assert err == f"textpoke: error: no process with pid {PID}: check the number with ps\n"
    assert not os.path.exists(f"x-{PID}.tptrace")
    own = os.getpid()
    code, out, err = run(words[0], "-p", str(own), *words[1 + len(P) :])
    assert (code, out) == (1, "")
    assert err == (
        f"textpoke: error: no textpoke is recording pid {own}: start one with "
        f"textpoke record -p {own}\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("switch", "nop"),
        ("filter",),
        ("trigger", "f:traceoff"),
        ("instances",),
        ("switch", *P),
        ("switch", *P, "nop", "--off"),
        ("instances", *P, "-t", "nop"),
        ("instances", *P, "f*"),
        ("filter", *P, "--sample", "0"),
        ("filter", *P, "f:modul:x"),
        ("trigger", *P, "f:traceof"),
    ],
)
def test_usage(run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["tracers", "switch", "filter", "trigger", "instances"])
def test_help_has_examples(run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"examples:\n  textpoke {verb}" in out


def test_switch(run, session: FakeSession) -> None:
    code, out, err = run("switch", *P, "function_graph")
    batch = "one batch of 5 sites took 800 us"
    text = f"pid {PID}: function_graph: 5 functions, switched in 2.5 ms; {batch}\n"
    assert (code, out, err) == (0, "", text)
    _, _, err = run("switch", *P, "function")
    assert err.endswith("5 functions, switched in 2.5 ms; no code had to change\n")
    run("switch", *P, "function_graph")
    assert session.known[""].tracer == "function_graph"
    code, _, err = run("switch", *P, "branch")
    assert code == 1
    assert "no tracer 'branch'" in err
    assert json.loads(run("switch", *P, "nop", "--json")[1])["tracer"] == "nop"
    assert run("switch", *P, "--off")[2] == f"pid {PID}: recording is off\n"
    assert session.known[""].on is False
    assert run("switch", *P, "--on")[0] == 0
    assert session.known[""].on is True


def test_filter(run, session: FakeSession, tmp_path: Path) -> None:
    assert run("filter", *P)[1] == "everything\n"
    code, out, err = run("filter", *P, "*Command", "malloc")
    assert (code, out) == (0, "*Command\nmalloc\n")
    assert err == f"pid {PID}: 3 functions chosen, 0 switched on, 2 off\n"
    assert run("filter", *P, "-a", "!get*", "--list")[1] == "setCommand\nmalloc [libc.so.6]\n"
    run("filter", *P, "-x", "malloc", "--thread", "bio*", "--follow", "--sample", "10")
    assert session.known[""].filters.lines() == [
        "*Command",
        "malloc",
        "!get*",
        "notrace malloc",
        "thread bio*",
        "follow new threads",
        "one of 10 calls",
    ]
    (tmp_path / "hot").write_text("# hot\nfree\n")
    code, out, _ = run("filter", *P, "--clear", "@hot")
    assert out == "free\n"
    result = json.loads(run("filter", *P, "--clear", "--json")[1])
    assert (result["lines"], result["chosen"]) == ([], 5)
    code, _, err = run("filter", *P, "setComand")
    assert code == 1
    assert "close names: setCommand" in err
    assert run("filter", *P, "@nosuch")[0] == 1


@pytest.mark.usefixtures("session")
def test_filter_by_the_number_of_a_line(run) -> None:
    lines = run("filter", *P, "--available")[1].splitlines()
    assert lines[3] == "4  malloc [libc.so.6]"
    assert run("filter", *P, "4", "--list")[1] == "malloc [libc.so.6]\n"
    assert len(json.loads(run("filter", *P, "--available", "--json")[1])["functions"]) == 5


def test_trigger(run, session: FakeSession) -> None:
    code, out, err = run("trigger", *P)
    assert (code, out, err) == (0, "", f"pid {PID}: no triggers\n")
    _, out, _ = run("trigger", *P, "handle_request>5ms:keep=200ms", "malloc:traceoff:3")
    assert out.splitlines() == [
        "handle_request>5ms:keep=200ms:unlimited",
        "malloc [libc.so.6]:traceoff:count=3",
    ]
    assert run("trigger", *P, "!malloc:traceoff")[0] == 2  # it has a count
    assert run("trigger", *P, "!malloc:traceoff:0")[0] == 0
    assert json.loads(run("trigger", *P, "--clear", "--json")[1])["triggers"] == []
    assert session.known[""].triggers.triggers == ()


def test_instances(run, session: FakeSession) -> None:
    code, _, err = run("instances", *P, "--create", "mem", "libc!*", "-x", "free", "-t", "nop")
    assert code == 0
    assert "mem traces 1 functions" in err
    assert f"mem-{PID}.tptrace" in err
    assert session.known["mem"].tracer == "nop"
    out = run("instances", *P)[1].splitlines()
    assert [line.split()[0] for line in out] == ["NAME", "(first)", "mem"]
    assert run("filter", *P, "--instance", "mem")[1] == "libc!*\nnotrace free\n"
    rows = json.loads(run("instances", *P, "--json")[1])["instances"]
    assert [row["name"] for row in rows] == ["", "mem"]
    assert run("instances", *P, "--create", "mem", "-o", "other.tptrace")[0] == 1  # is there
    assert not os.path.exists("other.tptrace")
    assert run("instances", *P, "--create", "new", "-o", f"mem-{PID}.tptrace")[0] == 1
    assert run("instances", *P, "--remove", "mem")[2] == f"pid {PID}: mem has ended, 12 events\n"
    with open(f"mem-{PID}.tptrace", "rb") as file:
        assert file.read(8) == b"TPTRACE\n"
    assert run("instances", *P, "--remove", "mem")[0] == 1
