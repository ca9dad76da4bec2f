"""A scripted control plane for the client's tests: real nats-server, real endpoints, answers out of a script.

It speaks the contract through the product's own front door (bus/endpoints.py), validates bodies with the product's own records, and keeps
what it was asked. It runs in a thread with a loop of its own, because the command line brings its own loop too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bus.commit import GENESIS, encode
from bus.connection import connect
from bus.endpoints import Reply, Request, serve_commands, serve_queries
from bus.server import Server
from bus.streams import ensure_streams
from domain.kernel.command import Cause
from domain.kernel.errors import Refused, not_found
from domain.kernel.registry import COMMANDS
from domain.nodes.node import Node

KEYS = {
    "templates": "template_id",
    "jobs": "job_id",
    "artifacts": "artifact_id",
    "replicas": "node_id",
    "snapshots": "snapshot_id",
    "sandboxes": "sandbox_id",
    "nodes": "node_id",
    "pools": "template_id",
    "rollouts": "rollout_id",
    "disks": "disk_id",
    "disk-leases": "lease_id",
    "compat-matrix": "template_id",
    "usage": "sandbox_id",
    "lineage": "id",
}
AT = datetime(2026, 11, 20, 9, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    project: str
    name: str
    body: dict[str, Any]
    command_id: str


class Scripted:
    """``views`` are the rows that queries answer from; ``replies`` the results of commands: a dictionary, a refusal, or a function."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.views: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.replies: dict[str, dict[str, Any] | Refused | Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.asked: list[Asked] = []
        self.events: list[dict[str, Any]] = []
        self.faults: list[Any] = []
        self.seq = 7
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> Scripted:
        self._thread.start()
        self.do(self._start())
        return self

    def stop(self) -> None:
        self.do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, coroutine: Any) -> Any:
        """Run something in the responder's own loop."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(20)

    async def _start(self) -> None:
        self._nc = await connect(self.url, name="scripted", on_closed=lambda: None)
        await ensure_streams(self._nc)
        asked = dict.fromkeys(KEYS, ("list", "get", "summary")) | {"compat-matrix": ("list", "get", "summary", "what-if")}
        verbs = asked | {"placement": ("explain",), "events": ("read", "verify"), "views": ("list", "digest")}
        self._served = [await serve_commands(self._nc, COMMANDS, self._command), await serve_queries(self._nc, verbs, self._query)]

    async def _stop(self) -> None:
        for endpoints in self._served:
            await endpoints.close(grace=1)
        await self._nc.close()

    def reset(self) -> None:
        """Forget everything but the connection."""
        self.views, self.summaries, self.replies = {}, {}, {}
        self.asked.clear()
        self.faults.clear()

    @property
    def commands(self) -> list[Asked]:
        return [a for a in self.asked if a.name in COMMANDS]

    async def _command(self, request: Request) -> Reply:
        COMMANDS[request.name].parse(request.body)
        body = json.loads(request.body or b"{}")
        self.asked.append(Asked(request.project, request.name, body, request.command_id))
        answer = self.replies.get(request.name, {})
        if isinstance(answer, Refused):
            raise answer
        result = answer(body) if callable(answer) else answer
        return Reply(result, next((str(v) for k, v in result.items() if k.endswith("_id")), None), self.seq)

    async def _query(self, request: Request) -> Reply:
        body = json.loads(request.body or b"{}")
        self.asked.append(Asked(request.project, request.name, body, request.command_id))
        view, _, verb = request.name.rpartition(".")
        if view == "events":
            return self._log(verb, body)
        if view == "views":
            return self._views(verb, body)
        rows = self.views.get(view, [])
        if view == "placement":
            return Reply({"items": rows, "next": None}, None, self.seq)
        key = KEYS[view]
        match verb:
            case "get":
                found = next((row for row in rows if body["id"] in {row[key], row.get("alias")}), None)
                if found is None:
                    raise not_found(key.removesuffix("_id"), body["id"])
                return Reply({"items": [found], "next": None}, None, self.seq)
            case "summary":
                return Reply({"items": [self.summaries[view]], "next": None}, None, self.seq)
        where = {name: value for name, value in body.items() if name not in {"limit", "cursor", "min_seq", "as_of"}}
        matching = sorted((row for row in rows if all(row.get(n) == v for n, v in where.items())), key=lambda row: row[key])
        page = [row for row in matching if row[key] > body.get("cursor", "")]
        limit = body.get("limit", 1000)
        more = page[limit - 1][key] if len(page) > limit else None
        return Reply({"items": page[:limit], "next": more}, None, self.seq)

    def _views(self, verb: str, body: dict[str, Any]) -> Reply:
        """As projections/queries.py answers: the state of every view, or a digest over its rows in the order of their keys."""
        if verb == "list":
            states = [{"view": view, "state": "live", "generation": 1, "position": self.seq, "error": None} for view in KEYS]
            return Reply({"items": states, "next": None}, None, self.seq)
        rows = sorted(self.views.get(body["view"], []), key=lambda row: row[KEYS[body["view"]]])
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        item = {"view": body["view"], "generation": 1, "seq": self.seq, "sha256": digest}
        return Reply({"items": [item], "next": None}, None, self.seq)

    def _log(self, verb: str, body: dict[str, Any]) -> Reply:
        last = self.events[-1]["seq"] if self.events else 0
        if verb == "verify":
            return Reply({"commits": len(self.events), "intact": not self.faults, "faults": self.faults}, None, last)
        found = [e for e in self.events if e["seq"] > body["after"] and e["seq"] <= body.get("until", last)]
        found = [e for e in found if body.get("id") in {None, e["id"]} and body.get("type") in {None, e["type"], e["type"].split(".")[0]}]
        page = found[: body.get("limit", 1000)]
        return Reply({"items": page, "next": page[-1]["seq"] if len(found) > len(page) else None}, None, last)

    def happen(self, *nodes: str, at: datetime = AT) -> None:
        """Enrol nodes: real events of the domain, in real commits, on the real stream."""
        for node_id in nodes:
            events = Node.create(node_id, at).collect_events()
            command = f"enroll-{node_id}"
            data, commit, _ = encode("node", node_id, events, Cause(command, "0" * 32, "alice", "default", at), GENESIS)
            ack = self.do(self._nc.jetstream().publish(f"strand.evt.default.node.{node_id}", data, headers={"Nats-Msg-Id": commit}))
            for event in json.loads(data)["events"]:
                envelope = {"seq": ack.seq, "commit": commit, "command": command, "cause": None, "actor": "alice", "project": "default"}
                self.events.append({**envelope, "id": node_id, "time": at.isoformat(), **event})

    def print(self, sandbox_id: str, stream: str, data: bytes) -> None:
        """A chunk of a sandbox's output."""
        self.do(self._nc.jetstream().publish(f"strand.log.default.{sandbox_id}.{stream}", data))

    def poke(self, kind: str, identifier: str) -> None:
        """A commit on that aggregate's subject; what it says does not matter to who only waits for a change."""
        events = Node.create(identifier, AT).collect_events()
        data, _, _ = encode(kind, identifier, events, Cause(f"poke-{kind}", "0" * 32, "alice", "default", AT), GENESIS)
        self.do(self._nc.jetstream().publish(f"strand.evt.default.{kind}.{identifier}", data))


def serve(directory: Path) -> tuple[Server, Scripted]:
    """A server and a scripted control plane on it, with the directory's ``connect.json``."""
    server = Server(directory / "nats")
    server.start()
    scripted = Scripted(server.url).start()
    said = {"url": server.url, "creds": None, "inbox_prefix": None, "http": None, "pids": {}}
    (directory / "connect.json").write_text(json.dumps(said))
    return server, scripted
