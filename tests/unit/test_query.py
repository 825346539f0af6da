# SPDX-License-Identifier: Apache-2.0
"""SQL over captures and over Parquet."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import TYPE_CHECKING

import exports
import pytest

from textpoke.cli import main
from textpoke.queries import NAMED, CallsTable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return exports.graph(tmp_path / "x.tptrace")


def left(path: Path) -> list[Path]:
    return list((path.parent / "temporary").iterdir())


@pytest.mark.parametrize("name", NAMED)
def test_named_queries_run(path: Path, name: str) -> None:
    with CallsTable(path) as table:
        found = table.ask(name)
    assert found.rows
    assert left(path) == []


def test_what_they_say(path: Path) -> None:
    with CallsTable(path) as table:
        hottest = {row[0]: row[2:] for row in table.ask("hottest").rows}
        slowest = table.ask("slowest").rows[0]
        callers = {row[:2]: row[2] for row in table.ask("callers").rows}
    assert hottest["setCommand"] == (1, pytest.approx(0.073), pytest.approx(0.1))
    assert hottest["inflate"] == (3, pytest.approx(0.018), pytest.approx(0.032))
    assert slowest[:2] == ("setCommand", pytest.approx(0.1))
    assert callers == {
        ("setCommand", "getCommand"): 1,
        ("setCommand", "inflate"): 1,
        ("inflate", "getCommand"): 1,
        ("getCommand", "inflate"): 1,
    }


def test_parquet_is_asked_as_it_is(path: Path) -> None:
    parquet = path.with_name("it's.parquet")
    parquet.write_bytes(exports.exported(path, "parquet"))
    with CallsTable(parquet) as table:
        assert table.ask("SELECT COUNT(*) FROM calls").rows == [(7,)]
    assert parquet.exists()
    assert left(path) == []


def test_the_command(path: Path, capsys) -> None:
    sql = "SELECT function, COUNT(*) AS n FROM calls GROUP BY function ORDER BY n, function"
    assert main(["query", str(path), sql]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "function    n",
        "setCommand  1",
        "getCommand  3",
        "inflate     3",
    ]
    assert main(["query", str(path), sql, "-n", "1"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "2 more rows: -n 0 shows all" in err
    assert main(["query", str(path), "SELECT 0.5 AS half, NULL AS none", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"half": "0.5", "none": None}
    assert main(["query", str(path), sql, "--json", "-n", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["query", str(path)]) == 0
    assert "hottest" in capsys.readouterr().out


def test_mistakes_are_one_line(path: Path, capsys, monkeypatch) -> None:
    assert main(["query", str(path), "SELECT nosuch FROM calls"]) == 2
    err = capsys.readouterr().err
    assert "nosuch" in err
    assert err.count("\n") == 1
    for wrong, told in (("hotest", "there are hottest, slowest"), ("", "there is no statement")):
        assert main(["query", str(path), wrong]) == 2
        assert told in capsys.readouterr().err
    assert main(["query", __file__, "hottest"]) == 1
    assert "not a textpoke capture" in capsys.readouterr().err
    assert left(path) == []
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert main(["query", str(path), "hottest"]) == 1
    assert "pip install 'textpoke[query]'" in capsys.readouterr().err
