"""Who may do what on the bus: operator-mode JWTs, one account for the control plane, one per node, one per project.

Subject permissions do not isolate: the server publishes acks and pulled messages on whatever reply subject the client named, with its own
rights (reference/jetstream-eventstore.md §1.7). Accounts do: what a node names as reply stays in the node's account. So every stream lives
in the control plane's account, and a node reaches the few subjects that are its own through imports.

The exports need an activation token that the control plane's key has signed for one importer and one subject. (The reference binds exports
by the importer's key as a subject token; ours carry names, ``strand.lane.node-1.…``, and the token binds a name to a key.) What one node
may not do, it cannot: no other node's lane, no event, no consumer of its own making, nothing purged.

Server: ``Server(dir, config=Authority.load(dir).server_config(jwt_dir))``. Then, over a connection with ``system_creds``, ``push`` the
account of each node and give its agent ``Member.creds``. On each later start the server finds the accounts in ``jwt_dir``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson
from nats.aio.client import Client

from bus import chunkkeeper, subjects
from bus.jwt import JETSTREAM, UNLIMITED, Key, Kind, credentials, encode
from bus.lanes import attach_subject
from bus.requests import patiently, request
from bus.streams import lane_stream
from bus.tempfiles import put
from domain.kernel.errors import Refused

_NODE_LIMITS: Final = UNLIMITED | {"conn": 16, "exports": 0}
_BUCKET: Final = subjects.ARTIFACTS_BUCKET


@dataclass(frozen=True, slots=True)
class Door:
    """A subject of the control plane that others may use. ``wide`` is the export; ``streams``: the answer may be several messages."""

    name: str
    wide: str
    streams: bool = False

    def export(self) -> dict[str, Any]:
        response = "Stream" if self.streams else "Singleton"
        return {"name": self.name, "subject": self.wide, "type": "service", "response_type": response, "token_req": True}


PULL: Final = Door("lane-pull", "$JS.API.CONSUMER.MSG.NEXT.*.*", streams=True)
ACK: Final = Door("lane-ack", "$JS.ACK.*.*.>")
ATTACH: Final = Door("lane-attach", attach_subject("x").removesuffix("x") + "*")
REPORT: Final = Door("report", "strand.rpt.*.*")
BEAT: Final = Door("heartbeat", "strand.hb.*")
BEAT_KEPT: Final = Door("heartbeat-kept", f"$KV.{subjects.NODES_BUCKET}.*")
DEAD: Final = Door("dead-letter", "strand.dead.*.*.*")
LOG: Final = Door("log", "strand.log.*.*.*")
USAGE: Final = Door("usage", subjects.ALL_USAGE)
IDENTITY: Final = Door("identity", subjects.ALL_IDENTITY)
READ: Final = Door("artifact-read", f"$JS.API.DIRECT.GET.OBJ_{_BUCKET}", streams=True)
PUT_CHUNK: Final = Door("artifact-put-chunk", f"$O.{_BUCKET}.C.*")
PUT_DESCRIPTION: Final = Door("artifact-put-description", f"$O.{_BUCKET}.M.*")
PUT_SHARED: Final = Door("chunk-put", subjects.ALL_CHUNKS)
PUT_MANIFEST: Final = Door("manifest-put", subjects.ALL_MANIFESTS)
READ_SHARED: Final = Door("chunk-read", f"$JS.API.DIRECT.GET.{subjects.CHUNKS}", streams=True)
LOOK_SHARED: Final = Door("chunk-look", chunkkeeper.SUBJECT)
COMMAND: Final = Door("command", "strand.v1.cmd.*.*.*")
QUERY: Final = Door("query", "strand.v1.qry.*.*.*")
SUBMIT: Final = Door("submit", "strand.v1.submit.*.*.*")
OUTCOME: Final = Door("outcome", f"$JS.API.DIRECT.GET.{subjects.OUTCOME}.strand.v1.outcome.*.*")
DOORS: Final = (
    PULL, ACK, ATTACH, REPORT, DEAD, BEAT, BEAT_KEPT, LOG, USAGE, IDENTITY, READ, PUT_CHUNK, PUT_DESCRIPTION, PUT_SHARED, PUT_MANIFEST,
    READ_SHARED, LOOK_SHARED, COMMAND, QUERY, SUBMIT, OUTCOME,
)  # fmt: skip


def node_subjects(node: str, *, builder: bool, shards: int = 1) -> list[tuple[Door, str]]:
    """What a node's account imports: its own lane, its own voice, everybody's artifacts.

    Sandbox output is not bound to the node: a sandbox's id cannot be guessed, and only the node that runs it is told.
    """
    stream = lane_stream(node, shards)
    doors = [
        (PULL, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{node}"),
        (ACK, f"$JS.ACK.{stream}.{node}.>"),
        (ATTACH, attach_subject(node)),
        (REPORT, f"strand.rpt.{node}.*"),
        (DEAD, f"strand.dead.{node}.{stream}.*"),
        (BEAT, subjects.heartbeat(node)),
        (BEAT_KEPT, f"$KV.{subjects.NODES_BUCKET}.{subjects.token(node)}"),
        (LOG, LOG.wide),
        (USAGE, f"strand.usage.{subjects.token(node)}.*"),
        (IDENTITY, subjects.identity(node)),
        (READ, READ.wide),
        *((door, door.wide) for door in (PUT_SHARED, PUT_MANIFEST, READ_SHARED, LOOK_SHARED)),
    ]
    return doors + [(door, door.wide) for door in (PUT_CHUNK, PUT_DESCRIPTION) if builder]


def project_subjects(project: str) -> list[tuple[Door, str]]:
    """What a project's account imports: its own commands, queries, and outcomes."""
    return [
        (COMMAND, f"strand.v1.cmd.{project}.*.*"),
        (QUERY, f"strand.v1.qry.{project}.*.*"),
        (SUBMIT, f"strand.v1.submit.{project}.*.*"),
        (OUTCOME, f"$JS.API.DIRECT.GET.{subjects.OUTCOME}.strand.v1.outcome.{project}.*"),
    ]


@dataclass(frozen=True, slots=True)
class Member:
    """An account besides the control plane's: its JWT for the server, and the credentials of one user for whoever is to connect."""

    name: str
    account: str
    """Public key."""
    jwt: str
    creds: str


class Authority:
    """The installation's root of trust: a directory of secrets, mode 0700, files 0600. Everything else is signed from there."""

    def __init__(self, directory: Path, operator: Key, system: Key, control: Key) -> None:
        self._dir = directory
        self._operator = operator
        self._system = system
        self._control = control

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The authority kept in ``directory``, made there on first use. Raises ``ValueError`` when a secret is damaged."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kinds = {"operator": Kind.OPERATOR, "system": Kind.ACCOUNT, "control": Kind.ACCOUNT}
        return cls(directory, *(_kept(directory / f"{name}.nk", kind) for name, kind in kinds.items()))

    def server_config(self, jwt_dir: Path) -> str:
        """What belongs into nats-server's configuration. ``jwt_dir`` is where the server keeps accounts that are pushed to it."""
        operator = encode(self._operator, self._operator.public, "strandline", {"type": "operator", "system_account": self._system.public})
        system = encode(self._operator, self._system.public, "SYS", {"type": "account", "limits": UNLIMITED})
        control = encode(
            self._operator,
            self._control.public,
            "CONTROL",
            {"type": "account", "exports": [door.export() for door in DOORS], "limits": UNLIMITED | JETSTREAM},
        )
        return (
            f'operator: "{operator}"\n'
            f"system_account: {self._system.public}\n"
            f'resolver {{ type: full, dir: "{jwt_dir}", allow_delete: true, interval: "2m", limit: 1000000 }}\n'
            f'resolver_preload: {{ {self._system.public}: "{system}", {self._control.public}: "{control}" }}\n'
        )

    def control_creds(self, user: str) -> str:
        """Credentials for one of our own processes, or an administrator: everything in the control plane's account is theirs."""
        return credentials(self._control, user)

    def system_creds(self) -> str:
        """Credentials to push and delete accounts with."""
        return credentials(self._system, "accounts")

    def node(self, node: str, *, builder: bool = True, shards: int = 1, valid_s: float | None = None) -> Member:
        """A node's account and its agent's credentials. The account stays the same until :meth:`forget`."""
        doors = node_subjects(node, builder=builder, shards=shards)
        return self._member(f"node-{subjects.token(node)}", doors, _NODE_LIMITS, valid_s)

    def project(self, project: str, *, user: str = "user", valid_s: float | None = None) -> Member:
        """A project's account and credentials for one of its users; the actor of their commands is what the server says of them."""
        return self._member(f"project-{subjects.token(project)}", project_subjects(project), UNLIMITED, valid_s, user)

    def _member(self, name: str, doors: list[tuple[Door, str]], limits: dict[str, Any], valid_s: float | None, user: str = "") -> Member:
        account = _kept(self._dir / "members" / f"{name}.nk", Kind.ACCOUNT)
        claims = {"type": "account", "imports": [self._import(account, door, subject) for door, subject in doors], "limits": limits}
        expires = None if valid_s is None else time.time() + valid_s
        creds = credentials(account, user or name, expires=expires)
        return Member(name, account.public, encode(self._operator, account.public, name, claims), creds)

    def _import(self, account: Key, door: Door, subject: str) -> dict[str, Any]:
        """An import of exactly ``subject``, with the control plane's word for it that this account may have it."""
        token = encode(self._control, account.public, subject, {"type": "activation", "kind": "service", "subject": subject})
        bound = {"name": door.name, "subject": subject, "account": self._control.public, "type": "service", "token": token}
        return bound | {"share": True} if door in {COMMAND, QUERY, SUBMIT} else bound

    def forget(self, name: str) -> str | None:
        """Drop a member's key, so that its successor gets another. Returns the public key, for :func:`delete`; None if there is none."""
        path = self._dir / "members" / f"{name}.nk"
        if not path.exists():
            return None
        public = _kept(path, Kind.ACCOUNT).public
        path.unlink()
        return public

    def deletion(self, account: str) -> str:
        """The operator's order to the servers to delete an account."""
        return encode(self._operator, self._operator.public, "deletion", {"type": "generic", "accounts": [account]})


async def push(system: Client, member: Member, within: float = 10) -> None:
    """Tell the servers of an account, new or changed; it can be used at once. Raises ``Refused``."""
    await _claims(system, "UPDATE", member.jwt, within)


async def delete(system: Client, authority: Authority, account: str, within: float = 10) -> None:
    """Have an account deleted; whoever is connected with it is disconnected at once. Raises ``Refused``."""
    await _claims(system, "DELETE", authority.deletion(account), within)


async def _claims(system: Client, verb: str, jwt: str, within: float) -> None:
    subject = f"$SYS.REQ.CLAIMS.{verb}"

    async def once(left: float) -> bytes:
        return await request(system, subject, jwt.encode(), {}, min(left, 2))

    said = orjson.loads(await patiently(once, within))
    if "error" in said:
        raise Refused("bus.accounts", f"the server refuses the account: {said['error'].get('description')}")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    put(path, text.encode())


def _kept(path: Path, kind: Kind) -> Key:
    """The key in a file, made on first use."""
    if not path.exists():
        write_secret(path, Key.new(kind).seed)
    return Key.read(path.read_text().strip())
