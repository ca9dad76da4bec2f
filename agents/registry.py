"""Which drivers there are, and which of them work on this host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import structlog

from agents.drivers.driver import Driver, Fault

log = structlog.get_logger(__name__)

AUTO: Final = "auto"
SIMULATOR: Final = "sim"


def _make(module: str, cls: str) -> Callable[[Path], Driver]:
    """A driver is imported when it is wanted: an agent of one driver does not carry the others."""

    def make(directory: Path) -> Driver:
        driver: Any = getattr(import_module(f"agents.drivers.{module}"), cls)(directory)
        return driver  # type: ignore[no-any-return]  # checked by each driver's contract suite

    return make


DRIVERS: Final[Mapping[str, Callable[[Path], Driver]]] = {
    "oci": _make("oci", "OciDriver"),
    "process": _make("process", "ProcessDriver"),
    "sim": _make("sim", "SimDriver"),
    "vm": _make("vm", "VmDriver"),
}


class NoDriverError(Exception):
    """Nothing that was asked for works here. The message says what is missing and what mends it."""


def wanted(choice: str) -> tuple[str, ...]:
    """Names for ``--driver``: several by commas, the default first. ``auto`` never means the simulator: it runs nothing.

    Raises ``NoDriverError`` for a name that there is not.
    """
    if choice == AUTO:
        can_oci = os.geteuid() == 0 and shutil.which("crun") is not None
        return ("oci", "process") if can_oci else ("process",)
    names = tuple(dict.fromkeys(filter(None, choice.split(","))))
    unknown = [name for name in names if name not in DRIVERS]
    if unknown or not names:
        raise NoDriverError(f"no driver {', '.join(unknown) or choice!r}; there are {', '.join(sorted(DRIVERS))} and {AUTO}")
    return names


async def working(choice: str, directory: Path) -> dict[str, Driver]:
    """The drivers that work, the default first. With ``auto`` one that does not is left out; one that was asked for by name must.

    Raises ``NoDriverError`` with what ``strandline doctor`` would say.
    """
    found: dict[str, Driver] = {}
    faults: dict[str, list[Fault]] = {}
    for name in wanted(choice):
        driver = DRIVERS[name](directory / name)
        faults[name] = await driver.check()
        if faults[name]:
            log.warning("driver.unusable", driver=name, faults=[f"{fault.what}; {fault.mend}" for fault in faults[name]])
            await driver.close()
        else:
            found[name] = driver
    if not found or (choice != AUTO and any(faults.values())):
        raise NoDriverError(_diagnosis(faults))
    return found


def _diagnosis(faults: Mapping[str, list[Fault]]) -> str:
    lines = [f"{name}: {fault.what}" + (f" - mend: {fault.mend}" if fault.mend else "") for name, all_ in faults.items() for fault in all_]
    return "no driver works on this host\n" + "\n".join(lines) + "\nstrandline doctor tells more; --driver sim runs a simulation"
