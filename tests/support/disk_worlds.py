"""A disk and a lease in every state, for ``worlds``."""

from __future__ import annotations

from datetime import timedelta

from support.gwt import T0, did

from domain.disks.disk import Disk
from domain.disks.lease import DiskLease, lease_id
from domain.nodes.orders import Failure

SANDBOX, OTHER_SANDBOX = "sb-" + "a" * 20, "sb-" + "b" * 20
VOLUME, OTHER_VOLUME = "vol-" + "5" * 24, "vol-" + "6" * 24
FAILURE = Failure(code="node.disk-full", message="no room")
LATER = T0 + timedelta(hours=1)


def disk() -> Disk:
    return Disk.create("data", T0, VOLUME, "n1", 1024, "ext4")


def lease() -> DiskLease:
    return DiskLease.create(lease_id(SANDBOX, "data"), T0, VOLUME, "n1", "/data", LATER)


MADE = (did("provisioned", VOLUME),)
DELETED = (did("request_delete", "c1"), did("deleted", VOLUME))
LENT = (did("lend", SANDBOX),)
USED = (*LENT, did("attach", SANDBOX))
GROWING = (did("request_grow", "c2", 2048, LATER),)
KEPT = (did("request_snapshot", "c1", "s1", LATER), did("operation_done", "c1", 4096))
LET_GO = (*KEPT, did("request_snapshot_removal", "c0", "s1", LATER), did("operation_done", "c0"))

DISK_STATES = {
    "PROVISIONING": (),
    "PROVISIONED": MADE,
    "ERROR": (did("fail", VOLUME, FAILURE),),
    "DELETING": (*MADE, did("request_delete", "c1")),
    "DELETED": DELETED,
}
"""How to get there."""
