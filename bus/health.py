"""What a server says about its own health, asked over the system account.

JetStream never writes to a stream again that it could not write to once, also when the disk has room again, and does not answer those who
publish; only a restart mends it (measured with 2.15). The server knows which streams those are and tells whoever asks for its health.
"""

from __future__ import annotations

import orjson
from nats.aio.client import Client

from bus.requests import request

_SUBJECT = "$SYS.REQ.SERVER.PING.HEALTHZ"


async def unwritable(system: Client, timeout: float = 2) -> list[str]:
    """What keeps streams of the server from being written to, one text per stream. Raises ``Refused("bus.unavailable")``."""
    said = orjson.loads(await request(system, _SUBJECT, b'{"details":true}', {}, timeout))
    errors = (said.get("data") or {}).get("errors") or ()
    return [str(error.get("error")) for error in errors if error.get("type") == "STREAM" and "write error" in str(error.get("error"))]
