"""``sandbox.update-limits``: other limits while it runs, as far as its driver can and its node has room."""

from __future__ import annotations

from datetime import timedelta

from bus.endpoints import Reply
from domain.kernel.errors import Refused
from domain.nodes.placement import Need, short_of
from domain.sandboxes.commands import SandboxUpdateLimits
from domain.sandboxes.sandbox import Sandbox
from domain.templates.compat import Compat
from handlers.commands.sandboxes import operate
from handlers.control import Control
from handlers.dispatch import Asked
from handlers.fleet_entries import NodeEntry
from handlers.placing import candidate


async def update(control: Control, asked: Asked, command: SandboxUpdateLimits) -> Reply:
    """Ask the node for them; the sandbox has them when the node says so."""
    deadline = asked.cause.at + timedelta(seconds=control.deadlines.operation_s)

    def decide(sandbox: Sandbox) -> None:
        node = control.fleet.nodes.get(sandbox.node_id)
        if node is not None:
            _require_driver(node, sandbox, command.wanted)
            _require_room(node, sandbox, command.wanted)
        sandbox.request_limits(asked.cause.at, asked.command_id, command.wanted, deadline)

    return await operate(control, asked, command, decide)


def _require_driver(node: NodeEntry, sandbox: Sandbox, wanted: dict[str, float]) -> None:
    """Refused, never pretended (design.md §7)."""
    driver = sandbox.driver or sandbox.spec.driver
    flags = node.flags.get(driver or next(iter(node.drivers), ""), ())
    lacking = sorted(set(wanted) & set(candidate(node, Compat.OK, replica=True).unenforced(driver)))
    if "live-limits" in flags and not lacking:
        return
    fields = lacking or sorted(wanted)
    raise Refused(
        "sandbox.unsupported",
        f"its driver cannot change {' and '.join(fields)} while it runs",
        details={"fields": fields, "driver": driver, "nodes": [node.node_id]},
    )


def _require_room(node: NodeEntry, sandbox: Sandbox, wanted: dict[str, float]) -> None:
    """What it has already does not count against it; less than before always fits."""
    now = sandbox.limits
    more = {"cpu": wanted.get("cpu", now.cpu) - now.cpu, "memory_mb": int(wanted.get("memory_mb", now.memory_mb) - now.memory_mb)}
    seen = candidate(node, Compat.OK, replica=True).model_copy(update={"free_sandboxes": None})
    grows = {name: growth for name, growth in more.items() if growth > 0}
    room = seen.model_copy(update={"free_memory_mb": max(0, seen.free_memory_mb), "free_cpu": max(0, seen.free_cpu)})
    short = short_of(room, Need(cpu=grows.get("cpu", 0), memory_mb=int(grows.get("memory_mb", 0))))
    if short:
        raise Refused(
            "capacity.exhausted",
            f"node {node.node_id} has not so much {short} left",
            retryable=True,
            details={"nodes": [node.node_id], "short_of": {node.node_id: short}},
        )
