"""What each contract test of the drivers gets: a driver, a root and a host that it must leave as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import guests, leftovers, rootfs, waiting
from support.benches import OCI, VM, Bench, Kind

from agents.drivers import hostns
from agents.drivers.crun import find
from agents.host import reaper


@pytest.fixture(scope="session", autouse=True)
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an agent does to its own process at its start."""
    base = tmp_path_factory.getbasetemp()
    reaper.become_subreaper()
    entered = hostns.enter(base)
    yield
    if entered:
        hostns.leave(base)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if rootfs.BUSYBOX is None:
        pytest.skip("busybox is not installed")
    return rootfs.make(tmp_path_factory.mktemp("rootfs") / "root")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    if found is OCI and find() is None:
        pytest.skip("crun is not installed")
    if found is VM:
        guests.ready()
    if found.real and found is not OCI and shutil.which(found.program) is None:
        pytest.skip(f"{found.program} is not installed")
    return found


@pytest.fixture
def bench(kind: Kind, tmp_path: Path, pristine: Path) -> Iterator[Bench]:
    root = tmp_path / "root"
    shutil.copytree(pristine, root, symlinks=True)
    before = leftovers.traces(tmp_path)
    made = Bench(kind, tmp_path, root)

    if kind is OCI and waiting.run(made.driver.check()) == []:
        made.map_users(made.driver.ids)

    async def clear() -> None:
        driver = await made.again()
        for sandbox_id in await driver.list():
            await driver.destroy(sandbox_id)
        await driver.close()

    yield made
    waiting.run(clear())
    assert leftovers.left(lambda: leftovers.traces(tmp_path), before) == {}
