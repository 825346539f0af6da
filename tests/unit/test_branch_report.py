# SPDX-License-Identifier: Apache-2.0
"""The table of branches, and its JSON."""

import json

import pytest

from textpoke._errors import CaptureFormat
from textpoke.model import BranchRow
from textpoke.report.branches import branch_records, branch_table, rows_of

ROWS = [
    BranchRow(0x1010, "redis", "call", 0x10, "/src/server.c", 12, 1, 2),
    BranchRow(0x1020, "redis", "call", 0x20, "", 0, 90, 10),
    BranchRow(0x1030, "libc.so.6", "me\x1bmcpy", 0x7, "", 0, 0, 0),
    BranchRow(0x2000, "libc.so.6", "strlen", 0x9, "", 0, 0, 3),
]


def test_the_table_shows_what_was_executed_most_often_first():
    assert list(branch_table(ROWS, main="redis")) == [
        "4 branches, 3 executed, 106 times",
        "",
        "TAKEN  NOT TAKEN  %TAKEN  FUNCTION            WHERE",
        "   90         10    90.0  call                call+0x20",
        "    1          2    33.3  call                server.c:12",
        "    0          3     0.0  strlen [libc.so.6]  strlen+0x9",
    ]


def test_the_table_is_cut_to_its_limit():
    lines = list(branch_table(ROWS, limit=1))
    assert lines[3].split() == ["90", "10", "90.0", "call", "[redis]", "call+0x20"]
    assert lines[4:] == ["(2 more)"]


def test_a_table_of_nothing_is_one_line():
    assert list(branch_table([])) == ["0 branches, 0 executed, 0 times"]
    assert list(branch_table(ROWS[2:3])) == ["1 branch, 0 executed, 0 times"]


def test_names_are_escaped():
    row = BranchRow(1, "m", "a\x1b", 1, "b\n.c", 1, 1, 1)
    assert list(branch_table([row]))[-1].split() == [
        "1",
        "1",
        "50.0",
        r"a\x1b",
        "[m]",
        r"b\x0a.c:1",
    ]


def test_records_keep_every_number_and_come_back():
    records = branch_records(ROWS)
    assert (records["branches"], records["executed"], records["total"]) == (4, 3, 106)
    back = rows_of(json.dumps(records))
    assert back == [ROWS[1], ROWS[0], ROWS[3], ROWS[2]]
    assert len(branch_records(ROWS, limit=2)["rows"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "rows": []}',
        '{"version": 1, "rows": [1]}',
        '{"version": 1, "rows": [{"address": 1}]}',
        (
            '{"version": 1, "rows": [{"address": "1", "module": "m", "function": "f", "offset": 0,'
            ' "file": "", "line": 0, "taken": 0, "not_taken": 0}]}'
        ),
        "[" * 100000,
    ],
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(CaptureFormat):
        rows_of(text)
