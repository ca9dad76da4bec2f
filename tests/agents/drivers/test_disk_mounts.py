"""Contract: what a driver shows of the host where it is told to, to whom, and that it is gone when the sandbox is."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.benches import KINDS, Bench
from support.waiting import run

from agents.drivers.driver import Mount, RuntimeFault
from agents.volumes import places

SHOWING = pytest.mark.parametrize("kind", [KINDS[name] for name in ("bwrap", "unshare", "oci")], indirect=True, ids=str)


def disk(bench: Bench, name: str = "disk") -> Path:
    path = bench.directory / name
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    return path


@SHOWING
def test_a_disk_is_where_it_was_asked_for_and_lasts(bench: Bench) -> None:
    async def scenario() -> None:
        place, sealed = disk(bench), disk(bench, "sealed")
        (sealed / "given").write_text("read me")
        for target in ("/var/lib/data", "/sealed"):
            places.make(bench.root, target, bench.ids)
        mounts = (Mount(place, "/var/lib/data"), Mount(sealed, "/sealed", read_only=True))
        handle = await bench.start(mounts=mounts)
        assert await bench.said(handle, "echo kept > /var/lib/data/file; cat /sealed/given; echo x 2>/dev/null > /sealed/new || echo no")
        assert not (sealed / "new").exists()
        await bench.driver.destroy("sb-1")
        assert (place / "file").read_text() == "kept\n"
        assert not any((bench.root / "var/lib/data").iterdir()), "nothing went into the root itself"

    run(scenario())


@SHOWING
def test_the_specification_of_a_sandbox_keeps_its_disks(bench: Bench) -> None:
    async def scenario() -> None:
        place = disk(bench)
        places.make(bench.root, "/data", bench.ids)
        handle = await bench.start(mounts=(Mount(place, "/data"),))
        await bench.again()
        await bench.driver.recover(handle)
        assert await bench.said(handle, "touch /data/later; ls /data") == "later"
        await bench.driver.destroy("sb-1")

    run(scenario())


@pytest.mark.root
@pytest.mark.parametrize("kind", [KINDS["oci"]], indirect=True, ids=str)
def test_users_of_a_disk_are_those_of_the_sandbox_and_not_of_the_host(bench: Bench) -> None:
    async def scenario() -> None:
        assert await bench.driver.check() == []
        if not bench.driver.ids:
            return
        bench.map_users(bench.driver.ids)
        place = disk(bench)
        places.make(bench.root, "/data", bench.ids)
        handle = await bench.start(mounts=(Mount(place, "/data"),))
        assert await bench.said(handle, "touch /data/mine; stat -c %u /data/mine") == "0"
        await bench.driver.destroy("sb-1")
        assert (place / "mine").stat().st_uid == 0, "another node's sandboxes, or these ones tomorrow, find it their own"
        assert (bench.root / "data").stat().st_uid == bench.ids

    run(scenario())


def test_a_link_or_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("/etc")
    (tmp_path / "root/file").touch()
    for target in ("/link/data", "/link", "/file", "/file/data"):
        with pytest.raises(RuntimeFault, match="at '"):
            places.make(tmp_path / "root", target, 0)
    places.make(tmp_path / "root", "/a/b/c", 0)
    assert (tmp_path / "root/a/b/c").is_dir()
