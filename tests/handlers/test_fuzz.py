"""Bad input: at least 10,000 generated bodies per noun against the running control plane. Each gets a named answer; nothing breaks.

Most bodies are honest ones damaged in one to three places: fields missing, added, of another type, out of range. Of each command, a share
is no text, too deep, or too long, and a share is whole, about things that exist and are in all kinds of states. What is valid may be
carried out; what is never seen is silence, an ``internal`` error, growth, or an event that a refused body left behind.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.node import ScriptedNode
from support.waiting import eventually

from domain.kernel.command import MAX_BODY, MAX_DEPTH
from domain.kernel.registry import COMMANDS
from domain.views.commands import ViewRebuild
from projections.buslog import BusLog
from projections.projector import Projector
from projections.sqlite import SqliteStore
from projections.views import VIEWS

pytestmark = pytest.mark.slow

PER_NOUN = 10_000
IN_FLIGHT = 64
CODE = re.compile(r"[a-z-]+\.[a-z-]+")
HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    "",
    "x" * 300,
    "x" * 40_000,
    "../../etc/passwd",
    "a.b.>",
    "*",
    "\u0000",
    "\u202e\ud7ff",
    "{{.}}",
    "'; DROP TABLE nodes; --",
    "$(reboot)",
    [],
    {},
    [[]],
    ["x"] * 2000,
    {"a": {"b": {"c": {}}}},
    {f"k{n}": n for n in range(500)},
]


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


RAW: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b'{"a":1,}',
    b"\xff\xfe\x00",
    b'{"name":"\xc3\x28"}',
    b'{"cpu":NaN}',
    b'{"cpu":Infinity}',
    b'{"cpu":1e999}',
    deep(10),
    deep(20),
    deep(5000),
    b"[" * 100_000,
    b" " * 300_000,
    b'{"x":"' + b"y" * 300_000 + b'"}',
]


def bodies(command: type[Any], dice: random.Random, pool: dict[str, list[str]]) -> Iterator[bytes]:
    """Bodies for one command, for ever. ``pool``: ids that exist, by field."""
    yield from RAW
    fields = list(command.model_fields)
    while True:
        honest = {
            name: dice.choice(pool[name]) if name in pool and dice.random() < 0.5 else value for name, value in command.EXAMPLE.items()
        }
        honest.pop("wait_s", None)
        kind = dice.random()
        if kind < 0.05:
            yield orjson.dumps(honest)
        elif kind < 0.1:
            yield broken(orjson.dumps(honest), dice)
        else:
            yield orjson.dumps(damaged(honest, fields, dice), option=orjson.OPT_NON_STR_KEYS, default=str)


def damaged(honest: dict[str, Any], fields: list[str], dice: random.Random) -> dict[str, Any]:
    """Another body than the honest one; it may be valid all the same."""
    body = dict(honest)
    for _ in range(dice.randint(1, 3)):
        damage(body, fields, dice)
    body.pop("wait_s", None)
    if body in (honest, {}):
        body["extra"] = dice.choice(HOSTILE)
    return body


def broken(body: bytes, dice: random.Random) -> bytes:
    """No text, too deep, too long, or cut off; one in twenty of all bodies, and one in two hundred is long."""
    match dice.randrange(10):
        case 0:
            return body[:-1] + b" " * dice.randint(MAX_BODY - len(body) + 1, MAX_BODY) + body[-1:]
        case 1 | 2 | 3:
            levels = dice.randint(MAX_DEPTH, 3000)
            return body[:-1] + b',"deep":' + dice.choice([deep(levels), b"[" * levels + b"]" * levels]) + b"}"
        case 4:
            return body[: dice.randrange(len(body))]
        case _:
            at = dice.randrange(len(body))
            return body[:at] + dice.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\xf8\x88\x80\x80\x80"]) + body[at:]


def damage(body: dict[str, Any], fields: list[str], dice: random.Random) -> None:
    match dice.randrange(5):
        case 0 if body:
            body.pop(dice.choice(list(body)))
        case 1:
            body[f"extra_{dice.randrange(1000)}"] = dice.choice(HOSTILE)
        case 2 if body:
            key = dice.choice(list(body))
            value = body[key]
            body[key] = value[::-1] if isinstance(value, str) else [value]
        case _:
            body[dice.choice(fields)] = dice.choice(HOSTILE)


def nouns() -> dict[str, list[type[Any]]]:
    found: dict[str, list[type[Any]]] = {}
    for command in COMMANDS.values():
        found.setdefault(command.NOUN, []).append(command)
    return found


@dataclass
class Told:
    """What the bodies were answered with."""

    codes: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)


@pytest.mark.timeout(600)
def test_every_bad_body_gets_a_named_refusal(at: Callable[..., None], tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    told = Told()

    async def test(place: Any) -> None:
        await place.node.hello(cpu=16, sandboxes=16)  # what is valid is carried out: not too much of it
        served = {**place.plane._dispatcher.commands, ViewRebuild.wire_name(): ViewRebuild}
        store = place.plane.control.store
        first = await store.position()
        pool = await things(place)
        views = SqliteStore(tmp_path / "views.db")
        async with Projector(place.nc, views, BusLog(place.nc), VIEWS) as projector:
            await projector.caught_up()
            before = await store.position()
            await throw(place, served, 200, random.Random(seed), told, pool)  # the first of everything is what makes a process grow
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            thrown = await throw(place, served, PER_NOUN, random.Random(seed), told, pool)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        views.close()
        assert set(thrown) == set(nouns())
        assert min(thrown.values()) >= PER_NOUN, thrown
        codes = told.codes
        assert codes["internal"] == 0, codes
        assert codes["command.invalid"] > PER_NOUN, codes
        assert sum(count for code, count in codes.items() if code.endswith(("illegal-state", "in-use", "not-found"))) > PER_NOUN / 10, codes
        assert grown < 64 * 1024, f"{grown} KiB"
        assert await without_command(store, before, told.accepted) == []
        assert await store.position() - first < sum(codes.values()) / 5
        await still_works(place)

    try:
        at(test)
    except BaseException as error:
        error.add_note(f"seed {seed}: {sorted(told.codes.items())}")
        raise


async def things(place: Any) -> dict[str, list[str]]:
    """Things in many states, by the fields that name them: what whole bodies are about."""
    template = await place.template(alias="kept")
    unused = await place.template(memory_mb=64)
    running, paused, dead, origin = [await place.sandbox(template) for _ in range(4)]
    await place.do("sandbox.pause", {"sandbox_id": paused, "wait_s": 20})
    await place.do("sandbox.delete", {"sandbox_id": dead, "wait_s": 20})
    snapshot = (await place.do("snapshot.create", {"sandbox_id": origin, "name": "s", "wait_s": 20}))["snapshot_id"]
    for node in ("silent", "evicted"):
        await place.do("node.enroll", {"node_id": node})
    await place.do("node.evict", {"node_id": "evicted"})
    return {
        "template": ["kept", template, unused],
        "sandbox_id": [running, paused, dead, origin],
        "snapshot_id": [snapshot],
        "node_id": ["silent", "evicted"],  # not the one that does all the work
        "alias": ["kept", "other"],
        "view": ["sandboxes", "templates", "jobs"],
    }


async def without_command(store: Any, after: int, accepted: set[str]) -> list[str]:
    """Commits that neither an accepted command made, nor the system for one, nor a node."""
    found = []
    while page := await store.read_all(after):
        after = page[-1].seq
        found += [f"{c.seq} {c.type} {c.command} by {c.actor}" for c in page if c.actor == "local" and c.command not in accepted]
    return found


async def still_works(place: Any) -> None:
    """On a node of its own: what was accepted may have filled or cordoned the other one."""
    await place.do("node.enroll", {"node_id": "fresh"})
    async with ScriptedNode(place.nc, "fresh"):
        await eventually(lambda: "fresh" in {node.node_id for node in place.plane.control.fleet.healthy_nodes()}, within=30)
        template = await place.template(alias="fresh", nodes=["fresh"], memory_mb=96)
        await place.sandbox(template, node="fresh")


async def throw(
    place: Any, served: dict[str, type[Any]], per_noun: int, dice: random.Random, told: Told, pool: dict[str, list[str]]
) -> Counter[str]:
    """Send that many bodies per noun, shared out among its commands; how many it were."""
    thrown: Counter[str] = Counter()
    for noun, commands in nouns().items():
        here = [c for c in commands if c.wire_name() in served]
        for command in here:
            share = -(-per_noun // len(here))
            some = itertools.islice(bodies(command, dice, pool), share)
            await asyncio.gather(*(worker(place, command, some, told) for _ in range(IN_FLIGHT)))
            thrown[noun] += share
    return thrown


async def worker(place: Any, command: type[Any], share: Iterator[bytes], told: Told) -> None:
    subject = f"strand.v1.cmd.default.{command.NOUN}.{command.VERB}"
    for body in share:
        reply = orjson.loads((await place.nc.request(subject, body, timeout=30)).data)
        if reply["ok"]:
            told.codes["ok"] += 1
            told.accepted.add(reply["command_id"])
            continue
        code = reply["error"]["code"]
        told.codes[code] += 1
        assert code == "internal" or CODE.fullmatch(code), reply
        assert reply["error"]["message"], reply
        assert isinstance(reply["error"]["retryable"], bool), reply
