"""One server and three answer a repeated append differently; the store must not notice (reference/jetstream-eventstore.md §1.1)."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from support.bus import connected
from support.faults import FaultyPublisher
from support.waiting import run

from bus.append import Appender, ConflictError, Entry
from bus.direct import Reader
from bus.fast import open_publisher
from bus.server import Cluster, Server
from domain.kernel.errors import Refused

FAULTS = pytest.mark.parametrize("fault", ["none", "lose", "drop-ack", "twice", "late"])
_numbers = itertools.count()


@pytest.fixture(scope="module", params=[pytest.param(Server, id="R1"), pytest.param(Cluster, id="R3", marks=pytest.mark.slow)])
def bus(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("nats")) as started:
        yield started


def entry(name: str, expect: int, body: str = "body", commit: str | None = None) -> Entry:
    return Entry(f"strand.evt.p.counter.{name}", body.encode(), commit or f"{name}-{body}", expect)


@pytest.fixture
def name() -> str:
    """A subject that no other test of the module uses."""
    return f"c{next(_numbers)}"


def appending(bus, body):
    async def scenario() -> None:
        async with connected(bus) as nc:
            publisher = FaultyPublisher(open_publisher(nc))
            reader = Reader(publisher, "EVENTS")
            await body(Appender(publisher, reader, 10), publisher, reader)
            await reader.close()
            await publisher.close()

    run(scenario())


async def bodies(reader: Reader, name: str) -> list[str]:
    last = await reader.leader_last(f"strand.evt.p.counter.{name}")
    found = [message async for message in reader.all(f"strand.evt.p.counter.{name}")]
    while last and found[-1].seq < last.seq:
        found = [message async for message in reader.all(f"strand.evt.p.counter.{name}")]
    return [message.data.decode() for message in found]


@FAULTS
def test_a_commit_is_stored_once_and_its_position_is_known(bus, name, fault):
    async def body(appender, publisher, reader) -> None:
        (first,) = await appender.append([entry(name, 0, "one")])
        publisher.faults.extend([fault, fault])
        (second,) = await appender.append([entry(name, first, "two")])
        assert (await reader.leader_at(second)).data == b"two"
        assert await bodies(reader, name) == ["one", "two"]

    appending(bus, body)


@FAULTS
def test_a_batch_is_stored_once_and_its_positions_are_known(bus, name, fault):
    async def body(appender, publisher, reader) -> None:
        (first,) = await appender.append([entry(name, 0, "one")])
        publisher.faults.extend([fault, fault])
        seqs = await appender.append([entry(f"{name}x", 0, "x"), entry(name, first, "two"), entry(f"{name}y", 0, "y")])
        assert [(await reader.leader_at(seq)).data for seq in seqs] == [b"x", b"two", b"y"]
        assert await bodies(reader, name) == ["one", "two"]

    appending(bus, body)


def test_somebody_elses_commit_in_the_place_is_a_conflict_that_says_where_the_log_is(bus, name):
    async def body(appender, _publisher, reader) -> None:
        (first,) = await appender.append([entry(name, 0, "one")])
        (second,) = await appender.append([entry(name, first, "two")])
        with pytest.raises(ConflictError) as conflict:
            await appender.append([entry(name, first, "mine")])
        assert conflict.value.seqs == [second]
        with pytest.raises(ConflictError) as conflict:
            await appender.append([entry(f"{name}x", 0), entry(name, first, "mine")])
        assert conflict.value.seqs == [0, second]
        assert await bodies(reader, name) == ["one", "two"]
        assert await reader.leader_last(f"strand.evt.p.counter.{name}x") is None

    appending(bus, body)


def test_the_same_commit_with_another_body_is_a_conflict_not_a_success(bus, name):
    async def body(appender, _publisher, reader) -> None:
        (first,) = await appender.append([entry(name, 0, "decided at noon", "same")])
        with pytest.raises(ConflictError) as conflict:
            await appender.append([entry(name, 0, "decided at one", "same")])
        assert conflict.value.seqs == [first]
        with pytest.raises(ConflictError):
            await appender.append([entry(name, 0, "decided at one", "same"), entry(f"{name}x", 0)])
        assert await bodies(reader, name) == ["decided at noon"]

    appending(bus, body)


def test_of_many_writers_in_one_place_exactly_one_wins(bus, name):
    async def body(appender, _publisher, reader) -> None:
        outcomes = await asyncio.gather(*[appender.append([entry(name, 0, f"b{i}")]) for i in range(40)], return_exceptions=True)
        won = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
        assert len(won) == 1
        assert all(isinstance(outcome, ConflictError) for i, outcome in enumerate(outcomes) if i not in won)
        assert await bodies(reader, name) == [f"b{won[0]}"]

    appending(bus, body)


def test_the_same_commit_sent_by_many_at_once_is_everybodys_success(bus, name):
    async def body(appender, _publisher, reader) -> None:
        outcomes = await asyncio.gather(*[appender.append([entry(name, 0)]) for _ in range(20)])
        assert len({tuple(seqs) for seqs in outcomes}) == 1
        assert await bodies(reader, name) == ["body"]

    appending(bus, body)


def test_patience_ends_and_says_so(bus, name):
    async def body(_appender, publisher, reader) -> None:
        hurried = Appender(publisher, reader, 0.1)
        publisher.faults.extend(["lose"] * 100)
        with pytest.raises(Refused) as refused:
            await hurried.append([entry(name, 0)])
        assert (refused.value.code, refused.value.retryable) == ("bus.unavailable", True)
        assert await reader.leader_last(f"strand.evt.p.counter.{name}") is None

    appending(bus, body)
