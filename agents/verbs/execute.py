"""``sandbox-exec``: one more process inside, at most once per order. What a crash interrupted is said to be interrupted, not run again."""

from __future__ import annotations

import base64
import binascii
import time

from agents.drivers.driver import ExecRequest
from agents.failures import fail
from agents.task import Task
from domain.nodes.orders import SandboxExec, SandboxExecuted

STEP = "exec"


async def execute(task: Task, body: SandboxExec) -> SandboxExecuted:
    """Run it. Output is base64, at most 1 MiB of each stream."""
    node = task.node
    if STEP in task.trail.touched:
        raise fail("sandbox.exec-interrupted", "the agent was restarted while it ran; whether it did its work is not known")
    record = node.get(body.sandbox_id)
    if record.condition != "running":
        raise fail("sandbox.not-running", f"sandbox {record.id} is {record.condition}", condition=record.condition)
    recipe = record.spec.recipe
    request = ExecRequest(
        argv=body.cmd,
        env={**recipe.env, **body.env},
        cwd=body.cwd or recipe.cwd,
        user=body.user or recipe.user,
        stdin=_stdin(body.stdin),
        timeout_s=body.timeout_s,
    )
    task.account.started(STEP)
    await node.journal.sync()  # before the effect: after a power cut it must not run a second time either
    node.crash.here(f"{STEP}:before")
    began = time.monotonic()
    result = await node.drivers.pick(record.driver).exec(node.handle(record), request)
    node.crash.here(f"{STEP}:after")
    return SandboxExecuted(
        exit_code=result.code,
        stdout=base64.b64encode(result.stdout).decode(),
        stderr=base64.b64encode(result.stderr).decode(),
        truncated=result.truncated,
        timed_out=result.timed_out,
        duration_ms=round((time.monotonic() - began) * 1000, 3),
    )


def _stdin(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise fail("order.invalid", f"stdin is not base64: {error}") from None
