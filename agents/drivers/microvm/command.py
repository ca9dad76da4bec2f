"""What a machine is, as QEMU's command line (reference/runtimes.md §4, §5). The same devices in the same order at every start of it:
a saved memory fits only a machine that was made exactly like the one that it was taken from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agents.drivers.driver import Limits
from agents.drivers.microvm.programs import NAME

_HARDWARE: Final = "02:53:00:00:00:00"
"""Until the guest is told its own."""
PORTS: Final = ("agent", "stdout", "stderr", "status")
LOGS: Final = ("runtime", "stdout", "stderr")
"""Files, and what the monitor calls the devices that write them."""
DISK: Final = "d0"
"""What the monitor calls the disk."""
OPENED: Final = "/dev/fdset/1"
"""What it calls the file that the disk was started with."""

RESUMES: Final = "resumes-"
"""Before what names a build, in a driver's flags."""

GUEST_OWN_MB: Final = 64
"""What kernel and guest agent need besides the sandbox's own memory, which a control group inside bounds exactly."""
_STEP_MB: Final = 64

Accel = Literal["tcg", "kvm"]
_ACCEL: Final[dict[Accel, Sequence[str]]] = {
    # -cx16: QEMU 7.2 panics newer kernels at cmpxchg16b now and then; -smap: each of its instructions ends a piece of translated code, and
    # its guard is the guest kernel's own, not ours; a small translation buffer, for there are many of them
    "tcg": ("-accel", "tcg,tb-size=32", "-cpu", "max,-cx16,-smap"),
    # -arch-capabilities: setting its register is refused on some hosts
    "kvm": ("-accel", "kvm", "-cpu", "host,-arch-capabilities"),
}
_APPEND: Final = "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable psi=0"
_APPEND_TCG: Final = "tsc_early_khz=1000000 no_timer_check mitigations=off"
"""An emulated processor on a busy host fails to calibrate its clock, and hangs (reference/runtimes.md §4). It speculates nothing either."""
_SECCOMP: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Shape:
    """A machine's processors and memory in MiB: what a saved memory is bound to."""

    ram_mb: int
    cpus: int

    @classmethod
    def of(cls, limits: Limits) -> Shape:
        """The least one for these limits. Few different ones: each is booted once and saved."""
        wanted = limits.memory_mb + GUEST_OWN_MB
        step = max(_STEP_MB, 1 << (wanted.bit_length() - 3))
        return cls(max(3 * _STEP_MB, math.ceil(wanted / step) * step), max(1, math.ceil(limits.cpu)))


@dataclass(frozen=True, slots=True)
class Build:
    """What else must be the same: ``microvm`` is not a versioned machine type, so the very QEMU; the accelerator's processor; the devices.

    ``machine`` names the last two, empty in what was saved before they were named.
    """

    qemu: str
    accel: Accel
    guest: str
    machine: str = ""

    @property
    def flag(self) -> str:
        """What a driver says of itself that can go on from a memory that was saved by this."""
        said = f"{self.qemu}\0{self.accel}\0{self.machine}"
        return f"{RESUMES}{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    @classmethod
    def here(cls, qemu: str, accel: Accel, guest: str) -> Build:
        """With the processor and the devices that this program gives a machine."""
        nowhere = Path()
        said = arguments(cls(qemu, accel, guest), Shape(0, 0), nowhere, nowhere, nowhere, fds=(0, 0))
        return cls(qemu, accel, guest, hashlib.sha256("\0".join(said).encode()).hexdigest()[:12])


@dataclass(frozen=True, slots=True)
class Boot:
    """A first boot: without a disk, into memory that is a file of its own, to be saved when the guest agent answers."""

    vmlinuz: Path
    initrd: Path


def arguments(
    build: Build,
    shape: Shape,
    ram: Path,
    directory: Path,
    logs: Path,
    *,
    fds: tuple[int, int],
    boot: Boot | None = None,
    disk: tuple[int, int] | None = None,
    tap: int | None = None,
) -> list[str]:
    """``fds``: listening sockets for monitor and guest agent. ``ram``: written by a boot, mapped copy-on-write by everything else.

    ``disk``: its file, opened to write and opened to read: QEMU opens a disk again when it becomes another's backing file, and one that is
    known by descriptors may have got another name by then. ``tap``: of its network; None: it has an interface that leads nowhere.
    """
    share = "on" if boot else "off"
    words = [NAME, *_ACCEL[build.accel], "-m", f"{shape.ram_mb}M", "-smp", str(shape.cpus)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _SECCOMP]
    words += ["-object", f"memory-backend-file,id=mem0,size={shape.ram_mb}M,mem-path={_plain(ram)},share={share}"]
    words += ["-machine", "microvm,memory-backend=mem0"]
    words += ["-chardev", f"socket,id=qmp,fd={fds[0]},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    words += [*_file("runtime", logs / "runtime"), "-serial", "chardev:runtime"]
    words += [*_drive(disk), "-device", f"virtio-blk-device,drive={DISK}"]
    words += [*_network(tap), "-device", f"virtio-net-device,netdev=n0,mac={_HARDWARE},guest_announce=off"]
    words += ["-device", "virtio-serial-device,max_ports=8", "-chardev", f"socket,id=agent,fd={fds[1]},server=on,wait=off"]
    words += [*_file("stdout", logs / "stdout"), *_file("stderr", logs / "stderr"), *_file("status", directory / "status")]
    for number, name in enumerate(PORTS, 1):
        words += ["-device", f"virtserialport,chardev={name},name=strandline.{name},nr={number}"]
    if boot is not None:
        return [*words, "-kernel", str(boot.vmlinuz), "-initrd", str(boot.initrd), "-append", kernel_words(build)]
    return [*words, "-S", "-incoming", "defer", "-global", "migration.send-configuration=off"]


def kernel_words(build: Build) -> str:
    """The kernel's command line."""
    return f"{_APPEND} {_APPEND_TCG}" if build.accel == "tcg" else _APPEND


def _drive(disk: tuple[int, int] | None) -> list[str]:
    """``cache=unsafe``: a sandbox's disk does not outlive the machine that it lies on, so nothing of it waits for a platter."""
    if disk is None:
        return ["-drive", f"id={DISK},driver=null-co,size=1048576,if=none"]
    named = [word for fd in disk for word in ("-add-fd", f"fd={fd},set=1")]
    return [*named, "-drive", f"id={DISK},file={OPENED},format=qcow2,if=none,cache=unsafe,file.locking=off"]


def _network(tap: int | None) -> tuple[str, str]:
    """A machine that was saved without a network goes on with one, and the other way round: so neither may offload anything."""
    return "-netdev", "hubport,id=n0,hubid=0" if tap is None else f"tap,id=n0,fd={tap}"


def _file(name: str, path: Path) -> tuple[str, str]:
    return "-chardev", f"file,id={name},path={_plain(path)},append=on"


def _plain(path: Path) -> str:
    """In QEMU's option lists a comma is said by two."""
    return str(path).replace(",", ",,")
