"""A job that is cancelled, from the command to the host: the node's work stops where it is, and nothing of it is left anywhere.

Control plane, agent and driver are the real ones, on a real bus; each test holds the node's work at another place
(reference/cubesandbox.md §2.2, §3.3).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.household import Household, household
from support.installation import compose_image
from support.waiting import eventually

from agents.cache import Cache
from agents.host import processes
from agents.images.unpack import Unpacker
from bus import objects
from bus.server import Server
from domain.kernel.errors import Refused
from domain.nodes.orders import Verb
from domain.templates.job import Job, JobState
from domain.templates.snapshot import Snapshot, SnapshotState
from domain.templates.template import Template, TemplateState

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]
HELD_S = 30.0
"""How long work is held at most, if nobody stops it."""


class Scene:
    """One household for all tests of this module, and a loop that goes on from one to the next."""

    def __init__(self, runner: asyncio.Runner, house: Household, image: str) -> None:
        self.run = runner.run
        self.house = house
        self.image = image


@pytest.fixture(scope="module")
def scene(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    base = tmp_path_factory.mktemp("cancelled")
    image = compose_image(base / "image")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        made = household(shared_server, base / "state", "process")
        yield Scene(runner, runner.run(made.__aenter__()), image)
        runner.run(made.__aexit__(None, None, None))


async def cancelled(house: Household, made: dict[str, Any], phase: str, verb: Verb) -> None:
    """Cancel it in that phase, see its order cut off on the node, and delete what it was to make; then nothing is left of it."""

    async def in_phase() -> bool:
        return (await house.get(Job, made["job_id"])).phase == phase

    await eventually(in_phase)
    before = len(house.failures(verb))
    assert await house.do("job.cancel", {"job_id": made["job_id"]}) == {"status": "FAILED"}
    await eventually(lambda: house.failures(verb)[before:] == ["order.cancelled"])
    job = await house.get(Job, made["job_id"])
    assert (job.state, job.phase, job.failure.code) == (JobState.FAILED, phase, "job.cancelled")
    assert (await house.get(Template, made["template_id"])).state is TemplateState.FAILED
    await house.do("template.delete", {"template": made["template_id"], "wait_s": 10})
    assert (await house.get(Template, made["template_id"])).state is TemplateState.DELETED


async def nothing_is_left(house: Household) -> None:
    async def clean() -> bool:
        return await house.left() == {}

    try:
        await eventually(clean)
    except AssertionError:
        raise AssertionError(f"left: {await house.left()}") from None


# ------------------------------------------------------------------------------------------------------- ways to be held


class Held:
    """Something that never ends by itself: ``await held.forever()`` stands for it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def forever(self, *_: Any, **__: Any) -> Any:
        self.begun.set()
        await asyncio.Event().wait()


@contextmanager
def dawdling_registry(layout: Path) -> Iterator[tuple[str, threading.Event]]:
    """Serves the image of an OCI layout, and stops in the middle of every layer: a reference, and whether it has come so far."""
    reached, over = threading.Event(), threading.Event()

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            blob = layout / "blobs" / "sha256" / self.path.rpartition(":")[2]
            data = (blob if blob.is_file() else layout / "index.json").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            layer = data.startswith(b"\x1f\x8b")
            self.wfile.write(data[:1000] if layer else data)
            if layer:
                reached.set()
                over.wait(HELD_S)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    try:
        yield f"docker://127.0.0.1:{server.server_address[1]}/image:1", reached
    finally:
        over.set()
        server.shutdown()
        serving.join()
        server.server_close()


def never_ending_mke2fs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A program in its place which begins and does not end: its pid, 0 before it has begun."""
    programs, pid = directory / "bin", directory / "pid"
    programs.mkdir()
    (programs / "mke2fs").write_text(f"#!/bin/sh\necho $$ > {pid}.new\nmv {pid}.new {pid}\nexec sleep 1000\n")
    (programs / "mke2fs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return lambda: int(pid.read_text()) if pid.exists() else 0


# -------------------------------------------------------------------------------------------------------- the job is held


def test_while_the_image_is_pulled(scene: Scene) -> None:
    async def scenario(image: str, reached: threading.Event) -> None:
        made = await scene.house.do("template.create", {"image": image})
        await eventually(reached.is_set)
        await cancelled(scene.house, made, "PULLING", Verb.ARTIFACT_BUILD)
        await nothing_is_left(scene.house)

    with dawdling_registry(Path(scene.image.removeprefix("oci:"))) as (image, reached):
        scene.run(scenario(image, reached))


def test_while_layers_are_unpacked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()

    def held(self: Unpacker, layer: Any, number: int) -> None:
        reached.set()
        layer._stop.wait(HELD_S)

    monkeypatch.setattr(Unpacker, "apply", held)

    async def scenario() -> None:
        made = await scene.house.do("template.create", {"image": scene.image})
        await eventually(reached.is_set)
        await cancelled(scene.house, made, "UNPACKING", Verb.ARTIFACT_BUILD)
        await nothing_is_left(scene.house)

    scene.run(scenario())


def test_while_the_file_system_is_made(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = never_ending_mke2fs(tmp_path, monkeypatch)

    async def scenario() -> None:
        made = await scene.house.do("template.create", {"image": scene.image})
        program = await eventually(pid)
        await cancelled(scene.house, made, "BUILDING_EXT4", Verb.ARTIFACT_BUILD)
        await nothing_is_left(scene.house)
        assert processes.stat(program) is None

    scene.run(scenario())


def test_while_what_was_built_is_stored(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its chunks are in the object store already."""

    async def scenario() -> None:
        held, store, chunks = Held(), objects.store, 0

        async def some(nc: Any, subject: str, *arguments: Any, **more: Any) -> Any:
            nonlocal chunks
            chunks += 1
            return await (held.forever() if chunks > 2 else store(nc, subject, *arguments, **more))

        monkeypatch.setattr(objects, "store", some)
        made = await scene.house.do("template.create", {"image": scene.image})
        await eventually(held.begun.is_set)
        monkeypatch.undo()
        assert (await scene.house.left())["stored"] == 2
        await cancelled(scene.house, made, "BUILDING_EXT4", Verb.ARTIFACT_BUILD)
        await nothing_is_left(scene.house)

    scene.run(scenario())


def test_while_a_node_fetches_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that does not believe the copy that it has."""

    async def scenario() -> None:
        held = Held()
        monkeypatch.setattr(Cache, "_known", lambda *_: False)
        monkeypatch.setattr(objects.direct, "batch", held.forever)
        made = await scene.house.do("template.create", {"image": scene.image})
        await eventually(held.begun.is_set)
        monkeypatch.undo()
        await cancelled(scene.house, made, "DISTRIBUTING", Verb.REPLICA_DISTRIBUTE)
        await nothing_is_left(scene.house)

    scene.run(scenario())


def test_while_it_is_booted_for_the_first_time(scene: Scene) -> None:
    """Its port is waited for, and nobody listens there."""

    async def scenario() -> None:
        house = scene.house
        made = await house.do("template.create", {"image": scene.image, "cmd": ["sleep", "1000"], "probe_port": 9})

        async def boots() -> bool:
            return bool(await next(iter(house.agent.node.drivers)).list())

        await eventually(boots)
        await cancelled(house, made, "CREATING_TEMPLATE", Verb.REPLICA_PREPARE)
        await nothing_is_left(house)

    scene.run(scenario())


def test_while_a_sandbox_is_made_a_template_and_its_snapshot_is_left_alone(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox goes on. A snapshot's own job is over in seconds and cannot be cut off: the refusal changes nothing."""
    pid = never_ending_mke2fs(tmp_path, monkeypatch)

    async def scenario() -> None:
        house = scene.house
        with monkeypatch.context() as patch:
            patch.setenv("PATH", os.environ["PATH"].partition(":")[2])
            base = (await house.do("template.create", {"image": scene.image, "cmd": ["sleep", "1000"], "wait_s": 30}))["template_id"]
        sandbox = (await house.do("sandbox.create", {"template": base, "wait_s": 20}))["sandbox_id"]
        taken = await house.do("snapshot.create", {"sandbox_id": sandbox})
        with pytest.raises(Refused) as refused:
            await house.do("job.cancel", {"job_id": taken["job_id"]})
        assert refused.value.code == "job.not-cancellable"

        made = await house.do("template.commit", {"sandbox_id": sandbox})
        program = await eventually(pid)
        await cancelled(house, made, "BUILDING_EXT4", Verb.SANDBOX_COMMIT)
        assert processes.stat(program) is None
        assert (await house.do("sandbox.exec", {"sandbox_id": sandbox, "cmd": ["true"]}))["exit_code"] == 0
        assert (await house.get(Snapshot, taken["snapshot_id"])).state is SnapshotState.READY
        await house.do("snapshot.delete", {"snapshot_id": taken["snapshot_id"], "wait_s": 20})
        await house.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 20})
        await house.do("template.delete", {"template": base, "wait_s": 20})
        await nothing_is_left(house)

    scene.run(scenario())
