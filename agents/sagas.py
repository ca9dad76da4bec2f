"""Every saga that this program declares, by name."""

from __future__ import annotations

from typing import Any, Final

from agents.provisioning import CREATE_SANDBOX, CREATE_SANDBOX_WITH_DISKS
from agents.verbs.restart import RESTART_SANDBOX
from agents.verbs.snapshots import ROLLBACK_SANDBOX
from domain.kernel.saga import Definition

_ALL: Final = (CREATE_SANDBOX, CREATE_SANDBOX_WITH_DISKS, ROLLBACK_SANDBOX, RESTART_SANDBOX)
SAGAS: Final[dict[str, Definition[Any]]] = {saga.name: saga for saga in _ALL}
