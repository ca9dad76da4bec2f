"""``python -m agents.drivers.microvm``: can this user run microVMs here, how, and why so? One JSON object, for ``strandline doctor``.

Builds the guest image if there is none and boots it, unless that was done before.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import uvloop

from agents.drivers.driver import RuntimeFault
from agents.drivers.vm import VmDriver
from agents.host.reaper import become_subreaper


async def _look() -> dict[str, object]:
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


def main() -> int:
    """0: they run; 1: they do not."""
    become_subreaper()
    said = uvloop.run(_look())
    print(json.dumps(said))  # noqa: T201 - its answer
    return 0 if said["works"] else 1


if __name__ == "__main__":
    sys.exit(main())
