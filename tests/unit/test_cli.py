# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one line per error, data on stdout, lazy imports."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import captures
import pytest

import textpoke.cli
from textpoke import _errors, checks
from textpoke.cli import _console, _needed, _parser, doctor, main
from textpoke.model import Finding

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

NOBODY = 4_194_304  # one more than the largest pid there can be
TARGETS = Path(__file__).parents[1] / "targets"
SOURCE = """
int visible(int a) { return a + 1; }
static int __attribute__((noinline)) hidden(int a) { return a * 3 + visible(a); }
int main(int argc, char **argv) { return hidden(argc) == 9; }
"""


@pytest.fixture
def capture(tmp_path: Path) -> str:
    return os.fspath(captures.write(tmp_path / "x.tptrace", captures.SMALL))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the same program: `five` NOPs at each entry, `two`, or `none`.

    And `nothing`, a program of one function that cannot be patched.
    """
    directory = tmp_path_factory.mktemp("programs")
    source = directory / "program.c"
    source.write_text(SOURCE)
    for name, flags in (
        ("five", ["-fpatchable-function-entry=5"]),
        ("two", ["-fpatchable-function-entry=2"]),
        ("none", []),
    ):
        subprocess.run(["gcc", "-O1", *flags, "-o", directory / name, source], check=True)
    bare = ["gcc", "-nostdlib", "-static", "-o", directory / "nothing", TARGETS / "nothing.S"]
    subprocess.run(bare, check=True)
    return directory


class Result:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line on stderr, without its prefix."""
        assert self.out == ""
        assert self.err.startswith("textpoke: error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("textpoke: error: ").rstrip("\n")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*words: str) -> Result:
        code = main(words)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Make a verb of a function, with the arguments of `record`."""

    def install(function) -> None:
        class Module:
            @staticmethod
            def add_arguments(parser: _parser.VerbParser) -> None:
                _parser.add_target(parser)
                _parser.add_filters(parser)
                _parser.add_duration(parser)
                _parser.add_output(parser, "PROGRAM-PID.tptrace")
                _parser.add_json(parser)

            run = staticmethod(function)

        monkeypatch.setattr(_parser, "_load", lambda _: Module)

    return install


@pytest.fixture
def arguments(verb):
    """What a command line is parsed to."""
    seen: list[argparse.Namespace] = []
    verb(lambda args: seen.append(args) or 0)

    def parse(*words: str) -> argparse.Namespace:
        assert main(["record", *words]) == 0
        return seen.pop()

    return parse


def test_help_lists_every_verb_on_a_line(run) -> None:
    for words in (["--help"], ["-h"]):
        result = run(*words)
        assert result.code == 0
        assert result.err == ""
        for name in _parser.VERBS:
            assert f"\n  {name} " in result.out
        assert max(map(len, result.out.splitlines())) <= 90


def test_no_verb_shows_the_help_as_an_error(run) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("usage: textpoke VERB")


@pytest.mark.parametrize("name", sorted(_parser.VERBS))
def test_each_verb_has_help_with_examples(run, name: str) -> None:
    if importlib.util.find_spec(f"textpoke.cli.{name}") is None:
        pytest.skip("not written yet")
    result = run(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: textpoke {name} ")
    assert f"\nexamples:\n  textpoke {name} " in result.out
    for option in ("--verbose", "--quiet", "--color"):
        assert option in result.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["recrod"], "no verb 'recrod'; did you mean 'record'?"),
        (["xyzzy"], "no verb 'xyzzy'; verbs are: sites, record, "),
        (["-p", "1", "record"], "the verb comes first: textpoke VERB"),
        (
            ["doctor", "-p", "12x"],
            "argument -p/--pid: '12x' is not a process id (see: textpoke doc",
        ),
        (["doctor", "-p", "-1"], "argument -p/--pid: '-1' is not a process id"),
        (["doctor", "-p", "0"], "argument -p/--pid: '0' is not a process id"),
        (["doctor", "-p", "9" * 5000], "argument -p/--pid: '9999"),
        (["doctor", "--", "ls"], "this verb takes no command after --"),
        (["sites"], "no target: give -p PID or FILE or -- CMD ARGS"),
        (["sites", "--"], "a command must follow --"),
        (["sites", "-p", "1", "--", "ls"], "more than one target: give one of -p PID, a command"),
        (["sites", "-p", "1", "x"], "more than one target: "),
        (["sites", "1234567"], "no such file: '1234567'; did you mean -p 1234567?"),
        (["record", "-p", "1", "--threshold", "5ms"], "--threshold: the function tracer sees no"),
        (["record", "-p", "1", "--depth", "3"], "--depth: the function tracer sees no returns"),
        (["record", "-p", "1", "--depth", "3", "-t", "branch"], "--depth: the branch tracer"),
        (
            ["record", "-p", "1", "-t", "irqsoff", "--sample", "7"],
            "--sample: the irqsoff tracer pairs",
        ),
        (
            ["record", "-p", "1", "-t", "wakeup_rt", "--threshold", "5ms"],
            "--threshold: the wakeup_rt",
        ),
        (["record", "-p", "1", "-t", "profile", "--thread", "w"], "--thread: the profile tracer"),
        (["record", "-p", "1", "-t", "profile", "--budget", "1%"], "--budget: the profile tracer"),
        (["record", "-p", "1", "-t", "branch", "--no-thread", "w"], "--no-thread: the branch"),
        (["record", "-p", "1", "-t", "branch", "--flight"], "--flight: the branch tracer counts"),
        (["record", "-p", "1", "-t", "nop", "-A", "f"], "-A: the nop tracer records nothing"),
        (["record", "-p", "1", "-R", "f"], "-R: the function tracer sees no returns"),
        (["report"], "the following arguments are required: FILE"),
        (["report", "a", "b"], "unrecognized arguments: b"),
        (["report", "--text", "--json", "a"], "argument --json: not allowed with argument --text"),
        (["report", "-n", "0", "a"], "argument -n/--limit: '0' is not a number from 1 up"),
        (["report", "--by", "cpu", "a"], "argument --by: invalid choice: 'cpu'"),
        (["report", "--sort", "name", "a"], "argument --sort: invalid choice: 'name'"),
        (["report", "--tail", "a"], "--tail chooses lines of --text"),
        (["report", "--tree", "--threshold", "5us", "a"], "--threshold chooses lines of --text"),
        (["report", "--tree", "--text", "a"], "--tree and --text are two reports"),
        (["report", "--callers", "f", "--tree", "a"], "--tree and --callers are two reports"),
        (["report", "--callers", "f", "--by", "thread", "a"], "--by is for the table"),
        (["report", "--depth", "2", "a"], "--depth is for --text and --tree"),
        (["report", "--depth", "0", "--tree", "a"], "argument --depth: '0' is not a number"),
        (["report", "--verb", "a"], "unrecognized arguments: --verb"),
    ],
)
def test_usage_errors_are_one_line_and_2(run, words: list[str], wanted: str) -> None:
    result = run(*words)
    assert result.code == 2
    assert result.error.startswith(wanted)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("2s", 2 * 10**9), ("500ms", 5 * 10**8), ("1.5m", 9 * 10**10), (".5s", 5 * 10**8)],
)
def test_durations(arguments, text: str, nanoseconds: int) -> None:
    assert arguments("-p", "1", "-d", text).duration_ns == nanoseconds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2", "'2' has no unit: write 2ms, 2s or 2m"),
        ("1.5", "'1.5' has no unit: write 1.5ms, 1.5s or 1.5m"),
        ("2h", "'2h' is not a time: write 500ms, 2s or 1.5m"),
        ("s", "'s' is not a time: "),
        ("2 s", "'2 s' is not a time: "),
        ("0s", "'0s' is not a sensible time"),
        ("9" * 400 + "s", "'99999999"),
        ("\u0662s", "'\u0662s' is not a time"),
    ],
)
def test_odd_durations(run, verb, text: str, wanted: str) -> None:
    verb(lambda _: 0)
    result = run("record", "-p", "1", "-d", text)
    assert result.code == 2
    assert result.error.startswith(f"argument -d/--duration: {wanted}")


def test_a_command_follows_two_dashes(arguments) -> None:
    args = arguments("-v", "-i", "a!b*", "-i", "c", "-x", "d", "--", "ls", "-v", "--", "x")
    assert args.command == ["ls", "-v", "--", "x"]
    assert (args.pid, args.verbose) == (None, 1)
    assert (args.include, args.exclude) == (["a!b*", "c"], ["d"])


def test_the_two_dashes_may_be_left_out(arguments) -> None:
    assert arguments("-q", "ls", "-v", "--all").command == ["ls", "-v", "--all"]


def test_a_number_alone_is_not_a_command(run, verb) -> None:
    verb(lambda _: 0)
    assert run("record", "1234").error.startswith("no such file: '1234'; did you mean -p 1234?")


def test_defaults_of_the_shared_arguments(arguments) -> None:
    args = arguments("-p", "1")
    assert vars(args) == {
        "pid": 1,
        "words": [],
        "command": [],
        "include": [],
        "exclude": [],
        "duration_ns": None,
        "output": None,
        "force": False,
        "json": False,
        "verbose": 0,
        "quiet": False,
        "color": "auto",
    }


def raising(exc: BaseException):
    def function(_: object) -> int:
        raise exc

    return function


@pytest.mark.parametrize(
    ("exc", "code", "wanted"),
    [
        (_errors.NoSuchTarget(7), 3, "no process with pid 7"),
        (_errors.AttachDenied(7, ["a\nb"]), 3, "may not attach to pid 7: a b"),
        (_errors.TargetExited(7), 3, "pid 7 exited"),
        (_errors.NoSites("x", "y"), 1, "nothing to patch in x: y"),
        (_errors.UnknownFunction("\x1b[31m"), 1, "no function matches '\\x1b[31m'"),
        (_errors.CaptureExists("a\x07"), 1, "a\\x07 exists"),
        (_errors.CaptureWrite("x", 28), 1, "cannot write x: No space left on device (ENOSPC)"),
        (_errors.ModuleUnavailable("x", "gone"), 1, "x: gone"),
        (_errors.AgentTimeout("ping", 2), 1, "the agent did not answer within 2 s: ping"),
        (FileNotFoundError(2, "No such file or directory", "x\ny"), 1, "x y: No such file or dir"),
        (OSError(24, "Too many open files"), 1, "Too many open files"),
        (OSError("odd"), 1, "odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exceptions_become_a_line_and_a_code(
    run, verb, exc: BaseException, code: int, wanted: str
) -> None:
    verb(raising(exc))
    result = run("record", "-p", "1")
    assert result.code == code
    assert result.error.startswith(wanted)


def test_the_code_of_the_verb_is_the_code(run, verb) -> None:
    verb(lambda _: 42)
    assert run("record", "-p", "1").code == 42


def test_report_prints_facts_losses_and_a_table(run, capture: str) -> None:
    result = run("report", capture)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "redis-server (pid 100), tracer function: 5 events in 2.000000 s, 0 lost"
    assert lines[2].split()[0] == "CALLS"
    assert lines[3].endswith("redis-server!setCommand")
    assert run("report", "-n", "1", "--by", "thread", capture).out.count("\n") == 5


def test_report_as_text_and_as_json(run, capture: str) -> None:
    assert run("report", "--text", capture).out.startswith("# tracer: function\n")
    data = json.loads(run("report", "--json", "-n", "2", capture).out)
    assert (data["events"], len(data["functions"])) == (5, 2)


@pytest.fixture
def graph(tmp_path: Path) -> str:
    """A capture of function_graph: two calls, one in the other."""
    rows = [(0, captures.SET, 1), (3_000, captures.GET, 1), (9_000, captures.GET, 2)]
    ring = captures.Ring([*rows, (15_000, captures.SET, 2)])
    recipe = captures.Recipe([ring], meta=captures.meta(tracer="function_graph"))
    return os.fspath(captures.write(tmp_path / "graph.tptrace", recipe))


def test_report_of_calls(run, graph: str) -> None:
    lines = run("report", graph).out.splitlines()
    assert " ".join(lines[2].split()) == "CALLS TOTAL SELF AVG P50 P99 MAX STDDEV FUNCTION"
    assert lines[3].split()[:3] == ["1", "5.000", "us"]
    assert lines[3].endswith("redis-server!setCommand")
    assert run("report", "--by", "thread", "-n", "1", graph).out.count("\n") == 4
    assert "getCommand" in run("report", "--sort", "calls", "-n", "9", graph).out
    data = json.loads(run("report", "--json", "--sort", "self", "-n", "1", graph).out)
    assert [row["self_ns"] for row in data["functions"]] == [3_000]


def test_report_of_calls_as_text_and_as_a_tree(run, graph: str) -> None:
    lines = run("report", "--text", graph).out.splitlines()
    assert lines[0] == "# tracer: function_graph"
    assert [line.partition("us    |  ")[2] for line in lines[-2:]] == ["  getCommand();", "}"]
    found = run("report", "--text", "--below", "get*", "--flat", "--abstime", graph).out
    assert found.splitlines()[-1].endswith("2.000 us    |  getCommand();")
    assert run("report", "--text", "--threshold", "4us", graph).out.count("us ") == 1
    result = run("report", "--text", "--below", "gotCommand", graph)
    assert result.code == 1
    assert "close names: getCommand" in result.error
    lines = run("report", "--tree", graph).out.splitlines()
    assert [line.split()[-1] for line in lines] == ["FUNCTION", "setCommand", "+-getCommand"]
    assert run("report", "--tree", "--depth", "1", graph).out.count("\n") == 2
    data = json.loads(run("report", "--tree", "--json", graph).out)
    assert data["tree"][0]["children"][0]["function"] == "getCommand"


@pytest.mark.parametrize(
    "options",
    [
        ["--tree"],
        ["--sort", "total"],
        ["--text", "--depth", "2"],
        ["--text", "--tail"],
        ["--callers", "setCommand"],
        ["--callees", "setCommand"],
    ],
)
def test_report_that_needs_exits_says_so(run, capture: str, options: list[str]) -> None:
    result = run("report", *options, capture)
    assert result.code == 2
    assert "needs exits" in result.error
    assert "-t function_graph" in result.error


def test_report_of_callers_and_callees(run, graph: str) -> None:
    lines = run("report", "--callers", "redis!get*", graph).out.splitlines()
    assert [line.split()[-2] for line in lines] == ["CALLER", "redis-server!setCommand"]
    data = json.loads(run("report", "--callees", "setCommand", "--json", graph).out)
    assert [row["callee"]["function"] for row in data["callees"]] == ["getCommand"]
    nothing = run("report", "--callees", "getCommand", graph).out
    assert nothing == "getCommand calls nothing that was recorded in this capture\n"
    assert run("report", "--callers", "inflate", graph).out.startswith("inflate has no calls")
    unknown = run("report", "--callers", "gotCommand", graph)
    assert (unknown.code, unknown.error.count("\n")) == (1, 0)
    assert "close names: getCommand" in unknown.error
    assert "is sorted by" in run("report", "--callers", "get*", "--sort", "p99", graph).error


def test_report_of_two_captures(run, capture: str, graph: str) -> None:
    lines = run("report", graph, "--diff", graph).out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["before", "after"]
    assert len(lines[3:]) == 3
    result = run("report", graph, "--diff", capture, "--json", "-n", "1")
    data = json.loads(result.out)
    assert (data["has_times"], data["before"]["capture"]) == (False, graph)
    assert data["functions"][0]["calls"]["change"] == 2
    assert run("report", capture, "--diff", graph).out.count("only calls are compared") == 1
    for options, text in (
        (["--sort", "p50"], "--diff is sorted by one of total, self, calls, avg"),
        (["--sort", "self"], "--sort self needs durations in both captures"),
    ):
        result = run("report", graph, "--diff", capture, *options)
        assert (result.code, result.out) == (2, "")
        assert text in result.error
    assert run("report", graph, "--diff", "/bin/sh").code == 1


def test_report_as_html(run, capture: str, graph: str, tmp_path: Path) -> None:
    out = tmp_path / "x.html"
    for source in (capture, graph):
        result = run("report", "--html", os.fspath(out), "-f", source)
        assert (result.code, result.out, result.err) == (0, "", f"written: {out}\n")
        assert out.read_text().startswith("<!doctype html>\n")
    again = run("report", "--html", os.fspath(out), graph)
    assert (again.code, again.error) == (2, f"{out} exists: -f replaces it")
    assert "two reports" in run("report", "--html", os.fspath(out), "--json", graph).error
    missing = run("report", "--html", os.fspath(tmp_path / "no/x.html"), graph)
    assert (missing.code, missing.error.count("\n")) == (1, 0)


@pytest.mark.parametrize("options", [[], ["--text"], ["--json"], ["--by", "thread"]])
def test_report_of_damage_is_one_line_and_1(run, capture: str, options: list[str]) -> None:
    with open(capture, "r+b") as file:
        file.seek(70)
        file.write(b"\xff\xff")
    result = run("report", *options, capture)
    assert result.code == 1
    assert result.error.startswith(f"{capture}: unreadable JSON: ")
    assert result.error.endswith("(at byte 64)")


def test_report_of_something_else(run, tmp_path: Path) -> None:
    assert run("report", "/bin/sh").error.startswith("/bin/sh: is not a textpoke capture (starts ")
    result = run("report", os.fspath(tmp_path / "no"))
    assert (result.code, result.error) == (1, f"{tmp_path}/no: No such file or directory")


def test_sites_of_a_file(run, programs: Path) -> None:
    result = run("sites", os.fspath(programs / "five"))
    assert result.code == 0
    header, *lines = result.out.splitlines()
    assert header.split() == ["ADDRESS", "KIND", "FUNCTION"]
    rows = {line.split()[2]: line.split()[1] for line in lines}
    assert rows == dict.fromkeys(["five!visible", "five!hidden", "five!main"], "nop-run")
    assert result.err == "3 sites in 1 module: 3 patchable (3 nop-run), 0 refused\n"
    assert run("sites", "-q", os.fspath(programs / "five")).err == ""


def test_sites_of_a_command_runs_nothing(run, programs: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{programs / 'five'} -x\n")
    script.chmod(0o755)
    for command in (["five", "-x"], ["script"]):
        path = tmp_path if command == ["script"] else programs
        result = run("sites", "--json", "-i", "five!*i*", "--", os.fspath(path / command[0]))
        assert result.code == 0
        data = json.loads(result.out)
        assert (data["patchable"], data["refused"]) == (3, 0)
        assert {site["function"] for site in data["sites"]} == {"visible", "hidden", "main"}
        assert {(site["old"], site["length"]) for site in data["sites"]} == {("9090909090", 5)}


def test_sites_of_a_process(run, tmp_path: Path) -> None:
    source = tmp_path / "wait.c"
    source.write_text('#include <unistd.h>\nint main(void) { write(1, "x", 1); pause(); }')
    program = tmp_path / "wait"
    flags = ["-fpatchable-function-entry=5", "-o", program]
    subprocess.run(["gcc", *flags, source], check=True)
    with subprocess.Popen([program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        result = run("sites", "-p", str(process.pid), "-i", "wait!main")
        process.kill()
    assert result.code == 0
    assert result.out.split()[-1] == "wait!main"
    assert int(result.out.split()[3], 16) > 1 << 32


def test_sites_that_are_all_refused_are_listed_and_an_error(run, programs: Path) -> None:
    result = run("sites", os.fspath(programs / "nothing"))
    assert result.code == 1
    assert "refused  nothing!_start: a system call is in its first five bytes\n" in result.out
    assert "textpoke: error: nothing to patch in " in result.err


@pytest.mark.parametrize("name", ["two", "none"])
def test_sites_without_room_for_a_call_are_entries(run, programs: Path, name: str) -> None:
    result = run("sites", os.fspath(programs / name), "-i", "main")
    assert result.code == 0
    assert result.out.splitlines()[-1].split()[1:] == ["entry", f"{name}!main"]


def test_sites_that_are_refused_come_with_their_reasons(run, programs: Path) -> None:
    shown = run("sites", os.fspath(programs / "none"), "--refused")
    told = json.loads(run("sites", os.fspath(programs / "none"), "--json").out)
    assert shown.code == 0
    assert told["refused"] == sum(told["refused_by_reason"].values()) > 0
    assert len(shown.out.splitlines()) == 1 + told["refused"]
    assert all(reason in shown.err for reason in told["refused_by_reason"])


def test_sites_errors(run, programs: Path) -> None:
    five = os.fspath(programs / "five")
    assert "close names: visible" in run("sites", "-i", "visibel", five).error
    assert run("sites", "-x", "*", five).code == 1
    assert run("sites", "--", "no-such-program").error == "no-such-program: no such program"
    assert "not an ELF file" in run("sites", __file__).error
    result = run("sites", "-p", str(NOBODY))
    assert (result.code, result.error[:12]) == (3, "no process w")


def test_a_command_s_libraries_are_found() -> None:
    files = dict(_needed.needed_files(_needed.program_of("sh")))
    libc = next(path for name, path in files.items() if name.startswith("libc."))
    assert libc is not None
    assert os.path.exists(libc)
    for line in output("ldd", _needed.program_of("sh")).stdout.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow:
            assert os.path.samefile(files[name], path.split()[0])


def test_libraries_by_runpath_and_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libx.so"
    source = tmp_path / "x.c"
    source.write_text("int x(void) { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    source.write_text("int x(void); int main(void) { return x(); }")
    link = ["-L", library.parent, "-lx", "-Wl,-rpath,$ORIGIN/lib"]
    subprocess.run(["gcc", "-o", tmp_path / "main", source, *link], check=True)
    assert dict(_needed.needed_files(os.fspath(tmp_path / "main")))["libx.so"] == str(library)
    library.unlink()
    assert dict(_needed.needed_files(os.fspath(tmp_path / "main")))["libx.so"] is None


def test_doctor_of_this_machine(run) -> None:
    result = run("doctor", "--json")
    data = json.loads(result.out)
    assert data["pid"] is None
    names = {finding["check"] for finding in data["findings"]}
    assert names <= doctor._OF_MACHINE
    assert {"kernel", "membarrier"} <= names
    assert result.code == (0 if data["ok"] else 3)


def test_doctor_of_nobody(run) -> None:
    result = run("doctor", "-p", str(NOBODY))
    assert result.code == 3
    assert result.out.startswith("FAIL  process  no such pid\n")
    assert result.err == f"pid {NOBODY} cannot be traced: 1 check failed\n"


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([Finding("alive", ok=True, value="S", cure="")], 0),
        ([Finding("kernel", ok=False, value="3.2", cure="newer")], 0),
        ([Finding("seccomp", ok=False, value="on\x1b", cure="off")], 3),
    ],
)
def test_doctor_s_verdict(
    run, monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: int
) -> None:
    monkeypatch.setattr("textpoke.target.check_attach", lambda _: findings)
    result = run("doctor", "-p", "1", "--color", "always")
    assert result.code == code
    assert "on\\x1b" in result.out or code == 0
    mark = {"alive": "\x1b[32mok  ", "kernel": "\x1b[33mwarn", "seccomp": "\x1b[31mFAIL"}
    assert result.out.startswith(mark[findings[0].check])


def test_doctor_insists_on_what_attach_insists_on() -> None:
    names = {row[0] for row in checks._CHECKS}
    assert doctor._ADVICE == checks._NOT_FATAL
    assert names > doctor._ADVICE | doctor._OF_MACHINE


def test_colors_follow_option_variable_and_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    def shown(color: str) -> bool:
        return _console.Console(color=color).style("x", "red", Terminal()) != "x"

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert [shown("auto"), shown("always"), shown("never")] == [True, True, False]
    assert _console.Console().style("x", "red", sys.__stdin__) == "x" or sys.__stdin__.isatty()
    monkeypatch.setenv("NO_COLOR", "1")
    assert [shown("auto"), shown("always"), shown("never")] == [False, True, False]
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: set and not empty
    assert shown("auto")


def test_talk_goes_to_stderr_and_can_be_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (_console.Console(), _console.Console(quiet=True), _console.Console(verbose=2)):
        console.say("say")
        console.detail("detail")
        console.detail("more", 2)
        console.warn("warn")
        console.live("live")
        console.out("out")
    out, err = capsys.readouterr()
    assert out == "out\n" * 3
    assert err.split("\n")[:-1] == [
        *("say", "warning: warn"),
        "warning: warn",
        *("say", "detail", "more", "warning: warn"),
    ]


def test_lone_surrogates_do_not_break_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    _console.Console().out("a\udc80")
    assert capsys.readouterr().out == "a\\udc80\n"


def output(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shell(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `tp` is textpoke."""
    line = f'tp() {{ "{sys.executable}" -m textpoke "$@"; }}; {script}'
    return output("bash", "-c", line, "-", *words)


def test_a_pipe_that_breaks_is_quiet(tmp_path: Path) -> None:
    rings = [captures.Ring([(index, captures.SET) for index in range(20_000)])]
    path = captures.write(tmp_path / "x.tptrace", captures.Recipe(rings))
    result = shell('tp report --text "$1" | head -1; echo ${PIPESTATUS[0]}', os.fspath(path))
    assert (result.stdout, result.stderr) == ("# tracer: function\n1\n", "")


def test_a_full_disk_on_stdout_is_one_line(capture: str) -> None:
    result = shell('tp report "$1" > /dev/full', capture)
    assert (result.returncode, result.stderr) == (1, "textpoke: error: No space left on device\n")


def test_the_module_runs(capture: str) -> None:
    result = shell('tp report -n 1 "$1"; tp record --bogus 2>&1 | head -c 17', capture)
    assert result.stdout.startswith("redis-server (pid 100)")


def test_an_interrupt_is_130() -> None:
    code = (
        "import os, signal, sys; from textpoke.cli import _parser, main\n"
        "_parser.run = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['doctor']))"
    )
    result = output(sys.executable, "-c", code)
    assert (result.returncode, result.stderr) == (130, "textpoke: error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], ["numpy", "argparse.x", "textpoke.cli.report", "textpoke.sites"]),
        (["doctor"], ["numpy", "rich", "textpoke.cli.report", "textpoke.cli.sites"]),
        (["sites", "/bin/sh"], ["numpy", "rich", "textpoke.cli.report", "textpoke.capture"]),
        (["report", "/bin/sh"], ["numpy", "rich", "textpoke.cli.sites", "textpoke.target"]),
    ],
)
def test_a_verb_imports_only_what_it_needs(words: Sequence[str], absent: Sequence[str]) -> None:
    code = (
        "import sys; from textpoke.cli import main\n"
        f"main({words!r}); print(*sys.modules, file=sys.stderr)"
    )
    result = output(sys.executable, "-c", code)
    loaded = result.stderr.splitlines()[-1].split()
    assert "textpoke.cli" in loaded
    assert not set(absent) & set(loaded)


def test_writing_a_capture_does_not_import_numpy() -> None:
    code = "import sys, textpoke.capture; sys.exit('numpy' in sys.modules)"
    assert output(sys.executable, "-c", code).returncode == 0


def test_main_takes_sys_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["textpoke", "--help"])
    assert textpoke.cli.main() == 0
