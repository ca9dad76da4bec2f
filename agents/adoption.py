"""Taking a host over from an earlier agent process: what runs is recovered, what is nobody's is removed, what is unknown is left alone.

Planning is a pure function of what the journal says and what the host lists (reference/miren-sandbox.md §3.3, §7.1). A failed listing is
not an empty one: without it nothing is taken for an orphan, and nobody is told that the list of sandboxes is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import structlog

from agents.drivers.driver import CanPause, Condition, Driver, Exit, Observed, RuntimeFault
from agents.failures import failure_of
from agents.holdings import busy, listed, log_directories, root_names
from agents.node import LocalNode
from agents.provisioning import remove_tree
from agents.records import SandboxRecord
from agents.watching import ensure_watched, exited
from domain.nodes.orders import Observation, SandboxesSeen
from domain.nodes.sweeps import AT_MOST, Removal, Swept, Unremoved

log = structlog.get_logger(__name__)

Action = Literal["recover", "abandon", "remove-process", "remove-disks", "remove-network", "remove-root", "remove-logs"]
_LIVE: Final = frozenset({"running", "paused"})
_HALF: Final = frozenset({"starting", "replacing"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What the host lists. None: it could not be listed."""

    drivers: Mapping[str, Mapping[str, Observed] | None] = field(default_factory=dict)
    roots: Collection[str] | None = None
    disks: Collection[str] | None = None
    addresses: Collection[str] | None = None
    logs: Collection[str] | None = None

    @property
    def complete(self) -> bool:
        return all(listed is not None for listed in self.drivers.values())


@dataclass(frozen=True, slots=True)
class Adopted:
    """``complete``: every driver could say what it has. ``swept``: what was nobody's, and what came of taking it away."""

    complete: bool
    swept: Swept


def plan(records: Mapping[str, SandboxRecord], busy: Collection[str], seen: Seen) -> Iterator[tuple[Action, str, str]]:
    """(action, sandbox, driver) in the order in which they are to be done: processes go before what they use.

    ``busy``: sandboxes that an unfinished order works on; those are the order's business. What cannot be listed may use anything: while a
    driver does not say what it has, nothing is nobody's.
    """
    if seen.complete:
        for driver, found in sorted(seen.drivers.items()):
            yield from (("remove-process", sandbox, driver) for sandbox in sorted(set(found or ()) - records.keys()))
        yield from (("remove-disks", sandbox, "") for sandbox in sorted(set(seen.disks or ()) - records.keys()))
        for action, listing in (("remove-network", seen.addresses), ("remove-root", seen.roots), ("remove-logs", seen.logs)):
            yield from ((action, sandbox, "") for sandbox in sorted(set(listing or ()) - records.keys()))  # type: ignore[misc]  # of Action
    for sandbox, record in sorted(records.items()):
        if record.condition in _LIVE:
            yield "recover", sandbox, record.driver
        elif record.condition in _HALF and sandbox not in busy:
            yield "abandon", sandbox, record.driver


async def adopt(node: LocalNode) -> Adopted:
    """Do it. Errors about one sandbox never stop the others, and what it uses stays when it could not be removed itself."""
    seen = Seen(
        drivers={driver.name: await listed(driver.name, driver.list) for driver in node.drivers},
        roots=await listed("roots", lambda: root_names(node)),
        disks=node.volumes.holders().keys(),
        addresses=await listed("network", node.network.list),
        logs=log_directories(node),
    )
    removed: dict[str, None] = {}
    failed: dict[str, str] = {}
    for action, sandbox, driver in list(plan(node.memory.sandboxes, busy(node), seen)):
        if sandbox in failed:
            continue
        try:
            await _ACTIONS[action](node, sandbox, driver)
        except Exception as error:
            log.exception("adoption.failed", action=action, sandbox=sandbox, error=repr(error)[:300])
            failed[sandbox] = failure_of(error).message
        else:
            if action.startswith("remove-"):
                removed[sandbox] = None
    return Adopted(seen.complete, _swept(list(removed), failed, node))


def _swept(removed: Sequence[str], failed: Mapping[str, str], node: LocalNode) -> Swept:
    gone = [Removal(kind="sandbox", id=name, why="unrecorded") for name in removed if name not in failed]
    left = [Unremoved(kind="sandbox", id=name, why="unrecorded", error=error) for name, error in failed.items() if node.find(name) is None]
    return Swept(trigger="start", removed=tuple(gone[:AT_MOST]), failed=tuple(left[:AT_MOST]))


# ------------------------------------------------------------------------------------------------------------- actions


async def _recover(node: LocalNode, sandbox_id: str, driver_name: str) -> None:
    """Find its processes again. What cannot be asked now is watched until it can."""
    record, driver = node.get(sandbox_id), node.drivers.pick(driver_name)
    try:
        seen = await driver.recover(node.handle(record))
    except RuntimeFault as fault:
        log.warning("adoption.unrecovered", sandbox=sandbox_id, code=fault.code, error=str(fault))
        ensure_watched(node, sandbox_id)
        return
    match seen.condition:
        case Condition.GONE:
            exited(node, record, Exit(None, "lost"))
        case Condition.EXITED:
            exited(node, record, seen.exit or Exit(None))
        case condition:
            await node.volumes.remount(sandbox_id)
            await _as_recorded(node, record, driver, condition)
            ensure_watched(node, sandbox_id)
            log.info("adoption.recovered", sandbox=sandbox_id, condition=record.condition, pid=seen.pid)


async def _as_recorded(node: LocalNode, record: SandboxRecord, driver: Driver, condition: Condition) -> None:
    """Frozen though it should run: an agent died during a snapshot. Thawed though it should not: whoever froze it has died."""
    if isinstance(driver, CanPause) and condition.value != record.condition:
        await (driver.resume if record.condition == "running" else driver.pause)(node.handle(record))


async def _abandon(node: LocalNode, sandbox_id: str, _driver: str) -> None:
    """Half made, and no order will ever finish it: the sweep takes it down."""
    node.put(node.get(sandbox_id).model_copy(update={"condition": "doomed"}))


async def _remove_process(node: LocalNode, sandbox_id: str, driver_name: str) -> None:
    log.warning("adoption.orphan", sandbox=sandbox_id, driver=driver_name)
    await node.drivers.pick(driver_name).destroy(sandbox_id)


async def _unmount_disks(node: LocalNode, sandbox_id: str, _driver: str) -> None:
    await node.volumes.detach(sandbox_id)


async def _remove_network(node: LocalNode, sandbox_id: str, _driver: str) -> None:
    await node.network.detach(sandbox_id)


async def _remove_root(node: LocalNode, sandbox_id: str, _driver: str) -> None:
    await node.roots.remove(sandbox_id)


async def _remove_logs(node: LocalNode, sandbox_id: str, _driver: str) -> None:
    remove_tree(node.logs(sandbox_id))


_ACTIONS: Final[dict[Action, Callable[[LocalNode, str, str], Coroutine[Any, Any, None]]]] = {
    "recover": _recover,
    "abandon": _abandon,
    "remove-process": _remove_process,
    "remove-disks": _unmount_disks,
    "remove-network": _remove_network,
    "remove-root": _remove_root,
    "remove-logs": _remove_logs,
}


def say_what_lives(node: LocalNode, boot: str, *, complete: bool) -> asyncio.Task[None]:
    """The ``SANDBOXES`` observation: what is missing in it is really not here, if it is complete. Done when it is stored.

    What nobody waits for and only could not be taken down yet does not live.
    """
    gone = {record.id for record in node.memory.sandboxes.values() if record.condition == "doomed" and record.owed is None}
    states = {record.id: record.condition for record in node.memory.sandboxes.values() if not record.throwaway and record.id not in gone}
    body = SandboxesSeen(complete=complete, sandboxes=dict(states))
    return node.reporter.observe(Observation.SANDBOXES, body.model_dump(mode="json"), boot)


def say_what_was_swept(node: LocalNode, boot: str, swept: Swept) -> None:
    """The ``SWEPT`` observation, if there is anything to say."""
    if swept.removed or swept.failed:
        node.reporter.observe(Observation.SWEPT, swept.model_dump(mode="json"), boot)
