"""The last program of the host in a sandbox that ``unshare`` has made: builds its root, gives up every capability, becomes the workload.

A script for ``python -I -S``, complete in itself: after pivot_root nothing of the host can be imported or executed any more. That is also
why util-linux alone cannot do it: its ``setpriv`` would have to run after ``pivot_root``, where there is none. Reads one JSON object from
the descriptor named by its argument; answers ``{"child-pid": n}`` on the info descriptor, waits for a byte on the block descriptor, and
then becomes the workload or writes ``{"error": ...}``.
"""

# ruff: noqa: PTH102, PTH103, PTH114, PTH115, PTH123, PTH208, PTH211
# (pathlib would cost 5 ms at each start)
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
from typing import Any, NoReturn

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 0x1000, 0x4000, 1 << 18
MNT_DETACH = 2
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, fstype, data)]
    checked(libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]), target)


def mount_disk(source: str, target: str, read_only: bool) -> None:
    """A directory of the host at ``target``, a path below the root. Flags that the host has set cannot be taken back here."""
    place = target.lstrip("/")
    mount(source, place, None, MS_BIND)
    if read_only:
        mount("none", place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def make_root(root: str, disks: list[list[Any]]) -> None:
    """Mount the sandbox's view. Directories that an image lacks are made in the sandbox's own root."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount(root, root, None, MS_BIND | MS_REC)
    os.chdir(root)
    for disk in disks:
        mount_disk(*disk)
    for name in ("proc", "dev"):
        if os.path.islink(name):
            raise OSError(f"/{name} of the image is a symbolic link")
        os.makedirs(name, exist_ok=True)
    mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=64k")
    for name in DEVICES:
        with open(f"dev/{name}", "w"):  # a bind mount needs something to lie on
            pass
        mount(f"/dev/{name}", f"dev/{name}", None, MS_BIND)
    for name in ("shm", "pts"):
        os.mkdir(f"dev/{name}")
    mount("tmpfs", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    for name, target in LINKS.items():
        os.symlink(target, f"dev/{name}")
    checked(libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "umount2")  # the old root lies over the new one at this moment
    os.chdir("/")


def give_up_privileges() -> None:
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the kernel's last one is behind us
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def become(order: dict[str, Any]) -> NoReturn:
    if order["network"]:
        bring_up_loopback()
    libc.sethostname(order["hostname"].encode(), len(order["hostname"].encode()))
    make_root(order["root"], order["mounts"])
    give_up_privileges()
    os.umask(0o022)
    os.chdir(order["cwd"])
    for name, value in order["rlimits"].items():
        resource.setrlimit(int(name), (value, value))
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2:
            with contextlib.suppress(OSError):  # the one that lists them is closed by now
                os.set_inheritable(int(fd), False)  # a descriptor of the host would be a way out
    os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606  # becoming another program is the point


def bring_up_loopback() -> None:
    import fcntl  # noqa: PLC0415  # costs a millisecond, and not every sandbox has a network of its own
    import socket  # noqa: PLC0415
    import struct  # noqa: PLC0415

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        order = json.load(file)
    info, block = order["info_fd"], order["block_fd"]
    os.set_inheritable(info, False)
    try:
        host_pid = int(os.readlink("/proc/self"))  # still the host's /proc
        os.write(info, json.dumps({"child-pid": host_pid}).encode() + b"\n")
        os.read(block, 1)
        os.close(block)
        become(order)
    except BaseException as error:  # noqa: BLE001  # whatever it was, the agent must hear of it
        os.write(info, json.dumps({"error": str(error)}).encode() + b"\n")
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
