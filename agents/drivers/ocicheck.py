"""Does an OCI runtime work on this host? Runs a container of the host's own programs, read-only, and looks whether it came to its end."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Final

from agents.drivers import hostns, ocispec
from agents.drivers.crun import Runtime, complaint
from agents.drivers.driver import Fault, Limits, Spec
from agents.drivers.identity import Who
from agents.host import cgroups, spawn

_SYSTEM: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")


async def check(runtime: Runtime, directory: Path) -> list[Fault]:
    """Reasons, the most basic first; empty when a container ran."""
    if shutil.which(runtime.program) is None:
        return [Fault(f"{Path(runtime.program).name} is not installed", "apt-get install crun")]
    if os.geteuid() != 0:
        return [Fault("the OCI driver needs root", "run the agent as root, or use the process driver")]
    if cgroups.layout() is cgroups.Layout.NONE:
        return [Fault("no cgroup hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup")]
    if hostns.needed():
        return [Fault("cgroups v1 and v2 are both mounted", "start the agent by its own command: it hides the v2 half from the runtime")]
    name = f"strandline-check-{secrets.token_hex(4)}"
    bundle = Path(tempfile.mkdtemp(prefix=".check-", dir=directory))
    try:
        return await _try(runtime, name, bundle)
    finally:
        await cgroups.Cgroup(name).remove()
        runtime.forget(name)
        shutil.rmtree(bundle, ignore_errors=True)


async def _try(runtime: Runtime, name: str, bundle: Path) -> list[Fault]:
    root = bundle / "root"
    root.mkdir()
    spec = Spec(name, 0, root, ["/bin/true"], {}, bundle, limits=Limits(1, 64, 32))
    config = ocispec.config(spec, Who(), {}, name, swap=False)
    config["mounts"] = [*config["mounts"], *_host_programs(root)]
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    log = bundle / "log"
    argv = [runtime.program, "--root", str(runtime.root), "--log", str(log), "--log-format", "json", "run", "--bundle", str(bundle), name]
    done = await spawn.run(argv, timeout_s=20)
    if done.code == 0:
        return []
    said = complaint(log.read_text(encoding="utf-8")) if log.exists() else ""
    return [Fault(f"{Path(runtime.program).name} cannot run a container: {said or done.complaint()}", "strandline doctor")]


def _host_programs(root: Path) -> list[dict[str, object]]:
    """/usr and what leads there, as binds or as the symbolic links that they are."""
    binds: list[dict[str, object]] = []
    for name in _SYSTEM:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
        elif host.is_dir():
            binds.append({"destination": f"/{name}", "type": "bind", "source": str(host), "options": ["rbind", "ro"]})
    return binds
