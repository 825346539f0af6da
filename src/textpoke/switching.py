# SPDX-License-Identifier: Apache-2.0
"""Planned sites switched on and off in batches, with threads in the way."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from textpoke._errors import AgentFailed, BatchFailed, BatchRefused
from textpoke.engine import run_request
from textpoke.poke import Request, poke_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textpoke._errors import TextpokeError
    from textpoke.agent import Agent
    from textpoke.model import Site
    from textpoke.modes import Mode
    from textpoke.plan import Plan
    from textpoke.poke import Outcome, Poke

_OFF_TRIES = 10
_BUSY_TRIES = 20
_BUSY_PAUSE_S = 0.005
_INSIDE = "a thread stands among its first instructions and does not leave"


def settle(
    agent: Agent, plan: Plan, outcome: Outcome, mode: Mode
) -> tuple[Plan, list[tuple[Site, str]]]:
    """Try again, for a while, the sites that a thread stood inside of; then leave them out.

    Returns:
        What is on, and what was left out.
    """
    busy = list(outcome.left)
    on = sorted(set(range(len(plan.sites))).difference(busy))
    for _ in range(_BUSY_TRIES):
        if not busy:
            break
        time.sleep(_BUSY_PAUSE_S)
        request = Request.of(poke_of(plan.sites[i], on=True) for i in busy)
        again = run_request(agent, request, mode=mode, all_or_nothing=False, leave_busy=True)
        on += [i for k, i in enumerate(busy) if k not in again.left]
        busy = [busy[k] for k in again.left]
    refused = [(plan.sites[i].site, _INSIDE) for i in busy]
    return replace(plan, sites=[plan.sites[i] for i in sorted(on)]), refused


def switch_off(agent: Agent, pokes: Iterable[Poke], mode: Mode) -> tuple[Outcome | None, int]:
    """Put sites back; those whose module is gone, or that others hold now, are left.

    Returns:
        The outcome of the batch, None when it could not be run on all; and how many were left.
    """
    request, left = Request.of(pokes), 0
    failure: TextpokeError | None = None
    for _ in range(_OFF_TRIES):
        try:
            # Several instructions that come back cannot be taken away again: threads run there.
            return run_request(agent, request, mode=mode, all_or_nothing=False), left
        except (BatchRefused, BatchFailed) as exc:
            if not getattr(exc, "recovered", True):
                raise
            failure = exc
        states = [(poke, held(agent, poke)) for poke in request.pokes]
        done = isinstance(failure, BatchFailed)  # some of them; a refused batch wrote nothing
        left += sum(now != poke.old and not (done and now == poke.new) for poke, now in states)
        request = Request.of(poke for poke, now in states if now == poke.old)
    if failure is not None:
        raise failure
    return None, left


def held(agent: Agent, poke: Poke) -> bytes:
    """What stands at the place of a poke; b"" where nothing is mapped."""
    try:
        return agent.read(poke.address, len(poke.old or b""))
    except AgentFailed:
        return b""
