"""What an agent says of its node: what it promised, what is used, what runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from agents.records import SandboxRecord
from agents.usage.service import FAMILIES as USED
from bus.metrics import Metrics, Sample

FAMILIES: Final = {
    "strandline_agent_sandbox_count": ("gauge", "Sandboxes on this node, by condition."),
    "strandline_agent_used": ("gauge", "What its sandboxes were promised: cpu in cores, memory and disk in MiB, and how many they are."),
    "strandline_agent_storage_used_percent": ("gauge", "How full the disk is that it works on."),
    "strandline_agent_order_count": ("gauge", "Orders that it has taken and not answered."),
    **USED,
}


def metrics(
    beat: Callable[[], Mapping[str, Any]], sandboxes: Mapping[str, SandboxRecord], used: Callable[[], Iterable[Sample]] = list
) -> Metrics:
    """``beat``: what the next heartbeat would say; ``used``: what each sandbox uses."""

    def now() -> Iterable[Sample]:
        said = beat()
        for condition, number in sorted(Counter(record.condition for record in sandboxes.values()).items()):
            yield "strandline_agent_sandbox_count", {"condition": condition}, number
        for what, amount in said["used"].items():
            yield "strandline_agent_used", {"what": what}, amount
        if said["storage_pct"] is not None:
            yield "strandline_agent_storage_used_percent", {}, said["storage_pct"]
        yield "strandline_agent_order_count", {}, said["orders"]
        yield from used()

    return Metrics(FAMILIES, now)
