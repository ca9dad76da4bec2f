"""Headers of messages, as they come over the wire."""

from __future__ import annotations


def parse_headers(raw: bytes | None) -> dict[str, str]:
    """The headers of a message; of an inline status ("NATS/1.0 408 Request Timeout") its number is ``Status``, its text ``Description``."""
    if not raw:
        return {}
    line, _, rest = bytes(raw).partition(b"\r\n")
    found = header_lines(rest)
    status, _, description = line[len(b"NATS/1.0 ") :].partition(b" ")
    if status:
        found |= {"Status": status.decode("ascii", "replace"), "Description": description.decode("utf-8", "replace").strip()}
    return found


def header_lines(raw: bytes) -> dict[str, str]:
    """``Name: value`` per line. A line whose name is no token is left out; of several values of one name the last one counts."""
    found = {}
    for line in bytes(raw).split(b"\r\n"):
        name, colon, value = line.partition(b":")
        token = name.strip()
        if colon and token and token.isascii() and len(token.split()) == 1:
            found[token.decode()] = value.strip().decode("utf-8", "replace")
    return found
