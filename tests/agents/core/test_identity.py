"""Tokens of sandboxes: asked for at the beginning, put inside when there is an inside, renewed, and not for ever."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from support.records import record

from agents.drivers.driver import Handle, RuntimeFault
from agents.identity import Identities
from agents.node import Drivers
from bus.identity import Token
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick
ISSUER = "https://issuer.example"


class Inside:
    """A driver that remembers the tokens that it was given. ``fails``: so often it cannot."""

    def __init__(self):
        self.given = []
        self.fails = 0

    async def give_identity(self, handle, token):
        if self.fails:
            self.fails -= 1
            raise RuntimeFault("identity.not-given", "told to fail")
        self.given.append((handle.generation, token))


class Bench:
    """A node with one sandbox, and an issuer that numbers its tokens. ``life_s``: how long they hold."""

    def __init__(self, life_s=3600.0):
        self.driver = Inside()
        self.sandboxes = {}
        self.asked = []
        self.refuses = 0
        self.life = timedelta(seconds=life_s)
        self.node = SimpleNamespace(
            memory=SimpleNamespace(sandboxes=self.sandboxes),
            drivers=Drivers({"sim": self.driver}),
            find=self.sandboxes.get,
            handle=lambda known: Handle("sim", known.id, known.generation),
        )
        self.identities = Identities(self.node, self.ask, pause_s=0.01)

    async def ask(self, project, sandbox):
        if self.refuses:
            self.refuses -= 1
            raise Refused("bus.unavailable", "told to refuse", retryable=True)
        self.asked.append((project, sandbox))
        now = datetime.now(UTC)
        return Token(f"token-{len(self.asked)}", now, now + self.life)

    def put(self, condition, generation=0, issuer=ISSUER):
        self.sandboxes["sb-1"] = record(condition, generation=generation, issuer=issuer).model_copy(update={"id": "sb-1"})
        self.identities.changed("sb-1")

    def drop(self):
        del self.sandboxes["sb-1"]
        self.identities.changed("sb-1")


@asynccontextmanager
async def bench(**more):
    made = Bench(**more)
    try:
        yield made
    finally:
        await made.identities.close()


def test_a_token_is_asked_for_while_a_sandbox_starts_and_given_when_it_runs(run, eventually):
    async def scenario():
        async with bench() as b:
            b.put("starting")
            await eventually(lambda: b.asked == [("default", "sb-1")])
            assert b.driver.given == []
            b.put("running")
            await eventually(lambda: b.driver.given == [(0, "token-1")])
            b.put("paused")
            b.put("replacing", generation=1)
            b.put("running", generation=1)
            await eventually(lambda: b.driver.given == [(0, "token-1"), (1, "token-1")])
            b.drop()
            await eventually(lambda: not b.identities._keeping)
            assert len(b.asked) == 1

    run(scenario())


def test_a_token_is_replaced_before_it_expires_until_the_sandbox_ends(run, eventually):
    async def scenario():
        async with bench(life_s=0.1) as b:
            b.put("running")
            await eventually(lambda: (0, "token-3") in b.driver.given)
            b.put("exited")
            await eventually(lambda: not b.identities._keeping)

    run(scenario())


def test_what_fails_is_tried_again(run, eventually):
    async def scenario():
        async with bench() as b:
            b.refuses, b.driver.fails = 2, 2
            b.put("running")
            await eventually(lambda: b.driver.given == [(0, "token-1")])

    run(scenario())


def test_the_next_agent_renews_and_a_sandbox_without_an_issuer_has_none(run, eventually):
    async def scenario():
        async with bench() as b:
            b.put("running", issuer="")
            assert not b.identities._keeping
            b.sandboxes["sb-1"] = b.sandboxes["sb-1"].model_copy(update={"issuer": ISSUER})
            b.identities.start()
            await eventually(lambda: b.driver.given == [(0, "token-1")])

    run(scenario())
