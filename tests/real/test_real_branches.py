# SPDX-License-Identifier: Apache-2.0
"""Branches of programs as they are: counts held against a stepper's, and toggling under load."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import textpoke
from textpoke import elf, functions, target
from textpoke.branches import entries_of, find_branches

HERE = Path(__file__).parent
TOGGLES = 50
PATIENCE_S = 20.0
LEAST_COVERAGE = 0.95
SQL = """
create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 60)
  insert into t select i, printf('%d-%x', i * 7919 % 1000, i), i * 1.5 from n;
create index tb on t(b);
select count(*), sum(a), max(b), avg(c) from t where b like '%7%';
select b, count(*) from t group by length(b) order by 2 desc limit 3;
update t set c = c + 1 where a % 3 = 0;
delete from t where a % 5 = 0;
select 'end';
"""
LOAD = """
import hashlib, json, random, re, select, sys
def work(seed):
    r = random.Random(seed)
    d = {str(r.random()): [r.randrange(100) for _ in range(5)] for _ in range(200)}
    s = json.dumps(d, sort_keys=True)
    assert json.loads(s) == d
    m = re.findall(r"(\\d+)\\.(\\d{3})", s)
    return hashlib.sha256((s + repr(sorted(d.items())) + repr(m)).encode()).hexdigest()
first = [work(i) for i in range(5)]
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for i in range(5):
        assert work(i) == first[i]
print("right")
"""
SQL_LOAD = """
import select, sqlite3, sys
def work():
    db = sqlite3.connect(":memory:")
    db.executescript(\"\"\"@\"\"\")
    return [list(db.execute(f"select * from t order by {column}")) for column in "abc"]
first = work()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    assert work() == first
print("right")
""".replace("@", SQL)


def module_of(pid, pattern):
    return next(m for m in target.read_modules(pid) if re.fullmatch(pattern, m.name))


def find(module):
    with elf.Image.open(module.path) as image:
        known = functions.find_functions(image, module)
        found = find_branches(image, module, entries_of(module, known.sites(known)))
        return found, min(load.vaddr for load in image.loads)


def library_of(program, pattern):
    """A library of a program, as it is mapped, and the program's text."""
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    try:
        return module_of(process.pid, pattern)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="needs sqlite3")
@pytest.mark.timeout(900)
def test_counts_are_those_of_a_stepper(tmp_path):
    command = [shutil.which("sqlite3"), ":memory:"]
    module = library_of(command[0], r"libsqlite3.*")
    found, first = find(module)
    assert found.countable > LEAST_COVERAGE * len(found.branches)
    steps = tmp_path / "steps"
    subprocess.run(["gcc", "-O2", HERE / "branch_steps.c", "-o", steps], check=True)

    script = "".join(
        f"{b.vaddr:x} {b.target - module.bias:x}\n" for b in found.branches if b.reason is None
    )
    reader, writer = os.pipe()  # stays open: the program waits for more
    os.write(writer, SQL.encode())
    stepped = subprocess.run(
        [steps, str(reader), module.path, f"{first:x}", *command],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        pass_fds=[reader],
    ).stdout
    expected = {}
    for line in stepped.splitlines():
        words = line.split()
        if len(words) == 3 and re.fullmatch("[0-9a-f]+", words[0]):
            expected[int(words[0], 16)] = int(words[1]), int(words[2])
    assert len(expected) == found.countable

    os.write(writer, SQL.encode())
    told = subprocess.run(
        [sys.executable, HERE / "branch_counted.py", module.name, *command],
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    ).stderr
    counted = {vaddr: (taken, not_taken) for vaddr, taken, not_taken in json.loads(told)}
    assert sum(map(sum, counted.values())) > 50_000
    assert counted == expected


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("source", "pattern"),
    [(LOAD, r"libpython3.*|python3.*"), (SQL_LOAD, r"libsqlite3.*")],
    ids=["python", "sqlite"],
)
def test_a_program_is_right_while_all_its_branches_are_toggled(source, pattern):
    process = subprocess.Popen(
        [os.path.realpath(sys.executable), "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        largest = max(
            (m for m in target.read_modules(process.pid) if re.fullmatch(pattern, m.name)),
            key=lambda m: os.path.getsize(m.path),
        )
        with textpoke.attach(process.pid) as attached:
            counts = attached.branches(f"{largest.name}!*")
            assert counts.found.countable > LEAST_COVERAGE * len(counts.found.branches)
            for _ in range(TOGGLES):
                with counts:
                    time.sleep(0.02)
                    deadline = time.monotonic() + PATIENCE_S
                    while not counts.counts().any():  # the machine may have more to do
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                assert counts.left_alone == 0
                assert process.poll() is None
        assert attached.report.clean, attached.report.residue
        assert attached.report.text.differing == []
        out, _ = process.communicate("\n", timeout=120)
        assert (out, process.returncode) == ("right\n", 0)
    finally:
        process.kill()
        process.communicate()
