"""Every aggregate in every state, reached through its own methods, and for every row of its tables a call that is news.

Found by topic and table, so that a row or a state without an entry fails a test by name.
"""

from __future__ import annotations

from datetime import timedelta

from support import disk_worlds as disks
from support.gwt import T0, Step, did, given
from support.pool_world import POOLS
from support.world import Row, World

from domain.kernel.ids import artifact_id, replica_id
from domain.nodes.node import Node
from domain.nodes.orders import Capacity, DriverInfo, Failure, PortStatus, SnapshotExported, StepReport, StepState, Versions
from domain.nodes.rollout import NodeStep, Rollout
from domain.nodes.sweeps import Removal, Swept
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox, Ttl
from domain.sandboxes.spec import ArtifactRef, Recipe, SandboxSpec
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact
from domain.templates.compat import Policy
from domain.templates.fingerprint import ArtifactSpec, fingerprint
from domain.templates.job import Job, PullProgress
from domain.templates.replica import Replica
from domain.templates.snapshot import Snapshot
from domain.templates.template import Template, TemplateRequest

SANDBOX, OTHER_SANDBOX = "sb-" + "a" * 20, "sb-" + "b" * 20
TEMPLATE, OTHER_TEMPLATE = "tpl-" + "1" * 24, "tpl-" + "2" * 24
SNAPSHOT = "snap-" + "3" * 24
JOB, OTHER_JOB = "00000000-0000-5000-8000-000000000001", "00000000-0000-5000-8000-000000000002"
DIGEST = "sha256:" + "d" * 64
SPEC = ArtifactSpec(image_digest=DIGEST, disk_mb=1024)
PRINT = fingerprint(SPEC)
ARTIFACT = artifact_id(PRINT)
REF = ArtifactRef(artifact_id=ARTIFACT, sha256="e" * 64, size_bytes=4096)
V1, V2 = Versions(guest_image="g1", agent="a1", kernel="k1"), Versions(guest_image="g2", agent="a1", kernel="k1")
FAILURE = Failure(code="node.broken", message="it broke")
LATER = T0 + timedelta(hours=1)
HOUR = 3600.0


SERVED = PortStatus(port=80, status="listening")


def sandbox(ttl: Ttl | None = None, ports: tuple[int, ...] = ()) -> Sandbox:
    spec = SandboxSpec(template_id=TEMPLATE, artifact=REF, recipe=Recipe(ports=ports))
    return Sandbox.create(SANDBOX, T0, spec, "n1", ttl)


def pooled(ports: tuple[int, ...] = ()) -> Sandbox:
    """A sandbox that waits in a pool."""
    spec = SandboxSpec(template_id=TEMPLATE, artifact=REF, recipe=Recipe(ports=ports))
    return Sandbox.create(SANDBOX, T0, spec, "n1", Ttl(seconds=60, kind="idle"), pool=TEMPLATE)


def running(ttl: Ttl | None = None) -> Sandbox:
    return given(sandbox(ttl), did("mark_running", 1, "sim")).aggregate


def provisioning() -> Provisioning:
    return Provisioning.create(SANDBOX, T0, "n1", 1, ("root", "network", "start"))


def node() -> Node:
    return Node.create("n1", T0)


def hello(boot: str = "b1", versions: Versions = V1, storage_pct: float | None = 10) -> Step:
    drivers = (DriverInfo(name="sim", version="1"),)
    return did("hello", boot, versions, drivers, Capacity(cpu=4, memory_mb=8192), ("runner",), {"os": "debian"}, storage_pct)


SWEPT = Swept(trigger="timer", removed=(Removal(kind="sandbox", id=SANDBOX, why="dead"),))


def template() -> Template:
    return Template.create(TEMPLATE, T0, TemplateRequest(image="docker://docker.io/library/alpine:3"), "base", JOB)


def alias() -> Alias:
    return Alias.create("base", T0)


def artifact() -> Artifact:
    return Artifact.create(ARTIFACT, T0, PRINT, SPEC, JOB, "default")


def replica() -> Replica:
    return Replica.create(replica_id(TEMPLATE, "n1"), T0, TEMPLATE, "n1", ARTIFACT, JOB)


def job(operation: str = "CREATE") -> Job:
    return Job.create(JOB, T0, operation, "template", TEMPLATE)


def snapshot() -> Snapshot:
    return Snapshot.create(SNAPSHOT, T0, "before", SANDBOX, "n1", TEMPLATE, REF, Recipe(), JOB)


def rollout() -> Rollout:
    return Rollout.create("ro-" + "4" * 24, T0, ("n1", "n2"), Versions(guest_image="g2"))


PAUSE, PAUSED = did("request_pause", "pause", LATER), did("paused", "pause")
RESUME = did("request_resume", "resume", LATER)
ROLLBACK = did("request_rollback", "rollback", SNAPSHOT, SANDBOX, JOB, LATER)
LIMITS = did("request_limits", "limits", {"memory_mb": 1024}, LATER)
SNAP = did("begin_snapshot", "snap", SNAPSHOT, LATER)
CRASH = did("crash", 0, 3)
STARTED = did("mark_running", 1, "sim", "10.0.0.2", (PortStatus(port=80),))

SANDBOXES = World(
    lambda: pooled((80,)),
    {
        "state": {
            "PENDING": (),
            "NOT_READY": (did("starting", 1),),
            "RUNNING": (STARTED,),
            "PAUSED": (STARTED, PAUSE, PAUSED),
            "STOPPED": (STARTED, did("request_stop", "stop")),
            "DEAD": (STARTED, did("request_stop", "stop"), did("destroyed", 0)),
        }
    },
    {
        "starting": Row(did("starting", 1)),
        "mark_running": Row(STARTED),
        "fail_start": Row(did("fail_start", 1, "startup_failed", FAILURE)),
        "request_pause": Row(PAUSE),
        "paused": Row(PAUSED, {"RUNNING": (PAUSE,)}),
        "request_resume": Row(RESUME),
        "resumed": Row(did("resumed", "resume"), {"PAUSED": (RESUME,)}),
        "request_rollback": Row(ROLLBACK),
        "rolled_back": Row(did("rolled_back", 1), {"RUNNING": (ROLLBACK,), "PAUSED": (ROLLBACK,)}),
        "rollback_failed:untouched": Row(did("rollback_failed", 1, FAILURE), {"RUNNING": (ROLLBACK,), "PAUSED": (ROLLBACK,)}),
        "rollback_failed:fatal": Row(did("rollback_failed", 1, FAILURE, True), {"RUNNING": (ROLLBACK,), "PAUSED": (ROLLBACK,)}),
        "request_limits": Row(LIMITS),
        "limits_changed": Row(did("limits_changed", "limits"), {"RUNNING": (LIMITS,), "PAUSED": (LIMITS,)}),
        "begin_snapshot": Row(SNAP),
        "end_snapshot": Row(did("end_snapshot", SNAPSHOT, True), {"RUNNING": (SNAP,), "PAUSED": (SNAP,)}),
        "operation_failed": Row(did("operation_failed", "snap", FAILURE), {"RUNNING": (SNAP,), "PAUSED": (SNAP,)}),
        "operation_expired": Row(did("operation_expired", "snap", after=HOUR), {"RUNNING": (SNAP,), "PAUSED": (SNAP,)}),
        "request_stop": Row(did("request_stop", "stop")),
        "request_delete": Row(did("request_delete", "delete")),
        "exited": Row(did("exited", 0, 3)),
        "destroyed": Row(did("destroyed", 0)),
        "forget": Row(did("forget", after=HOUR + 10)),
        "crash": Row(CRASH),
        "restarted": Row(did("restarted", 1), {"RUNNING": (CRASH,)}),
        "restart_failed": Row(did("restart_failed", 1, FAILURE), {"RUNNING": (CRASH,)}),
        "require_exec": Row(did("require_exec")),
        "require_disk": Row(did("require_disk")),
        "executed": Row(did("executed", "exec", 0, 1.5, "ls"), again=True),
        "ports_seen": Row(did("ports_seen", 0, T0, (SERVED,))),
        "require_port": Row(did("require_port", 80)),
        "hand_over": Row(did("hand_over", "give", {"team": "a"}, Ttl(seconds=60, kind="idle"))),
        "set_ttl": Row(did("set_ttl", 600)),
        "ttl_due": Row(lambda s: did("ttl_due", s.ttl_generation, after=61)),
        "touch": Row(did("touch", after=31)),
    },
)

LEFT = did("fail", 1, "start", FAILURE, ("network",))
UNDO_FAILED = did("undo_failed", 1, FAILURE)
BLOCKED = (LEFT, UNDO_FAILED, did("undo_failed", 1, FAILURE, after=HOUR))
PROVISIONINGS = World(
    provisioning,
    {
        "state": {
            "RUNNING": (),
            "COMPLETED": (did("complete", 1),),
            "UNDOING": (LEFT,),
            "FAILED": (did("fail", 1, "start", FAILURE),),
            "BLOCKED": BLOCKED,
            "ABANDONED": (*BLOCKED, did("abandon")),
            "SUPERSEDED": (did("supersede"),),
        }
    },
    {
        "record_steps": Row(did("record_steps", 1, 0, (StepReport(step="root", state=StepState.DONE, at=T0),))),
        "complete": Row(did("complete", 1)),
        "fail:undone": Row(did("fail", 1, "start", FAILURE)),
        "fail:left": Row(LEFT),
        "undo_failed:again": Row(UNDO_FAILED, again=True),
        "undo_failed:enough": Row(did("undo_failed", 1, FAILURE, after=HOUR), {"UNDOING": (UNDO_FAILED,)}),
        "undone": Row(did("undone")),
        "block": Row(did("block", 1, FAILURE, ("root",))),
        "retry": Row(did("retry", 2)),
        "lose_node": Row(did("lose_node")),
        "supersede": Row(did("supersede")),
        "abandon": Row(did("abandon")),
    },
)


NODES = World(
    node,
    {
        "liveness": {"ONLINE": (hello(),), "OFFLINE": (hello(), did("go_offline")), "EVICTED": (hello(), did("evict"))},
        "scheduling": {"OPEN": (hello(),), "CORDONED": (hello(), did("cordon")), "DRAINING": (hello(), did("drain"))},
    },
    {
        "enroll": Row(did("enroll", "again")),
        "hello": Row(hello("b2", V2)),
        "come_online": Row(did("come_online")),
        "go_offline": Row(did("go_offline", T0)),
        "cordon": Row(did("cordon")),
        "uncordon": Row(did("uncordon"), {"ONLINE": (did("cordon"),), "OFFLINE": (did("cordon"),)}),
        "configure": Row(did("configure", {"zone": "a"}, {"cpu": 4.0})),
        "drain": Row(did("drain")),
        "drain:deadline": Row(did("drain", 60), again=True),
        "evict": Row(did("evict")),
        "change_storage_mode": Row(did("change_storage_mode", 90)),
        "swept": Row(did("swept", SWEPT), again=True),
    },
)

AGAIN = {state: (did("begin_job", OTHER_JOB),) for state in ("READY", "PARTIALLY_READY", "FAILED")}


def _settle(ready: int, failed: int) -> Row:
    return Row(lambda t: did("settle", t.active_job or t.last_job, ready, failed, 3, "first error"), AGAIN)


def _changed(ready: int, failed: int) -> Row:
    return Row(did("replicas_changed", ready, failed, 4, "other error"))


LIVE = ("PENDING", "READY", "PARTIALLY_READY", "FAILED")
BEGUN = did("begin_delete", "c1")
DELETING = (BEGUN, did("judge_delete", "c1"))
TEMPLATES = World(
    template,
    {
        "state": {
            "PENDING": (),
            "READY": (did("settle", JOB, 3, 0, 3),),
            "PARTIALLY_READY": (did("settle", JOB, 2, 1, 3, "first error"),),
            "FAILED": (did("settle", JOB, 0, 3, 3, "first error"),),
            "DELETING": (did("settle", JOB, 3, 0, 3), *DELETING),
            "DELETED": (did("settle", JOB, 3, 0, 3), *DELETING, did("finish_delete")),
        }
    },
    {
        "begin_job": Row(did("begin_job", OTHER_JOB, "ALL")),
        "bind_artifact": Row(lambda t: did("bind_artifact", t.active_job or t.last_job, ARTIFACT, DIGEST, {"Cmd": ["sh"]}), AGAIN),
        "set_recipe": Row(lambda t: did("set_recipe", t.active_job or t.last_job, Recipe()), AGAIN),
        "settle:all": _settle(3, 0),
        "settle:some": _settle(1, 2),
        "settle:none": _settle(0, 3),
        "fail": Row(lambda t: did("fail", t.active_job or t.last_job, "no image"), AGAIN),
        "replicas_changed:all": _changed(4, 0),
        "replicas_changed:some": _changed(1, 3),
        "replicas_changed:none": _changed(0, 4),
        "alias_claimed": Row(did("alias_claimed", "base")),
        "alias_lost": Row(did("alias_lost", "base")),
        "set_compat_policy": Row(did("set_compat_policy", Policy.GUEST_ONLY)),
        "require_startable": Row(did("require_startable")),
        "begin_delete": Row(BEGUN),
        "begin_delete:force": Row(did("begin_delete", "c1", force=True)),
        "judge_delete:unused": Row(did("judge_delete", "c1"), dict.fromkeys(LIVE, (did("begin_delete", "c1", force=True),))),
        "judge_delete:used": Row(did("judge_delete", "c1", (SANDBOX,)), dict.fromkeys(LIVE, (did("begin_delete", "c1", force=True),))),
        "finish_delete": Row(did("finish_delete")),
        "fail_delete": Row(did("fail_delete", "a node refused")),
    },
)

ALIASES = World(
    alias,
    {"state": {"FREE": (), "HELD": (did("claim", OTHER_TEMPLATE),)}},
    {"claim": Row(did("claim", TEMPLATE)), "release": Row(did("release", OTHER_TEMPLATE))},
)

BUILT = did("built", JOB, "e" * 64, 4096, DIGEST, {"Cmd": ["sh"]}, "n1")
OWNER = "default/" + TEMPLATE
OWNED, DISOWNED = did("add_owner", OWNER), did("drop_owner", OWNER)
PLACED = did("placed", "n1")
ARTIFACTS = World(
    artifact,
    {
        "state": {
            "BUILDING": (),
            "READY": (BUILT,),
            "FAILED": (did("fail_build", JOB, "no space"),),
            "CLEANUP_PENDING": (BUILT, did("request_cleanup")),
            "DELETED": (BUILT, did("request_cleanup"), did("finish_cleanup")),
        }
    },
    {
        "claim": Row(did("claim", PRINT, SPEC, OTHER_JOB, "default")),
        "built": Row(BUILT),
        "fail_build": Row(did("fail_build", JOB, "no space")),
        "expire_build": Row(did("expire_build", JOB)),
        "lost": Row(did("lost")),
        "add_owner": Row(OWNED),
        "drop_owner": Row(DISOWNED, {"BUILDING": (OWNED,), "READY": (OWNED,)}, {"FAILED": (OWNED, did("fail_build", JOB, "no space"))}),
        "request_cleanup": Row(did("request_cleanup")),
        "finish_cleanup": Row(did("finish_cleanup")),
        "placed": Row(PLACED),
        "unplaced": Row(did("unplaced", "n1"), dict.fromkeys(("BUILDING", "READY", "FAILED", "CLEANUP_PENDING"), (PLACED,))),
    },
)

FETCH, FETCHED, PREPARE = did("begin_distribute", JOB, 1), did("distributed", JOB), did("begin_prepare", JOB)
UNBOUND = did("ready", JOB, Versions(), "sim")
BROKEN = did("fail", JOB, "SNAPSHOTTING", "no boot", True)
REPLICAS = World(
    replica,
    {
        "state": {
            "PENDING": (),
            "DISTRIBUTING": (FETCH,),
            "DISTRIBUTED": (FETCH, FETCHED),
            "SNAPSHOTTING": (FETCH, FETCHED, PREPARE),
            "READY": (FETCH, FETCHED, PREPARE, UNBOUND),
            "FAILED": (FETCH, FETCHED, PREPARE, BROKEN),
            "CLEANING": (FETCH, FETCHED, PREPARE, UNBOUND, did("begin_remove", JOB)),
            "REMOVED": (FETCH, FETCHED, PREPARE, UNBOUND, did("begin_remove", JOB), did("removed")),
        }
    },
    {
        "begin_distribute": Row(lambda r: did("begin_distribute", JOB, r.attempt + 1)),
        "distributed": Row(FETCHED),
        "begin_prepare": Row(PREPARE),
        "ready": Row(did("ready", JOB, V1, "sim")),
        "fail": Row(BROKEN),
        "lost": Row(did("lost")),
        "redo:distribute": Row(did("redo", OTHER_JOB, ARTIFACT, "DISTRIBUTING")),
        "redo:prepare": Row(did("redo", OTHER_JOB, ARTIFACT, "SNAPSHOTTING")),
        "adopt_baseline": Row(did("adopt_baseline", V1)),
        "begin_remove": Row(did("begin_remove", OTHER_JOB)),
        "removed": Row(did("removed")),
    },
)

START = did("start", "control", 900)
JOBS = World(
    job,
    {
        "state": {
            "PENDING": (),
            "RUNNING": (START,),
            "READY": (START, did("succeed", {"template_id": TEMPLATE})),
            "FAILED": (START, did("fail", None, FAILURE)),
        }
    },
    {
        "start": Row(START),
        "advance": Row(did("advance", "UNPACKING")),
        "pull": Row(did("pull", PullProgress(bytes=50, total_bytes=100, layers=1, total_layers=2))),
        "set_targets": Row(did("set_targets", ("n2", "n1"))),
        "note": Row(did("note", digest=DIGEST)),
        "renew": Row(did("renew", T0 + timedelta(hours=2))),
        "expire": Row(did("expire", after=2 * HOUR)),
        "cancel": Row(did("cancel")),
        "succeed": Row(did("succeed", {"template_id": TEMPLATE})),
        "fail": Row(did("fail", "UNPACKING", FAILURE)),
    },
)

TAKEN = did("ready", JOB, 4096, ("disk",), V1)
ATTACHED = did("attach", SANDBOX, "n1", 1)
DOUBTED = did("refs_unlisted", "n1", "it cannot list them")
ROLLING = did("begin_rollback", 1)
EXPORT = did("request_export", LATER)
EXPORTED = SnapshotExported(manifest="f" * 64, kind="overlay", size_bytes=4096, chunks=2, moved_chunks=1, moved_bytes=100)
STORED = did("stored", 1, EXPORTED)
ELSEWHERE = did("place", "n2")
ROLLED = {"FAILED": (TAKEN, ROLLING, did("lost")), "DELETED": (TAKEN, ROLLING, did("request_delete"))}
SNAPSHOTS = World(
    snapshot,
    {
        "state": {
            "CREATING": (),
            "READY": (TAKEN,),
            "FAILED": (did("fail", JOB, "no space"),),
            "DELETED": (TAKEN, did("request_delete")),
            "GONE": (TAKEN, did("request_delete"), did("finish_delete")),
        }
    },
    {
        "require_usable": Row(did("require_usable")),
        "ready": Row(TAKEN),
        "fail": Row(did("fail", JOB, "no space")),
        "attach": Row(ATTACHED),
        "detach": Row(
            did("detach", SANDBOX, "sandbox destroyed"),
            {"READY": (ATTACHED,)},
            {"FAILED": (TAKEN, ATTACHED, did("lost")), "DELETED": (TAKEN, ATTACHED, did("request_delete"))},
        ),
        "refs_unlisted": Row(
            DOUBTED,
            {"READY": (ATTACHED,)},
            {"FAILED": (TAKEN, ATTACHED, did("lost")), "DELETED": (TAKEN, ATTACHED, did("request_delete"))},
        ),
        "refs_listed": Row(
            did("refs_listed", "n1"),
            {"READY": (ATTACHED, DOUBTED)},
            {"FAILED": (TAKEN, ATTACHED, DOUBTED, did("lost")), "DELETED": (TAKEN, ATTACHED, DOUBTED, did("request_delete"))},
        ),
        "begin_rollback": Row(ROLLING),
        **{
            f"end_rollback:{how}": Row(did("end_rollback", 1, how == "on_it"), {"READY": (ROLLING,)}, ROLLED) for how in ("on_it", "as_was")
        },
        "request_delete": Row(did("request_delete")),
        "finish_delete": Row(did("finish_delete")),
        "lost": Row(did("lost")),
        "lost:elsewhere": Row(did("lost"), {"READY": (EXPORT, STORED)}),
        "place": Row(ELSEWHERE, {"READY": (EXPORT, STORED)}),
        "unplace": Row(did("unplace", "n1")),
        "request_export": Row(EXPORT),
        "stored": Row(STORED, {"READY": (EXPORT,)}),
        "export_failed": Row(did("export_failed", 1, Failure(code="node.disk-full", message="no room")), {"READY": (EXPORT,)}),
        "unstored": Row(did("unstored", "f" * 64, "damaged"), {"READY": (EXPORT, STORED)}),
        "unstored:last": Row(did("unstored", "f" * 64, "damaged"), {"READY": (EXPORT, STORED, did("lost"))}),
    },
)

ALL_DONE = (did("move", "n1", NodeStep.DONE), did("move", "n2", NodeStep.SKIPPED))
ROLLOUTS = World(
    rollout,
    {
        "state": {
            "RUNNING": (),
            "COMPLETED": (*ALL_DONE, did("complete")),
            "CANCELLED": (did("cancel"),),
            "FAILED": (did("fail", "n1", TEMPLATE, "no space"),),
        }
    },
    {
        "move": Row(did("move", "n1", NodeStep.DRAINING)),
        "hold": Row(did("hold", (TEMPLATE,))),
        "complete": Row(did("complete"), {"RUNNING": ALL_DONE}),
        "fail": Row(did("fail", "n1", TEMPLATE, "no space")),
        "cancel": Row(did("cancel")),
    },
)

DISKS = World(
    disks.disk,
    {"state": disks.DISK_STATES},
    {
        "recreate": Row(did("recreate", disks.OTHER_VOLUME, "n2", 64)),
        "provisioned": Row(did("provisioned", disks.VOLUME)),
        "fail": Row(did("fail", disks.VOLUME, disks.FAILURE)),
        "lose": Row(did("lose", disks.FAILURE)),
        "lend": Row(did("lend", SANDBOX)),
        "attach": Row(did("attach", SANDBOX), {"PROVISIONED": disks.LENT}),
        "hand_back": Row(
            did("hand_back", SANDBOX),
            {"PROVISIONING": disks.LENT, "PROVISIONED": disks.USED},
            {"ERROR": (*disks.LENT, did("fail", disks.VOLUME, disks.FAILURE))},
        ),
        "detach": Row(did("detach", SANDBOX), {"PROVISIONED": (*disks.USED, did("hand_back", SANDBOX))}),
        "request_grow": Row(did("request_grow", "c2", 2048, LATER), {"PROVISIONED": disks.LET_GO}),
        "request_snapshot": Row(did("request_snapshot", "c2", "s1", LATER)),
        "request_snapshot_removal": Row(did("request_snapshot_removal", "c2", "s1", LATER), {"PROVISIONED": disks.KEPT}),
        "operation_done": Row(did("operation_done", "c2"), {"PROVISIONED": disks.GROWING}),
        "operation_failed": Row(did("operation_failed", "c2", disks.FAILURE), {"PROVISIONED": disks.GROWING}),
        "request_delete": Row(did("request_delete", "c1")),
        "delete_failed": Row(did("delete_failed", 1, disks.FAILURE)),
        "deleted": Row(did("deleted", disks.VOLUME)),
    },
)

DISK_LEASES = World(
    disks.lease,
    {"state": {"PENDING": (), "BOUND": (did("bind", 1),), "RELEASED": (did("release"),), "FAILED": (did("fail", disks.FAILURE),)}},
    {"bind": Row(did("bind", 1)), "release": Row(did("release")), "fail": Row(did("fail", disks.FAILURE))},
)

WORLDS: dict[str, World] = {
    "alias": ALIASES,
    "artifact": ARTIFACTS,
    "disk": DISKS,
    "disk-lease": DISK_LEASES,
    "job": JOBS,
    "node": NODES,
    "pool": POOLS,
    "provisioning": PROVISIONINGS,
    "replica": REPLICAS,
    "rollout": ROLLOUTS,
    "sandbox": SANDBOXES,
    "snapshot": SNAPSHOTS,
    "template": TEMPLATES,
}
"""By topic, as the registry of aggregates has them."""
