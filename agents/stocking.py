"""Making starts in stock while nobody waits for anything, and ending those that nobody will want."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from agents.drivers.driver import CanHold, MapsUsers, RuntimeFault
from agents.host.finishing import to_its_end
from agents.node import LocalNode
from agents.provisioning import end_waiting, spec_of, wire_of
from agents.records import SandboxRecord
from agents.stock import Waiting, new_name

log = structlog.get_logger(__name__)

QUIET_S: Final = 0.03
"""Nothing is made before no sandbox was started for so long."""
IDLE_S: Final = 600.0
"""When nothing was started for so long, nothing is held either."""


async def stocking(node: LocalNode) -> None:
    """Keep the stock, until cancelled: then nothing of it is left."""
    try:
        while True:
            node.stock.asked.clear()
            await asyncio.sleep(QUIET_S)
            if not node.stock.asked.is_set():
                await _fill(node)
                await _until_asked(node)
    finally:
        await forget(node, lambda _: True)


async def _until_asked(node: LocalNode) -> None:
    try:
        async with asyncio.timeout(IDLE_S):
            await node.stock.asked.wait()
    except TimeoutError:
        await forget(node, lambda _: True)
        await node.stock.asked.wait()


async def forget(node: LocalNode, unwanted: Callable[[SandboxRecord], bool]) -> None:
    """Hold nothing of these kinds any more: what it lies over is to go."""
    async with node.stock.making:
        for found in node.stock.drop(unwanted):
            await end_waiting(node, found)


async def _fill(node: LocalNode) -> None:
    for old in node.stock.drop_old():
        await end_waiting(node, old)
    for model in node.stock.lacking():
        async with node.stock.making:
            if node.stock.asked.is_set():
                return
            await _add(node, model)


async def _add(node: LocalNode, model: SandboxRecord) -> None:
    """What makes it impossible is told to whoever starts such a sandbox, if it is still so then."""
    if model not in node.stock.lacking():
        return  # forgotten meanwhile
    driver = node.drivers.pick(model.driver)
    if not isinstance(driver, CanHold) or not driver.holds:
        return
    found = Waiting(new_name(), model)
    try:
        with node.stock.begun(found):
            await to_its_end(_hold(node, driver, found))
            node.stock.put(found)
    except BaseException as error:
        await end_waiting(node, found)
        node.stock.drop(lambda other: other is model)
        if not isinstance(error, RuntimeFault | OSError):
            raise
        log.info("stock.not-made", driver=model.driver, error=repr(error)[:300])


async def _hold(node: LocalNode, driver: CanHold, found: Waiting) -> None:
    record = found.model.model_copy(update={"id": found.name, "generation": 0})
    artifact, snapshot = record.spec.artifact.artifact_id, record.spec.snapshot_id
    ids = driver.ids if isinstance(driver, MapsUsers) else 0
    root = await node.roots.create(record.id, artifact, snapshot, ids=ids)
    attached = await node.network.attach(record.id)
    node.logs(record.id).mkdir(mode=0o700, parents=True, exist_ok=True)
    await driver.hold(spec_of(node, record, root, wire_of(attached), snapshot))
