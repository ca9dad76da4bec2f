"""Small languages of the command line: ``field=value``, durations, instants, environment variables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from strandline.cli import columns
from strandline.cli.errors import UsageProblem

_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
RESERVED: Final = frozenset({"limit", "cursor", "as_of", "min_seq"})
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(m|mb|mi|mib|g|gb|gi|gib|t|tb|ti|tib)?", re.IGNORECASE)


def filters(words: Iterable[str]) -> dict[str, Any]:
    """``field=value`` words as a query's filters. Numbers, true, false and null mean themselves; anything else is text."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name in RESERVED:
            raise UsageProblem(f"{name} is no filter", f"there is an option for it: --{name.replace('_', '-')}")
        if not equals or not name:
            raise UsageProblem(f"not a filter: {word!r}", "filters are field=value, e.g. status=READY")
        found[name] = _scalar(value)
    return found


def _scalar(text: str) -> Any:
    if re.fullmatch(r"-?\d{1,15}|true|false|null", text):
        return json.loads(text) if not re.fullmatch(r"-?0\d+", text) else text
    return text


def pairs(words: Iterable[str] | None, what: str) -> dict[str, str] | None:
    """``NAME=VALUE`` words as a dictionary, or None for none. The value is taken as it is."""
    found: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageProblem(f"not {what}: {word!r}", f"{what} is NAME=VALUE")
        found[name] = value
    return found or None


def mount(text: str) -> dict[str, Any]:
    """``DISK:PATH`` or ``DISK:PATH:ro``, as ``sandbox.create`` takes it."""
    disk, _, rest = text.partition(":")
    path, _, mode = rest.partition(":")
    if not disk or not path.startswith("/") or mode not in {"", "ro"}:
        raise UsageProblem(f"not a disk and where to mount it: {text!r}", "that is like data:/srv/data, or data:/srv/data:ro")
    return {"disk": disk, "mount_path": path, "read_only": mode == "ro"}


def seconds(text: str) -> float:
    """``90``, ``90s``, ``15m``, ``1h30m``, ``2d`` in seconds. Raises ``UsageProblem``."""
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise UsageProblem(f"not a duration: {text!r}", "durations are like 90, 90s, 15m, 1h30m, 2d")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return days * 86_400 + hours * 3_600 + minutes * 60 + rest


def ttl(text: str) -> float:
    """A duration, or ``never`` as -1."""
    return -1 if text in {"never", "-1"} else seconds(text)


def mebibytes(text: str) -> int:
    """``512``, ``512M``, ``2G`` in MiB."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageProblem(f"not a size: {text!r}", "sizes are like 512, 512M, 2G")
    factor = {"g": 1024, "t": 1024 * 1024}.get((match[2] or "m")[0].lower(), 1)
    return int(float(match[1]) * factor)


def instant(text: str) -> datetime:
    """RFC 3339, a date, or a duration before now. Raises ``UsageProblem``."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            return columns.now() - timedelta(seconds=seconds(text))
        except UsageProblem:
            raise UsageProblem(f"not an instant: {text!r}", "instants are like 2026-11-20T09:00:00Z, 2026-11-20, or 15m (ago)") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def moment(text: str) -> int | str:
    """What ``--as-of`` takes: a log position, or an instant as RFC 3339."""
    return int(text) if text.isdigit() else instant(text).isoformat()


def listed(text: str | None) -> list[str] | None:
    """``a,b,c`` as a list, or None."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def words(text: str) -> list[str]:
    """A command line in shell words. Raises ``UsageProblem`` for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageProblem(f"not shell words: {text!r} ({error})") from None
