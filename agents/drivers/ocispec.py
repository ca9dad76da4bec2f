"""The OCI runtime configuration of a sandbox: what crun is told.

Capabilities, masked paths and seccomp are those that container users are used to (Docker's defaults), less what a sandbox never needs.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agents.drivers.driver import Limits, Spec
from agents.drivers.identity import Who
from agents.drivers.seccomp import profile
from agents.host.cgroups import PERIOD_US
from agents.host.idmap import RANGE

_CAPABILITIES: Final = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
]  # fmt: skip

_FILES: Final = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
"""Not every root may raise its own hard limit: containers that agents run in often lack CAP_SYS_RESOURCE."""

_MASKED: Final = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
]  # fmt: skip

_READ_ONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def _mount(target: str, fstype: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": fstype, "source": source or fstype, "options": list(options)}


_MOUNTS: Final = [
    _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
    _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=64k"),
    _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=64m", source="shm"),  # noqa: S108  # the sandbox's
    _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
]

_HOST_SYS: Final = _mount("/sys", "bind", "rbind", "nosuid", "noexec", "nodev", "ro", source="/sys")
_MASKED_SYS: Final = [
    "/sys/class/net",
    "/sys/devices/virtual/net",
    "/sys/fs",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
]

_DEVICES: Final = [
    {"allow": False, "access": "rwm"},
    *(
        {"allow": True, "type": "c", "major": 1, "minor": minor, "access": "rwm"} for minor in (3, 5, 7, 8, 9)
    ),  # null zero full random urandom
    {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},  # tty
    {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},  # ptmx
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},  # pts/*
]


def process(argv: Sequence[str], env: Mapping[str, str], cwd: str, who: Who) -> dict[str, Any]:
    """A process in the container: the main one, or one more. A user other than root starts without effective capabilities."""
    held = _CAPABILITIES if who.uid == 0 else []
    return {
        "terminal": False,
        "user": {"uid": who.uid, "gid": who.gid, "additionalGids": list(who.groups)},
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": cwd,
        "capabilities": {"bounding": _CAPABILITIES, "permitted": held, "effective": held},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": _FILES, "hard": _FILES}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        "noNewPrivileges": True,
    }


def resources(limits: Limits, *, swap: bool) -> dict[str, Any]:
    """Bounds, and the devices that may be opened. ``swap``: the host can bound memory and swap together, so that swap is none."""
    memory = limits.memory_mb << 20
    return {
        "memory": {"limit": memory, **({"swap": memory} if swap else {})},
        "cpu": {"quota": max(1000, int(limits.cpu * PERIOD_US)), "period": PERIOD_US, "shares": max(2, int(limits.cpu * 1024))},
        "pids": {"limit": limits.pids},
        "devices": _DEVICES,
    }


def _users(ids: int) -> dict[str, Any]:
    """Who is who in a user namespace: nobody inside is anybody on the host."""
    if not ids:
        return {}
    mapping = [{"containerID": 0, "hostID": ids, "size": RANGE}]
    return {"uidMappings": mapping, "gidMappings": mapping}


def config(spec: Spec, who: Who, env: Mapping[str, str], cgroup: str, *, swap: bool) -> dict[str, Any]:
    """``config.json`` of the bundle. Without a network namespace of the node's making it gets an empty one.

    A user namespace may show /sys only for a network namespace of its own:
    beside one of the node's making it gets the host's, without what tells of the host's interfaces.
    """
    network = {"type": "network", "path": str(spec.netns)} if spec.netns else {"type": "network"}
    kinds = ("pid", "ipc", "uts", "mount", "cgroup", *(("user",) if spec.ids else ()))
    foreign = bool(spec.ids and spec.netns)
    disks = [_mount(m.target, "bind", "bind", "nosuid", "nodev", "ro" if m.read_only else "rw", source=str(m.source)) for m in spec.mounts]
    return {
        "ociVersion": "1.0.2",
        "process": process(spec.argv, env, spec.cwd, who),
        "root": {"path": str(spec.root), "readonly": False},
        "hostname": spec.hostname,
        "mounts": [*([*_MOUNTS[:-1], _HOST_SYS] if foreign else _MOUNTS), *disks],
        "linux": {
            "cgroupsPath": f"/{cgroup}",
            "namespaces": [{"type": kind} for kind in kinds] + [network],
            **_users(spec.ids),
            "resources": resources(spec.limits, swap=swap),
            "seccomp": profile(),
            "maskedPaths": [*_MASKED, *_MASKED_SYS] if foreign else _MASKED,
            "readonlyPaths": _READ_ONLY,
            "rootfsPropagation": "rprivate",
        },
    }
