"""What builders that died have left in the object store goes by itself, and nothing else does."""

from __future__ import annotations

import pytest
from support.node import BYTES
from support.waiting import eventually

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.ids import SYSTEM_PROJECT
from domain.templates.artifact import Artifact
from domain.templates.template import Template
from handlers.control import Deadlines

pytestmark = pytest.mark.quick


async def left_by_a_dead_builder(place, name: str) -> None:
    """Chunks of an upload that was never described."""
    await place.nc.jetstream().publish(f"$O.{ARTIFACTS_BUCKET}.C.{name}", b"half a file")


async def chunks(place) -> set[str]:
    info = await place.nc.jetstream().stream_info(f"OBJ_{ARTIFACTS_BUCKET}", subjects_filter=f"$O.{ARTIFACTS_BUCKET}.C.>")
    return {subject.rsplit(".", 1)[1] for subject in info.state.subjects or {}}


def test_chunks_that_a_killed_builder_left_are_swept_and_artifacts_stay(at) -> None:
    async def test(place) -> None:
        artifact = (await place.get(Template, await place.template())).artifact_id
        await left_by_a_dead_builder(place, "abandoned")
        await eventually(lambda: gone(place, "abandoned"))
        known = await place.get(Artifact, artifact, SYSTEM_PROJECT)
        assert await objects.present(place.nc, ARTIFACTS_BUCKET, artifact, known.sha256, len(BYTES))

    async def gone(place, name: str) -> bool:
        return name not in await chunks(place)

    at(test, Deadlines(collect_s=0.1, abandoned_s=1.1))


def test_chunks_that_may_still_be_written_are_left_alone(at) -> None:
    async def test(place) -> None:
        await left_by_a_dead_builder(place, "slow")
        sweeps = []
        real = objects.sweep

        async def counted(*arguments):
            sweeps.append(await real(*arguments))
            return sweeps[-1]

        objects.sweep = counted
        try:
            await eventually(lambda: len(sweeps) >= 3)
        finally:
            objects.sweep = real
        assert (sum(sweeps), await chunks(place)) == (0, {"slow"})

    at(test, Deadlines(collect_s=0.05))
