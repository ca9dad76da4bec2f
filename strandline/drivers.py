"""Names of drivers, for the command line; what each is, and whether it works here, the agents know (``agents/registry.py``)."""

from __future__ import annotations

import os
from typing import Final

import typer

from strandline.host_packages import install_command, needed_for

AUTO: Final = "auto"
DRIVERS: Final = ("oci", "process", "sim", "vm")
HELP: Final = f"{AUTO}, {', '.join(DRIVERS[:-1])} or {DRIVERS[-1]}; several by commas, the default first."


def choice(text: str) -> str:
    """Check ``--driver`` before anything is started. Raises ``typer.BadParameter``: exit code 2."""
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in DRIVERS] if text != AUTO else []
    if unknown or not names:
        raise typer.BadParameter(f"no driver {(unknown or [text])[0]!r}; there are {', '.join([AUTO, *DRIVERS])}")
    return text


def why(asked: str, name: str) -> str:
    """Why an agent that was asked for ``asked`` took ``name`` as its default driver, and what gives the better one."""
    if asked != AUTO:
        return f"{name}, as --driver says"
    if name != "process":
        return f"{name}, the best that there is here"
    if os.geteuid() != 0:
        return "process: without root there is no other; with root (sudo make demo) there is oci, with limits, networks and seccomp"
    missing = [package.name for package in needed_for("oci") if not package.here()]
    mend = install_command(missing) if missing else "strandline doctor says what is in its way"
    return f"process: oci, which has limits and seccomp, does not work here; what gives it: {mend}"
