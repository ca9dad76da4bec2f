"""The check that a run of the tests leaves nothing would see what is left."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from support import leftovers


@pytest.mark.quick
def test_a_process_that_works_in_a_folder_of_the_run_is_named(tmp_path: Path) -> None:
    before = leftovers.of_run(tmp_path)
    (tmp_path / "d").mkdir()
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, cwd=tmp_path / "d") as left:
        assert any(f"{left.pid} " in line for line in leftovers.of_run(tmp_path).beyond(before)["processes"])
    assert leftovers.of_run(tmp_path).beyond(before) == {}


@pytest.mark.root
def test_a_mount_and_a_link_of_a_folder_that_is_gone_are_named(tmp_path: Path) -> None:
    before = leftovers.of_run(tmp_path)
    network, mount = tmp_path / "network", tmp_path / "mount"
    network.mkdir()
    mount.mkdir()
    link = "slb" + hashlib.sha256(os.fsencode(network.resolve())).hexdigest()[:8]
    leftovers.remember(tmp_path)
    network.rmdir()
    subprocess.run(["ip", "link", "add", link, "type", "bridge"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
    try:
        found = leftovers.of_run(tmp_path).beyond(before)
    finally:
        subprocess.run(["umount", mount], check=True)
        subprocess.run(["ip", "link", "delete", link], check=True)
    assert found["links"] == {link}
    assert len(found["mounts"]) == 1
    assert leftovers.of_run(tmp_path).beyond(before) == {}
