# SPDX-License-Identifier: Apache-2.0
"""Parquet, read back by pyarrow and by DuckDB."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import duckdb
import exports
import pyarrow.parquet as pq
import pytest
from captures import UNKNOWN, Ring

from textpoke.cli import main
from textpoke.export import source as source_module

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = {
    "tid": "uint32",
    "thread": "string",
    "module": "string",
    "function": "string",
    "start_ns": "int64",
    "duration_ns": "int64",
    "self_ns": "int64",
    "depth": "uint32",
    "caller": "string",
    "tracer": "string",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def rows(path: Path) -> list[dict]:
    return pq.read_table(io.BytesIO(exports.exported(path, "parquet"))).to_pylist()


@pytest.mark.parametrize("part", exports.PARTS)
def test_a_row_per_call(path: Path, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PART", part)
    monkeypatch.setattr(source_module, "PIECE", part)
    found = [tuple(row.values()) for row in rows(exports.graph(path))]
    graph, redis, zlib = "function_graph", "redis-server", "libz.so.1"
    assert found == [
        (100, redis, redis, "setCommand", 0, 100_000, 73_000, 0, None, graph),
        (100, redis, redis, "getCommand", 2_000, 2_000, 2_000, 1, "setCommand", graph),
        (100, redis, zlib, "inflate", 5_000, 25_000, 11_000, 1, "setCommand", graph),
        (100, redis, redis, "getCommand", 6_000, 14_000, 14_000, 2, "inflate", graph),
        (100, redis, redis, "getCommand", 200_000, None, None, 0, None, graph),
        (100, redis, zlib, "inflate", 210_000, 3_000, 3_000, 1, "getCommand", graph),
        (101, "bio", zlib, "inflate", 50_000, 4_000, 4_000, 0, None, graph),
    ]


def test_columns_are_as_documented(path: Path) -> None:
    schema = pq.read_schema(io.BytesIO(exports.exported(exports.graph(path), "parquet")))
    found = {field.name: getattr(field.type, "value_type", field.type) for field in schema}
    assert {name: str(kind) for name, kind in found.items()} == COLUMNS
    assert schema.metadata[b"textpoke.pid"] == b"100"
    assert schema.metadata[b"textpoke.events_lost"] == b"0"


def test_without_exits_there_are_no_times_and_no_callers(path: Path) -> None:
    found = rows(exports.function(path))
    assert [(row["function"], row["start_ns"]) for row in found[:2]] == [
        ("setCommand", 1_000), ("getCommand", 2_000),
    ]  # fmt: skip
    for name in ("duration_ns", "self_ns", "depth", "caller"):
        assert {row[name] for row in found} == {None}


def test_an_address_without_a_site_has_no_names(path: Path) -> None:
    (row,) = rows(exports.graph(path, [Ring([(0, UNKNOWN, 1), (30, UNKNOWN, 2)])]))
    assert (row["module"], row["function"], row["duration_ns"]) == (None, None, 10)


def test_duckdb_answers_questions(tmp_path: Path) -> None:
    path, out = exports.graph(tmp_path / "x.tptrace"), tmp_path / "x.parquet"
    assert main(["export", str(path), "-f", "parquet", "-q"]) == 0
    found = duckdb.sql(
        f"SELECT function, count(*), sum(self_ns) FROM '{out}' GROUP BY ALL ORDER BY 3 DESC"
    ).fetchall()
    assert found == [("setCommand", 1, 73_000), ("inflate", 3, 18_000), ("getCommand", 3, 16_000)]


def test_names_are_as_they_were_recorded(path: Path) -> None:
    assert rows(exports.hostile(path))[0]["function"] == exports.HOSTILE


def test_a_capture_without_events_has_the_columns(path: Path) -> None:
    data = io.BytesIO(exports.exported(exports.graph(path, []), "parquet"))
    assert pq.read_table(data).column_names == list(COLUMNS)


def test_without_pyarrow_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exports.graph(tmp_path / "x.tptrace")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", str(path), "-f", "parquet"]) == 1
    assert capsys.readouterr().err == (
        "textpoke: error: pyarrow is not installed: pip install 'textpoke[parquet]'\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["x.tptrace"]
