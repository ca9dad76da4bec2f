"""One small genuine artifact for all tests here, and a node in this process beside the one in a process of its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.agents import Installation, installation
from support.local_node import Rig
from support.real_node import RealRig

from agents import images
from agents.drivers.crun import find
from agents.images.compose import compose
from bus.server import Server
from domain.sandboxes.spec import ArtifactRef


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> tuple[Path, ArtifactRef]:
    """An ext4 file with a shell and some tools, and what it is."""
    place = tmp_path_factory.mktemp("artifact")
    composed = compose(place / "image")
    made = asyncio.run(images.build(composed.reference, composed.digest, 64, place / "work", place / "rootfs.ext4"))
    return made.path, ArtifactRef(artifact_id="rfs-" + made.sha256[:24], sha256=made.sha256, size_bytes=made.size_bytes)


@pytest.fixture
def rig(tmp_path, built) -> Rig:
    """A node in this process, not yet begun."""
    return Rig(tmp_path / "node", *built)


CRUN = pytest.mark.skipif(find() is None, reason="crun is not installed")
BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture(params=[pytest.param("process", marks=BWRAP), pytest.param("oci", marks=[pytest.mark.root, CRUN])])
def real(request, tmp_path, built) -> RealRig:
    """A node in this process whose sandboxes run on this host. ``purged`` in the end."""
    return RealRig(tmp_path / "strand", *built, request.param)


Installed = Callable[[], AsyncIterator[Installation]]


@pytest.fixture
def installed(tmp_path: Path, server: Server, built: tuple[Path, ArtifactRef]):
    """``async with installed() as place:`` a directory, a bus, an artifact in its object store."""

    @asynccontextmanager
    async def make():
        async with installation(server, tmp_path / "strand", *built) as place:
            yield place

    return make
