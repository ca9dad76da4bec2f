"""What a disk lets sandboxes do with it: one at a time, in the order in which mounts really go."""

from __future__ import annotations

import pytest
from support.disk_worlds import FAILURE, LATER, LENT, MADE, OTHER_SANDBOX, OTHER_VOLUME, SANDBOX, USED, VOLUME, disk, lease
from support.gwt import did, given

from domain.disks.disk import Disk, require_there
from domain.disks.fencing import Mounting
from domain.disks.states import MAX_SNAPSHOTS
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick

USED_DISK = (*MADE, *USED)


def test_a_disk_that_somebody_has_is_busy_for_everybody_else() -> None:
    given(disk, *USED_DISK).when("lend", OTHER_SANDBOX).then_refused("disk.busy", sandbox_id=SANDBOX, node_id="n1")


def test_a_disk_that_somebody_waits_for_is_busy_too() -> None:
    given(disk, *LENT).when("lend", OTHER_SANDBOX).then_refused("disk.busy", sandbox_id=SANDBOX)


def test_a_lease_waits_until_the_disk_is_made() -> None:
    waiting = given(disk).when("lend", SANDBOX).then("disk.lent")
    waiting = waiting.when("attach", SANDBOX).then_nothing()
    made = waiting.when("provisioned", VOLUME).then("disk.provisioned")
    made.when("attach", SANDBOX).then("disk.attached", bound=True, attached=SANDBOX, epoch=1)


def test_the_next_one_gets_it_only_when_the_mount_of_the_last_one_is_gone() -> None:
    over = given(disk, *USED_DISK).when("hand_back", SANDBOX).then("disk.released", holder=None, attached=SANDBOX)
    waiting = over.when("lend", OTHER_SANDBOX).then("disk.lent").when("attach", OTHER_SANDBOX).then_nothing()
    gone = waiting.when("detach", SANDBOX).then("disk.detached", attached=None)
    gone.when("attach", OTHER_SANDBOX).then("disk.attached", epoch=2)


def test_who_still_has_it_is_not_detached() -> None:
    given(disk, *USED_DISK).when("detach", SANDBOX).then_nothing()


def test_only_its_holder_hands_it_back() -> None:
    given(disk, *USED_DISK).when("hand_back", OTHER_SANDBOX).then_nothing()


@pytest.mark.parametrize("past", [LENT, USED_DISK, (*USED_DISK, did("hand_back", SANDBOX))], ids=["waited for", "used", "still mounted"])
def test_a_disk_in_use_is_not_deleted(past: tuple[object, ...]) -> None:
    given(disk, *past).when("request_delete", "c9").then_refused("disk.in-use", sandbox_id=SANDBOX)


def test_a_disk_that_could_not_be_made_is_nobodys_until_it_is_made_anew() -> None:
    broken = given(disk).when("fail", VOLUME, FAILURE).then("disk.failed", state="ERROR")
    broken.when("lend", SANDBOX).then_refused("disk.illegal-state", state="ERROR")
    gone = broken.when("request_delete", "c1").then("disk.delete-requested").when("deleted", VOLUME).then("disk.deleted")
    anew = gone.when("recreate", OTHER_VOLUME, "n2", 64).then("disk.recreated", again="disk.exists", node_id="n2", failure=None)
    anew.when("provisioned", VOLUME).then_nothing()  # what a node says of the disk that had the name before
    anew.when("deleted", VOLUME).then_nothing()


def test_the_epochs_of_a_name_never_repeat() -> None:
    past = (*USED_DISK, did("hand_back", SANDBOX), did("detach", SANDBOX), did("request_delete", "c1"), did("deleted", VOLUME))
    anew = given(disk, *past, did("recreate", OTHER_VOLUME, "n1", 64), did("provisioned", OTHER_VOLUME), *LENT)
    anew.when("attach", SANDBOX).then("disk.attached", epoch=2)


def test_what_was_on_an_evicted_node_is_given_up_by_decision() -> None:
    given(disk, *USED_DISK).when("lose", FAILURE).then("disk.lost", state="ERROR", holder=None, bound=False, attached=None)
    given(disk, *MADE, did("request_delete", "c1")).when("lose", FAILURE).then("disk.deleted", state="DELETED")


def test_a_disk_only_grows() -> None:
    made = given(disk, *MADE)
    made.when("request_grow", "c1", 512, LATER).then_refused("disk.cannot-shrink", size_mb=1024)
    made.when("request_grow", "c1", 1024, LATER).then_nothing()
    growing = made.when("request_grow", "c1", 2048, LATER).then("disk.operation-begun", size_mb=1024)
    growing.when("request_grow", "c2", 4096, LATER).then_refused("disk.illegal-state", operation="grow")
    growing.when("operation_done", "c0").then_nothing()
    growing.when("operation_done", "c1").then("disk.grown", size_mb=2048, operation=None)


def test_a_growth_that_failed_leaves_the_disk_as_it_was() -> None:
    growing = given(disk, *MADE, did("request_grow", "c1", 2048, LATER))
    growing.when("operation_failed", "c1", FAILURE).then("disk.operation-failed", size_mb=1024, operation=None, state="PROVISIONED")


def test_snapshots_have_names_of_their_own_and_a_bound() -> None:
    past = [
        step for n in range(MAX_SNAPSHOTS) for step in (did("request_snapshot", f"c{n}", f"s{n}", LATER), did("operation_done", f"c{n}", 5))
    ]
    full = given(disk, *MADE, *past)
    assert full.aggregate.snapshot("s0").size_bytes == 5
    full.when("request_snapshot", "x", "s1", LATER).then_refused("disk.snapshot-exists")
    full.when("request_snapshot", "x", "other", LATER).then_refused("disk.too-many-snapshots", most=MAX_SNAPSHOTS)
    full.when("request_snapshot_removal", "x", "other", LATER).then_refused("disk.snapshot-not-found")
    removing = full.when("request_snapshot_removal", "x", "s1", LATER).then("disk.operation-begun")
    gone = removing.when("operation_done", "x").then("disk.snapshot-removed").aggregate
    assert len(gone.snapshots) == MAX_SNAPSHOTS - 1


def test_a_removal_is_told_again_under_a_new_attempt() -> None:
    going = given(disk, *MADE, did("request_delete", "c1"))
    again = going.when("delete_failed", 1, FAILURE).then("disk.delete-failed", attempt=2, state="DELETING")
    again.when("delete_failed", 1, FAILURE).then_nothing()


def test_a_deleted_disk_is_not_there() -> None:
    deleted: Disk = given(disk, did("request_delete", "c1"), did("deleted", VOLUME)).aggregate
    for nothing in (None, deleted):
        with pytest.raises(Refused) as caught:
            require_there(nothing, "data")
        assert caught.value.code == "disk.not-found"


def test_a_lease_is_bound_once_and_is_over_for_ever() -> None:
    bound = given(lease).when("bind", 3).then("disk-lease.bound", state="BOUND", epoch=3)
    over = bound.when("release").then("disk-lease.released", state="RELEASED")
    over.when("bind", 4).then_nothing()
    given(lease, did("fail", FAILURE)).when("bind", 4).then_nothing()


def test_a_node_mounts_for_the_newest_lease_only_and_for_one_sandbox_at_a_time() -> None:
    mine = Mounting().admit(SANDBOX, 2)
    assert mine.admit(SANDBOX, 2) == mine
    for holder, epoch, code in ((OTHER_SANDBOX, 3, "disk.busy"), (OTHER_SANDBOX, 2, "disk.stale-lease"), (SANDBOX, 1, "disk.stale-lease")):
        with pytest.raises(Refused) as caught:
            mine.admit(holder, epoch)
        assert caught.value.code == code
    assert mine.left(OTHER_SANDBOX) == mine
    free = mine.left(SANDBOX)
    assert free.admit(OTHER_SANDBOX, 3).sandbox_id == OTHER_SANDBOX
    with pytest.raises(Refused):
        free.admit(SANDBOX, 2)  # the order that was late is that of a sandbox that is gone
