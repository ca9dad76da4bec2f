"""Sealed secrets on their way through the control plane: which node is asked, who is asked next, and what is refused at the edge."""

from __future__ import annotations

import pytest
from support.node import ScriptedNode
from support.waiting import eventually

from bus import sealed
from domain.kernel.errors import Refused
from domain.nodes.orders import Failure, Verb
from domain.templates.template import Template

pytestmark = pytest.mark.quick
IMAGE = "registry.example/app:1"
SECRET = "s3cr3t-of-the-test"


def sealed_for(*names: str) -> str:
    return sealed.seal(SECRET, {name: sealed.public_key(sealed.private_key()) for name in names}, "registry.example")


def private(*names: str) -> dict[str, object]:
    """The body of a command that waits for its end."""
    return {"image": IMAGE, "registry_user": "u", "registry_secret": sealed_for(*names), "wait_s": 20}


def closed(order) -> Failure | None:
    """What a node says that cannot open the secret."""
    if order.verb in {Verb.IMAGE_RESOLVE, Verb.ARTIFACT_BUILD}:
        return Failure(code="registry.secret-unreadable", message="this node cannot open the registry's secret")
    return None


async def joined(place, name: str) -> ScriptedNode:
    """Another node that is there."""
    await place.do("node.enroll", {"node_id": name})
    node = ScriptedNode(place.nc, name)
    await node.__aenter__()

    async def known() -> bool:
        return any(entry.node_id == name and entry.roles for entry in place.plane.control.fleet.builders())

    await eventually(known)
    return node


def test_an_unsealed_secret_is_refused_and_not_kept(at) -> None:
    async def test(place) -> None:
        with pytest.raises(Refused) as refused:
            await place.do("template.create", {"image": IMAGE, "registry_user": "u", "registry_secret": SECRET})
        assert refused.value.code == "template.unsealed-secret"
        assert SECRET not in str(refused.value.as_dict())
        assert place.node.did(Verb.IMAGE_RESOLVE) == []

    at(test)


def test_orders_and_events_have_the_sealed_text(at) -> None:
    async def test(place) -> None:
        body = private("node-1")
        identifier = (await place.do("template.create", body))["template_id"]
        assert (await place.get(Template, identifier)).request.registry_secret == body["registry_secret"]
        [resolve] = place.node.did(Verb.IMAGE_RESOLVE)
        [build] = place.node.did(Verb.ARTIFACT_BUILD)
        assert resolve.body["registry_secret"] == build.body["registry_secret"] == body["registry_secret"]

    at(test)


def test_the_same_command_with_the_secret_sealed_anew_is_a_repeat(at) -> None:
    async def test(place) -> None:
        first = await place.do("template.create", private("node-1"), command_id="once")
        assert await place.do("template.create", private("node-1"), command_id="once") == first
        with pytest.raises(Refused, match="another body"):
            await place.do("template.create", {**private("node-1"), "registry_user": "v"}, command_id="once")

    at(test)


def test_only_nodes_that_the_secret_was_sealed_to_are_asked(at) -> None:
    async def test(place) -> None:
        second = await joined(place, "node-2")
        try:
            await place.do("template.create", private("node-2"))
            assert [len(node.did(Verb.IMAGE_RESOLVE)) for node in (place.node, second)] == [0, 1]
            assert [len(node.did(Verb.ARTIFACT_BUILD)) for node in (place.node, second)] == [0, 1]
        finally:
            await second.__aexit__()

    at(test)


def test_another_node_is_asked_when_one_cannot_open_it(at) -> None:
    async def test(place) -> None:
        second = await joined(place, "node-2")
        place.node.refuse = closed
        try:
            done = await place.do("template.create", private("node-1", "node-2"))
            assert done["status"] == "READY"
            assert [len(node.did(Verb.IMAGE_RESOLVE)) for node in (place.node, second)] == [1, 1]
            assert [len(node.did(Verb.ARTIFACT_BUILD)) for node in (place.node, second)] == [0, 1]
        finally:
            await second.__aexit__()

    at(test)


def test_when_none_can_open_it_the_job_says_so(at) -> None:
    async def test(place) -> None:
        second = await joined(place, "node-2")
        place.node.refuse = second.refuse = closed
        try:
            with pytest.raises(Refused) as refused:
                await place.do("template.create", private("node-1", "node-2"))
            assert refused.value.code == "registry.secret-unreadable"
            assert [len(node.did(Verb.IMAGE_RESOLVE)) for node in (place.node, second)] == [1, 1]
        finally:
            await second.__aexit__()

    at(test)
