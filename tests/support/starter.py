"""An agent to be killed: starts one sandbox, says its handle, and waits. ``python starter.py KIND DRIVER-DIR ROOT LOGS ARGV...``

With ``STARTER_DIES_BEFORE=handle`` it kills itself at the moment when the started sandbox would be written down; with ``program`` when it
has forked for what it starts, which has then not come to its ``execve`` yet; with ``gate`` when a start is on record and its program is
about to be let go.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from support.guests import GUESTS

from agents.drivers import gate
from agents.drivers.driver import Limits, Spec
from agents.drivers.launchers import Bubblewrap, Unshare
from agents.drivers.oci import OciDriver
from agents.drivers.process import ProcessDriver
from agents.drivers.sim import SimDriver
from agents.drivers.statedir import StateDir
from agents.drivers.vm import VmDriver

MAKE = {
    "sim": SimDriver,
    "oci": OciDriver,
    "bwrap": lambda directory: ProcessDriver(directory, Bubblewrap()),
    "vm": lambda directory: VmDriver(directory, GUESTS),
    "unshare": lambda directory: ProcessDriver(directory, Unshare()),
}


_spawn = os.posix_spawnp


def _fork_and_die(program: str, argv: list[str], env: dict[str, str], **how: object) -> int:
    """For the sandbox itself; helper programs are started as ever."""
    if not any(value.endswith("sb-1") for value in env.values()):
        return _spawn(program, argv, env, **how)
    if os.fork() == 0:
        os.kill(os.getppid(), signal.SIGKILL)
    while True:
        signal.pause()


async def main(kind: str, directory: str, root: str, logs: str, *argv: str) -> None:
    if os.environ.get("STARTER_DIES_BEFORE") == "handle":
        StateDir.write_handle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("STARTER_DIES_BEFORE") == "gate":
        gate.let_go = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("STARTER_DIES_BEFORE") == "program":
        os.posix_spawnp = _fork_and_die
    spec = Spec("sb-1", 0, Path(root), argv, {}, Path(logs), limits=Limits(1, 256, 256))
    handle = await MAKE[kind](Path(directory)).start(spec)
    sys.stdout.write(json.dumps(asdict(handle)) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
