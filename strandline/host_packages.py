"""The one list of Debian packages that Strandline makes use of, and for what: read by the Makefile, by ``doctor`` and by the documentation.

    apt-get install -y $(python3 -m strandline.host_packages --for tests)

Runs with nothing but a bare ``python3``: it is what says what to install before anything is installed.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where programs live that an ordinary user's PATH lacks."""

PURPOSES = {
    "install": "installing Strandline into an environment of its own",
    "demo": "strandline demo",
    "process": "the process driver: no root, no daemon",
    "oci": "the OCI driver: containers with limits, networks and snapshots",
    "vm": "the VM driver",
    "network": "networks of sandboxes",
    "images": "building root file systems and reading every kind of image layer",
    "tests": "make test",
}


def program(*names: str) -> Callable[[], bool]:
    """Whether all of these programs are there."""
    return partial(_programs, names)


def _programs(names: Sequence[str]) -> bool:
    where = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])
    return all(shutil.which(name, path=where) for name in names)


def module(name: str) -> Callable[[], bool]:
    """Whether this interpreter has a module."""
    return lambda: importlib.util.find_spec(name) is not None


def file(pattern: str) -> Callable[[], bool]:
    """Whether there is a file of that name; ``*`` matches."""
    return lambda: bool(glob.glob(pattern))  # noqa: PTH207 - one pattern, absolute


@dataclass(frozen=True)
class Package:
    """A Debian package. ``here`` says whether what is needed of it is there, however it came."""

    name: str
    purposes: tuple[str, ...]
    here: Callable[[], bool]
    why: str


PACKAGES: tuple[Package, ...] = (
    Package("python3-venv", ("install",), module("ensurepip"), "an environment of its own"),
    Package("e2fsprogs", ("demo", "images", "vm", "tests"), program("mke2fs", "debugfs"), "root file systems are ext4 files"),
    Package("bubblewrap", ("demo", "process", "tests"), program("bwrap"), "namespaces without root"),
    Package("util-linux", ("demo", "process", "oci", "tests"), program("unshare", "nsenter", "losetup"), "namespaces and loop devices"),
    Package("busybox-static", ("demo", "tests"), program("busybox"), "a small genuine image, made here"),
    Package("uidmap", ("process", "tests"), program("newuidmap", "newgidmap"), "more than one user inside, without root"),
    Package("crun", ("oci", "tests"), program("crun"), "runs containers"),
    Package("iproute2", ("network", "oci", "tests"), program("ip"), "interfaces and addresses"),
    Package("nftables", ("network", "oci", "tests"), program("nft"), "address translation and egress rules"),
    Package("attr", ("images", "tests"), program("setfattr", "getfattr"), "extended attributes in layers"),
    Package("zstd", ("images", "tests"), program("zstd"), "layers packed with zstd"),
    Package("qemu-system-x86", ("vm", "tests"), program("qemu-system-x86_64"), "microVMs, with KVM or emulated"),
    Package("gcc", ("vm", "tests"), program("gcc"), "builds the guest agent, once"),
    Package("libc6-dev", ("vm", "tests"), file("/usr/lib/*/libc.a"), "the guest agent is a static program"),
    Package("docker-registry", ("tests",), program("docker-registry"), "a real registry to pull from"),
    Package("apache2-utils", ("tests",), program("htpasswd"), "a registry that wants a password"),
    Package("skopeo", ("tests",), program("skopeo"), "a second opinion on images"),
    Package("qemu-utils", ("vm", "tests"), program("qemu-img"), "templates made of microVMs"),
    Package("umoci", ("tests",), program("umoci"), "a second opinion on unpacked layers"),
    Package("openssl", ("tests",), program("openssl"), "certificates of a test's own"),
    Package("postgresql", ("tests",), file("/usr/lib/postgresql/*/bin/postgres"), "a real server for the views that can live there"),
)


def needed_for(*purposes: str) -> list[Package]:
    """The packages for any of these purposes, or all. Raises ``ValueError`` for an unknown one."""
    unknown = sorted(set(purposes) - {*PURPOSES, "all"})
    if unknown:
        raise ValueError(f"unknown purpose {unknown[0]!r}; there are {', '.join([*PURPOSES, 'all'])}")
    return [p for p in PACKAGES if "all" in purposes or set(purposes) & set(p.purposes)]


def install_command(names: Sequence[str]) -> str:
    """The one command that installs these packages."""
    return as_root(f"apt-get install -y {' '.join(names)}")


def as_root(*commands: str) -> str:
    """Commands that root has to run, as whoever reads this has to type them."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return "; ".join(f"{sudo}{command}" for command in commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Print package names, one per line."""
    parser = argparse.ArgumentParser(prog="python -m strandline.host_packages", description="Debian packages that Strandline makes use of.")
    parser.add_argument(
        "--for", dest="purposes", action="append", metavar="PURPOSE", help=f"one of {', '.join(PURPOSES)}; repeatable; default: all"
    )
    parser.add_argument("--missing", action="store_true", help="only those that are not here yet")
    parser.add_argument("--explain", action="store_true", help="with the reason of each")
    args = parser.parse_args(argv)
    try:
        found = needed_for(*(args.purposes or ["all"]))
    except ValueError as error:
        parser.error(str(error))
    for package in found:
        if not (args.missing and package.here()):
            why = f" {package.why} ({', '.join(package.purposes)})"
            sys.stdout.write(f"{package.name:<16}{why}\n" if args.explain else f"{package.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
