"""A node in this process with a driver that runs programs, and with the network and the storage that this host lets it have."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from support import leftovers
from support.leftovers import Traces
from support.local_node import Rig

from agents.drivers import hostns
from agents.network.netns import BridgeNetwork, NoNetwork, choose_network
from agents.options import Options
from agents.purge import purge
from agents.registry import DRIVERS
from agents.storage.all import AllRoots
from agents.storage.disks import DiskRoots
from agents.storage.roots import choose_roots
from domain.nodes.orders import ReportKind, Verb
from domain.sandboxes.spec import ArtifactRef


class RealRig(Rig):
    """``directory``: an installation's, so that what is left in the end is removed as from one."""

    _name = "n1"

    def __init__(self, directory: Path, ext4: Path, artifact: ArtifactRef, driver: str) -> None:
        self.installation = directory
        self._kind = driver
        (directory / "nodes").mkdir(parents=True)
        own = directory / "nodes" / self._name
        super().__init__(own, ext4, artifact, lambda _: DRIVERS[driver](own / "drivers" / driver))
        hostns.enter(own)
        self._bridged = isinstance(choose_network(own / "network"), BridgeNetwork)
        self._trees = type(choose_roots(own / "storage"))  # asked once: finding out costs more than what is tested

    def network(self) -> Any:
        return BridgeNetwork(self.directory / "network") if self._bridged else NoNetwork()

    def storage(self) -> AllRoots:
        place = self.directory / "storage"
        return AllRoots(self._trees(place), DiskRoots(place / "disks"))

    def traces(self) -> Traces:
        """What the host has of it now."""
        return leftovers.traces(self.directory.parent)

    async def answers(self, sandbox_id: str) -> bool:
        """Does it run a program?"""
        report = await self.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox_id, "cmd": ["echo", "alive"]})
        return report.kind is ReportKind.DONE and base64.b64decode(report.body["stdout"]) == b"alive\n"

    async def destroy(self, sandbox_id: str) -> None:
        report = await self.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox_id, "grace_s": 0})
        assert report.kind is ReportKind.DONE, report.error

    def states(self) -> set[str]:
        """What the driver keeps of sandboxes on the disk."""
        place = self.directory / "drivers" / self._kind
        return {path.name for path in place.iterdir() if path.name.startswith("sb-")} if place.is_dir() else set()

    async def purged(self) -> None:
        """Nothing is left of the node."""
        await purge(Options(self.installation, self._name))
