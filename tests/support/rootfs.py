"""A root file system of busybox alone, small enough to make one per test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

BUSYBOX = shutil.which("busybox")

PROGRAMS = (
    "sh cat chmod chown cp date dd echo env false find grep head hostname id ip kill ln ls mkdir mknod mv nc ping ps pwd readlink rm "
    "seq setsid sleep stat tail touch tr true ulimit wc which wget yes"
)


def make(root: Path) -> Path:
    for name in ("bin", "etc", "tmp", "root", "srv/deep", "dev", "proc", "sys"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    assert BUSYBOX is not None
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for name in PROGRAMS.split():
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:100:an app:/srv:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nusers:x:100:\nextra:x:200:app\n")
    return root


def make_ext4(tree: Path, file: Path) -> Path:
    """The tree as an ext4 file, as the image pipeline makes them."""
    with file.open("wb") as image:
        os.truncate(image.fileno(), 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(tree), str(file)], check=True, capture_output=True)
    return file
