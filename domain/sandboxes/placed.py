"""Why a sandbox is where it is, as it was decided when it was created: written down once, in its first event."""

from __future__ import annotations

from typing import Literal

from domain.kernel.aggregate import Record
from domain.sandboxes.spec import Labels

Strategy = Literal["spread", "pack", "affinity"]


class Placed(Record):
    """``considered`` nodes were looked at, ``fitting`` of them could have it, the others were ``refused``, by code.

    ``score``: by the strategy, the greater the better. ``runner_up``: where it would have gone otherwise. ``node`` and ``node_labels``:
    what its caller asked for.
    """

    strategy: Strategy = "spread"
    score: float = 0
    considered: int = 0
    fitting: int = 0
    refused: dict[str, int] = {}
    runner_up: str = ""
    node: str | None = None
    node_labels: Labels = {}
