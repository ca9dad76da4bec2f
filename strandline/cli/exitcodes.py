"""Exit codes: what a script may rely on (reference/user-experience.md §3.1, "exit codes").

``sandbox exec`` is the exception: it returns the program's own code, and 125 when the tool itself failed.
"""

from __future__ import annotations

from enum import IntEnum

from domain.kernel.errors import Refused


class ExitCode(IntEnum):
    """Why the command line ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    AUTH = 5
    RETRYABLE = 6
    TIMEOUT = 7
    EXEC_FAILED = 125
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed: the answer is no, and trying again will not help",
    ExitCode.USAGE: "usage: the command line or the body of the command is not valid",
    ExitCode.NOT_FOUND: "not found",
    ExitCode.CONFLICT: "conflict: the thing's state does not allow it",
    ExitCode.AUTH: "not authenticated, or not allowed",
    ExitCode.RETRYABLE: "unavailable: the same command can succeed later",
    ExitCode.TIMEOUT: "timed out; what was started goes on",
    ExitCode.EXEC_FAILED: "`sandbox exec` only: the tool failed, not the program",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
}

_USAGE = frozenset({"invalid", "unknown", "too-large", "ambiguous", "usage"})
_CONFLICT = frozenset(
    {
        "in-use",
        "illegal-state",
        "attempt-in-progress",
        "duplicate",
        "mismatch",
        "exists",
        "taken",
        "busy",
        "building",
        "conflict",
        "no-failed-replicas",
        "stale-needs-redo",
        "undo-blocked",
        "not-on-node",
    }
)
_AUTH = frozenset({"unauthorized", "forbidden", "denied", "permission-denied", "bad-signature", "evicted"})
_TIMEOUT = frozenset({"timeout", "timed-out", "expired"})
_LATER = frozenset({"unavailable", "overloaded", "closed", "exhausted", "offline", "blocked"})


def exit_code(refused: Refused) -> ExitCode:
    """The exit code for a refusal, by the reason in its code; a reason nobody listed is 6 when it is retryable, else 1."""
    noun, _, reason = refused.code.partition(".")
    for reasons, code in (
        (_USAGE, ExitCode.USAGE),
        (frozenset({"not-found"}), ExitCode.NOT_FOUND),
        (_CONFLICT, ExitCode.CONFLICT),
        (_AUTH, ExitCode.AUTH),
        (_TIMEOUT, ExitCode.TIMEOUT),
        (_LATER, ExitCode.RETRYABLE),
    ):
        if reason in reasons:
            return code
    if noun == "auth":
        return ExitCode.AUTH
    return ExitCode.RETRYABLE if refused.retryable else ExitCode.FAILED
