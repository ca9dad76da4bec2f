"""Does an OCI runtime work on this host? Runs a container of the host's own programs, read-only, and looks whether it came to its end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Final

from agents.drivers import hostns, ocispec
from agents.drivers.crun import Runtime, complaint
from agents.drivers.driver import Fault, Limits, Spec
from agents.drivers.identity import Who
from agents.drivers.stage import Stage
from agents.drivers.streams import Descriptors
from agents.host import cgroups, spawn

_CHECK_S: Final = 20.0
_SYSTEM: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")


async def check(runtime: Runtime, directory: Path, ids: int = 0, stage: Stage | None = None) -> list[Fault]:
    """Reasons, the most basic first; empty when a container ran: with ``ids`` one with users of its own, found on the ``stage``."""
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
        return await _try(runtime, name, bundle, ids, stage)
    except (OSError, BrokenExecutor) as error:
        return [Fault(f"no container can be tried here: {error}", "strandline doctor")]
    finally:
        await cgroups.Cgroup(name).remove()
        runtime.forget(name)
        shutil.rmtree(bundle, ignore_errors=True)


async def _try(runtime: Runtime, name: str, bundle: Path, ids: int, stage: Stage | None) -> list[Fault]:
    root, log = bundle / "root", bundle / "log"
    root.mkdir(mode=0o755)
    spec = Spec(name, 0, root, ["/bin/true"], {}, bundle, limits=Limits(1, 64, 32), ids=ids)
    os.chown(root, ids, ids)
    programs = _host_programs(root)
    argv = [runtime.program, "--root", str(runtime.root), "--log", str(log), "--log-format", "json", "run", "--bundle", str(bundle), name]
    with Descriptors() as fds, stage.showing(spec, name) if stage else contextlib.nullcontext((spec, None)) as (shown, within):
        config = ocispec.config(shown, Who(), {}, name, swap=False)
        config["mounts"] = [*config["mounts"], *programs]
        (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
        code = await spawn.wait_for(argv, spawn.HOST_ENV, fds.stdio(spec), _CHECK_S, within)
    if code == 0:
        return []
    why = complaint(log.read_text(encoding="utf-8")) if log.exists() else ""
    why = why or (bundle / "stderr").read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    return [Fault(f"{Path(runtime.program).name} cannot run a container: {why}", "strandline doctor")]


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
