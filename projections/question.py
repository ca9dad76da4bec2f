"""What a query asks: its body, checked (design.md §3 "Query"). Refusals are ``query.invalid`` with one detail per field."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import orjson

from domain.kernel.errors import Refused

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 100
MAX_TEXT: Final = 1024
"""Characters of a filter value, id or cursor."""

AsOf: TypeAlias = int | datetime
Body: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A checked body. ``after``: the key behind which a list goes on, from its cursor."""

    min_seq: int = 0
    as_of: AsOf | None = None
    limit: int = DEFAULT_LIMIT
    after: str = ""
    id: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)


def invalid(**fields: str) -> Refused:
    """The refusal of a body."""
    return Refused("query.invalid", "the query is not valid: " + ", ".join(sorted(fields)), details=fields)


def read(body: bytes) -> Body:
    """The body's object. An empty one asks for everything."""
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise invalid(body=f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid(body="must be an object")
    return value


def parse(body: bytes, verb: str, filters: Collection[str]) -> Question:
    """The question in ``body``. ``filters``: the fields that a list can be narrowed by, or that a verb of a view's own is asked by."""
    asked = read(body)
    said: Body = {"min_seq": number(asked, "min_seq", 0, 0, 1 << 62), "as_of": moment(asked.pop("as_of", None))}
    if verb == "get":
        said["id"] = text(asked, "id")
    if verb not in {"get", "summary"}:
        said["limit"] = number(asked, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
        said["after"] = decode_cursor(asked.pop("cursor", None))
        said["where"] = {name: scalar(name, asked.pop(name)) for name in list(asked) if name in filters}
    if asked:
        raise invalid(**{str(name)[:64]: "is not a field of this query" for name in asked})
    return Question(**said)


def number(asked: Body, name: str, default: int, least: int, most: int) -> int:
    """Take an integer out of the body."""
    value = asked.pop(name, None)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(**{name: f"must be an integer from {least} to {most}"})
    return value


def text(asked: Body, name: str, default: str | None = None) -> str:
    """Take a string out of the body; without ``default`` it has to be there."""
    value = asked.pop(name, None)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or "\0" in value:
        raise invalid(**{name: f"must be a string of 1 to {MAX_TEXT} characters"})
    return value


def scalar(name: str, value: Any) -> Any:
    """A filter's value: something that a field can equal."""
    if isinstance(value, dict | list) or (isinstance(value, str) and (len(value) > MAX_TEXT or "\0" in value)):
        raise invalid(**{name: "must be a string, number, boolean or null"})
    return value


def moment(value: Any) -> AsOf | None:
    """``as_of``: a position, or an instant in RFC 3339."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        if value.isdecimal():
            return int(value)
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            instant = None
        if instant is not None and "T" in value.upper():
            return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    raise invalid(as_of="must be a sequence or an instant as 2026-01-31T12:00:00Z")


def encode_cursor(key: str) -> str:
    """A cursor is the key of the last item, so that nothing is skipped or repeated while items come and go."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode_cursor(cursor: Any) -> str:
    """The key in a cursor."""
    if cursor is None:
        return ""
    try:
        if isinstance(cursor, str) and 0 < len(cursor) <= MAX_TEXT:
            key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
            if "\0" not in key:
                return key
    except (binascii.Error, ValueError):
        pass
    raise invalid(cursor="is not a cursor of this query")
