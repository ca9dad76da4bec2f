"""Whoever changes, drops, repeats or moves a stored commit is found out, at the place."""

from __future__ import annotations

import hashlib

import orjson
import pytest
from support.bus import connected
from support.things import PROJECT, Counter, adding, cause
from support.waiting import run

from bus.direct import Reader, Stored
from bus.store import Store
from bus.verify import verify_log, verify_messages
from domain.kernel.command import canonical

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def messages(shared_server) -> list[Stored]:
    """A log of twelve commits of three counters."""

    async def scenario() -> list[Stored]:
        async with connected(shared_server) as nc:
            store = await Store.open(nc)
            for i in range(12):
                name = "abc"[i % 3]
                await store.transact(Counter, PROJECT, name, adding(1, name), cause(f"c{i}", tick=i))
            whole, part = await verify_log(nc), await verify_log(nc, id="b")
            assert (whole.ok, whole.commits, whole.events, whole.aggregates, whole.seq) == (True, 12, 15, 3, 12)
            assert (part.ok, part.commits, part.aggregates) == (True, 4, 1)
            reader = Reader(store.publisher, "EVENTS")
            found = [message async for message in reader.all("strand.evt.>")]
            await reader.close()
            await store.close()
            return found

    return run(scenario())


def places(messages) -> list[tuple[int, str]]:
    return [(finding.seq, finding.what) for finding in verify_messages(messages).findings]


def forged(message: Stored, **changes) -> Stored:
    """Changed, by somebody who knows how hashes are made."""
    body = orjson.loads(message.data) | changes
    del body["hash"]
    return message._replace(data=canonical(body | {"hash": hashlib.sha256(canonical(body)).hexdigest()}))


def test_an_untouched_log_has_nothing_to_find(messages):
    assert places(messages) == []


def test_one_changed_byte_is_found_at_its_commit(messages):
    messages = [*messages]
    messages[4] = messages[4]._replace(data=messages[4].data.replace(b'"amount":1', b'"amount":9'))
    ((seq, what),) = places(messages)
    assert seq == 5
    assert "does not match its hash" in what


def test_a_commit_that_was_rewritten_with_a_fitting_hash_is_found_at_the_next_one(messages):
    messages = [*messages]
    messages[4] = forged(messages[4], actor="somebody else")
    ((seq, what),) = places(messages)
    assert seq == 8
    assert "does not follow the commit before it" in what


def test_a_missing_message_is_found_as_a_gap_and_as_a_break(messages):
    found = places(messages[:4] + messages[5:])
    assert (6, "messages 5 to 5 are missing") in found
    assert any(seq == 8 and "does not follow" in what for seq, what in found)


def test_two_commits_in_each_others_place_are_found(messages):
    one, two = messages[4], messages[7]
    swapped = [*messages]
    swapped[4], swapped[7] = two._replace(seq=one.seq), one._replace(seq=two.seq)
    assert {seq for seq, _ in places(swapped)} >= {5, 8}


def test_a_commit_under_another_aggregates_subject_is_found(messages):
    first = messages[0]
    ((seq, what),) = places([first._replace(subject="strand.evt.default.counter.z")])
    assert (seq, what) == (1, "it belongs to counter a of default")


def test_what_is_no_commit_at_all_is_found_and_the_rest_is_still_checked(messages):
    ruined = [*messages]
    ruined[0] = ruined[0]._replace(data=b"{}")
    verdict = verify_messages(ruined)
    assert verdict.findings[0].seq == 1
    assert verdict.commits == 11


def test_a_command_that_acted_twice_is_found(messages):
    assert places([*messages[:3], forged(messages[3], command="c0")]) == [(4, "command c0 acted before")]
