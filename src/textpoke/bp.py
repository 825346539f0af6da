# SPDX-License-Identifier: Apache-2.0
"""The seed's own layer: `text_poke_bp` and `text_poke_bp_list` with `TextPokeIter`.

Source: Petr Mladek, "[PATCH v4 3/8] x86: add generic function to modify more calls using int3
framework", 25 Nov 2013. Two deviations, both because no Python may run between the first and the
last sync: the walk over the records is done before the batch, and a Python `finish` is called
after it, once for every record that the batch has finished, in the order of the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from textpoke._errors import BatchFailed, BatchRefused
from textpoke.engine import run_request, site_outcomes
from textpoke.poke import Outcome, Poke, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from textpoke.agent import Agent

T = TypeVar("T")


class HasAgent(Protocol):
    """A `Target`, or a bare `Agent`."""

    @property
    def agent(self) -> Agent:
        """The connection to the agent."""


@dataclass(slots=True)
class TextPokeIter(Generic[T]):
    """Which sites to change, and how: the seed's `struct text_poke_bp_iter`.

    Attributes:
        init: The records, an iterable; or any cookie when `start` and `next` are given.
        length: Bytes of every instruction, or a function of the record.
        get_addr: Runtime address of a record.
        get_opcode: New bytes; None: the record is already in its final state.
        get_old_opcode: Expected bytes; None exactly when `get_opcode` gives None.
        finish: Called once a record after the batch; a non-zero result ends the calls and is
            reported as a failure of phase "finish".
        is_handled: Address in the target of a C function `bool (uint64_t ip)`, ip being the site
            plus one; 0 uses the built-in sorted lookup.
        start: First record for `init`, None for none.
        next: Record after a given one, None at the end.
        fail_count: After a failure: index of the record within the failed phase.
        fail_addr: After a failure: its address.
    """

    init: Iterable[T] | object
    length: int | Callable[[T], int]
    get_addr: Callable[[T], int]
    get_opcode: Callable[[T], bytes | None]
    get_old_opcode: Callable[[T], bytes | None]
    finish: Callable[[T], int | None] | None = None
    is_handled: int = 0
    start: Callable[[object], T | None] | None = None
    next: Callable[[T], T | None] | None = None
    fail_count: int = field(default=0, init=False)
    fail_addr: int = field(default=0, init=False)

    def records(self) -> Iterator[T]:
        """Walk the records once, in order."""
        if self.start is None or self.next is None:
            yield from self.init  # type: ignore[misc]  # an iterable when there is no start/next
            return
        record = self.start(self.init)
        while record is not None:
            yield record
            record = self.next(record)


def text_poke_bp(target: HasAgent, addr: int, opcode: bytes, handler: int) -> Outcome:
    """Replace one instruction; a thread that meets the int3 continues at `handler`.

    Like the seed's function it takes the bytes that are there now as the old ones.

    Raises:
        PokeError: As `text_poke_bp_list`.
    """
    old = target.agent.read(addr, len(opcode))
    return run_request(target.agent, Request.of([Poke(addr, old, opcode, handler)]))


def text_poke_bp_list(target: HasAgent, iterator: TextPokeIter[T]) -> Outcome:
    """Replace the instructions of all records with three syncs in all.

    Finished sites stay when a later one fails; `finish` has said which ones they are.

    Raises:
        BatchRefused, BytesDiffer: Nothing was written.
        BatchFailed: It failed on the way, or `finish` returned non-zero.
    """
    agent = target.agent
    records = list(iterator.records())
    pokes = [_poke(iterator, record) for record in records]
    request = Request.of(pokes)
    try:
        outcome = run_request(
            agent,
            request,
            one_mode=True,  # the outcome of every site is read afterwards
            all_or_nothing=False,
            callbacks=(iterator.is_handled, 0),
        )
    except BatchFailed as exc:
        iterator.fail_count, iterator.fail_addr = exc.fail_count, exc.fail_addr
        _finish(iterator, records, site_outcomes(agent, request))
        raise
    except BatchRefused as exc:
        iterator.fail_count, iterator.fail_addr = exc.fail_count, exc.fail_addr
        raise
    _finish(iterator, records, site_outcomes(agent, request))
    return outcome


def _poke(iterator: TextPokeIter[T], record: T) -> Poke:
    address = iterator.get_addr(record)
    old, new = iterator.get_old_opcode(record), iterator.get_opcode(record)
    length = iterator.length if isinstance(iterator.length, int) else iterator.length(record)
    for opcode in (old, new):
        if opcode is not None and len(opcode) != length:
            raise BatchRefused(f"site {address:#x}: {len(opcode)} bytes, the length is {length}")
    return Poke(address, old, new)


def _finish(iterator: TextPokeIter[T], records: list[T], outcomes: list[str]) -> None:
    if iterator.finish is None:
        return
    for i, (record, state) in enumerate(zip(records, outcomes, strict=True)):
        if state not in ("done", "skipped"):
            continue
        if iterator.finish(record):
            iterator.fail_count, iterator.fail_addr = i, iterator.get_addr(record)
            raise BatchFailed("finish", i, iterator.fail_addr, recovered=False)
