# SPDX-License-Identifier: Apache-2.0
"""gdb and perf in our code: names, and the way to the caller from every instruction."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from debian_programs import install

import textpoke

FUNCTIONS = {
    "peek": ["textpoke stub of peek", "ask_peek", "main"],
    "peek_with_frame": ["textpoke stub of peek_with_frame", "main"],
}
BUILDS = {
    "jit": ("-fPIE", "-pie"),
    "file": ("-fPIE", "-pie", "-D__jit_debug_descriptor=other"),
}
STEP = re.compile(r"STEP ([0-9a-f]+) (.*)")
STEPS = 400
CLOCK = ("perf", "record", "-q", "-e", "cpu-clock")
SCRIPT = """
set pagination off
set confirm off
{symbols}
break *{address:#x}
python
with open("/proc/{pid}/fd/0", "w") as stdin:
    stdin.write("call\\n")
end
continue
delete
python
within = 0
for _ in range({steps}):
    frame, names = gdb.selected_frame(), []
    pc = frame.pc()
    while frame and len(names) < 6:
        names.append(frame.name() or "?")
        frame = frame.older()
    print("STEP %x %s" % (pc, "|".join(names)))
    if not names[0].startswith("textpoke"):
        break
    # Claiming a ring takes thousands of instructions: after some, go on behind them.
    within = within + 1 if names[0] == "textpoke agent" else 0
    gdb.execute("finish" if within > 100 else "stepi", to_string=True)
end
detach
"""


@pytest.fixture(scope="module", autouse=True)
def debuggers():
    install("debuggers")


def step_through(process, address, symbols, script):
    """Names on the stack at every instruction from an address to the end of our code."""
    values = {"symbols": symbols, "address": address, "steps": STEPS, "pid": process.pid}
    script.write_text(SCRIPT.format(**values))
    done = subprocess.run(
        ["gdb", "-batch", "-nx", "-p", str(process.pid), "-x", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=40,
    )
    said = done.stdout
    steps = [match.groups() for match in map(STEP.match, said.splitlines()) if match]
    assert steps, said
    return [(int(pc, 16), names.split("|")) for pc, names in steps]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("build", BUILDS)
def test_gdb_finds_the_callers_from_every_instruction(
    compile_target, start_target, untouched, tmp_path, build, function
):
    process, made = start_target(compile_target("unwound.c", *BUILDS[build])), tmp_path / "our.o"
    unchanged = untouched(process.pid)
    with textpoke.attach(process.pid) as target:
        views = target.describe_code(gdb=made)
        assert bool(views.jit_module) == (build == "jit")
        with target.trace(function) as trace:
            [planned] = trace.plan.sites
            distance = int.from_bytes(planned.on[1:], "little", signed=True)
            stub = planned.site.address + 5 + distance
            symbols = "" if build == "jit" else f"add-symbol-file {made}"
            seen = step_through(process, stub, symbols, tmp_path / "script")
            assert process.stdout.readline() == "7\n"
    unchanged(target.report)
    expected = FUNCTIONS[function]
    above = {
        expected[0]: expected,
        "textpoke thunk": ["textpoke thunk", *expected],
        "textpoke agent": ["textpoke agent", "textpoke thunk", *expected],
    }
    for pc, names in seen[:-1]:
        wanted = above[names[0]]
        while names[:2] == ["textpoke agent"] * 2:
            names.pop(0)
        assert names[: len(wanted)] == wanted[:6], f"{pc:#x}"
    assert seen[-1][1][0] in {function, expected[1]}  # behind the copy, or behind its RET
    assert {names[0] for _, names in seen[:-1]} == set(above)


BACKTRACE = """
set pagination off
{symbols}
thread 1
bt
detach
"""


@pytest.mark.parametrize("build", BUILDS)
def test_gdb_goes_through_redirected_returns(
    compile_target, start_target, untouched, tmp_path, build
):
    process, made = start_target(compile_target("unwound.c", *BUILDS[build])), tmp_path / "our.o"
    unchanged = untouched(process.pid)
    script = tmp_path / "script"
    with textpoke.attach(process.pid) as target:
        target.describe_code(gdb=made)
        with target.trace(["peek", "ask_peek"], tracer="function_graph"):
            process.stdin.write("fault\n")
            process.stdin.flush()
            assert process.stdout.readline()  # the handler of the fault in peek() waits
            script.write_text(
                BACKTRACE.format(symbols="" if build == "jit" else f"add-symbol-file {made}")
            )
            done = subprocess.run(
                ["gdb", "-batch", "-nx", "-p", str(process.pid), "-x", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                timeout=40,
            )
            process.stdin.write("go on\n")
            process.stdin.flush()
    frames = [line for line in done.stdout.splitlines() if line.startswith("#")]
    named = [re.sub(r"^#\d+ +(0x[0-9a-f]+ in )?", "", line) for line in frames]
    at = next(i for i, line in enumerate(named) if "peek" in line)
    expected = ["textpoke stub of peek", "textpoke return", "ask_peek", "textpoke return", "main"]
    found = zip(named[at:], expected, strict=False)
    assert [line.startswith(name) for line, name in found] == [True] * 5, named
    unchanged(target.report)


def test_perf_names_our_code(compile_target, start_target, untouched, tmp_path):
    process = start_target(compile_target("counter.c", "-fPIE", "-pie"))
    data, names = tmp_path / "perf.data", Path(f"/tmp/perf-{process.pid}.map")
    unchanged = untouched(process.pid)
    try:
        with textpoke.attach(process.pid) as target:
            target.describe_code(perf_map=True)
            with target.trace(["top", "middle", "leaf"], overwrite=True):
                process.stdin.write("hot 1\n")
                process.stdin.flush()
                words = [*CLOCK, "-o", data, "-p", str(process.pid), "--", "sleep", "0.5"]
                subprocess.run(words, check=True, timeout=60)
                process.stdin.write("stop\n")
                process.stdin.flush()
        words = ["perf", "report", "-i", data, "--stdio", "--sort", "sym"]
        done = subprocess.run(words, check=True, timeout=60, capture_output=True, text=True)
    finally:
        names.unlink()
    assert "textpoke thunk" in done.stdout
    assert "textpoke stub of" in done.stdout
    while process.stdout.readline() != "end\n":
        pass
    unchanged(target.report)
