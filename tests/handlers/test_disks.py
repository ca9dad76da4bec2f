"""Disks and their leases as the control plane keeps them: who gets a disk, who waits, who is refused, and what becomes of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from support.places import Place, nodes, refusal
from support.waiting import eventually

from domain.disks.disk import Disk
from domain.disks.lease import DiskLease, LeaseState, lease_id
from domain.disks.states import DiskState
from domain.kernel.errors import Invalid
from domain.nodes.orders import Failure, Order, Verb
from domain.sandboxes.commands import SandboxCreate
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Deadlines

MOUNT = [{"disk": "data", "mount_path": "/data"}]
BROKEN = Failure(code="disk.mkfs-failed", message="no")


async def lease(place: Place, sandbox: str, disk: str = "data") -> DiskLease:
    return await place.get(DiskLease, lease_id(sandbox, disk))


async def disk(place: Place, name: str = "data") -> Disk:
    return await place.get(Disk, name)


async def made(place: Place, name: str = "data", **body: Any) -> None:
    assert (await place.do("disk.create", {"name": name, "size_mb": 64, "wait_s": 20, **body}))["status"] == "PROVISIONED"


def test_a_disk_is_mounted_for_one_sandbox_and_then_for_the_next(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        template = await place.template()
        one = await place.sandbox(template, disks=MOUNT)
        (order,) = place.node.did(Verb.SANDBOX_PROVISION)
        volume = (await disk(place)).volume_id
        assert order.body["disks"] == [{"disk": "data", "volume_id": volume, "epoch": 1, "mount_path": "/data", "read_only": False}]
        busy = await refusal(place.sandbox(template, disks=MOUNT))
        assert (busy.code, busy.retryable, busy.details["sandbox_id"]) == ("disk.busy", True, one)
        in_use = await refusal(place.do("disk.delete", {"name": "data"}))
        assert in_use.code == "disk.in-use"
        await place.do("sandbox.delete", {"sandbox_id": one, "wait_s": 20})
        assert (await lease(place, one)).state is LeaseState.RELEASED
        two = await place.sandbox(template, disks=MOUNT)
        assert (await lease(place, two)).epoch == 2
        await place.do("sandbox.delete", {"sandbox_id": two, "wait_s": 20})
        assert (await place.do("disk.delete", {"name": "data", "wait_s": 20}))["status"] == "DELETED"
        await made(place, size_mb=128)
        assert (await disk(place)).volume_id != volume

    at(test)


def test_the_next_one_waits_until_the_last_one_is_down(at) -> None:
    """reference/miren-sandbox.md §11, scenario 29: released at once, bound only when the mount is gone."""

    async def test(place: Place) -> None:
        await made(place)
        template = await place.template()
        one = await place.sandbox(template, disks=MOUNT)
        place.node.hold = lambda order: order.verb is Verb.SANDBOX_DESTROY
        await place.do("sandbox.stop", {"sandbox_id": one})
        two = (await place.do("sandbox.create", {"template": template, "disks": MOUNT}))["sandbox_id"]
        assert (await lease(place, one)).state is LeaseState.RELEASED
        assert (await lease(place, two)).state is LeaseState.PENDING
        assert (await refusal(place.sandbox(template, disks=MOUNT))).code == "disk.busy", "somebody waits for it"
        (destroy,) = await eventually(lambda: place.node.did(Verb.SANDBOX_DESTROY))
        assert (await disk(place)).attached == one
        assert len(place.node.did(Verb.SANDBOX_PROVISION)) == 1, "nobody is told to mount it before"
        await place.node.answer(destroy)

        async def up() -> bool:
            return (await place.get(Sandbox, two)).state is SandboxState.RUNNING

        await eventually(up)
        assert (await lease(place, two)).epoch == 2

    at(test)


def test_who_waits_too_long_is_dead_and_says_why_and_nobody_else_is_touched(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        template = await place.template()
        one = await place.sandbox(template, disks=MOUNT)
        place.node.hold = lambda order: order.verb is Verb.SANDBOX_DESTROY
        await place.do("sandbox.stop", {"sandbox_id": one})
        impatient = [{**MOUNT[0], "lease_timeout_s": 0.2}]
        failed = await refusal(place.sandbox(template, disks=impatient))
        assert (failed.code, failed.details["cause"]) == ("sandbox.startup-failed", "disk.lease-timeout")
        late = await lease(place, failed.details["sandbox_id"])
        assert (late.state, late.failure.code) == (LeaseState.FAILED, "disk.lease-timeout")
        assert one in late.failure.message
        there = await disk(place)
        assert (there.holder, there.attached) == (None, one)

    at(test)


def test_a_sandbox_waits_for_a_disk_that_is_being_made_and_fails_with_it(at) -> None:
    async def test(place: Place) -> None:
        template = await place.template()
        held: list[Order] = []
        place.node.hold = lambda order: order.verb is Verb.DISK_PROVISION and not held.append(order)
        await place.do("disk.create", {"name": "data", "size_mb": 64})
        sandbox = (await place.do("sandbox.create", {"template": template, "disks": MOUNT}))["sandbox_id"]
        assert (await lease(place, sandbox)).state is LeaseState.PENDING
        order = await eventually(lambda: held and held[0])
        place.node.refuse = lambda order: BROKEN if order.verb is Verb.DISK_PROVISION else None
        await place.node.answer(order)

        async def dead() -> bool:
            return (await place.get(Sandbox, sandbox)).state is SandboxState.DEAD

        await eventually(dead)
        there, waited = await disk(place), await lease(place, sandbox)
        assert (there.state, there.holder, waited.state) == (DiskState.ERROR, None, LeaseState.FAILED)
        assert not place.node.did(Verb.SANDBOX_PROVISION)
        place.node.hold = lambda _order: False
        assert (await place.do("disk.delete", {"name": "data", "wait_s": 20}))["settled"]
        broken = await refusal(place.do("disk.create", {"name": "data", "size_mb": 64, "wait_s": 20}))
        assert broken.code == "disk.mkfs-failed"

    at(test)


def test_force_takes_a_disk_from_whoever_has_it_and_gives_it_to_nobody_before_it_is_unmounted(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        template = await place.template()
        one = await place.sandbox(template, disks=MOUNT)
        wanted = await refusal(place.do("disk.release", {"name": "data"}))
        assert (wanted.code, wanted.details["sandbox_id"]) == ("disk.busy", one)
        place.node.hold = lambda order: order.verb is Verb.SANDBOX_DESTROY
        told = await place.do("disk.release", {"name": "data", "force": True})
        assert (told["sandbox_id"], told["settled"]) == (one, False)
        assert (await lease(place, one)).state is LeaseState.RELEASED
        (destroy,) = await eventually(lambda: place.node.did(Verb.SANDBOX_DESTROY))
        assert (await disk(place)).attached == one, "its node has not said that it is gone"
        await place.node.answer(destroy)
        assert (await place.do("disk.release", {"name": "data", "wait_s": 20}))["settled"]
        assert (await disk(place)).attached is None

    at(test)


def test_what_a_creation_left_behind_keeps_its_disk(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        template = await place.template()
        place.node.refuse = lambda order: BROKEN if order.verb is Verb.SANDBOX_PROVISION else None
        place.node.left = lambda order: {"failed_step": "start", "uncompensated": ["disks"]}
        failed = await refusal(place.sandbox(template, disks=MOUNT))
        one = failed.details["sandbox_id"]

        async def released() -> bool:
            return (await lease(place, one)).state is LeaseState.RELEASED

        await eventually(released)
        there = await disk(place)
        assert (there.holder, there.attached) == (None, one), "it may still be mounted"
        (order,) = place.node.did(Verb.SANDBOX_PROVISION)
        place.node.left = lambda order: {"undo": 1}
        await place.node.tell(order, "failed", {"undo": 1}, BROKEN, suffix=":late")

        async def free() -> bool:
            return (await disk(place)).attached is None

        await eventually(free)

    at(test)


def test_a_disk_goes_with_its_evicted_node_and_with_no_other(at) -> None:
    async def test(place: Place) -> None:
        async with nodes(place, "node-2"):
            await made(place)
            template = await place.template()
            one = await place.sandbox(template, disks=MOUNT)
            home = (await disk(place)).node_id
            elsewhere = "node-2" if home == "node-1" else "node-1"
            assert (await refusal(place.sandbox(template, disks=MOUNT, node=elsewhere))).code == "disk.elsewhere"
            await made(place, "other", node=elsewhere)
            both = [*MOUNT, {"disk": "other", "mount_path": "/other"}]
            assert (await refusal(place.sandbox(template, disks=both))).code == "disk.apart"
            await place.do("node.evict", {"node_id": home})

            async def lost() -> bool:
                return (await disk(place)).state is DiskState.ERROR

            await eventually(lost)
            assert (await lease(place, one)).state is LeaseState.RELEASED
            there = await disk(place)
            assert (there.failure.code, there.bound, there.attached) == ("disk.node-lost", False, None)
            assert (await disk(place, "other")).state is DiskState.PROVISIONED
            assert (await place.do("disk.delete", {"name": "data", "wait_s": 20}))["status"] == "DELETED"

    at(test)


def test_growing_and_keeping_are_done_by_the_node_one_after_the_other(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        assert (await place.do("disk.grow", {"name": "data", "size_mb": 128, "wait_s": 20}))["size_mb"] == 128
        held: list[Order] = []
        place.node.hold = lambda order: order.verb is Verb.DISK_SNAPSHOT and not held.append(order)
        await place.do("disk.snapshot", {"name": "data", "snapshot": "s1"})
        assert (await refusal(place.do("disk.grow", {"name": "data", "size_mb": 256}))).details["operation"] == "snapshot"
        await place.node.answer(await eventually(lambda: held and held[0]))
        copy = {"name": "copy", "size_mb": 128, "source": {"disk": "data", "snapshot": "s1"}, "wait_s": 20}

        async def kept() -> bool:
            return "s1" in (await disk(place)).snapshots

        await eventually(kept)
        assert (await place.do("disk.create", copy))["status"] == "PROVISIONED"
        assert place.node.did(Verb.DISK_PROVISION)[-1].body["source_snapshot"] == "s1"
        place.node.refuse = lambda order: BROKEN if order.verb is Verb.DISK_GROW else None
        assert (await refusal(place.do("disk.grow", {"name": "data", "size_mb": 512, "wait_s": 20}))).code == "disk.mkfs-failed"
        await place.do("disk.delete-snapshot", {"name": "data", "snapshot": "s1", "wait_s": 20})
        there = await disk(place)
        assert (there.size_mb, there.operation, there.snapshots) == (128, None, {})

    at(test)


def test_a_node_that_does_not_answer_keeps_nothing_busy_for_ever(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        place.node.hold = lambda order: order.verb in {Verb.DISK_GROW, Verb.DISK_PROVISION}
        late = await refusal(place.do("disk.grow", {"name": "data", "size_mb": 128, "wait_s": 20}))
        assert (late.code, late.retryable) == ("node.offline", True)
        assert (await disk(place)).operation is None
        never = await refusal(place.do("disk.create", {"name": "slow", "size_mb": 64, "wait_s": 20}))
        assert never.code == "node.offline"

    at(test, Deadlines(operation_s=0.3, job_s=0.3, watchdog_s=0.1))


def test_a_repeated_command_makes_one_disk_and_another_one_is_refused(at) -> None:
    async def test(place: Place) -> None:
        body = {"name": "data", "size_mb": 64, "wait_s": 20}
        first = await place.do("disk.create", body, command_id="c-1")
        assert await place.do("disk.create", body, command_id="c-1") == first
        assert (await refusal(place.do("disk.create", body))).code == "disk.exists"
        assert len(place.node.did(Verb.DISK_PROVISION)) == 1
        assert (
            await refusal(place.do("disk.create", {**body, "name": "x", "filesystem": "btrfs", "size_mb": 512}))
        ).code == "disk.unsupported"
        assert (await refusal(place.do("disk.grow", {"name": "none", "size_mb": 64}))).code == "disk.not-found"
        assert (await refusal(place.sandbox(await place.template(), disks=[{"disk": "none", "mount_path": "/x"}]))).code == "disk.not-found"

    at(test)


def test_a_driver_that_mounts_no_disks_is_refused_before_anything_is_lent(at) -> None:
    async def test(place: Place) -> None:
        await made(place)
        place.node.flags, place.node.disks = ("limits",), ""
        await place.node.hello()
        await eventually(lambda: "disks" not in place.plane.control.fleet.nodes["node-1"].flags["sim"])
        refused = await refusal(place.sandbox(await place.template(), disks=MOUNT))
        assert (refused.code, refused.details["fields"]) == ("sandbox.unsupported", ["disks"])
        assert (await disk(place)).holder is None

    at(test)


@pytest.mark.parametrize(
    "mounts",
    [
        [{"disk": "data", "mount_path": "/proc/x"}],
        [{"disk": "data", "mount_path": "/a/../b"}],
        [{"disk": "data", "mount_path": "a"}],
        [{"disk": "data", "mount_path": "/a"}, {"disk": "data", "mount_path": "/b"}],
        [{"disk": "data", "mount_path": "/a"}, {"disk": "other", "mount_path": "/a/b"}],
    ],
    ids=["of the system", "dots", "relative", "twice", "one in another"],
)
def test_where_no_disk_can_be_mounted_is_said_at_the_edge(mounts: list[dict[str, str]]) -> None:
    with pytest.raises(Invalid):
        SandboxCreate.parse(orjson.dumps({"template": "base", "disks": mounts}))
