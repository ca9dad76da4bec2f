"""The image composed from the host's own tools: genuine, the same each time, and it runs."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest
from support.images import check, content_of, debugfs

from agents.images import resolve
from agents.images.compose import PATH, compose


@pytest.mark.parametrize("busybox", [True, False], ids=["busybox", "own-tools"])
def test_it_builds_into_a_root_with_a_shell_and_without_what_was_taken_away(busybox, bench, tmp_path):
    composed = compose(tmp_path / "l", busybox=busybox)
    found = asyncio.run(resolve(composed.reference))
    assert (found.digest, found.layers) == (composed.digest, 4)
    assert found.config["Cmd"] == ["/bin/sh"]
    assert found.config["Env"] == [f"PATH={PATH}"]
    built = bench.build(composed.reference, digest=composed.digest)
    check(built.path)
    assert content_of(built.path, "/etc/passwd").startswith("root:x:0:0:")
    assert "build-leftover" not in debugfs(built.path, "ls -p /var/cache")
    assert "hello" in debugfs(built.path, "ls -p /usr/local/bin")


@pytest.mark.parametrize("busybox", [True, False], ids=["busybox", "own-tools"])
def test_the_same_host_composes_the_same_image(busybox, tmp_path):
    assert compose(tmp_path / "one", busybox=busybox).digest == compose(tmp_path / "two", busybox=busybox).digest


@pytest.mark.root
@pytest.mark.parametrize("busybox", [True, False], ids=["busybox", "own-tools"])
def test_its_shell_and_its_tools_run(busybox, bench, tmp_path):
    composed = compose(tmp_path / "l", busybox=busybox, programs=["seq"])
    built = bench.build(composed.reference)
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["mount", "-o", "ro,loop", built.path, root], check=True)
    try:
        script = "hello && ls / && cat /etc/os-release && /usr/local/bin/seq 2 && id -u && sleep 0"
        shell = subprocess.run(
            [shutil.which("chroot"), root, "/bin/sh", "-c", script], env={"PATH": PATH}, capture_output=True, text=True, check=False
        )
    finally:
        subprocess.run(["umount", root], check=True)
    assert shell.returncode == 0, shell.stderr
    assert shell.stdout.startswith("hello from ")
    assert "ID=strandline-demo" in shell.stdout
    assert shell.stdout.endswith("1\n2\n0\n")
