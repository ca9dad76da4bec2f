"""What came of a command can be followed through the log: one trace, and each commit names the one that it follows from."""

from __future__ import annotations

from support.waiting import eventually

from domain.sandboxes.provisioning import Provisioning, ProvisioningState
from domain.templates.template import Template, TemplateState

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def log(place) -> list:
    return await place.plane.control.store.read_all(limit=1000)


def test_one_trace_leads_from_a_command_to_the_start_of_its_sandbox(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        made = await place.do("sandbox.create", {"template": template, "wait_s": 20}, trace=TRACE)
        await eventually(lambda: completed(place, made["sandbox_id"]))
        commits = [c for c in await log(place) if c.id == made["sandbox_id"]]
        created, begun, *rest = sorted(commits, key=lambda c: (c.version, c.seq))
        assert {c.trace for c in commits} == {TRACE}
        happened = {e["type"] for c in commits for e in c.events}
        assert happened >= {"sandbox.created", "provisioning.begun", "sandbox.started", "provisioning.completed"}
        assert created.cause is None
        assert {c.cause for c in (begun, *rest)} == {created.commit}
        assert {order.trace for order in place.node.orders if order.key == made["sandbox_id"]} == {TRACE}

    async def completed(place, sandbox: str) -> bool:
        return (await place.get(Provisioning, sandbox)).state is ProvisioningState.COMPLETED

    at(test)


def test_the_making_and_the_removal_of_a_template_are_one_trace_each_and_every_step_has_a_cause(at) -> None:
    async def test(place) -> None:
        before = await place.plane.control.store.position()
        template = (await place.do("template.create", {"image": "oci:/demo", "alias": "demo", "wait_s": 20}, trace=TRACE))["template_id"]
        made = await following(place, before)
        assert {"replica.ready", "artifact.built", "template.settled", "alias.claimed"} <= made
        before = await place.plane.control.store.position()
        await place.do("template.delete", {"template": template, "wait_s": 10}, trace=TRACE)
        assert {"template.delete-begun", "replica.removed", "template.deleted"} <= await following(place, before)
        assert (await place.get(Template, template)).state is TemplateState.DELETED

    async def following(place, before: int) -> set[str]:
        """What has happened since, and that all of it is of that trace and follows from something."""
        commits = [c for c in await log(place) if c.seq > before]
        known = {c.commit for c in commits}
        assert [c.events for c in commits if c.trace != TRACE] == []
        assert [c.events for c in commits if c.actor != "local" and c.cause not in known] == []
        return {event["type"] for c in commits for event in c.events}

    at(test)
