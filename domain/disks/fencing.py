"""What a node lets a sandbox do with a disk, whatever order comes when: one mount at a time, and never for a lease of yesterday. Pure."""

from __future__ import annotations

from domain.kernel.aggregate import Record
from domain.kernel.errors import Refused


class Mounting(Record):
    """What a node keeps of a disk: the newest epoch that it has mounted it under, and for whom it may be mounted now."""

    epoch: int = 0
    sandbox_id: str | None = None

    def admit(self, sandbox_id: str, epoch: int) -> Mounting:
        """The mounting once that sandbox has it.

        Raises ``disk.stale-lease`` for an epoch that is over or somebody else's, and ``disk.busy`` (retryable) while another sandbox may
        still have it mounted.
        """
        if epoch < self.epoch or (epoch == self.epoch and self.sandbox_id != sandbox_id):
            raise Refused("disk.stale-lease", f"epoch {epoch} is over: {self.epoch} is the newest", details={"epoch": self.epoch})
        if self.sandbox_id not in {None, sandbox_id}:
            raise Refused(
                "disk.busy", f"sandbox {self.sandbox_id} has it mounted", retryable=True, details={"attached_to": self.sandbox_id}
            )
        return Mounting(epoch=epoch, sandbox_id=sandbox_id)

    def left(self, sandbox_id: str) -> Mounting:
        """The mounting once nothing of that sandbox has it. Another one's stays."""
        return self.model_copy(update={"sandbox_id": None}) if self.sandbox_id == sandbox_id else self
