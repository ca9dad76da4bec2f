"""``python -m benchmarks [name ...]``: run benchmarks, each in a process of its own, and print their ratios with the conditions.

Ends with 1 when a budget is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import uvloop

from benchmarks.harness import Row, table
from benchmarks.machine import conditions, load
from bus.logging import configure
from domain import catalogue

NAMES = (
    "append",
    "latency",
    "replay",
    "compat",
    "disk",
    "create",
    "handover",
    "flights",
    "churn",
    "crowd",
    "fleet",
    "build",
    "memory",
    "peers",
    "snapshots",
    "microvm",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", choices=[*NAMES, []], help=f"which; default all: {', '.join(NAMES)}")
    parser.add_argument("--short", action="store_true", help="a fraction of the repetitions: to see that it works, not to believe it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown, too")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        return _alone(arguments.name[0], short=arguments.short)
    return _all(arguments.name or list(NAMES), arguments.short, arguments.markdown)


def _alone(name: str, *, short: bool) -> int:
    """In a process of its own, so that no benchmark sees what another one left in memory; rows go to stdout as JSON lines."""
    configure(logging.WARNING)
    catalogue.load()
    for row in uvloop.run(import_module(f"benchmarks.{name}").run(short=short)):
        print(json.dumps(row.as_json()), flush=True)
    return 0


def _all(names: list[str], short: bool, markdown: Path | None) -> int:
    facts = conditions()
    for what, value in facts:
        print(f"{what:12} {value}")
    failed, text = False, "\n".join(f"- {what}: {value}" for what, value in facts) + "\n"
    for name in names:
        title = (import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0]
        print(f"\n{name}: {title}", flush=True)
        began, before = time.monotonic(), load().split()[0]
        command = [sys.executable, "-m", "benchmarks", name, "--alone", *(["--short"] if short else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        rows = [Row.from_json(json.loads(line)) for line in done.stdout.splitlines()]
        print(table(rows))
        print(f"({time.monotonic() - began:.0f} s, load {before} before)", flush=True)
        failed = failed or done.returncode != 0 or any(row.verdict == "MISSED" for row in rows)
        text += f"\n### {name}\n\n{title}\n\n{table(rows, markdown=True)}\n"
    if markdown is not None:
        markdown.write_text(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
