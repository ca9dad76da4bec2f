"""A sandbox's disk becomes an artifact on its node (reference/cubesandbox.md §4.2)."""

from __future__ import annotations

import asyncio
from typing import Any

from support.building import building, identifier, leaves_nothing
from support.waiting import eventually

from domain.nodes.orders import ReportKind, Verb


async def output(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, complaint = await process.communicate()
    assert process.returncode == 0, complaint
    return out


async def write(rig: Any, sandbox: str, script: str) -> None:
    body = {"sandbox_id": sandbox, "cmd": ["/bin/sh", "-c", script]}
    assert (await rig.tell(Verb.SANDBOX_EXEC, body)).body["exit_code"] == 0


def test_a_commit_holds_what_the_sandbox_wrote_and_is_the_same_for_the_same_disk(rig, run):
    async def scenario():
        stored: dict[str, str] = {}
        async with rig.life():
            building(rig, stored)
            sandbox = await rig.up()
            await write(rig, sandbox, "echo kept > /kept")
            body = {"sandbox_id": sandbox, "disk_mb": 64}
            made = await rig.tell(Verb.SANDBOX_COMMIT, body)
            assert made.kind is ReportKind.DONE, made
            again = await rig.tell(Verb.SANDBOX_COMMIT, body)
            assert again.body == made.body, "the same disk is the same bytes"
            await write(rig, sandbox, "echo more > /more")
            other = (await rig.tell(Verb.SANDBOX_COMMIT, body)).body
            assert other["digest"] != made.body["digest"]
            file = rig.node.cache.path(identifier(made.body["digest"]))
            assert await output("debugfs", "-R", "cat /kept", str(file)) == b"kept\n"
            await output("e2fsck", "-fn", str(file))
            await leaves_nothing(rig)
            told = {said.body["phase"] for said in rig.reports if said.kind is ReportKind.PROGRESS and said.verb == Verb.SANDBOX_COMMIT}
            assert told == {"BUILDING_EXT4"}

    run(scenario())


def test_a_committed_file_is_stored_from_the_nodes_own_copy_and_its_loss_is_told(rig, run):
    async def scenario():
        stored: dict[str, str] = {}
        async with rig.life():
            building(rig, stored)
            made = (await rig.tell(Verb.SANDBOX_COMMIT, {"sandbox_id": await rig.up(), "disk_mb": 64})).body
            one = identifier(made["digest"])
            body = {"artifact_id": one, "image": "", "digest": made["digest"], "disk_mb": 64, "committed": True}
            assert (await rig.tell(Verb.ARTIFACT_BUILD, body)).body["sha256"] == made["sha256"] == stored[one]
            stored.clear()
            with rig.node.cache.path(one).open("r+b") as file:
                file.write(b"damage")
            assert (await rig.tell(Verb.ARTIFACT_BUILD, body)).error.code == "template.origin-gone"

    run(scenario())


def test_a_destroy_ends_a_commit_and_a_crash_in_it_leaves_nothing(rig, run):
    async def scenario():
        async with rig.life():
            sandbox = await rig.up()
            packing = held(rig)
            order = rig.order(Verb.SANDBOX_COMMIT, {"sandbox_id": sandbox, "disk_mb": 64})
            end = asyncio.create_task(rig.send(order))
            await eventually(packing.is_set)
            destroyed = await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})
            assert destroyed.kind is ReportKind.DONE
            assert (await end).error.code == "sandbox.superseded"
            await leaves_nothing(rig)
        async with rig.life(orderly=False):
            packing = held(rig)
            order = rig.order(Verb.SANDBOX_COMMIT, {"sandbox_id": await rig.up("two"), "disk_mb": 64})
            dying = asyncio.create_task(rig.send(order))
            await eventually(packing.is_set)
            dying.cancel()
        async with rig.life():
            building(rig, {})
            await eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[-1].kind is ReportKind.DONE
            await leaves_nothing(rig)

    def held(rig) -> asyncio.Event:
        begun = asyncio.Event()

        async def pack(*_: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

        building(rig, {})
        rig.node.images.pack = pack
        return begun

    run(scenario())
