# SPDX-License-Identifier: Apache-2.0
"""CPython's, Redis's and SQLite's own tests come out the same while Debian's programs are toggled.

Every process of /usr/bin/python3, redis-server, redis-cli, redis-benchmark or tclsh that a suite
starts has all patchable functions of the program and of libc (of tclsh: of all libraries, SQLite's
among them) switched on and off at 10 Hz. Each suite is run without us first, on the same machine.
"""

from __future__ import annotations

import re
import signal
import tempfile
from pathlib import Path

import pytest
import test_python_suite
import test_redis_suite
from debian_programs import data_directory, install
from processes import built
from suites import SHORT, Run, require_same_as_without_us, run
from unmodified import sites_of_any_module, sites_of_module

HERE = Path(__file__).parent
HZ = 10.0
HOW = {"hz": HZ, "find": sites_of_module}
FEW = 20  # times that every site has been written, on and off, over all processes

_PYTHON = Path("/usr/bin/python3")
_MORE_OF_PYTHON = """
    test_string test_textwrap test_operator test_random test_pickle test_zipfile test_bz2 test_lzma
    test_gzip test_codecs test_difflib test_ipaddress test_configparser test_argparse test_html
    test_sqlite3 test_pyexpat test_xml_etree test_minidom test_sax test_bool test_iter test_hash
    test_codecencodings_jp test_locale
"""
# CPython masks signals, so its functions are written with all threads stopped, twenty times a
# second. A call that answers EINTR to a stop is run again, and its relative time-out starts anew
# (docs/architecture.md): a second becomes ten.
_STOPPED = ("test.test_selectors.*.test_timeout",)
_WORKERS = 2
_PART_TIMEOUT_S = 300
_ENDED = re.compile(r"^\S+ load avg: \S+ \[[ 0-9/]+\] (test_\w+) (.*)$", re.MULTILINE)
_BESIDES = re.compile(r" \(\d[^()]*(?:sec|ms)\)| -- running: .*")  # how long, and who else runs
_COUNT = re.compile(r"^(?:FAILED|OK) \((.*)\)$", re.MULTILINE)


def signal_of(code: int) -> str:
    """An exit code, a signal by its name."""
    return str(code) if code >= 0 else signal.Signals(-code).name


def python_outcomes(output: str) -> dict[str, object]:
    """Of each file: how it has ended, tests that were run, failures and errors."""
    ended = list(_ENDED.finditer(output))
    ends = [*(match.start() for match in ended[1:]), len(output)][: len(ended)]
    found: dict[str, object] = {}
    for match, end in zip(ended, ends, strict=True):
        text = output[match.end() : end]
        ran = sum(map(int, re.findall(r"^Ran (\d+) tests? in ", text, re.MULTILINE)))
        bad = [
            word
            for counts in _COUNT.findall(text)
            for word in counts.split(", ")
            if word.startswith(("failures", "errors", "unexpected"))
        ]
        found[match[1]] = (_BESIDES.sub("", match[2]), ran, *sorted(bad))
    return found


def read_python(output: str) -> Run:
    found = test_python_suite._read(output)
    return Run(found.tests, found.failed, found.complaints, outcomes=python_outcomes(output))


@pytest.mark.timeout(5400)
def test_python_comes_out_the_same(figure):
    install("python", "python-suite")
    directory = data_directory("python-suite")

    def start(parts, log):
        words = [_PYTHON, "-m", "test", "-v", "-j", _WORKERS, "--timeout", _PART_TIMEOUT_S]
        left_out = (*test_python_suite._LEFT_OUT, *_STOPPED)
        words += [word for name in left_out for word in ("-i", name)]
        done, code = run([*words, *parts], directory, f"debian-python-suite-{log}", read_python)
        if code not in (0, 2) or done.outcomes.keys() != set(parts):
            done.complaints.append(f"regrtest itself ended with {signal_of(code)}")
        return done

    usual = test_python_suite._SHORT
    more = "" if SHORT else test_python_suite._FULL + _MORE_OF_PYTHON
    parts = (usual + more).split()
    assert SHORT or len(parts) >= 100
    tally = require_same_as_without_us(
        start, parts, [_PYTHON], figure, lambda names, _: sorted(names), **HOW
    ).tally
    assert tally.attaches >= len(parts)
    assert tally.pokes > FEW * tally.most_sites


def read_redis(output: str) -> Run:
    found = test_redis_suite._read(output)
    outcomes: dict[str, object] = {}
    for how, name in re.findall(
        r"^\[(ok|err|exception|skip|ignore)\]: (.*)$", output, re.MULTILINE
    ):
        name = re.sub(r" \(\d+ ms\)$", "", name)  # noqa: PLW2901 - the name proper
        outcomes[re.sub(r" in tests/.*\.tcl$", "", name)] = how
    return Run(found.tests, found.failed, found.complaints, outcomes=outcomes)


@pytest.mark.timeout(3600)
def test_redis_comes_out_the_same(figure):
    install("redis-suite")
    source = built("redis_tests") / "source"
    names = ("redis-server", "redis-cli", "redis-benchmark")

    def start(parts, log):
        words = ["./runtest", "--clients", test_redis_suite._CLIENTS, "--durable"]
        words += [word for name in test_redis_suite._LEFT_OUT for word in ("--skiptest", name)]
        words += [word for part in parts for word in ("--single", part)]
        done, code = run(words, source, f"debian-redis-suite-{log}", read_redis)
        assert code == 0 or done.complaints, f"runtest ended with {code} and no failure"
        return done

    parts = (test_redis_suite._SHORT + ("" if SHORT else test_redis_suite._FULL)).split()
    programs = [Path("/usr/bin") / name for name in names]
    tally = require_same_as_without_us(
        start, parts, programs, figure, lambda _, toggled: sorted(toggled.failed) or parts, **HOW
    ).tally
    assert tally.attaches >= (3 if SHORT else len(parts) // 2)
    assert tally.pokes > FEW * tally.most_sites


def read_sqlite(output: str) -> Run:
    rows = re.findall(r"^PART (\S+) (\d+) (\d+) (.*)$", output, re.MULTILINE)
    outcomes: dict[str, object] = {name: (int(n), int(bad), how) for name, n, bad, how in rows}
    failed = frozenset(name for name, _, bad, how in rows if int(bad) or how != "ended")
    complaints = [] if re.search(r"^END$", output, re.MULTILINE) else [output[-2000:]]
    passed = sum(int(n) - int(bad) for _, n, bad, _ in rows)
    return Run(passed, failed, complaints, outcomes=outcomes)


@pytest.mark.timeout(3600)
def test_sqlite_comes_out_the_same(figure):
    install("sqlite-suite")
    tests = built("sqlite_tests") / "source" / "test"

    def start(parts, log):
        words = ["/usr/bin/tclsh", HERE / "sqlite_fixture.tcl", tests, *parts]
        # In memory: each of these tests waits for the disk dozens of times.
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="textpoke-") as directory:
            log = f"debian-sqlite-suite-{log}"
            done, code = run(words, Path(directory), log, read_sqlite)
        if code or done.outcomes.keys() != set(parts):
            done.complaints.append(f"the tests ended with {signal_of(code)}")
        return done

    parts = (HERE / "sqlite_tests.txt").read_text().split()
    tally = require_same_as_without_us(
        start,
        parts[:60] if SHORT else parts,
        [Path("/usr/bin/tclsh")],
        figure,
        lambda names, _: sorted(names),
        **HOW | {"find": sites_of_any_module},
    ).tally
    assert tally.pokes > FEW * tally.most_sites
