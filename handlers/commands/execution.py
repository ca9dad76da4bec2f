"""``sandbox.exec``: one more process inside, its output to the caller, the fact of it into the log.

The output goes past the log, on the bus only. A command id that is repeated gets it from its receipt, or from the node while that still
keeps it; after that only the exit code is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any, Final

from bus.endpoints import Reply
from domain.kernel.errors import Refused
from domain.kernel.ids import derived
from domain.nodes.orders import Order, Report, ReportKind, Verb
from domain.sandboxes.commands import SandboxExec
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Control
from handlers.dispatch import Asked

AGAIN_S: Final = 5.0
"""How long the node is asked for an answer that it gave before."""


async def execute(control: Control, asked: Asked, command: SandboxExec) -> Reply:
    """Run it and wait; a paused sandbox with ``auto_resume`` wakes up first."""
    sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
    loaded = await control.store.load(Sandbox, asked.project, command.sandbox_id)
    if asked.command_id in loaded.commands:
        return await _repeated(control, asked, sandbox, command)
    if sandbox.ttl is not None and sandbox.ttl.auto_resume and sandbox.resting:
        sandbox = await _wake(control, asked, sandbox)
    sandbox.require_exec()
    await _outlast(control, asked, sandbox, command.timeout_s)
    seconds = command.timeout_s + control.deadlines.exec_slack_s
    try:
        report = await _ask(control, asked, sandbox.node_id, _order(control, asked, command), seconds)
    except TimeoutError:
        raise Refused("node.offline", f"node {sandbox.node_id} did not answer", retryable=True, details={"node": sandbox.node_id}) from None
    return await _reply(control, asked, command.cmd[0], report)


async def _ask(control: Control, asked: Asked, node: str, order: Order, seconds: float) -> Report:
    """The node's answer. Raises ``TimeoutError``."""
    answer = control.results.expect(order.id)
    try:
        async with asked.idle(), asyncio.timeout(seconds):
            await control.ask(node, order)
            return await asyncio.shield(answer)  # another sending of the same command may wait for it, too
    finally:
        control.results.forget(order.id)


def _order(control: Control, asked: Asked, command: SandboxExec) -> Order:
    body = command.model_dump(mode="json", exclude={"wait_s"}, exclude_none=True)
    return Order(
        id=derived(asked.project, asked.command_id, "exec"),
        verb=Verb.SANDBOX_EXEC,
        project=asked.project,
        key=command.sandbox_id,
        process="exec",
        process_id=command.sandbox_id,
        at=asked.cause.at,
        deadline=asked.cause.at + timedelta(seconds=command.timeout_s + control.deadlines.exec_slack_s),
        trace=asked.cause.trace,
        body=body,
    )


async def _reply(control: Control, asked: Asked, program: str, report: Report) -> Reply:
    if report.kind is ReportKind.FAILED or report.error is not None:
        error = report.error
        if error is None:
            raise Refused("internal", "the node failed without saying why", retryable=True)
        if error.details.get("begun", True):
            raise error.refusal()
        raise Refused(error.code, error.message, retryable=error.retryable, details=error.details)  # the same id may begin it yet
    body = report.body

    def note(sandbox: Sandbox) -> None:
        sizes = len(body.get("stdout", "")), len(body.get("stderr", ""))
        sandbox.touch(asked.cause.at)
        sandbox.executed(asked.cause.at, asked.command_id, body["exit_code"], body.get("duration_ms", 0), program, *sizes)

    done = await control.change(Sandbox, asked.project, report.process_id, asked.cause, note, lambda _: {"exit_code": body["exit_code"]})
    return Reply(_output(body), report.process_id, done.seq)


def _output(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "exit_code": body["exit_code"],
        "stdout": body.get("stdout", ""),
        "stderr": body.get("stderr", ""),
        "truncated": body.get("truncated", False),
        "timed_out": body.get("timed_out", False),
    }


async def _repeated(control: Control, asked: Asked, sandbox: Sandbox, command: SandboxExec) -> Reply:
    """It ran, and whoever took it has died before it could answer; its command id is in the log, so it cannot run again."""
    done = await control.change(Sandbox, asked.project, sandbox.id, asked.cause, lambda _: None)
    with contextlib.suppress(TimeoutError):
        report = await _ask(control, asked, sandbox.node_id, _order(control, asked, command), AGAIN_S)
        if report.kind is ReportKind.DONE:
            return Reply(_output(report.body), sandbox.id, done.seq)
    code = (done.reply or {}).get("exit_code")
    return Reply(
        {"exit_code": code, "stdout": "", "stderr": "", "truncated": True, "timed_out": False, "repeated": True}, sandbox.id, done.seq
    )


async def _outlast(control: Control, asked: Asked, sandbox: Sandbox, seconds: float) -> None:
    """An idle time to live must not end while the program may still run: who is used is not idle."""
    if sandbox.ttl is None or sandbox.ttl.kind != "idle":
        return
    cause = control.own_cause(asked.project, asked.command_id, "outlast")
    await control.change(Sandbox, asked.project, sandbox.id, cause, lambda s: s.touch(cause.at, seconds))


async def _wake(control: Control, asked: Asked, sandbox: Sandbox) -> Sandbox:
    """Until it runs. A pause in progress is waited for; several who come at once ask for one resume, because they see one version."""

    async def idle() -> bool:
        return (await control.get(Sandbox, asked.project, sandbox.id)).operation is None

    await asked.wait(control, "sandbox", sandbox.id, idle, control.deadlines.exec_slack_s)
    found = await control.get(Sandbox, asked.project, sandbox.id)
    if found.state is not SandboxState.PAUSED:
        return found
    deadline = asked.cause.at + timedelta(seconds=control.deadlines.operation_s)
    cause = control.own_cause(asked.project, "sandbox", sandbox.id, "wake", found.version)
    await control.change(Sandbox, asked.project, sandbox.id, cause, lambda s: s.request_resume(cause.at, cause.command, deadline))
    await asked.wait(control, "sandbox", sandbox.id, idle, control.deadlines.exec_slack_s)
    return await control.get(Sandbox, asked.project, sandbox.id)
