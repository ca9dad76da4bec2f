"""The dead are shown for an hour, and then no more (reference/miren-sandbox.md §3.7). Nothing is deleted from the log.

Counted from their death, whoever looks at them meanwhile. What one still holds is let go first, and one whose node could not undo all of it
stays in sight until somebody has seen to that. An error about one never stops the others.
"""

from __future__ import annotations

from typing import Final

import structlog

from domain.sandboxes.provisioning import Provisioning, ProvisioningState
from domain.sandboxes.sandbox import Sandbox
from domain.sandboxes.states import HORIZON
from handlers.control import Control
from handlers.processes import sandboxes

log = structlog.get_logger(__name__)

PER_ROUND: Final = 1000
OWING: Final = frozenset({ProvisioningState.UNDOING, ProvisioningState.BLOCKED})


async def forget(control: Control) -> int:
    """One round; how many were forgotten."""
    now = control.clock()
    due = [(name, dead.project) for name, dead in control.fleet.dead.items() if now - dead.since >= HORIZON]
    done = 0
    for name, project in due[:PER_ROUND]:
        try:
            done += await _forget(control, project, name)
        except Exception as error:  # noqa: BLE001 - this one is kept, and the others are not (§3.7)
            log.warning("forget.kept", sandbox=name, error=repr(error)[:300])
    return done


async def _forget(control: Control, project: str, name: str) -> bool:
    saga = await control.find(Provisioning, project, name)
    if saga is not None and saga.state in OWING:
        return False
    await sandboxes.pump(control, project, name)
    cause = control.own_cause(project, "sandbox", name, "forget")
    done = await control.change(Sandbox, project, name, cause, lambda s: s.forget(cause.at))
    return done.aggregate.forgotten
