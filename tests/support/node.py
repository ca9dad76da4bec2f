"""A node that does what it is told at once, and has no host: it speaks the real lane and the real reports, and remembers what it did.

For tests of the control plane alone; the real agent is tested against the same orders in tests/agents and end to end.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from bus import chunks
from bus.heartbeat import beat
from bus.lanes import LaneReader
from bus.objects import put_file
from bus.reports import report
from bus.subjects import ARTIFACTS_BUCKET
from domain.nodes.orders import (
    Capacity,
    DriverInfo,
    Failure,
    NodeHello,
    Observation,
    Order,
    Report,
    ReportKind,
    Verb,
    Versions,
)

DIGEST = "sha256:" + "1" * 64
DISK = "sha256:" + "2" * 64
"""What a scripted node says of every disk that it commits."""
BYTES = b"ext4" * 1024
"""What every artifact of a scripted node consists of."""

KINDS = (("sandbox", "sandboxes"), ("artifact", "artifacts"))
PHASES = {
    Verb.ARTIFACT_BUILD: ("PULLING", "UNPACKING", "BUILDING_EXT4"),
    Verb.REPLICA_PREPARE: ("SNAPSHOTTING",),
    Verb.SANDBOX_COMMIT: ("BUILDING_EXT4",),
}
"""What an honest node tells of its long orders on the way."""

DISK_ANSWERS: dict[Verb, dict[str, Any]] = {
    Verb.DISK_PROVISION: {"kind": "image", "quota": True},
    Verb.DISK_SNAPSHOT: {"size_bytes": 4096},
}


def done(node: ScriptedNode, order: Order) -> dict[str, Any]:
    """What an honest node says when it has done the order."""
    body = order.body
    match order.verb:
        case Verb.IMAGE_RESOLVE:
            config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}
            baked = node.egress_ca if body["egress_ca"] else ""
            return {"digest": DIGEST, "size_bytes": 1000, "layers": 2, "config": config, "egress_ca": baked}
        case Verb.ARTIFACT_BUILD:
            return {"sha256": hashlib.sha256(BYTES).hexdigest(), "size_bytes": len(BYTES), "image_config": {"Cmd": ["/bin/sh"]}}
        case Verb.SANDBOX_COMMIT:
            return {"digest": DISK, "sha256": hashlib.sha256(BYTES).hexdigest(), "size_bytes": len(BYTES)}
        case Verb.REPLICA_PREPARE:
            return {"versions": node.versions.model_dump(), "driver": node.driver}
        case Verb.SANDBOX_PROVISION | Verb.SANDBOX_ROLLBACK | Verb.SANDBOX_RESUME | Verb.SANDBOX_RESTART:
            return {"driver": node.driver, "address": "10.0.0.2", "generation": body.get("generation", 0)}
        case Verb.SANDBOX_EXEC | Verb.SANDBOX_DESTROY:
            return {"exit_code": 0, **({"stdout": "aGk=", "stderr": ""} if order.verb is Verb.SANDBOX_EXEC else {})}
        case Verb.SANDBOX_SNAPSHOT:
            return {"size_bytes": 10, "holds": ["disk"], "versions": node.versions.model_dump(), "needs": node.needs}
        case Verb.SNAPSHOT_EXPORT:
            return node.exported
        case Verb.NODE_INSPECT | Verb.NODE_LIST | Verb.NODE_SWEEP:
            return said_of_itself(node, order)
        case _:
            return dict(DISK_ANSWERS.get(order.verb, {}))


def said_of_itself(node: ScriptedNode, order: Order) -> dict[str, Any]:
    """What it answers to orders about the node."""
    match order.verb:
        case Verb.NODE_INSPECT:
            return node.described()
        case Verb.NODE_LIST:
            return node.holdings("command")
        case _:
            gone = [{"kind": kind, "id": name, "why": why} for kind, key in KINDS for name, why in order.body[key].items()]
            return {"trigger": order.body["trigger"], "removed": gone}


class ScriptedNode:
    """``refuse`` says which orders fail, and how, ``left`` the body of their reports; ``hold`` which orders are not answered at all."""

    def __init__(self, nc: Any, node_id: str = "node-1") -> None:
        self._nc = nc
        self.node_id = node_id
        self.driver = "sim"
        self.flags: tuple[str, ...] = ("disks", "limits")
        self.disks = "ext4"
        self.needs = ""
        self.orders: list[Order] = []
        self.capacity: dict[str, Any] = {"cpu": 64, "memory_mb": 65536, "disk_mb": 100_000, "sandboxes": 1000}
        self.versions = Versions(guest_image="1", agent="1", kernel="6")
        self.egress_ca = "c" * 64
        self.storage_pct: float = 0
        self.contents: dict[str, tuple[bytes, ...]] = {}
        """What snapshots consist of, by id; a bytes of their id alone if nothing is said."""
        self.exported: dict[str, Any] = {}
        self.refuse: Callable[[Order], Failure | None] = lambda order: None
        self.hold: Callable[[Order], bool] = lambda order: False
        self.held: dict[str, Any] = {}
        """What it holds, as ``Holdings`` has it."""
        self.left: Callable[[Order], dict[str, Any]] = lambda order: {}
        self._reader = LaneReader(nc, node_id, self._carry_out)
        self._process, self._reports = secrets.token_hex(4), 0

    async def __aenter__(self) -> Self:
        await self.hello()
        await self._reader.start()
        await self._reader.ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._reader.close()

    async def hello(self, storage_pct: float = 0, **capacity: Any) -> None:
        """Say what this node is, and beat once."""
        self.storage_pct = storage_pct
        self.capacity = {**self.capacity, **capacity}
        await self._say(Observation.NODE_HELLO, ReportKind.OBSERVED, "system", self.described())
        await beat(self._nc, self.node_id)

    def described(self) -> dict[str, Any]:
        """Its ``NodeHello``."""
        said = NodeHello(
            boot="b1",
            versions=self.versions,
            drivers=(DriverInfo(name=self.driver, flags=self.flags),),
            capacity=Capacity.model_validate(self.capacity),
            storage_pct=self.storage_pct,
            host={"roots": "copies", "disks": self.disks},
        )
        return said.model_dump(mode="json")

    async def exited(self, project: str, sandbox_id: str, generation: int = 0, code: int = 1) -> None:
        """Say that a main process has ended."""
        body = {"sandbox_id": sandbox_id, "generation": generation, "exit_code": code, "reason": "exited"}
        await self._say(Observation.SANDBOX_EXITED, ReportKind.OBSERVED, project, body)

    async def lists(self, sandboxes: dict[str, str], *, complete: bool = True, age_s: float = 0) -> None:
        """Say what lives here, as it was ``age_s`` seconds ago."""
        body = {"complete": complete, "sandboxes": sandboxes}
        await self._say(Observation.SANDBOXES, ReportKind.OBSERVED, "system", body, age_s=age_s)

    def holdings(self, trigger: str, age_s: float = 0) -> dict[str, Any]:
        """Its ``Holdings``, as they were ``age_s`` seconds ago."""
        return {"at": (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(), "trigger": trigger, **self.held}

    async def holds(self, trigger: str = "timer", **held: Any) -> None:
        """Say what is held here."""
        self.held = held
        await self._say(Observation.HOLDINGS, ReportKind.OBSERVED, "system", self.holdings(trigger))

    async def has(self, *snapshots: str, age_s: float = 0) -> None:
        """Say which snapshots are here, as they were listed ``age_s`` seconds ago."""
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        await self._say(Observation.SNAPSHOTS, ReportKind.OBSERVED, "system", {"at": at.isoformat(), "snapshots": snapshots})

    def did(self, verb: Verb) -> list[Order]:
        """The orders of that verb, each id once."""
        return list({order.id: order for order in self.orders if order.verb == verb}.values())

    async def _say(self, verb: str, kind: ReportKind, project: str, body: dict[str, Any], **more: Any) -> None:
        self._reports += 1
        identifier = more.pop("id", f"{self.node_id}-{self._process}-{self._reports}:{kind}")
        at = datetime.now(UTC) - timedelta(seconds=more.pop("age_s", 0))
        await report(
            self._nc,
            Report(id=identifier, node=self.node_id, verb=verb, kind=kind, project=project, at=at, body=body, **more),
        )

    async def _carry_out(self, order: Order, ack: Any) -> None:
        del ack
        self.orders.append(order)
        if not self.hold(order):
            await self.answer(order)

    async def answer(self, order: Order) -> None:
        """Carry an order out, or refuse to; also one that was held."""
        failure = self.refuse(order)
        if order.verb == Verb.ARTIFACT_BUILD and failure is None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(BYTES)
                file.flush()
                await put_file(self._nc, ARTIFACTS_BUCKET, order.body["artifact_id"], Path(file.name))
        if order.verb == Verb.SNAPSHOT_EXPORT and failure is None:
            await self.store(order)
        for phase in PHASES.get(order.verb, ()) if failure is None else ():
            await self.tell(order, ReportKind.PROGRESS, {"phase": phase}, suffix=f":{phase}")
        kind = ReportKind.DONE if failure is None else ReportKind.FAILED
        body = done(self, order) if failure is None else self.left(order)
        asked = sum(known.id == order.id for known in self.orders) if order.verb is Verb.SANDBOX_EXEC else 1
        await self.tell(order, kind, body, failure, suffix=f":again-{asked}" if asked > 1 else "")  # as the agent answers once more

    async def store(self, order: Order) -> None:
        """Put a snapshot's chunks into the shared store, as agents do."""
        snapshot = order.body["snapshot_id"]
        contents = self.contents.get(snapshot, (snapshot.encode(),))
        digests = tuple(map(chunks.digest_of, contents))
        manifest = await chunks.put_manifest(self._nc, order.project, snapshot, chunks.Manifest("copies", "rfs", 0, 1, digests))
        moved = [await chunks.put(self._nc, digest, content) for digest, content in zip(digests, contents, strict=True)]
        self.exported = {
            "manifest": manifest,
            "kind": "copies",
            "size_bytes": sum(map(len, contents)),
            "chunks": len(digests),
            "moved_chunks": sum(map(bool, moved)),
            "moved_bytes": sum(moved),
        }

    async def tell(self, order: Order, kind: ReportKind, body: dict[str, Any], failure: Failure | None = None, suffix: str = "") -> None:
        """Report something about an order; ``suffix`` tells several reports of one kind apart."""
        if kind is ReportKind.STEP:
            suffix = f":{body['first']}"
        await self._say(
            order.verb,
            kind,
            order.project,
            body,
            id=f"{order.id}:{kind}{suffix}",
            order=order.id,
            process=order.process,
            process_id=order.process_id,
            attempt=order.attempt,
            trace=order.trace,
            cause=order.cause,
            error=failure,
        )
