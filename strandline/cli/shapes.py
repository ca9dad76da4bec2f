"""How each kind of item looks in a table: the id first, then what people look for, the rest with ``-o wide``."""

from __future__ import annotations

from typing import Final

from strandline.cli.columns import Column, Shape, age, brief, ends, fault, megabytes, names, percent, ports, ran, replicas, size

TEMPLATE: Final = Shape(
    "template_id",
    (
        Column("ID", "template_id"),
        Column("ALIAS", "alias"),
        Column("STATUS", "status", state=True),
        Column("REPLICAS", "replicas", replicas),
        Column("IMAGE", "image", flex=True),
        Column("AGE", "created_at", age),
        Column("ARTIFACT", "artifact_id", wide=True),
        Column("DIGEST", "image_digest", wide=True, flex=True),
        Column("JOB", "job_id", wide=True),
        Column("LAST ERROR", "last_error", fault, wide=True, flex=True),
    ),
)
JOB: Final = Shape(
    "job_id",
    (
        Column("ID", "job_id"),
        Column("OPERATION", "operation"),
        Column("RESOURCE", "resource_id"),
        Column("STATUS", "status", state=True),
        Column("PHASE", "phase"),
        Column("PROGRESS", "progress", percent, right=True),
        Column("ATTEMPT", "attempt", wide=True, right=True),
        Column("RETRY OF", "retry_of", wide=True),
        Column("ERROR", "error", fault, flex=True),
    ),
)
REPLICA: Final = Shape(
    "node_id",
    (
        Column("TEMPLATE", "template_id"),
        Column("NODE", "node_id"),
        Column("STATUS", "status", state=True),
        Column("PHASE", "phase"),
        Column("COMPAT", "compat", state=True),
        Column("GUEST IMAGE", "guest_image_version", wide=True),
        Column("AGENT", "agent_version", wide=True),
        Column("KERNEL", "kernel_version", wide=True),
        Column("LAST ERROR", "last_error", fault, flex=True),
    ),
)
ARTIFACT: Final = Shape(
    "artifact_id",
    (
        Column("ID", "artifact_id"),
        Column("STATUS", "status", state=True),
        Column("SIZE", "size_bytes", size, right=True),
        Column("OWNERS", "owners", flex=True),
        Column("IMAGE DIGEST", "image_digest", flex=True),
        Column("SHA-256", "sha256", wide=True),
    ),
)
SNAPSHOT: Final = Shape(
    "snapshot_id",
    (
        Column("ID", "snapshot_id"),
        Column("NAME", "name", flex=True),
        Column("STATUS", "status", state=True),
        Column("SANDBOX", "origin_sandbox_id"),
        Column("NODE", "origin_node_id"),
        Column("SIZE", "size_bytes", size, right=True),
        Column("REFS", "runtime_refs", right=True),
        Column("STORED", "stored.status", wide=True),
        Column("AGE", "created_at", age),
        Column("LAST ERROR", "last_error", fault, wide=True, flex=True),
    ),
)
LINEAGE: Final = Shape(
    "id",
    (
        Column("TREE", "tree"),
        Column("KIND", "kind"),
        Column("NAME", "name", flex=True),
        Column("GONE", "gone"),
        Column("AGE", "created_at", age),
    ),
)
SANDBOX: Final = Shape(
    "sandbox_id",
    (
        Column("ID", "sandbox_id"),
        Column("NAME", "name", flex=True),
        Column("STATE", "state", state=True),
        Column("TEMPLATE", "template_id"),
        Column("NODE", "node_id"),
        Column("STARTED", "started_at", age),
        Column("ENDS", "ends_at", of_row=ends),
        Column("KNOWN", "known", wide=True),
        Column("REASON", "reason", wide=True),
        Column("DRIVER", "driver", wide=True),
        Column("ADDRESS", "address", wide=True),
        Column("PORTS", "ports", ports, wide=True),
        Column("GEN", "generation", wide=True, right=True),
        Column("SNAPSHOT", "snapshot_id", wide=True),
        Column("EXIT", "exit.code", wide=True, right=True),
        Column("LABELS", "labels", wide=True, flex=True),
    ),
)
STEP: Final = Shape(
    "step",
    (
        Column("STEP", "step"),
        Column("STATE", "state", state=True),
        Column("STARTED", "started_at"),
        Column("TOOK S", "took_s", right=True),
        Column("ERROR", "error", fault, flex=True),
    ),
)
CLONE: Final = Shape("sandbox_id", (Column("ID", "sandbox_id"),))
NODE: Final = Shape(
    "node_id",
    (
        Column("ID", "node_id"),
        Column("STATUS", "status", state=True),
        Column("DRIVERS", "drivers", names),
        Column("SANDBOXES", "used.sandboxes", right=True),
        Column("CPU USED", "used.cpu", right=True),
        Column("CPU", "capacity.cpu", right=True),
        Column("MEM USED", "used.memory_mb", megabytes, right=True),
        Column("MEM", "capacity.memory_mb", megabytes, right=True),
        Column("DISK", "storage.usage_pct", percent, right=True),
        Column("SEEN", "last_seen", age),
        Column("STORAGE", "storage.mode", wide=True, state=True),
        Column("GUEST IMAGE", "versions.guest_image", wide=True),
        Column("AGENT", "versions.agent", wide=True),
        Column("KERNEL", "versions.kernel", wide=True),
        Column("ROLES", "roles", wide=True),
        Column("LABELS", "labels", wide=True, flex=True),
        Column("OVERCOMMIT", "overcommit", wide=True),
    ),
)
USAGE: Final = Shape(
    "sandbox_id",
    (
        Column("SANDBOX", "sandbox_id"),
        Column("NODE", "node_id"),
        Column("CPU USED", "measured.cpu", right=True),
        Column("CPU", "cpu", right=True),
        Column("MEMORY USED", "measured.memory_bytes", size, right=True),
        Column("MEMORY", "memory_mb", megabytes, right=True),
        Column("PEAK", "measured.memory_peak_bytes", size, wide=True, right=True),
        Column("CPU TIME", "measured.cpu_s", right=True, wide=True),
        Column("PROCESSES", "measured.pids", wide=True, right=True),
        Column("DISK", "disk_mb", megabytes, right=True),
        Column("RAN", "running_s", of_row=ran, right=True),
        Column("COMMANDS", "commands", right=True),
        Column("TEMPLATE", "template_id", wide=True),
    ),
)
SUMMARY: Final = Shape(
    "stale_templates",
    (
        Column("STALE TEMPLATES", "stale_templates", right=True),
        Column("STALE REPLICAS", "stale_replicas", right=True),
        Column("AFFECTED NODES", "affected_nodes", right=True),
        Column("MISSING REPLICAS", "missing_replicas", right=True),
        Column("UNKNOWN REPLICAS", "unknown_replicas", right=True),
    ),
)
EVENT: Final = Shape(
    "seq",
    (
        Column("SEQ", "seq", right=True),
        Column("TIME", "time"),
        Column("TYPE", "type"),
        Column("ID", "id"),
        Column("ACTOR", "actor", flex=True),
        Column("DATA", "data", brief, flex=True),
        Column("PROJECT", "project", wide=True),
        Column("VERSION", "version", wide=True, right=True),
        Column("COMMAND", "command", wide=True),
        Column("CAUSE", "cause", wide=True),
        Column("COMMIT", "commit", wide=True),
    ),
)


def fields(key: str, *names: str) -> Shape:
    """A shape for an answer that has just these fields."""
    return Shape(key, tuple(Column(name.replace("_", " ").upper(), name, state=name in {"status", "state"}) for name in (key, *names)))
