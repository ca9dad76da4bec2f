"""``python -m agents.guest``: build the guest image that microVMs boot, or upgrade its kernel. Prints the version."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from agents.drivers.driver import RuntimeFault
from agents.guest import image


def main() -> int:
    """0: it is there and current; 1: it could not be made, and why is on stderr."""
    parser = argparse.ArgumentParser(prog="python -m agents.guest", description="Build the guest image that microVMs boot.")
    parser.add_argument("--dir", type=Path, default=image.shelf(), help="where guest images are kept (%(default)s)")
    parser.add_argument("--upgrade", action="store_true", help="take the newest kernel that the package lists have")
    parser.add_argument("--kernel", type=Path, help="a kernel made by scripts/guest-kernel, instead of Debian's")
    said = parser.parse_args()
    directory: Path = said.dir.absolute()
    wanted = said.upgrade or said.kernel
    try:
        made = uvloop.run(image.build(directory, upgrade=said.upgrade, own_kernel=said.kernel) if wanted else image.ensure(directory))
    except RuntimeFault as fault:
        print(f"{fault.code}: {fault}", file=sys.stderr)  # noqa: T201 - for a person
        return 1
    print(made.version)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
