"""What a line of a sandbox's output says: its stream, its text, its trace, what else it tells (reference/miren-sandbox.md §8.2).

The bus carries output as it was written; these rules are for who reads it. A line may name another stream (``!USER``, ``!ERROR``), or be an
object of structured logging. Nothing that a workload writes takes the place of what we say of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Stream = Literal["stdout", "stderr", "error", "user-oob", "runtime"]
STREAMS: Final[tuple[Stream, ...]] = get_args(Stream)
LONGEST: Final = 1 << 20
"""Bytes of a line; what is beyond them, until its end, is dropped."""
OURS: Final = "strandline."
"""The beginning of attributes that only we give."""

_PREFIXES: Final[tuple[tuple[str, Stream], ...]] = (("!USER ", "user-oob"), ("!ERROR ", "error"))
_TRACE: Final = re.compile(r"""trace_id["']?\s*[=:]\s*["']?(\w+)""")
_LOUD: Final = frozenset({"ERROR", "error", "WARN", "warn"})
_BODY: Final = ("msg", "message")


@dataclass(frozen=True, slots=True)
class Framed:
    """``attributes``: what a structured line said beside its text; numbers as they were written."""

    stream: str
    text: str
    trace_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def framed(stream: str, line: bytes) -> Framed:
    """A line, without its end, that was written to ``stream``. Our own lines (``runtime``) are what they are."""
    text = line.decode(errors="replace").rstrip("\t\r\n")
    if stream == "runtime":
        return Framed(stream, text)
    for prefix, other in _PREFIXES:
        if text.startswith(prefix):
            stream, text = other, text.removeprefix(prefix)
    found = _TRACE.search(text)
    trace = found and found.group(1)
    said = _object(text)
    key = next((key for key in _BODY if said.get(key) and type(said[key]) is str), None)
    if key is None:
        return Framed(stream, text, trace)
    stream = "stderr" if said.get("level") in _LOUD else stream
    attributes = {_free(name): _scalar(value) for name, value in said.items() if name not in {key, "time"} and _is_scalar(value)}
    return Framed(stream, said[key], trace, attributes)


class _Number(str):
    """A number's own characters."""

    __slots__ = ()


def _object(text: str) -> dict[str, Any]:
    """The object that a whole line is; empty for any other line."""
    if not (text.startswith("{") and text.endswith("}")):
        return {}
    try:
        said = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _refuse(constant: str) -> None:
    """NaN and Infinity are no JSON."""
    raise ValueError(constant)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool)


def _scalar(value: str | bool) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _free(name: str) -> str:
    """A name that is none of ours."""
    return f"-{name}" if name == "source" or name.startswith(OURS) else name
