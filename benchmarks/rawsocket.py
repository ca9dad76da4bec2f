"""The bound: a blocking socket, messages whose bytes were built before, acknowledgements only counted (reference/jetstream-eventstore.md
§3.1)."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from bus.append import Entry

_STORED = b'"seq":'
"""In every positive acknowledgement, and in no other one."""


def prepared(entries: Sequence[Entry]) -> list[bytes]:
    """The same messages as they go over the wire: same subject, headers and body; one subject for all acknowledgements."""
    made = []
    for entry in entries:
        head = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in (entry.message().headers or {}).items()) + "\r\n"
        size = len(head)
        made.append(b"HPUB %s _R.a %d %d\r\n%s%s\r\n" % (entry.subject.encode(), size, size + len(entry.data), head.encode(), entry.data))
    return made


def blast(port: int, commands: Sequence[bytes], width: int) -> float:
    """Seconds until every command is acknowledged, at most ``width`` under way. Raises ``RuntimeError`` when one was refused."""
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.recv(65536)
        wire.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _R.* 1\r\nPING\r\n')
        while b"PONG" not in wire.recv(65536):
            pass
        began = time.perf_counter()
        sent = stored = 0
        rest = b""
        while stored < len(commands):
            room = min(width - (sent - stored), len(commands) - sent)
            if room and (room >= width // 4 or sent == stored or sent + room == len(commands)):
                wire.sendall(b"".join(commands[sent : sent + room]))
                sent += room
            data = rest + wire.recv(1 << 18)
            stored += data.count(_STORED)
            if b'"error":' in data:
                raise RuntimeError(data[:500])
            rest = data[-len(_STORED) + 1 :]
        return time.perf_counter() - began
