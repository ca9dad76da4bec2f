"""What the log itself says after a day of failures, read message by message, and whether the views say the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from support.waiting import eventually

from bus.commit import GENESIS, Commit
from bus.connection import connect_from
from bus.store import Store
from domain.kernel.errors import Refused
from handlers.fleet import Fleet
from strandline.client import Strandline

VIEWS = (
    "artifacts",
    "compat-matrix",
    "disk-leases",
    "disks",
    "endpoints",
    "jobs",
    "nodes",
    "replicas",
    "rollouts",
    "runtime-refs",
    "sandboxes",
    "snapshots",
    "storage",
    "templates",
    "usage",
)


async def whole_log(directory: Path) -> list[Commit]:
    """Every commit, oldest first."""
    nc = await connect_from(directory, "truth", on_closed=lambda: None)
    async with nc:
        store = await Store.open(nc)
        found: list[Commit] = []
        while page := await store.read_all(found[-1].seq if found else 0):
            found += page
        await store.close()
        return found


def check_chains(log: list[Commit]) -> None:
    """Positions without a gap; of each aggregate contiguous versions, one chain, and no command that acted twice."""
    assert [commit.seq for commit in log] == list(range(1, len(log) + 1))
    ends: dict[tuple[str, str, str], tuple[int, str]] = {}
    commands: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for commit in log:
        key = (commit.project, commit.type, commit.id)
        version, head = ends.get(key, (0, GENESIS))
        assert commit.prev == head, (key, commit.seq)
        assert [e["version"] for e in commit.events] == list(range(version + 1, version + 1 + len(commit.events))), (key, commit.seq)
        assert commit.command not in commands[key], (key, commit.command)
        commands[key].add(commit.command)
        ends[key] = (version + len(commit.events), commit.hash)


def count(log: list[Commit]) -> Counter[str]:
    """How often each event type happened."""
    return Counter(event["type"] for commit in log for event in commit.events)


def open_work(log: list[Commit]) -> list[Any]:
    """Jobs, operations and removals that were begun and have not ended."""
    fleet = Fleet()
    for commit in log:
        fleet.apply(commit)
    return sorted(fleet.open)


async def check_views(directory: Path) -> None:
    """Every view, rebuilt from the log, is what it was, byte for byte."""
    async with Strandline.connect(directory) as s:
        for view in VIEWS:

            async def the_same(view: str = view) -> bool:
                try:
                    before = await s.views.digest(view)
                    await s.views.rebuild(view, wait_s=20)
                    after = await s.views.digest(view)
                except Refused as refused:
                    if not refused.retryable:
                        raise
                    return False
                if before.seq != after.seq:  # something happened meanwhile: compare again
                    return False
                assert before.sha256 == after.sha256, view
                return True

            await eventually(the_same, within=20)
        verdict = await s.events.verify()
        assert verdict.intact, verdict
