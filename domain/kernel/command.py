"""Commands: what callers ask for. One closed record per ``noun.verb``, validated at the edge and nowhere else.

Every command may carry ``wait_s``: how long the caller is willing to wait for what the command starts to settle (contract.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

import orjson
from pydantic import ConfigDict, Field, ValidationError

from domain.kernel.aggregate import Record
from domain.kernel.errors import Invalid, Refused
from domain.kernel.registry import COMMANDS, enter

MAX_BODY = 256 * 1024
"""Bytes of a command's body. Standard input of ``sandbox.exec`` is the largest legitimate content."""
MAX_DEPTH = 16
"""Nesting of a command's body; deeper is nobody's honest request."""


class Part(Record):
    """A part of a command's body. Strict: ``"5"`` is no number, ``1.5`` no count; NaN and infinities, which JSON lacks, are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Command(Part):
    """A request to change something. ``NOUN.VERB`` is its permanent name, ``EXAMPLE`` a body that a newcomer can paste."""

    NOUN: ClassVar[str]
    VERB: ClassVar[str]
    EXAMPLE: ClassVar[dict[str, Any]] = {}
    RESULT: ClassVar[type[Record] | None] = None

    wait_s: Annotated[float, Field(ge=0, le=600)] = 0

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "VERB" in cls.__dict__:
            enter(COMMANDS, cls.wire_name(), cls)

    @classmethod
    def wire_name(cls) -> str:
        """``noun.verb``."""
        return f"{cls.NOUN}.{cls.VERB}"

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The command in ``body``. Raises ``Invalid`` (``command.invalid``) or ``Refused`` (``command.too-large``)."""
        if len(body) > MAX_BODY:
            raise Refused("command.too-large", f"the body has {len(body)} bytes; {MAX_BODY} is the limit")
        if _depth(body) > MAX_DEPTH:
            raise Invalid("the body is nested too deeply", {"": f"at most {MAX_DEPTH} levels"})
        try:
            return cls.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise Invalid(f"{cls.wire_name()}: the body is not valid", _fields(error)) from None


def _depth(body: bytes) -> int:
    """How deep brackets nest, strings included: an upper bound that costs nothing for flat bodies."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for byte in body:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _fields(error: ValidationError) -> dict[str, str]:
    return {
        ".".join(str(part)[:64] for part in e["loc"]): e["msg"][:200] for e in error.errors(include_url=False, include_input=False)[:20]
    }


@dataclass(frozen=True, slots=True)
class Cause:
    """Who asked for a change, when, and by which command: what every commit carries beside its events.

    ``digest`` identifies the command's body, so that the same id with another body is told apart (``command.mismatch``).
    ``event`` is the id of the commit that made the system ask, for commands that it gives itself.
    """

    command: str
    digest: str
    actor: str
    project: str
    at: datetime
    event: str | None = None
    trace: str | None = None


def canonical(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8. Digests and hashes are taken over it."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
