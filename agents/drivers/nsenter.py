"""The command that runs one more program inside namespaces that exist: ``nsenter`` of util-linux, 2 ms (reference/runtimes.md §2)."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Final

from agents.drivers.launchers import tool

_NAMESPACES: Final = ("--user", "--preserve-credentials", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--root")

_LIBC_NAMES: Final = (
    "GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "HOSTALIASES", "LANGUAGE", "LOCALDOMAIN", "LOCPATH", "MALLOC_ARENA_MAX", "MALLOC_CHECK_",
    "MALLOC_PERTURB_", "MALLOC_TRACE", "NIS_PATH", "NLSPATH", "RESOLV_HOST_CONF", "RES_OPTIONS", "TZDIR",
)  # fmt: skip
"""What a program's C library obeys before ``main`` (glibc, sysdeps/generic/unsecvars.h), besides LD_*."""

_RLIMITS: Final = {resource.RLIMIT_CORE: "core", resource.RLIMIT_DATA: "data", resource.RLIMIT_NPROC: "nproc"}

_EXPORT: Final = 'n=$1; shift; while [ "$n" -gt 0 ]; do export "$1"; shift; n=$((n-1)); done; exec "$@"'


def enter_command(
    pid: int, cwd: str, argv: Sequence[str], env: Mapping[str, str], rlimits: Mapping[int, int]
) -> tuple[list[str], dict[str, str]]:
    """Argument list and environment for the host's programs. ``cwd`` is looked up inside.

    nsenter is a program of the host that runs with the sandbox's variables: one that would make the host's loader open a file of the
    sandbox's choice must not reach it, so those are exported by the sandbox's own shell.
    """
    unsafe = [f"{name}={value}" for name, value in env.items() if name.startswith("LD_") or name in _LIBC_NAMES]
    safe = {name: value for name, value in env.items() if f"{name}={value}" not in unsafe}
    inside = ["/bin/sh", "-c", _EXPORT, "sh", str(len(unsafe)), *unsafe, *argv] if unsafe else list(argv)
    limits = [f"--{_RLIMITS[number]}={value}:{value}" for number, value in rlimits.items()]
    return [tool("prlimit"), *limits, "--", tool("nsenter"), f"--target={pid}", *_NAMESPACES, f"--wdns={cwd}", "--", *inside], safe
