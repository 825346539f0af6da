# SPDX-License-Identifier: Apache-2.0
"""The fixture `native_calls`, in a pytest of its own: as a project that uses it has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = "pytester"


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[[str], pytest.RunResult]:
    """Run a test whose body is given; zlib is imported."""

    def run(body: str) -> pytest.RunResult:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        pytester.makepyfile(f"import zlib\n\ndef test_it(native_calls):\n{lines}\n")
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")

    return run


def test_calls_are_counted(run: Callable[[str], pytest.RunResult]) -> None:
    result = run("""\
with native_calls("libz!deflate", "libz!inflate") as t:
    for _ in range(3):
        packed = zlib.compress(b"x" * 1000)
zlib.decompress(packed)
assert t.calls("libz!deflate") == 3
assert t.calls("libz!inflate") == 0
assert len(t) == 3""")
    result.assert_outcomes(passed=1)


def test_two_blocks_and_options(run: Callable[[str], pytest.RunResult]) -> None:
    result = run("""\
for count in (1, 2):
    with native_calls(modules=["libz"], tracer="function_graph") as t:
        for _ in range(count):
            zlib.crc32(b"x" * 1000)
    assert t.calls("crc32") == count
    assert (t.columns()["duration_ns"] > 0).all()""")
    result.assert_outcomes(passed=1)


def test_a_count_that_is_too_small_fails(run: Callable[[str], pytest.RunResult]) -> None:
    result = run("""\
with native_calls("libz!crc32", ring_bytes=4096):
    for _ in range(200_000):
        zlib.crc32(b"x")""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*events of native_calls were lost with ring_bytes=4,096*"])


def test_a_function_that_is_not_there_is_one_line(run: Callable[[str], pytest.RunResult]) -> None:
    result = run("""\
with native_calls("libz!deflat"):
    pass""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *UnknownFunction: *close names: deflate*"])


def test_a_failure_in_the_block_is_the_tests_own(run: Callable[[str], pytest.RunResult]) -> None:
    result = run("""\
with native_calls("libz!deflate"):
    zlib.compress(b"x")
    assert 1 == 2""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *assert 1 == 2"])
