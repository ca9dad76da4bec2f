"""``strandline doctor``: what this machine lacks, and the one command that mends it. Looks and tries; changes nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from strandline import host_packages
from strandline.cli.columns import Column, Shape
from strandline.cli.exitcodes import ExitCode
from strandline.cli.output import Format
from strandline.cli.verb import Run, verb
from strandline.host_checks import CHECKS, DEMO_DRIVERS, Check, Host

app = typer.Typer(help="What this machine lacks, and the command that mends it.")

SHAPE = Shape(
    "name",
    (
        Column("CHECK", "name"),
        Column("STATUS", "status", state=True),
        Column("FOUND", "detail", flex=True),
        Column("NEEDED FOR", "needed_for"),
        Column("MENDED BY", "mend"),
    ),
)


@verb(
    app,
    "doctor",
    connect=False,
    examples="""
    strandline doctor
    strandline doctor --for tests
    strandline doctor -o json
    """,
)
async def doctor(
    run: Run,
    purposes: Annotated[
        list[str] | None, typer.Option("--for", help="Only what this needs: demo, tests, oci, process, …", show_default=False)
    ] = None,
) -> None:
    """Say what this machine has and lacks, and the command that mends each. Exit code 0 when the demo can run."""
    try:
        packages = host_packages.needed_for(*(purposes or ["all"]))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    host = Host(run.where.target)
    checks = [check for make in CHECKS for check in make(host)]
    rows = [c.row() for c in checks] + [_package_row(p) for p in packages if not _covered(p.name, checks)]
    wanted = set(purposes or ())
    rows = [row for row in rows if not wanted or wanted & set(row["needed_for"].split(", "))]
    able = can_run_demo(checks)
    if run.out.format in {Format.TABLE, Format.WIDE}:
        run.out.all(rows, SHAPE)
        _advice(run, rows, able=able)
    elif run.out.format in {Format.JSON, Format.YAML}:
        run.out.one({"ok": able, "checks": rows}, SHAPE)
    else:
        run.out.all(rows, SHAPE)
    if not able:
        raise typer.Exit(ExitCode.FAILED)


def can_run_demo(checks: list[Check]) -> bool:
    """Everything that the demo cannot do without is there, and one driver that can run a real image."""
    needed = all(c.ok for c in checks if "demo" in c.needed_for and c.required)
    return needed and any(c.ok for c in checks if c.name in DEMO_DRIVERS)


def _covered(package: str, checks: list[Check]) -> bool:
    """Whether a check has already tried what a package is for."""
    return any(package in c.packages for c in checks)


def _package_row(package: host_packages.Package) -> dict[str, Any]:
    here = package.here()
    return {
        "name": package.name,
        "status": "ok" if here else "missing",
        "detail": package.why,
        "needed_for": ", ".join(package.purposes),
        "mend": "" if here else host_packages.install_command([package.name]),
    }


def _advice(run: Run, rows: list[dict[str, Any]], *, able: bool) -> None:
    missing = [row for row in rows if row["status"] == "missing"]
    packages = [row["mend"].rpartition("install -y ")[2] for row in missing if "apt-get install -y " in row["mend"]]
    if packages:
        run.note(f"\nall packages at once: {host_packages.install_command(list(dict.fromkeys(packages)))}")
    run.note("\nthe demo can run: strandline demo" if able else "\nthe demo cannot run yet; mend what is missing for it first")
