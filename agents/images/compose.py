"""A small genuine OCI image made of the host's own shell and tools, for where there is no network: demonstrations and tests.

Four layers: the programs with the libraries and the loader that they need; the files that a Unix system expects below ``/etc``; a file
that the next layer takes away again; and that layer, with a whiteout. A statically linked busybox is taken when the host has one.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.images.faults import ImageFault
from agents.images.tools import find
from agents.images.writer import LayerTar, LayoutWriter, packed

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_TOOLS: Final = (
    *("sh", "cat", "ls", "sleep", "echo", "mkdir", "rm", "mv", "cp", "ln", "chmod", "touch", "true", "false", "date", "uname", "env"),
    *("head", "tail", "wc", "id", "df", "dd", "sync", "hostname", "ps", "grep", "sed", "sort", "seq", "stat", "kill"),
)
"""What is copied without busybox, as far as the host has it; ``kill`` and ``echo`` are the shell's own as well."""

_FOLDERS: Final = (
    "dev",
    "etc",
    "home",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "usr",
    "usr/bin",
    "usr/local",
    "usr/local/bin",
    "var",
)
_ETC: Final = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "group": "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n",
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "resolv.conf": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "os-release": 'ID=strandline-demo\nNAME="Strandline demo image"\nPRETTY_NAME="Strandline demo image"\n',
    "profile": f"export PATH={PATH}\n",
}
_LIBRARY: Final = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)")


@dataclass(frozen=True, slots=True)
class Composed:
    """Where the layout is, how to refer to it, and which image it holds."""

    folder: Path
    reference: str
    digest: str


def compose(folder: Path, tag: str = "demo", programs: Sequence[str] = (), *, busybox: bool = True) -> Composed:
    """Write the layout into ``folder``, created if missing. ``programs``: more of the host's programs, by name or path.

    The same host gives the same image. ``busybox=False`` takes the host's own tools in any case. Raises ``host.missing-tool``.
    """
    writer = LayoutWriter(folder)
    layers = [_programs(programs, busybox=busybox), _system(), _scratch(), _application()]
    config = {"Cmd": ["/bin/sh"], "Env": [f"PATH={PATH}"], "WorkingDir": "/"}
    digest = writer.image([packed(layer.bytes()) for layer in layers], config, tag)
    return Composed(folder, f"oci:{folder}:{tag}", digest)


def _programs(more: Iterable[str], *, busybox: bool) -> LayerTar:
    layer = LayerTar()
    layer.directory("bin")
    libraries: set[str] = set()
    if busybox and (box := _static_busybox()):
        layer.file("bin/busybox", box.read_bytes(), mode=0o755)
        for applet in sorted({*_applets(box), "sh"} - {"busybox"}):
            layer.symlink(f"bin/{applet}", "busybox")
    else:
        for name in _TOOLS:
            if found := shutil.which(name):
                libraries |= _copy(layer, Path(found), f"bin/{name}")
    for name in more:
        program = Path(name if "/" in name else find(name))
        libraries |= _copy(layer, program, f"usr/local/bin/{program.name}")
    for library in sorted(libraries):
        layer.file(library.lstrip("/"), Path(library).read_bytes(), mode=0o755)
    return layer


def _system() -> LayerTar:
    layer = LayerTar()
    for name in _FOLDERS:
        layer.directory(name)
    layer.directory("tmp", mode=0o1777)
    layer.directory("home/user")
    for name, text in _ETC.items():
        layer.file(f"etc/{name}", text.encode())
    return layer


def _scratch() -> LayerTar:
    layer = LayerTar()
    layer.directory("var/cache")
    layer.file("var/cache/build-leftover", b"a later layer takes this away\n" * 64)
    return layer


def _application() -> LayerTar:
    layer = LayerTar()
    layer.whiteout("var/cache/build-leftover")
    layer.file("usr/local/bin/hello", b'#!/bin/sh\necho "hello from $(hostname)"\n', mode=0o755)
    return layer


def _copy(layer: LayerTar, program: Path, name: str) -> set[str]:
    """Add a program; the libraries it needs."""
    real = program.resolve()
    layer.file(name, real.read_bytes(), mode=stat.S_IMODE(real.stat().st_mode) & 0o755)
    return needed(real)


def needed(program: Path) -> set[str]:
    """Paths of the shared libraries and the loader of a program, as the host's own loader finds them; none for scripts and static ones."""
    listed = subprocess.run([find("ldd"), program], capture_output=True, text=True, check=False)  # noqa: S603 - a program of the host's own
    return set(_LIBRARY.findall(listed.stdout)) if listed.returncode == 0 else set()


def _static_busybox() -> Path | None:
    found = shutil.which("busybox")
    return Path(found).resolve() if found and not needed(Path(found)) else None


def _applets(box: Path) -> list[str]:
    listed = subprocess.run([box, "--list"], capture_output=True, text=True, check=False)  # noqa: S603 - a program of the host's own
    if listed.returncode:
        raise ImageFault("host.missing-tool", f"{box} does not list its applets")
    return [name for name in listed.stdout.split() if "/" not in name]


def main() -> None:
    """``python -m agents.images.compose FOLDER``: write the image and say where it is."""
    folder = Path(sys.argv[1])
    composed = compose(folder)
    sys.stdout.write(f"{folder}  {composed.digest}\n")


if __name__ == "__main__":
    main()
