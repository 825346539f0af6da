# SPDX-License-Identifier: Apache-2.0
"""What all exports have in common: calls after losses, timelines, stacks, and the command line."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import call_tables
import captures
import exports
import numpy as np
import pytest
from captures import GET, INFLATE, SET, Ring
from exports import IN, OUT, US
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textpoke._errors import NothingToExport
from textpoke.calls import Calls, calls_of
from textpoke.capture import Capture
from textpoke.cli import main
from textpoke.export import source as source_module
from textpoke.export.formats import FORMATS
from textpoke.export.source import Source
from textpoke.export.stacks import DEEPER, DEEPEST, Stacks, stacks_of
from textpoke.export.timeline import Timeline, timelines

if TYPE_CHECKING:
    from pathlib import Path

ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def tree(stacks: Stacks) -> dict[tuple[str, ...], tuple[int, int]]:
    """Calls and own time by stack."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    above: list[str] = []
    for node, depth in stacks.preorder():
        if depth:
            above[depth - 1 :] = [stacks.frames[stacks.frame[node]]]
            found[tuple(above)] = (stacks.calls[node], stacks.self_ns[node])
    return found


def test_stacks_of_all_threads(path: Path) -> None:
    zlib = "inflate [libz.so.1]"
    with exports.source(exports.graph(path)) as source:
        assert tree(stacks_of(source)) == {
            ("redis-server",): (0, 0),
            ("redis-server", "setCommand"): (1, 73_000),
            ("redis-server", "setCommand", "getCommand"): (1, 2_000),
            ("redis-server", "setCommand", zlib): (1, 11_000),
            ("redis-server", "setCommand", zlib, "getCommand"): (1, 14_000),
            ("redis-server", "getCommand"): (1, 0),
            ("redis-server", "getCommand", zlib): (1, 3_000),
            ("bio",): (0, 0),
            ("bio", zlib): (1, 4_000),
        }


def test_the_heaviest_stack_comes_first(path: Path) -> None:
    with exports.source(exports.graph(path)) as source:
        found = stacks_of(source)
        assert [depth for _, depth in found.preorder()] == [0, 1, 2, 3, 4, 3, 2, 3, 1, 2]
        assert found.totals(found.weights)[0] == 107_000


def test_what_was_lost_does_not_stand_open_for_ever(path: Path) -> None:
    with exports.source(exports.graph(path, exports.WITH_LOSS)) as source:
        (calls,) = source.calls(100)
        assert calls.parent.tolist() == [-1, 0, 1, 0]
        assert calls.depth.tolist() == [0, 1, 2, 1]
        assert source.losses() == [(2_001, 7)]


def test_a_call_over_a_loss_keeps_its_caller(path: Path) -> None:
    rings = [
        Ring([(0, SET, IN), (US, GET, IN)], lost=1),
        Ring([(3 * US, INFLATE, IN), (4 * US, INFLATE, OUT), (5 * US, GET, OUT)], sequence=3),
    ]
    with exports.source(exports.graph(path, rings)) as source:
        (calls,) = source.calls(100)
    assert calls.parent.tolist() == [-1, 0, 1]


def test_many_losses_do_not_make_stacks_deeper(path: Path) -> None:
    rings = [
        Ring([(n * 10 * US, SET, IN), (n * 10 * US + US, GET, IN)], lost=1, sequence=3 * n)
        for n in range(500)
    ]
    rings.append(Ring([(9_000 * US, INFLATE, IN), (9_001 * US, INFLATE, OUT)], sequence=1500))
    with exports.source(exports.graph(path, rings)) as source:
        (calls,) = source.calls(100)
    assert calls.depth.max() == 1


def test_stacks_that_are_too_deep_end_in_one_frame(path: Path) -> None:
    levels = DEEPEST + 50
    rows = [(n * US, SET, IN) for n in range(levels)]
    rows += [((levels + n) * US, SET, OUT) for n in range(levels)]
    with exports.source(exports.graph(path, [Ring(rows)])) as source:
        found = stacks_of(source)
    assert len(found) == 1 + 1 + DEEPEST + 1
    assert found.frames[found.frame[-1]] == DEEPER
    assert found.calls[-1] == 50
    assert sum(found.self_ns) == (2 * levels - 1) * 1_000


def test_without_exits_calls_are_moments(path: Path) -> None:
    with exports.source(exports.function(path)) as source:
        found = stacks_of(source)
        assert (source.has_exits, found.has_times) == (False, False)
        assert tree(found)["redis-server", "setCommand"] == (3, 0)
        assert found.weights[1:] != [0] * (len(found) - 1)


@ANY
@given(
    st.lists(
        st.tuples(
            st.integers(-5, 20), st.sampled_from([SET, GET, INFLATE]), st.sampled_from([IN, OUT])
        ),
        max_size=40,
    ),
    st.integers(0, 40),
    st.integers(1, 5),
)
def test_timelines_are_nested_and_never_go_back(
    tmp_path: Path, steps: list[tuple[int, int, int]], cut: int, piece: int
) -> None:
    path = tmp_path / "any.tptrace"
    path.unlink(missing_ok=True)
    ticks, rows = 0, []
    for step, address, kind in steps:  # clocks of two cores differ: time may go back
        ticks += step * 3
        rows.append((max(ticks, 0), address, kind))
    rows += [(ticks + 90, SET, IN), (ticks + 99, SET, OUT)]
    rings = [Ring(rows[:cut], lost=2), Ring(rows[cut:], sequence=cut + 2)]
    with (
        exports.source(exports.graph(path, rings)) as source,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(source_module, "PIECE", piece)
        pieces = list(timelines(source, 100))
        assert sum(len(calls) for calls, _ in pieces) == len(calls_of(source.capture, 100))
    assert np.all(np.diff(np.concatenate([line.time_ns for _, line in pieces])) >= 0)
    for calls, found in pieces:
        check_nesting(calls, found)


def check_nesting(calls: Calls, found: Timeline) -> None:
    stack: list[int] = []
    for row, is_end in zip(found.row.tolist(), found.is_end.tolist(), strict=True):
        if is_end:
            assert stack.pop() == row
        else:
            assert calls.parent[row] == (stack[-1] if stack else -1)
            stack.append(row)
    assert not stack
    assert sorted(found.row.tolist()) == sorted([*range(len(calls))] * 2)


def test_timeline_of_known_calls(path: Path) -> None:
    with exports.source(exports.graph(path)) as source:
        found = [
            (tid, source.labels[site], begin, end)
            for tid in source.tids()
            for calls, line in timelines(source, tid)
            for site, begin, end in zip(
                calls.site.tolist(), line.begin_ns.tolist(), line.end_ns.tolist(), strict=True
            )
        ]
    assert found == exports.NESTED


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_takes_every_capture(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = {
        "graph": exports.graph,
        "function": exports.function,
        "hostile": exports.hostile,
        "empty": lambda path: exports.graph(path, []),
        "loss": lambda path: exports.graph(path, exports.WITH_LOSS),
        "blk": lambda path: captures.write(path, call_tables.recipe("blk", call_tables.IO)),
        "cut": lambda path: captures.write(path, captures.Recipe(exports.TWO_THREADS, end=None)),
    }
    for what, make in makers.items():
        path = make(tmp_path / f"{what}.tptrace")
        sizes = set()
        for part in exports.PARTS:
            monkeypatch.setattr(source_module, "PART", part)
            monkeypatch.setattr(source_module, "PIECE", part)
            sizes.add(len(exports.exported(path, name)))
        assert min(sizes) > 0 or what == "empty"
        assert len(sizes) == 1 or name == "parquet"  # there a part is a row group


def test_tables_have_nothing_to_export(path: Path) -> None:
    captures.write(path, captures.Recipe(meta=captures.meta(tracer="profile")))
    with Capture(path) as capture, pytest.raises(NothingToExport) as error:
        Source(capture)
    assert error.value.tracer == "profile"


def test_progress_counts_every_call(path: Path) -> None:
    for name in FORMATS:
        done: list[int] = []
        with Capture(exports.graph(path)) as capture:
            FORMATS[name].write(Source(capture, done.append), io.BytesIO())
        assert sum(done) == len(exports.NESTED), name
        path.unlink()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(exports.graph(tmp_path / "x.tptrace", exports.WITH_LOSS))
    assert main(["export", path]) == 0
    err = capsys.readouterr().err
    assert (tmp_path / "x.html").exists()
    assert "warning: lost: 7" in err
    assert err.splitlines()[-1] == f"open it in a browser: {tmp_path / 'x.html'}"
    assert main(["export", path, "-q"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["export", path, "-q", "--force"]) == 0
    assert "lost: 7" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(FORMATS))
def test_formats_by_the_name_of_the_file(tmp_path: Path, name: str) -> None:
    path = exports.graph(tmp_path / "x.tptrace")
    out = tmp_path / f"y{FORMATS[name].suffix}"
    assert main(["export", str(path), "-q", "-o", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x.tptrace", out.name])
    if name != "parquet":
        assert out.read_bytes() == exports.exported(path, name)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["-o", "x.svg"], 2, "no format is known"),
        (["-f", "folded", "--diff", "{file}"], 2, "--diff is for -f flamegraph"),
        (["-o", "{file}", "-f", "folded", "--force"], 2, "the capture itself"),
        (["-o", "/nowhere/at/all.folded"], 1, "cannot write /nowhere/at/all.folded"),
        (["-o", "/proc/self/maps/x.folded"], 1, "cannot write"),
        (["-o", "/dev/full", "-f", "folded"], 1, "cannot write /dev/full: No space left"),
    ],
)
def test_bad_input_is_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    exports.graph(path)
    before = path.read_bytes()
    assert main(["export", str(path), *(word.format(file=path) for word in more)]) == code
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert path.read_bytes() == before


def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    path, pipe = exports.graph(tmp_path / "x.tptrace"), tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main(["export", str(path), "-q", "--force", "-f", "folded", "-o", str(pipe)]) == 0
    assert os.read(reader, 1 << 16) == exports.exported(path, "folded")
    os.close(reader)
    assert pipe.is_fifo()


def test_a_failed_export_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = captures.write(
        tmp_path / "x.tptrace", captures.Recipe(meta=captures.meta(tracer="branch"))
    )
    assert main(["export", str(path)]) == 1
    assert "record with -t function_graph" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x.tptrace"]
