"""Creates, ends, late and repeated messages, lost nodes: nothing ever gives a disk two writers (reference/miren-sandbox.md §5.2)."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import examples
from support.disk_worlds import FAILURE, LATER, VOLUME, disk
from support.gwt import T0

from domain.disks.disk import Disk
from domain.disks.fencing import Mounting
from domain.disks.lease import DiskLease, LeaseState, lease_id
from domain.disks.states import DiskState
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick

SOMEBODY = st.integers(0, 2)
"""One of the last three sandboxes: with those of yesterday nothing happens any more."""
LATE = 25
"""Steps before which nothing ends a disk's story for good: else no story would get far."""


class Writers(RuleBasedStateMachine):
    """A disk, its leases, its node, and a lane that delivers late, twice and in any order. Rules are what the real parts do."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: Disk = disk()
        self.leases: dict[str, DiskLease] = {}
        self.ended: set[str] = set()
        self.sent: set[tuple[str, int]] = set()
        self.mounted: set[str] = set()
        """What the node's kernel has."""
        self.mounting = Mounting()
        """What the node has written down."""
        self.delivered: set[str] = set()
        self.evicted = False
        self.count = 0

    @property
    def now(self) -> datetime:
        self.count += 1
        return T0 + timedelta(seconds=self.count)

    @initialize(made=st.booleans())
    def begin(self, made: bool) -> None:
        if made:
            self.disk.provisioned(self.now, VOLUME)

    @rule()
    def create(self) -> None:
        """``sandbox.create``: lend, and bind at once if that is possible; all of it or nothing."""
        sandbox = "sb-" + chr(ord("a") + len(self.leases) % 26) * 19 + chr(ord("a") + len(self.leases) // 26 % 26)
        with contextlib.suppress(Refused):
            self.disk.lend(self.now, sandbox)
            self.leases[sandbox] = DiskLease.create(lease_id(sandbox, "data"), self.now, VOLUME, "n1", "/data", LATER)
            self.pump(0)

    def one(self, back: int) -> str:
        """The sandbox so many before the last one that got a lease."""
        return list(self.leases)[-1 - back % len(self.leases)]

    @precondition(lambda self: self.leases)
    @rule(back=SOMEBODY)
    def pump(self, back: int) -> None:
        """The lease's process: let go what is over, bind what waits, send the order of what is bound."""
        sandbox = self.one(back)
        lease = self.leases[sandbox]
        if sandbox in self.ended:
            self.disk.hand_back(self.now, sandbox)
            lease.release(self.now)
        elif lease.state is LeaseState.PENDING and self.disk.state is DiskState.ERROR:
            self.disk.hand_back(self.now, sandbox)
            lease.fail(self.now, FAILURE)
        elif lease.state is LeaseState.PENDING:
            self.disk.attach(self.now, sandbox)
            if self.disk.bound and self.disk.holder == sandbox:
                lease.bind(self.now, self.disk.epoch)
        if lease.state is LeaseState.BOUND:
            self.sent.add((sandbox, lease.epoch))

    @precondition(lambda self: self.sent)
    @rule(back=SOMEBODY)
    def deliver(self, back: int) -> None:
        """The node gets one of the orders that were ever sent, once more or for the first time."""
        sandbox, epoch = sorted(self.sent, key=lambda order: -order[1])[back % len(self.sent)]
        with contextlib.suppress(Refused):
            self.mounting = self.mounting.admit(sandbox, epoch)
            self.mounted.add(sandbox)
            self.delivered.add(sandbox)

    @precondition(lambda self: self.leases)
    @rule(back=SOMEBODY)
    def end(self, back: int) -> None:
        self.ended.add(self.one(back))

    @precondition(lambda self: self.ended)
    @rule(back=SOMEBODY)
    def tear_down(self, back: int) -> None:
        """The node ends it, unmounts, and says so; an order that never came is not carried out any more."""
        sandbox = self.one(back)
        if sandbox in self.ended:
            self.mounted.discard(sandbox)
            self.mounting = self.mounting.left(sandbox)
            self.sent = {(other, epoch) for other, epoch in self.sent if other != sandbox or other in self.delivered}
            self.told_down(sandbox)

    def told_down(self, sandbox: str) -> None:
        self.disk.hand_back(self.now, sandbox)
        self.leases[sandbox].release(self.now)
        self.disk.detach(self.now, sandbox)

    @rule(fails=st.booleans())
    def make(self, fails: bool) -> None:
        if fails:
            self.disk.fail(self.now, VOLUME, FAILURE)
        else:
            self.disk.provisioned(self.now, VOLUME)

    @rule(size_mb=st.integers(1000, 5000))
    def grow(self, size_mb: int) -> None:
        with contextlib.suppress(Refused):
            self.disk.request_grow(self.now, f"g{self.count}", size_mb, LATER)

    @precondition(lambda self: self.count > LATE)
    @rule()
    def delete(self) -> None:
        with contextlib.suppress(Refused):
            self.disk.request_delete(self.now, "d")

    @precondition(lambda self: self.count > LATE)
    @rule()
    def evict(self) -> None:
        """Its sandboxes are dead by decision, and so are its leases; what the machine does is nobody's business any more."""
        self.evicted = True
        holder = self.disk.holder
        self.disk.lose(self.now, FAILURE)
        if holder is not None:
            self.leases[holder].release(self.now, "node-evicted")

    @invariant()
    def at_most_one_mount(self) -> None:
        assert len(self.mounted) <= 1

    @invariant()
    def what_is_mounted_is_known_to_be(self) -> None:
        """Under a bound lease, or one that is over and not known to be unmounted. (5) of the reference, and the base of (2)."""
        if not self.evicted:
            assert self.mounted <= {self.disk.attached}

    @invariant()
    def at_most_one_lease_is_bound_and_the_disk_agrees(self) -> None:
        bound = {sandbox for sandbox, lease in self.leases.items() if lease.state is LeaseState.BOUND}
        assert bound == ({self.disk.holder} if self.disk.bound else set())

    @invariant()
    def a_bound_disk_is_there(self) -> None:
        assert not self.disk.bound or self.disk.state is DiskState.PROVISIONED

    @invariant()
    def a_live_sandbox_with_the_disk_mounted_has_a_bound_lease(self) -> None:
        if not self.evicted:
            assert all(self.leases[sandbox].state is LeaseState.BOUND for sandbox in self.mounted - self.ended)

    @invariant()
    def a_disk_that_is_going_is_nobodys(self) -> None:
        if self.disk.state in {DiskState.DELETING, DiskState.DELETED}:
            assert (self.disk.holder, self.disk.attached) == (None, None)


TestWriters = Writers.TestCase
TestWriters.settings = examples.times(3)
