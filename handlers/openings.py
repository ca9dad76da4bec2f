"""Which events open work that is not finished before another one closes it: what the watchdog looks after (design.md §10.4)."""

from __future__ import annotations

OPENING = frozenset(
    {
        "job.created",
        "sandbox.created",
        "sandbox.operation-begun",
        "sandbox.crashed",
        "sandbox.stop-requested",
        "sandbox.delete-requested",
        "sandbox.exited",
        *("provisioning.failed", "provisioning.blocked"),
        "template.delete-begun",
        "template.delete-requested",
        "artifact.cleanup-requested",
        "snapshot.deleted",
        "rollout.begun",
        "snapshot.export-requested",
        *("disk.created", "disk.recreated", "disk.lent", "disk.released", "disk.operation-begun", "disk.delete-requested"),
    }
)
CLOSING = frozenset(
    {
        "job.succeeded",
        "job.failed",
        "sandbox.started",
        "sandbox.paused",
        "sandbox.resumed",
        "sandbox.rolled-back",
        "sandbox.restarted",
        "sandbox.snapshot-ended",
        "sandbox.limits-changed",
        "sandbox.operation-failed",
        "sandbox.operation-expired",
        "sandbox.start-failed",
        "sandbox.destroyed",
        *("provisioning.abandoned", "provisioning.completed"),
        "template.deleted",
        "template.delete-refused",
        "template.delete-failed",
        "artifact.deleted",
        "artifact.claimed",
        "snapshot.removed",
        *("rollout.completed", "rollout.cancelled", "rollout.failed"),
        *("disk.provisioned", "disk.failed", "disk.lost", "disk.attached", "disk.returned", "disk.detached", "disk.deleted"),
        *("disk.grown", "disk.snapshot-taken", "disk.snapshot-removed", "disk.operation-failed"),
        "snapshot.stored",
        "snapshot.export-failed",
        "snapshot.failed",
    }
)
