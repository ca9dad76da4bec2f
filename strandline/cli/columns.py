"""Columns: which fields of an item a table shows, and how each kind of value reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

Row = Mapping[str, Any]
Show = Callable[[Any], str]
EMPTY: Final = "-"
BRIEF: Final = 96
OVER: Final = frozenset({"STOPPED", "DEAD"})


def now() -> datetime:
    """The instant that ages are counted from."""
    return datetime.now(UTC)


def plain(value: Any) -> str:
    """Text for anything: lists joined by commas, flat objects as ``k=v``, deeper ones as JSON, nothing as ``-``."""
    match value:
        case None | "" | []:
            text = EMPTY
        case dict() if not value:
            text = EMPTY
        case bool():
            text = "yes" if value else "no"
        case float():
            text = f"{value:g}"
        case dict() | list() | tuple() if _deep(value):
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
        case dict():
            text = ",".join(f"{name}={plain(one)}" for name, one in value.items())
        case list() | tuple():
            text = ",".join(plain(one) for one in value)
        case _:
            text = str(value).replace("\n", "⏎")
    return text


def _deep(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return any(isinstance(part, dict | list | tuple) and part for part in parts)


def _seconds(value: Any) -> float | None:
    if not value:
        return None
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (now() - at).total_seconds()


def span(seconds: float) -> str:
    """``45s``, ``12m``, ``5h``, ``3d``: the largest unit of which there are at least two."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def age(value: Any) -> str:
    """How long ago."""
    seconds = _seconds(value)
    return EMPTY if seconds is None else span(max(seconds, 0))


def remaining(value: Any) -> str:
    """How long still, ``over`` when it has passed, ``never`` when there is no end."""
    seconds = _seconds(value)
    if seconds is None:
        return "never"
    return "over" if seconds >= 0 else f"in {span(-seconds)}"


def exactly(column: Column, row: Row) -> str:
    """As the column shows it, with the instant itself where it only shows how long ago or how long still."""
    value, shown = column.value(row), column.text(row)
    if not value or shown == EMPTY or not (column.show is age or column.of_row is ends):
        return shown
    return f"{value} ({shown} ago)" if column.show is age else f"{value} ({shown})"


def ends(row: Row) -> str:
    """When a sandbox ends; of one that has ended, nothing."""
    return EMPTY if row.get("state") in OVER else remaining(row.get("ends_at"))


def ran(row: Row) -> str:
    """How long a sandbox has run, all its runs together."""
    return span((row.get("running_s") or 0) + max(_seconds(row.get("running_since")) or 0, 0))


def size(value: Any) -> str:
    """Bytes as ``12.3 MiB``."""
    if value is None:
        return EMPTY
    number = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def replicas(value: Any) -> str:
    """``2/3``, with the failed ones named."""
    if not value:
        return EMPTY
    failed = f" ({value['failed']} failed)" if value.get("failed") else ""
    return f"{value.get('ready', 0)}/{value.get('total', 0)}{failed}"


def ports(value: Any) -> str:
    """``8080:bound``; a port that nobody listens on keeps its status."""
    if not value:
        return EMPTY
    return ",".join(f"{p['port']}:{p['status']}" if p.get("status") else str(p["port"]) for p in value)


def fault(value: Any) -> str:
    """An error object's code and text on one line."""
    if isinstance(value, Mapping):
        return ": ".join(str(value[name]) for name in ("code", "message") if value.get(name)) or plain(value)
    return plain(value)


def names(value: Any) -> str:
    """The names of a list of named things."""
    return ",".join(str(one.get("name")) for one in value) if value else EMPTY


def brief(value: Any) -> str:
    """The beginning of something long: the table is for finding it, JSON for reading it."""
    text = EMPTY if not value else json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text if len(text) <= BRIEF else text[: BRIEF - 1] + "…"


def percent(value: Any) -> str:
    """``87 %``."""
    return EMPTY if value is None else f"{float(value):.0f} %"


def megabytes(value: Any) -> str:
    """MiB as the largest fitting unit."""
    return EMPTY if value is None else size(float(value) * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Column:
    """``path`` is dotted; ``wide`` columns show with ``-o wide`` only; ``flex`` ones give way when the terminal is narrow."""

    header: str
    path: str
    show: Show = plain
    wide: bool = False
    flex: bool = False
    state: bool = False
    right: bool = False
    of_row: Callable[[Row], str] | None = None

    def value(self, row: Row) -> Any:
        """The raw value, or None."""
        return dig(row, self.path)

    def text(self, row: Row) -> str:
        """What the table shows: of the value, or, for the columns that need more than one field, of the row."""
        return self.show(self.value(row)) if self.of_row is None else self.of_row(row)


def dig(row: Any, path: str) -> Any:
    """The value at a dotted path of nested objects and lists, or None."""
    for part in path.split("."):
        if isinstance(row, Mapping):
            row = row.get(part)
        elif isinstance(row, list | tuple) and part.isdigit() and int(part) < len(row):
            row = row[int(part)]
        else:
            return None
    return row


@dataclass(frozen=True, slots=True)
class Shape:
    """How one kind of item looks: its id field, and its columns."""

    key: str
    columns: Sequence[Column]

    def narrow(self) -> list[Column]:
        return [c for c in self.columns if not c.wide]

    def chosen(self, names: Sequence[str]) -> list[Column]:
        """Columns by header or field path; an unknown one is taken as a path, and is the reader's to judge."""
        known = {c.header.lower().replace(" ", "_"): c for c in self.columns} | {c.path: c for c in self.columns}
        return [known.get(n) or known.get(n.lower()) or Column(n.upper(), n) for n in names]


def cell_json(value: Any) -> str:
    """A value in CSV: scalars as they are, nothing as empty, the rest as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
