"""``python -m agents.drivers.microvm``: can this user run microVMs here, how, and why so? One JSON object, for ``strandline doctor``.

Boots the guest image, unless that was done before. One that is not there is not built: it says that it would be, at the first start.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import programs
from agents.drivers.vm import VmDriver
from agents.guest import image
from agents.host.reaper import become_subreaper


async def _look() -> dict[str, object]:
    if image.current(image.shelf()) is None:
        return await _could_build()
    with tempfile.TemporaryDirectory(prefix="strandline-vm-check-") as directory:
        driver = VmDriver(Path(directory))
        try:
            faults = await driver.check()
            if faults:
                return {"works": False, "why": faults[0].what, "mend": faults[0].mend}
            verdict = await driver.verdict()
            return {
                "works": True,
                "accel": verdict.accel,
                "why": verdict.why,
                "version": await driver.version(),
                "guest": driver.guest_image,
            }
        except RuntimeFault as fault:
            return {"works": False, "why": str(fault), "mend": ""}
        finally:
            await driver.close()


async def _could_build() -> dict[str, object]:
    missing = [name for name in ("gcc", "apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        return {"works": False, "why": f"no guest image, and no {', '.join(missing)} to build one", "mend": "apt-get install gcc libc6-dev"}
    version = f"qemu {(await programs.installed(image.shelf()))[0].version}"
    return {"works": True, "accel": "", "why": "KVM is tried then", "version": version, "guest": "built at the first start"}


def main() -> int:
    """0: they run; 1: they do not."""
    become_subreaper()
    said = uvloop.run(_look())
    print(json.dumps(said))  # noqa: T201 - its answer
    return 0 if said["works"] else 1


if __name__ == "__main__":
    sys.exit(main())
