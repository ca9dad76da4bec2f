"""``strandline up`` as a process that outlives the one that started it: what ``strandline demo --keep`` leaves running."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Final

_LOOK_S: Final = 0.05


class Detached:
    """Stands where an ``Installation`` would, as far as the demo's story needs one."""

    def __init__(self, directory: Path, driver: str) -> None:
        self.dir = directory
        self.driver = driver

    def python(self, module: str, *arguments: str) -> list[str]:
        """The command line of one of our modules."""
        return [sys.executable, "-m", module, *arguments]

    async def start(self) -> str:
        """Start it, and return the URL when it says that it is ready. Raises ``RuntimeError`` with what it said when it ends instead."""
        log = self.dir / "logs" / "up.log"
        log.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        argv = self.python("strandline", "up", "--dir", str(self.dir), "--driver", self.driver)
        with log.open("wb") as out:
            # not of asyncio: that would end it together with the loop
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)  # noqa: ASYNC220, S603 - a moment; our own module
        while True:
            ended = process.poll() is not None
            lines = log.read_text(errors="replace").splitlines()
            for line in lines:
                if line.startswith("ready "):
                    return line.removeprefix("ready ")
            if ended:
                raise RuntimeError("\n".join(line.removeprefix("error: ") for line in lines if not line.startswith(("{", "hint: "))))
            await asyncio.sleep(_LOOK_S)
