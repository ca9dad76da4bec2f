"""How failures look: two lines for people, one object for machines, always on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

from domain.kernel.errors import Refused
from strandline.cli.hints import hint_for
from strandline.cli.style import console, err


class UsageProblem(Refused):
    """The command line asks for something that does not make sense; exit code 2."""

    def __init__(self, message: str, hint: str | None = None, **details: Any) -> None:
        super().__init__("command.usage", message, details=details)
        self.hint = hint


def error_object(refused: Refused) -> dict[str, Any]:
    """What ``-o json`` prints for a failure."""
    return {"error": {**refused.as_dict(), "hint": _hint(refused)}}


def print_error(refused: Refused, fmt: str) -> None:
    """To stderr, in the manner of the chosen output format."""
    if fmt in {"json", "jsonl"}:
        err(json.dumps(error_object(refused), ensure_ascii=False, default=str))
        return
    if fmt == "yaml":
        err(yaml.safe_dump(error_object(refused), sort_keys=False, allow_unicode=True).rstrip())
        return
    screen = console(sys.stderr)
    screen.print(f"[bold red]error:[/] {refused.code}: ", end="")
    screen.print(refused.message, markup=False)
    for name, fault in _field_faults(refused):
        screen.print(f"  {name}: {fault}", markup=False)
    hint = _hint(refused)
    if hint:
        screen.print("[bold]hint:[/] ", end="")
        screen.print(hint, markup=False)


def _hint(refused: Refused) -> str | None:
    return refused.hint if isinstance(refused, UsageProblem) else hint_for(refused)


def _field_faults(refused: Refused) -> list[tuple[str, str]]:
    """``command.invalid`` has one entry per field; candidates of an ambiguous prefix are listed too."""
    if refused.code == "command.invalid":
        return [(str(name) or "body", str(fault)) for name, fault in refused.details.items()]
    if refused.code.endswith(".ambiguous"):
        return [("candidate", str(one)) for one in refused.details.get("candidates", ())]
    return []
