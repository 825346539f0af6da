# SPDX-License-Identifier: Apache-2.0
"""For pytest: the fixture `native_calls`, which counts calls of native functions in a test."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from textpoke.own_calls import OwnCalls


class NativeCalls(Protocol):
    """What the fixture `native_calls` gives."""

    def __call__(self, *include: str, **options: Any) -> AbstractContextManager[OwnCalls]:  # noqa: ANN401
        """Trace functions, 'GLOB' or 'MODULE!GLOB', with the options of `textpoke.trace`."""


@pytest.fixture
def native_calls() -> NativeCalls:
    """Count calls of native functions of this process while a block runs.

    with native_calls("libz!deflate") as t:
        zlib.compress(b"x")
    assert t.calls("libz!deflate") == 1
    """
    return _counted


@contextlib.contextmanager
def _counted(*include: str, **options: Any) -> Iterator[OwnCalls]:  # noqa: ANN401
    from textpoke.own_process import RING_BYTES, trace
    from textpoke.tracer_names import FUNCTION

    ring_bytes = options.setdefault("ring_bytes", RING_BYTES)
    options.setdefault("tracer", FUNCTION)  # counts everywhere, also where no return can be seen
    with trace(include, **options) as found:
        yield found
    if found.lost:
        pytest.fail(
            f"{found.lost:,} events of native_calls were lost with ring_bytes={ring_bytes:,}, so "
            "counts are too small: choose fewer functions or more ring_bytes",
            pytrace=False,
        )
