"""Real commits for the log: sandboxes, made by the domain and encoded as the store encodes them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from bus import subjects
from bus.append import Entry
from bus.commit import GENESIS, encode
from domain.kernel.aggregate import Aggregate, Event
from domain.kernel.command import Cause
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.nodes.orders import Capacity, DriverInfo, PortStatus, StepReport, StepState, Versions
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox
from domain.sandboxes.spec import ArtifactRef, Recipe, SandboxSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
TEMPLATE = "tpl-" + "0" * 24
ARTIFACT = ArtifactRef(artifact_id="rfs-" + "0" * 24, sha256="0" * 64, size_bytes=1 << 20)
VERSIONS = Versions(guest_image="1", agent="1", kernel="6.1")
STEPS = ("artifact", "root", "network", "logs", "start", "ready")


def spec() -> SandboxSpec:
    """What a usual sandbox is made of."""
    recipe = Recipe(cmd=("/bin/sleep", "infinity"), env={"PATH": "/usr/bin:/bin"}, ports=(8080,), memory_mb=256)
    return SandboxSpec(template_id=TEMPLATE, artifact=ARTIFACT, recipe=recipe)


def sandbox_id(number: int) -> str:
    return "sb-" + base64.b32encode(hashlib.sha256(str(number).encode()).digest()).decode().lower()[:20]


@dataclass
class Writer:
    """Turns what aggregates record into entries, with the chain of hashes; positions are given out as one log's only writer would."""

    seq: int = 0

    def __post_init__(self) -> None:
        self._heads: dict[str, tuple[str, int]] = {}
        self._commands = 0

    def entry(self, aggregate: Aggregate, at: datetime, project: str = "default") -> Entry:
        """The next commit of ``aggregate``: everything that it recorded since the last one."""
        self._commands += 1
        command = hashlib.sha256(f"c{self._commands}".encode()).hexdigest()[:32]
        subject = subjects.event(project, aggregate.TOPIC, aggregate.id)
        head, last = self._heads.get(subject, (GENESIS, 0))
        events: list[Event] = list(aggregate.collect_events())  # type: ignore[arg-type]  # the library's own event type
        cause = Cause(command, command, "local", project, at)
        data, commit_id, head = encode(aggregate.TOPIC, aggregate.id, events, cause, head)
        self.seq += 1
        self._heads[subject] = head, self.seq
        return Entry(subject, data, commit_id, last)


def created(count: int, size: int = 300) -> Iterator[Entry]:
    """``count`` first commits, each of one event with ``size`` bytes of data."""
    writer, bare = Writer(), Recipe()
    room = size - len(_data(SandboxSpec(template_id=TEMPLATE, artifact=ARTIFACT, recipe=bare, labels={"note": ""})))
    padded = SandboxSpec(template_id=TEMPLATE, artifact=ARTIFACT, recipe=bare, labels={"note": "x" * room})
    assert len(_data(padded)) == size
    for number in range(count):
        yield writer.entry(Sandbox.create(sandbox_id(number), START, padded, "node-1"), START)


def _data(what: SandboxSpec) -> bytes:
    (event,) = Sandbox.create(sandbox_id(0), START, what, "node-1").collect_events()
    return orjson.dumps(event.data())


def nodes(count: int) -> Iterator[Entry]:
    """``count`` nodes that were enrolled, described themselves and are online."""
    writer = Writer()
    for number in range(count):
        node = Node.create(f"node-{number + 1}", START)
        node.hello(START, "boot", VERSIONS, (DriverInfo(name="sim", version="1"),), Capacity(cpu=64, memory_mb=262_144), ("runner",), {})
        node.come_online(START)
        yield writer.entry(node, START, SYSTEM_PROJECT)


def lives(count: int, node: Callable[[int], str] = lambda number: f"node-{number % 100 + 1}") -> Iterator[Entry]:
    """``count`` sandboxes that were created, provisioned step by step, and run: four commits, six events each."""
    writer = Writer()
    for number in range(count):
        at = START + timedelta(seconds=number)
        sandbox = Sandbox.create(sandbox_id(number), at, spec(), node(number))
        yield writer.entry(sandbox, at)
        provisioning = Provisioning.create(sandbox.id, at, sandbox.node_id, 1, STEPS)
        yield writer.entry(provisioning, at)
        provisioning.record_steps(at, 1, 0, tuple(_steps(at)))
        provisioning.complete(at, 1)
        yield writer.entry(provisioning, at)
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        sandbox.mark_running(at, 1, "sim", address, (PortStatus(port=8080, address=address),))
        yield writer.entry(sandbox, at)


def _steps(at: datetime) -> Iterator[StepReport]:
    for step in STEPS:
        yield StepReport(step=step, state=StepState.STARTED, at=at)
        yield StepReport(step=step, state=StepState.DONE, at=at, output=_output(step))


def _output(step: str) -> dict[str, Any]:
    return {"address": "10.0.0.1"} if step == "network" else {}
