"""Random histories: the domain's own aggregates, driven by a seeded random walk, as the messages that the log would hold.

Every public method of every aggregate is called again and again with arguments from small pools, so that the aggregates meet; what they
refuse is skipped. What they record is encoded exactly as the store encodes it.
"""

import base64
import inspect
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from random import Random

import orjson
from pydantic import ValidationError

from bus.commit import GENESIS, encode
from domain import catalogue
from domain.disks.disk import Disk
from domain.disks.lease import DiskLease, lease_id
from domain.disks.states import Source
from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, artifact_id, replica_id
from domain.nodes.node import Node
from domain.nodes.orders import Capacity, DriverInfo, Failure, PortStatus, SnapshotExported, StepReport, StepState, Versions
from domain.nodes.rollout import NodeStep, Rollout
from domain.nodes.sweeps import Removal, Swept
from domain.sandboxes.placed import Placed
from domain.sandboxes.pool import Pool, PoolSettings
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox
from domain.sandboxes.spec import ArtifactRef, Recipe, SandboxSpec
from domain.sandboxes.states import Ttl
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact
from domain.templates.compat import Policy
from domain.templates.fingerprint import ArtifactSpec, fingerprint
from domain.templates.job import Job
from domain.templates.progress import Operation, Phase, PullProgress
from domain.templates.replica import Replica
from domain.templates.snapshot import Snapshot
from domain.templates.template import Template, TemplateRequest

catalogue.load()

START = datetime(2020, 1, 1, tzinfo=UTC)
PROJECTS = ("default", "acme")
NODES = ("n1", "n2", "n3")
TEMPLATES = tuple(f"tpl-{i:024x}" for i in range(4))
SNAPSHOTS = tuple(f"snap-{i:024x}" for i in range(4))
SANDBOXES = tuple("sb-" + letter * 20 for letter in "abcde")
ROLLOUTS = tuple(f"ro-{i:024x}" for i in range(2))
VOLUMES = tuple(f"vol-{i:024x}" for i in range(2))
DISKS = ("data", "logs")
JOBS = tuple(f"00000000-0000-4000-8000-{i:012d}" for i in range(4))
COMMANDS = ("c1", "c2")
ALIASES = ("web", "api")
SPECS = tuple(ArtifactSpec(image_digest="sha256:" + f"{i:064x}", disk_mb=64) for i in range(2))
VERSIONS = tuple(Versions(guest_image=g, agent=a, kernel=k) for g in ("g1", "g2", "") for a in ("a1", "a2", "") for k in ("k1",))
SYSTEM_KINDS = (Node, Artifact, Rollout)
KINDS = (
    Node,
    Artifact,
    Rollout,
    Pool,
    Pool,
    Template,
    Alias,
    Replica,
    Replica,
    Job,
    Snapshot,
    Snapshot,
    Provisioning,
    Disk,
    Disk,
    DiskLease,
    *(Sandbox,) * 6,
)
ENDINGS = (
    *("evict", "go_offline", "fail", "fail_build", "expire_build", "lost", "request_cleanup", "begin_remove", "removed", "expire"),
    *("succeed", "fail_start", "request_stop", "request_delete", "exited", "destroyed", "supersede", "rollback_failed", "complete"),
)
"""Decisions after which little can happen: taken rarely, so that lives are long enough to be interesting."""


class History:
    """A log in memory. ``messages`` are (sequence, stored commit)."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.now = START
        self.messages = []
        self.aggregates = {}
        self.heads = {}

    def walk(self, steps):
        """Let ``steps`` more things be tried; returns the messages that came of it."""
        before = len(self.messages)
        for _ in range(steps):
            self.step()
        return self.messages[before:]

    def sandboxes(self, count):
        """``count`` new sandboxes of the project ``default``; returns their commits."""
        before = len(self.messages)
        for n in range(count):
            identifier = "sb-" + base64.b32encode(n.to_bytes(12)).decode().lower()[:20]
            sandbox = Sandbox.create(identifier, self.now, self.sandbox_spec(), self.random.choice(NODES))
            self.commit((Sandbox, "default", identifier), sandbox)
        return self.messages[before:]

    def step(self):
        self.now += timedelta(milliseconds=self.random.randrange(3_600_000 if self.random.random() < 0.02 else 60_000))
        cls = self.random.choice(KINDS)
        project = SYSTEM_PROJECT if cls in SYSTEM_KINDS else self.random.choice(PROJECTS)
        key = (cls, project, self.identify(cls))
        aggregate = self.aggregates.get(key)
        if aggregate is None:
            self.commit(key, self.call(cls.create, id=key[2], **self.creation(cls, key[2])))
            return
        method = self.random.choice(methods(cls))
        if method in ENDINGS and self.random.random() < 0.9:
            return
        try:
            self.call(getattr(aggregate, method), **self.fitting(aggregate))
            if cls is Pool and method == "add" and self.random.random() < 0.3:  # else hardly any would crash soon enough to count
                self.call(aggregate.left, sandbox_id=next(reversed(aggregate.members), ""), crashed=True)
        except (Refused, ValidationError):  # an argument of another method's pool
            return
        self.commit(key, aggregate)

    def identify(self, cls):
        pools = {
            Node: NODES,
            Template: TEMPLATES,
            Pool: TEMPLATES,
            Snapshot: SNAPSHOTS,
            Alias: ALIASES,
            Job: JOBS,
            Rollout: ROLLOUTS,
            Disk: DISKS,
            DiskLease: [lease_id(sandbox, disk) for sandbox in SANDBOXES for disk in DISKS],
            Artifact: [artifact_id(fingerprint(spec)) for spec in SPECS],
            Replica: [replica_id(t, n) for t in TEMPLATES for n in NODES],
        }
        return self.random.choice(pools.get(cls, SANDBOXES))

    def creation(self, cls, identifier):
        """Arguments that follow from the id."""
        if cls is Replica:
            template, node = identifier.split("_")
            return {"template_id": template, "node_id": node}
        if cls is Artifact:
            spec = next(s for s in SPECS if artifact_id(fingerprint(s)) == identifier)
            return {"fingerprint": fingerprint(spec), "spec": spec}
        return {"steps": ()} if cls is Provisioning else {}

    def fitting(self, aggregate):
        """What an answer to this aggregate would say, mostly: reports about something else are ignored as stale."""
        if self.random.random() < 0.2:
            return {}
        operation = getattr(aggregate, "operation", None) or getattr(aggregate, "expired", None)
        hints = {
            "job_id": getattr(aggregate, "active_job", None) or getattr(aggregate, "job_id", None),
            "attempt": getattr(aggregate, "attempt", None),
            "snapshot_origin": aggregate.id,
            "generation": getattr(operation, "generation", None),
            "command_id": getattr(operation, "command", None),
            "ttl_generation": getattr(aggregate, "ttl_generation", None),
            "volume_id": getattr(aggregate, "volume_id", None),
            "sandbox_id": getattr(aggregate, "attached", None)
            or (getattr(aggregate, "holder", None) if isinstance(aggregate, Disk) else None),
        }
        if isinstance(aggregate, Artifact):
            hints.update(fingerprint=aggregate.fingerprint, spec=aggregate.spec)
        return {name: value for name, value in hints.items() if value is not None}

    def call(self, method, **given):
        wanted = signature(method.__func__)
        arguments = {name: value for name, value in given.items() if name in wanted}
        for name, parameter in wanted.items():
            if name in arguments or (parameter.default is not inspect.Parameter.empty and self.random.random() < 0.3):
                continue
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments["digest"] = "sha256:1"
            else:
                arguments[name] = self.argument(name)
        return method(**arguments)

    def argument(self, name):
        pick = self.random.choice
        if name in {"ready", "failed"} and self.random.random() < 0.9:
            return self.random.randrange(3)
        made = {
            "at": lambda: self.now,
            "deadline": lambda: self.now + timedelta(seconds=self.random.randrange(120)),
            "until": lambda: self.now + timedelta(seconds=self.random.randrange(1200)),
            "seen_at": lambda: self.now,
            "last_seen": lambda: self.now - timedelta(seconds=41),
            "request": lambda: TemplateRequest(image="docker://r/i:1", ports=(80,)),
            "spec": self.sandbox_spec,
            "artifact": lambda: ArtifactRef(artifact_id="rfs-" + "0" * 24, sha256="0" * 64, size_bytes=5),
            "recipe": lambda: Recipe(cmd=("x",), cpu=pick((0.1, 0.2, 1)), env={"A": "b"}),
            "ttl": lambda: pick((None, Ttl(seconds=60, kind=pick(("absolute", "idle")), on_ttl=pick(("delete", "pause"))))),
            "failure": lambda: Failure(code="x.y", message="because", retryable=pick((True, False))),
            "steps": lambda: (StepReport(step=pick(("net", "root")), state=pick(list(StepState)), at=self.now),),
            "ports": lambda: pick(
                ((), (PortStatus(port=80),), (PortStatus(port=80, status="listening"), PortStatus(port=90, address="a:1")))
            ),
            "drivers": lambda: (DriverInfo(name="sim", flags=pick(((), ("pause",)))),),
            "capacity": lambda: Capacity(cpu=pick((2, 4)), memory_mb=1024),
            "pull": lambda: PullProgress(bytes=self.random.randrange(101), total_bytes=100),
            "export_until": lambda: self.now + timedelta(seconds=600),
            "exported": lambda: SnapshotExported(manifest=pick(POOLS["manifest"]), kind="copies", size_bytes=9, chunks=2, moved_chunks=1),
            "swept": lambda: Swept(trigger="timer", removed=pick(((), (Removal(kind="sandbox", id="sb-rest", why="dead"),)))),
            "kwargs": dict,
        }
        if name in made:
            return made[name]()
        return pick(POOLS[name])

    def sandbox_spec(self):
        snapshot = self.random.choice((None, None, *SNAPSHOTS))
        return SandboxSpec(
            template_id=self.random.choice(TEMPLATES),
            snapshot_id=snapshot,
            artifact=self.argument("artifact"),
            recipe=self.argument("recipe"),
            name=self.random.choice(("", "box")),
            labels=self.random.choice(({}, {"team": "a"})),
        )

    def commit(self, key, aggregate):
        cls, project, identifier = key
        self.aggregates[key] = aggregate
        events = aggregate.collect_events()
        if not events:
            return
        cause = Cause(f"cmd-{len(self.messages)}", "0" * 32, "tester", project, self.now)
        data, _, digest = encode(cls.TOPIC, identifier, events, cause, self.heads.get(key, GENESIS))
        self.heads[key] = digest
        self.messages.append((len(self.messages) + 1, data))


def with_nodes(*liveness):
    """The first history that ends with nodes that are all of these, with a storage mode those that are online and no others."""
    for seed in count():
        history = History(seed)
        history.walk(1000)
        nodes = [a for (cls, _, _), a in history.aggregates.items() if cls is Node]
        if {n.liveness.value for n in nodes if (n.liveness.value == "ONLINE") == (n.storage.value != "unknown")} >= set(liveness):
            return history
    raise AssertionError


POOLS = {
    "volume_id": VOLUMES,
    "volume_kind": ("image", "directory"),
    "why": ("sandbox-ended", "node-evicted"),
    "needs": ("", "resumes-1"),
    "size_mb": (64, 128, 256),
    "filesystem": ("ext4", "xfs", None),
    "source": (None, None, Source(volume_id=VOLUMES[0], disk="logs", snapshot="s1")),
    "quota": (True, False),
    "snapshot": ("s1", "s2"),
    "mount_path": ("/data",),
    "read_only": (True, False),
    "epoch": (1, 2),
    "note": ("", "rack 1"),
    "boot": ("b1", "b2"),
    "settings": (PoolSettings(desired=2), PoolSettings(desired=1, warm=False), PoolSettings(desired=3, idle_s=60)),
    "serial": range(1, 5),
    "idle": (False, True),
    "crashed": (False, True),
    "pool": (None, TEMPLATES[0]),
    "busy_s": (0.0, 0.0, 100.0),
    "wanted": ({"cpu": 2.0}, {"memory_mb": 64}, {"pids": 99}),
    "labels": (None, {}, {"zone": "a"}),
    "ratios": ({}, {"memory": 2.0}, {"cpu": 4.0, "sandboxes": 0.5}),
    "placed": (None, Placed(strategy="pack", considered=2, fitting=1, refused={"node.offline": 1})),
    "versions": VERSIONS,
    "roles": ((), ("builder",), ("runner",)),
    "host": ({}, {"os": "debian"}),
    "storage_pct": (None, 10.0, 75.0, 90.0, 99.0),
    "pct": (None, 10.0, 75.0, 90.0, 99.0),
    "alias": (None, *ALIASES),
    "job_id": JOBS,
    "node_id": NODES,
    "template_id": TEMPLATES,
    "snapshot_id": SNAPSHOTS,
    "sandbox_id": SANDBOXES,
    "artifact_id": (artifact_id(fingerprint(SPECS[0])), None),
    "project": PROJECTS,
    "owner": ("default/x", "acme/y"),
    "fingerprint": [fingerprint(spec) for spec in SPECS],
    "command_id": COMMANDS,
    "attempt": (1, 1, 2),
    "retry_of": (None, JOBS[0]),
    "targets": ((), NODES),
    "nodes": ((), NODES),
    "operation": list(Operation),
    "resource_type": ("template", "snapshot"),
    "resource_id": TEMPLATES,
    "resume_phase": (None, Phase.DISTRIBUTING),
    "phase": list(Phase),
    "progress": (None, 10, 50),
    "holder": ("h1",),
    "lease_s": (60.0,),
    "result": (None, {"a": 1}),
    "mode": (None, "ALL"),
    "policy": tuple(Policy),
    "step": tuple(NodeStep),
    "at_once": (1, 2),
    "templates": ((), TEMPLATES[:1], TEMPLATES),
    "image_digest": ("sha256:" + "0" * 64,),
    "image_config": ({}, {"Cmd": ["x"]}),
    "sha256": ("0" * 64,),
    "size_bytes": (1, 1000),
    "ready": (0,),
    "failed": (0,),
    "total": (1, 2),
    "error": (None, "it broke", "nul \0 byte"),
    "force": (True, False),
    "users": ((), SANDBOXES),
    "on_it": (True, False),
    "stop_after_s": (None, 60.0),
    "generation": (0, 1, 2),
    "driver": ("sim", "oci"),
    "from_phase": ("DISTRIBUTING", "SNAPSHOTTING"),
    "cleanup_required": (True, False),
    "name": ("", "mine"),
    "ephemeral": (True, False),
    "holds": (("disk",), ("disk", "memory")),
    "reason": ("exited", "oom"),
    "grace_s": (1.0,),
    "exit_code": (None, 0, 137),
    "snapshot_origin": SANDBOXES,
    "address": ("", "10.0.0.1"),
    "fatal": (True, False),
    "ok": (True, False),
    "seconds": (None, 30.0),
    "kind": ("absolute", "idle"),
    "ttl_generation": (0, 1, 2, 3),
    "first": (0, 1),
    "failed_step": ("", "net"),
    "uncompensated": ((), ("net",)),
    "duration_ms": (1.5,),
    "argv0": ("sh",),
    "bytes_out": (0, 10),
    "bytes_err": (0,),
    "replicate": (True, False),
    "retryable": (True, False),
    "code": ("snapshot.lost", "node.disk-full"),
    "manifest": ("0" * 64,),
}


def subject(data):
    """Where a commit is stored."""
    body = orjson.loads(data)
    return f"strand.evt.{body['project']}.{body['type']}.{body['id']}"


async def publish(nc, messages):
    """Put a history's commits into the log as they are."""
    js = nc.jetstream()
    for start in range(0, len(messages), 500):
        for _, data in messages[start : start + 500]:
            await js.publish_async(subject(data), data)
        await js.publish_async_completed()


@cache
def signature(function):
    return {name: p for name, p in inspect.signature(function).parameters.items() if name not in {"self", "cls"}}


@cache
def methods(cls):
    """The decisions of an aggregate: public methods that begin with ``at``."""
    found = []
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_") and next(iter([*inspect.signature(function).parameters][1:2]), "") == "at":
            found.append(name)
    return found
