# SPDX-License-Identifier: Apache-2.0
"""The Python API: batches of one's own, and the seed's layer clause by clause."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear_until_end, tell, untouched, wait_until

import textpoke

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from conftest import Compile, Start

    from textpoke import Outcome, Site, Target

FUNCTIONS = 8
STEP = 32
NOP5 = bytes.fromhex("0f 1f 44 00 00")
OTHER_NOP5 = bytes.fromhex("0f 1f 44 00 08")
OLD = [*range(FUNCTIONS)]
NEW = [100 + i for i in OLD]


@dataclasses.dataclass(frozen=True)
class Pokes:
    """tests/targets/pokes.c, attached: f0..f7 can be turned into jumps to r0..r7."""

    process: subprocess.Popen[str]
    target: Target
    old: int
    new: int
    handlers: int
    is_handled: int

    def address(self, i: int) -> int:
        return self.old + i * STEP

    def jump(self, i: int) -> bytes:
        return b"\xe9" + struct.pack("<i", self.new + i * STEP - (self.address(i) + 5))

    def handler(self, i: int) -> int:
        return self.handlers + i * STEP

    def results(self) -> list[int]:
        return [int(word) for word in ask(self.process, "ask").split()]

    def records(self, *which: int) -> textpoke.TextPokeIter[int]:
        """A TextPokeIter over function numbers that turns them on."""
        return textpoke.TextPokeIter(
            init=which or OLD,
            length=5,
            get_addr=self.address,
            get_opcode=self.jump,
            get_old_opcode=lambda _: NOP5,
        )

    def poke(self, records: textpoke.TextPokeIter[int]) -> Outcome:
        return textpoke.text_poke_bp_list(self.target.agent, records)


@pytest.fixture
def pokes(compile_target: Compile, start_target: Start) -> Iterator[Pokes]:
    program = compile_target("pokes.c", "-fPIE", "-pie")
    process = start_target(program)
    places = [int(word) for word in ask(process, "where").split()]
    ask(process, "hot 2")
    tell(process, "stop")
    hear_until_end(process)  # libc keeps the stacks
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            yield Pokes(process, target, *places)
        assert target.report is not None
        assert target.report.residue == []
    assert ask(process, "ask") == " ".join(map(str, OLD))


def test_sites_are_found_by_module_and_glob(pokes: Pokes) -> None:
    sites = pokes.target.sites("pokes*!f[0-3]")
    assert [site.function for site in sites] == ["f0", "f1", "f2", "f3"]
    assert [site.address for site in sites] == [pokes.address(i) for i in range(4)]
    assert {site.old for site in sites} == {NOP5}
    assert pokes.target.sites("f?", ["f[1-7]"]) == sites[:1]
    with pytest.raises(textpoke.UnknownFunction, match="f8"):
        pokes.target.sites("f8")


def queue(pokes: Pokes, batch: textpoke.Batch, sites: list[Site]) -> None:
    for i, site in enumerate(sites):
        batch.queue(site, new=pokes.jump(i), old=site.old)


def test_a_batch_changes_all_its_sites(pokes: Pokes) -> None:
    sites = pokes.target.sites("f*")
    with pokes.target.batch() as batch:
        queue(pokes, batch, sites)
        assert pokes.results() == OLD
    assert pokes.results() == NEW
    assert batch.outcome is not None
    assert (batch.outcome.sites, batch.outcome.finished) == (FUNCTIONS, FUNCTIONS)
    assert (batch.outcome.syncs, batch.outcome.pages, batch.outcome.writes) == (3, 1, 3)
    with pokes.target.batch() as back:
        for i, site in enumerate(sites):
            back.queue(site, new=site.old, old=pokes.jump(i))
    assert pokes.results() == OLD


def test_a_batch_may_be_queued_in_any_order(pokes: Pokes) -> None:
    with pokes.target.batch() as batch:
        for i in (5, 0, 7, 2, 6, 1, 4, 3):
            batch.queue(pokes.address(i), new=pokes.jump(i), old=NOP5)
    assert pokes.results() == NEW


def test_one_by_one_costs_a_protocol_run_a_site(pokes: Pokes) -> None:
    with pokes.target.batch(one_by_one=True) as batch:
        queue(pokes, batch, pokes.target.sites("f*"))
    assert pokes.results() == NEW
    assert batch.outcome is not None
    assert (batch.outcome.syncs, batch.outcome.writes) == (3 * FUNCTIONS, 3 * FUNCTIONS)


def test_sites_that_are_known_are_not_learned_again(pokes: Pokes) -> None:
    """A run of the engine changes the table's generation twice; a new table would do so, too."""
    sites, agent = pokes.target.sites("f*"), pokes.target.agent

    def turn(chosen: list[Site], *, on: bool, one_by_one: bool) -> int:
        before = agent.image().known_generation
        with pokes.target.batch(one_by_one=one_by_one) as batch:
            for site in chosen:
                jump = pokes.jump(sites.index(site))
                new, old = (jump, site.old) if on else (site.old, jump)
                batch.queue(site, new=new, old=old)
        return int(agent.image().known_generation - before)

    assert turn(sites[2:], on=True, one_by_one=False) == 4
    assert turn(sites[2:], on=False, one_by_one=True) == 2 * (FUNCTIONS - 2)
    assert turn(sites[4:6], on=True, one_by_one=False) == 2  # from the midst of the table
    assert turn(sites[:1], on=True, one_by_one=False) == 4  # before its first
    assert turn([sites[0], *sites[4:6]], on=False, one_by_one=True) == 6
    assert pokes.results() == OLD


def test_an_exception_in_the_block_drops_the_batch(pokes: Pokes) -> None:
    batch = pokes.target.batch()

    def fail() -> None:
        with batch:
            queue(pokes, batch, pokes.target.sites("f*"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert batch.outcome is None
    assert pokes.results() == OLD


def test_a_site_without_opcodes_is_skipped_and_counted(pokes: Pokes) -> None:
    with pokes.target.batch() as batch:
        for i, site in enumerate(pokes.target.sites("f*")):
            present = i % 2 == 0
            new, old = (pokes.jump(i), NOP5) if present else (None, None)
            batch.queue(site, new=new, old=old)
    assert batch.outcome is not None
    assert (batch.outcome.sites, batch.outcome.finished) == (FUNCTIONS, FUNCTIONS)
    assert pokes.results() == [NEW[i] if i % 2 == 0 else OLD[i] for i in OLD]


@pytest.mark.parametrize("which", ["new", "old"])
def test_one_opcode_without_the_other_is_refused(pokes: Pokes, which: str) -> None:
    batch = pokes.target.batch()
    queue(pokes, batch, pokes.target.sites("f[0-3]"))
    new = pokes.jump(7) if which == "new" else None
    batch.queue(pokes.address(7), new=new, old=None if new else NOP5)
    with pytest.raises(textpoke.BatchRefused, match="together"):
        batch.commit()
    assert pokes.results() == OLD


def test_other_bytes_than_expected_are_refused_with_all_facts(pokes: Pokes) -> None:
    batch = pokes.target.batch()
    site = pokes.target.sites("f5")[0]
    queue(pokes, batch, pokes.target.sites("f[0-3]"))
    batch.queue(site, new=pokes.jump(5), old=OTHER_NOP5)
    with pytest.raises(textpoke.BytesDiffer) as caught:
        batch.commit()
    refusal = caught.value
    assert refusal.address == site.address
    assert refusal.symbol == str(site)
    assert refusal.expected == OTHER_NOP5
    assert refusal.found == NOP5
    assert pokes.results() == OLD


def test_foreign_bytes_are_told_with_their_probable_owner(pokes: Pokes) -> None:
    with pokes.target.batch() as batch:
        batch.queue(pokes.address(1), new=pokes.jump(1), old=NOP5)
    with pytest.raises(textpoke.BytesDiffer, match=r"probably a hook \(jmp\)") as caught:
        textpoke.text_poke_bp_list(pokes.target.agent, pokes.records())
    assert caught.value.found == pokes.jump(1)


def test_unreadable_memory_is_refused(pokes: Pokes) -> None:
    batch = pokes.target.batch()
    queue(pokes, batch, pokes.target.sites("f*"))
    batch.queue(0x1000, new=pokes.jump(0), old=NOP5)
    with pytest.raises(textpoke.BatchRefused, match="Bad address"):
        batch.commit()
    assert pokes.results() == OLD


@pytest.mark.parametrize(
    ("offset", "why"),
    [(0, "overlap"), (2, "overlap"), (STEP + 5, "emulated")],
    ids=["twice", "overlapping", "not emulated"],
)
def test_a_site_that_cannot_be_poked_refuses_the_batch(pokes: Pokes, offset: int, why: str) -> None:
    """At STEP + 5 stands `mov $1, %eax`, and no trapped thread could do that."""
    batch = pokes.target.batch()
    batch.queue(pokes.address(0), new=pokes.jump(0), old=NOP5)
    address = pokes.address(0) + offset
    batch.queue(address, new=b"\xb8\7\0\0\0", old=pokes.target.agent.read(address, 5))
    with pytest.raises(textpoke.BatchRefused, match=why):
        batch.commit()
    assert pokes.results() == OLD


def test_what_a_refused_batch_believed_is_not_what_a_detach_restores(pokes: Pokes) -> None:
    site = pokes.target.sites("f5")[0]
    batch = pokes.target.batch()
    batch.queue(site, new=pokes.jump(5), old=OTHER_NOP5)
    with pytest.raises(textpoke.BytesDiffer):
        batch.commit()
    with pokes.target.batch() as batch:
        batch.queue(site, new=pokes.jump(5), old=NOP5)
    assert pokes.results() == [*OLD[:5], NEW[5], *OLD[6:]]


@pytest.mark.parametrize("all_or_nothing", [True, False])
def test_a_failing_write_puts_every_site_back(pokes: Pokes, all_or_nothing: bool) -> None:
    sites = pokes.target.sites("f*")
    shared = int(ask(pokes.process, "shared"))
    batch = pokes.target.batch(all_or_nothing=all_or_nothing)
    queue(pokes, batch, sites)
    batch.queue(shared, new=pokes.jump(0), old=NOP5)
    with pytest.raises(textpoke.BatchFailed) as caught:
        batch.commit()
    failure = caught.value
    assert failure.phase == "int3"
    assert failure.fail_addr == shared
    assert failure.fail_count == (FUNCTIONS if shared > pokes.old else 0)
    assert failure.recovered
    assert pokes.results() == OLD
    with pokes.target.batch() as again:  # the engine works on
        queue(pokes, again, sites)
    assert pokes.results() == NEW
    tell(pokes.process, "unshare")


def test_text_poke_bp_changes_one_instruction(pokes: Pokes) -> None:
    address, handler = pokes.address(3), pokes.handler(3)
    outcome = textpoke.text_poke_bp(pokes.target.agent, address, pokes.jump(3), handler)
    assert (outcome.sites, outcome.finished, outcome.syncs) == (1, 1, 3)
    assert pokes.results() == [*OLD[:3], NEW[3], *OLD[4:]]


def test_a_thread_that_traps_continues_at_the_handler(pokes: Pokes) -> None:
    assert ask(pokes.process, "hot 2") == "hot"
    trapped = 0
    agent = pokes.target.agent

    def toggle() -> bool:
        nonlocal trapped
        for opcode in (pokes.jump(3), NOP5):
            outcome = textpoke.text_poke_bp(agent, pokes.address(3), opcode, pokes.handler(3))
            trapped += outcome.traps
        return trapped > 0

    wait_until(toggle, "a thread has trapped")
    tell(pokes.process, "stop")
    rows = hear_until_end(pokes.process)
    assert sum(row[2] for row in rows) > 0
    assert [row[3] for row in rows] == [0, 0]


def test_without_a_handler_a_trapped_thread_does_what_it_met(pokes: Pokes) -> None:
    assert ask(pokes.process, "hot 2") == "hot"
    trapped = 0

    def toggle() -> bool:
        nonlocal trapped
        for old, new in ((lambda _: NOP5, pokes.jump), (pokes.jump, lambda _: NOP5)):
            records = pokes.records()
            records.get_old_opcode, records.get_opcode = old, new
            trapped += pokes.poke(records).traps
        return trapped > 0

    wait_until(toggle, "a thread has trapped")
    tell(pokes.process, "stop")
    rows = hear_until_end(pokes.process)
    assert [row[2:] for row in rows] == [[0, 0], [0, 0]]


def test_iter_takes_any_iterable(pokes: Pokes) -> None:
    records = pokes.records()
    records.init = (i for i in (6, 1))
    outcome = pokes.poke(records)
    assert (outcome.sites, outcome.finished) == (2, 2)
    assert pokes.results() == [0, 101, 2, 3, 4, 5, 106, 7]


def test_iter_walks_by_start_and_next(pokes: Pokes) -> None:
    calls: list[object] = []

    def start(cookie: object) -> int:
        calls.append(cookie)
        return 2

    def following(i: int) -> int | None:
        calls.append(i)
        return i + 1 if i < 4 else None

    records = dataclasses.replace(pokes.records(), init="cookie", start=start, next=following)
    assert pokes.poke(records).sites == 3
    assert calls == ["cookie", 2, 3, 4]
    assert pokes.results() == [0, 1, 102, 103, 104, 5, 6, 7]


def test_iter_that_starts_with_nothing_is_an_empty_batch(pokes: Pokes) -> None:
    records = dataclasses.replace(pokes.records(), start=lambda _: None, next=lambda _: None)
    outcome = pokes.poke(records)
    assert (outcome.sites, outcome.finished, outcome.writes) == (0, 0, 0)


def test_iter_length_may_differ_by_record(pokes: Pokes) -> None:
    lengths = {0: 5, 1: 7}
    tail = pokes.target.agent.read(pokes.address(1) + 5, 2)
    assert tail == b"\xb8\x01"  # the first bytes of the next instruction: two instructions
    records = dataclasses.replace(pokes.records(0), length=lambda i: lengths[i])
    assert pokes.poke(records).sites == 1
    records = dataclasses.replace(pokes.records(1), length=lambda i: lengths[i])
    with pytest.raises(textpoke.BatchRefused, match="the length is 7"):
        pokes.poke(records)
    assert pokes.results() == [100, *OLD[1:]]


def test_iter_none_is_already_there_and_finished_too(pokes: Pokes) -> None:
    finished: list[int] = []
    records = dataclasses.replace(
        pokes.records(),
        get_opcode=lambda i: pokes.jump(i) if i > 5 else None,
        get_old_opcode=lambda i: NOP5 if i > 5 else None,
        finish=finished.append,
    )
    outcome = pokes.poke(records)
    assert (outcome.sites, outcome.finished) == (FUNCTIONS, FUNCTIONS)
    assert finished == OLD
    assert pokes.results() == [0, 1, 2, 3, 4, 5, 106, 107]


def test_iter_none_for_all_writes_nothing(pokes: Pokes) -> None:
    finished: list[int] = []
    records = dataclasses.replace(
        pokes.records(),
        get_opcode=lambda _: None,
        get_old_opcode=lambda _: None,
        finish=finished.append,
    )
    outcome = pokes.poke(records)
    assert (outcome.sites, outcome.finished, outcome.writes) == (FUNCTIONS, FUNCTIONS, 0)
    assert finished == OLD


def test_iter_finish_is_called_once_a_record_in_their_order(pokes: Pokes) -> None:
    finished: list[int] = []

    def finish(i: int) -> None:
        assert pokes.results()[i] == NEW[i]
        finished.append(i)

    records = dataclasses.replace(pokes.records(4, 2, 6), finish=finish)
    pokes.poke(records)
    assert finished == [4, 2, 6]


def test_iter_finish_that_fails_names_its_record(pokes: Pokes) -> None:
    finished: list[int] = []

    def finish(i: int) -> int:
        finished.append(i)
        return i == 2

    records = dataclasses.replace(pokes.records(4, 2, 6), finish=finish)
    with pytest.raises(textpoke.BatchFailed) as caught:
        pokes.poke(records)
    assert caught.value.phase == "finish"
    assert (caught.value.fail_count, caught.value.fail_addr) == (1, pokes.address(2))
    assert (records.fail_count, records.fail_addr) == (1, pokes.address(2))
    assert finished == [4, 2]


def test_iter_refusal_names_the_address_and_calls_no_finish(pokes: Pokes) -> None:
    finished: list[int] = []
    records = dataclasses.replace(
        pokes.records(),
        get_old_opcode=lambda i: NOP5 if i != 4 else OTHER_NOP5,
        finish=finished.append,
    )
    with pytest.raises(textpoke.BytesDiffer):
        pokes.poke(records)
    assert (records.fail_count, records.fail_addr) == (4, pokes.address(4))
    assert finished == []
    assert pokes.results() == OLD


def test_iter_failure_tells_count_and_address_within_the_phase(pokes: Pokes) -> None:
    shared = int(ask(pokes.process, "shared"))
    finished: list[int] = []
    addresses = {**{i: pokes.address(i) for i in OLD}, FUNCTIONS: shared}
    records = dataclasses.replace(
        pokes.records(*addresses),
        get_addr=addresses.__getitem__,
        get_opcode=lambda _: pokes.jump(0),
        finish=finished.append,
    )
    with pytest.raises(textpoke.BatchFailed) as caught:
        pokes.poke(records)
    assert caught.value.phase == "int3"
    assert records.fail_addr == caught.value.fail_addr == shared
    assert records.fail_count == caught.value.fail_count
    assert finished == []
    assert pokes.results() == OLD
    tell(pokes.process, "unshare")


def test_is_handled_may_be_the_targets_own_function(pokes: Pokes) -> None:
    assert ask(pokes.process, "hot 2") == "hot"

    def toggle() -> bool:
        for old, new in ((lambda _: NOP5, pokes.jump), (pokes.jump, lambda _: NOP5)):
            records = dataclasses.replace(
                pokes.records(), get_old_opcode=old, get_opcode=new, is_handled=pokes.is_handled
            )
            pokes.poke(records)
        return int(ask(pokes.process, "handled")) > 0

    wait_until(toggle, "is_handled was asked")
    tell(pokes.process, "stop")
    rows = hear_until_end(pokes.process)
    assert [row[2:] for row in rows] == [[0, 0], [0, 0]]


def test_a_program_can_be_its_own_target_of_pokes_again_after_detach(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("pokes.c", *programs.PIE))
    for _ in range(5):
        with textpoke.attach(process.pid) as target, target.batch() as batch:
            for site in target.sites("f*"):
                batch.queue(site, new=b"\xe9" + struct.pack("<i", 0), old=site.old)
        assert ask(process, "ask") == " ".join(map(str, OLD))


def test_what_no_trapped_thread_can_be_sent_on_from_is_undone_all_the_same(pokes: Pokes) -> None:
    """A handler made the poke possible, and an undo has none: it takes stop mode."""
    move = b"\xb8" + struct.pack("<i", 100)  # mov $100, %eax instead of mov $0, %eax
    textpoke.text_poke_bp(pokes.target, pokes.address(0) + len(NOP5), move, pokes.handler(0))
    assert pokes.results() == [100, *OLD[1:]]
    report = pokes.target.detach()
    assert report.residue == []
    assert report.outcome is not None
    assert [choice.mode for choice in report.outcome.choices] == [textpoke.Mode.STOP]
