# SPDX-License-Identifier: Apache-2.0
"""`textpoke.trace`: a Python process looks at the native functions that it calls itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

PREAMBLE = """
import glob, json, os, tempfile, threading, zlib
import textpoke

def left():
    maps = open("/proc/self/maps").read()
    files = glob.glob(os.path.join(tempfile.gettempdir(), f"textpoke-{os.getpid()}-*"))
    return maps.count("textpoke (deleted)"), maps.count("[anon:textpoke]"), files
"""


def run(body: str, *, fails: bool = False) -> object:
    """Run a script in a new Python; returns the object that its last line prints."""
    script = PREAMBLE + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100
    )
    if fails:
        assert done.returncode != 0
        return done.stderr.splitlines()[-1]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout.splitlines()[-1])


NEVER_TRACED = "no function that was traced matches 'libz!deflat'"


def test_calls_are_counted_within_the_block_and_after_it() -> None:
    assert run("""
        counts = []
        zlib.compress(b"before")
        with textpoke.trace("libz!deflate") as t:
            for n in range(3):
                zlib.compress(b"x" * 1000)
                counts.append(t.calls("libz!deflate"))
        zlib.compress(b"after")
        rows = t.columns()
        try:
            t.calls("libz!deflat")
        except textpoke.UnknownFunction as exc:
            said = str(exc).split(";")[0]
        print(json.dumps([
            counts, t.calls("libz!deflate"), t.calls("deflate"), said, len(t),
            t.lost, set(rows["function"].tolist()) == {"deflate"},
            bool((rows["duration_ns"] > 0).all()), left(),
        ]))
    """) == [[1, 2, 3], 3, 3, NEVER_TRACED, 3, 0, True, True, [0, 0, []]]


def test_the_line_that_led_to_a_call_is_told() -> None:
    rows = run("""
        import inspect

        def squeeze(data):
            first = zlib.crc32(data)
            packed = zlib.compress(data)
            return first, zlib.decompress(packed)

        with textpoke.trace(["libz!crc32", "libz!deflate", "libz!inflate"], lines=True) as t:
            squeeze(b"y" * 50_000)
        print(json.dumps([[r.function, r.where.line, r.where.function, r.calls, r.total_ns > 0]
                          for r in sorted(t.lines(), key=lambda r: (r.where.line, r.function))]))
    """)
    by_function = {function: (line, python) for function, line, python, _, _ in rows}
    line, python = by_function["crc32"]
    assert python == "squeeze"
    assert by_function["deflate"] == (line + 1, "squeeze")
    assert by_function["inflate"] == (line + 2, "squeeze")
    assert all(is_timed for *_, is_timed in rows)


def test_every_function_of_a_package_and_threads() -> None:
    modules, threads, functions = run("""
        import numpy as np
        with textpoke.trace(modules=["numpy.random"]) as t:
            both = [threading.Thread(target=lambda: np.random.default_rng(1).random(1000))
                    for _ in range(2)]
            for thread in both: thread.start()
            for thread in both: thread.join()
        rows = t.columns()
        print(json.dumps([sorted(set(rows["module"].tolist())), len(set(rows["tid"].tolist())),
                          t.functions]))
    """)
    assert threads >= 2
    assert functions > 500
    assert modules
    assert all(module.endswith(".so") for module in modules)


def test_progress_is_told_what_takes_long_and_the_collector_is_as_it_was() -> None:
    assert run("""
        import gc
        from textpoke import waiting
        waiting.said.__wrapped__.__defaults__ = (0.0,)
        told, states = [], [gc.isenabled()]
        for turn in range(2):
            with textpoke.trace(modules=["numpy.random"], progress=told.append) as t:
                states.append(gc.isenabled())
            states.append(gc.isenabled())
            gc.disable()
        print(json.dumps([states, len(told), any("putting" in text for text in told)]))
    """) == [[True, True, True, False, False], 4, True]


def test_data_frames_and_html() -> None:
    assert run("""
        with textpoke.trace("libz!deflate", lines=True) as t:
            zlib.compress(b"<&>")
        table, frame = t.to_arrow(), t.to_pandas()
        shown = t._repr_html_()
        print(json.dumps([
            table.num_rows, table.schema.names == list(t.columns()),
            str(table.schema.field("duration_ns").type), table["function"].to_pylist(),
            len(frame), frame.function.tolist(), "<td" in shown and "deflate" in shown,
        ]))
    """) == [1, True, "int64", ["deflate"], 1, ["deflate"], True]


def test_mistakes_are_told_and_leave_nothing() -> None:
    assert "nothing chosen" in str(run("textpoke.trace()", fails=True))
    assert "close names: deflate" in str(
        run("with textpoke.trace('libz!deflat'): pass", fails=True)
    )
    assert "import what loads nosuch" in str(
        run("with textpoke.trace(modules='nosuch'): pass", fails=True)
    )
    assert run("""
        try:
            with textpoke.trace("libz!deflate") as t:
                zlib.compress(b"x")
                raise KeyError("theirs")
        except KeyError:
            pass
        try:
            with textpoke.trace("libz!nosuch"): pass
        except textpoke.UnknownFunction:
            pass
        print(json.dumps([t.calls(), left()]))
    """) == [1, [0, 0, []]]


def test_the_magic_of_notebooks() -> None:
    assert run("""
        from IPython.core.interactiveshell import InteractiveShell
        shell, cell = InteractiveShell.instance(), "import zlib\\nzlib.compress(b'x')"
        shell.run_line_magic("load_ext", "textpoke")
        found = shell.run_cell_magic("textpoke", "-o kept libz!deflate", cell)
        bad = shell.run_cell_magic("textpoke", "--nosuch", "1")
        print()
        print(json.dumps([found.calls(), shell.user_ns["kept"] is found, bad,
                          [r.where.line for r in found.lines()]]))
    """) == [1, True, None, [2]]


def test_a_forked_child_that_leaves_the_block_leaves_its_parents_trace_alone() -> None:
    assert run("""
        import sys
        pid = 0
        try:
            with textpoke.trace("libz!deflate") as t:
                zlib.compress(b"x")
                pid = os.fork()
                if not pid:
                    sys.exit(0)  # through the block's end
                os.waitpid(pid, 0)
                zlib.compress(b"y")
        finally:
            if not pid:
                os._exit(0)
        print(json.dumps([t.calls(), left()]))
    """) == [2, [0, 0, []]]
