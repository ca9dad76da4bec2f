"""A name server for the sandboxes of a bridge, on the node's address there: names of their own project, and those outside they may use.

| asked for | by whom | answer |
|---|---|---|
| ``<sandbox>.<project>.sandbox.internal`` | a sandbox of that project, or the node | its address; NXDOMAIN when there is none |
| a name that may be reached | a sandbox that gets out | what the node's own name servers say |
| any other name | anybody | REFUSED: a question to a stranger's name server is a way out, too |

What a policy allows by its domain is opened by the answer, before the answer is given, for as long as the answer holds: but no
private address, whatever a name server says of a name that is its own (reference/miren-sandbox.md §4.6, reference/cubesandbox.md §3.2).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from dnslib import CLASS, EDNS0, OPCODE, QTYPE, RCODE, RR, A, DNSHeader, DNSQuestion, DNSRecord

from agents.network import ZONE
from domain.sandboxes.egress import EgressPolicy, is_private

PORT: Final = 53
MOST: Final = 256
"""Questions to the outside at a time; of one sandbox a quarter of that. More are refused at once."""
PATIENCE_S: Final = 2.0
"""How long one of the node's name servers may take before the next is asked."""
OWN_TTL_S: Final = 5
LEAST_S: Final = 300
"""What was opened for a name stays open so long, however short its answer holds: programs keep addresses longer than they may."""
LONGEST_S: Final = 86_400
LARGEST: Final = 4096
PLAIN: Final = 512
"""Bytes that an answer may have where the question does not say more (RFC 1035)."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A sandbox. ``policy`` None: it has none of its own."""

    project: str
    policy: EgressPolicy | None = None


@dataclass(frozen=True, slots=True)
class Book:
    """What the resolver has to know, asked each time. ``learn``: an address may now reach these, as the answer for a name, for so long."""

    asker: Callable[[IPv4Address], Asker | None]
    named: Callable[[str, str], Iterable[IPv4Address]]
    """Addresses of a name in a project."""
    learn: Callable[[IPv4Address, str, Sequence[IPv4Address], int], None]
    lets_out: bool


class Resolver(asyncio.DatagramProtocol):
    """``upstreams``: the node's own name servers, in their order."""

    def __init__(self, book: Book, upstreams: Sequence[tuple[str, int]]) -> None:
        self._book, self._upstreams = book, upstreams
        self._transport: Any = None
        self._tasks: dict[asyncio.Task[None], IPv4Address] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer at once what can be, the rest in a task. What is no question gets no answer."""
        question, client = _read(data), IPv4Address(addr[0])
        if question is None or question.header.qr:
            return
        reply = self._at_once(question, client)
        if reply is None and (len(self._tasks) >= MOST or Counter(self._tasks.values())[client] >= MOST // 4):
            reply = _reply(question, RCODE.REFUSED)
        if reply is not None:
            self._send(question, reply, addr)
            return
        task = asyncio.ensure_future(self._outside(question, client, addr))
        self._tasks[task] = client
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def _at_once(self, question: DNSRecord, client: IPv4Address) -> DNSRecord | None:
        """None when somebody outside has to be asked."""
        if question.header.opcode != OPCODE.QUERY:
            return _reply(question, RCODE.NOTIMP)
        if len(question.questions) != 1 or question.q.qclass != CLASS.IN:
            return _reply(question, RCODE.REFUSED)
        name, asker = _host(question), self._book.asker(client)
        if name == ZONE or name.endswith(f".{ZONE}"):
            return self._own(question, name, asker)
        if asker is None or not self._book.lets_out or not (asker.policy is None or asker.policy.resolves(name)):
            return _reply(question, RCODE.REFUSED)
        if question.q.qtype == QTYPE.AAAA:  # sandboxes have IPv4 only, and need not wait to find that out
            return _reply(question, RCODE.NOERROR)
        return None

    def _own(self, question: DNSRecord, name: str, asker: Asker | None) -> DNSRecord:
        host, _, project = name.removesuffix(ZONE).removesuffix(".").rpartition(".")
        theirs = asker is not None and asker.project != project
        found = [] if theirs else sorted(self._book.named(project, host))
        reply = _reply(question, RCODE.NOERROR if found else RCODE.NXDOMAIN)
        reply.header.aa = 1
        if question.q.qtype in (QTYPE.A, QTYPE.ANY):
            reply.add_answer(*(RR(question.q.qname, QTYPE.A, ttl=OWN_TTL_S, rdata=A(str(address))) for address in found))
        return reply

    async def _outside(self, question: DNSRecord, client: IPv4Address, addr: tuple[str, int]) -> None:
        reply = _reply(question, RCODE.SERVFAIL)
        for upstream in self._upstreams:
            if (said := await _asked(question.q, upstream)) is not None:
                reply = _reply(question, said.header.rcode)
                reply.add_answer(*said.rr)
                reply.add_auth(*said.auth)
                break
        self._open(reply, client)
        self._send(question, reply, addr)

    def _open(self, reply: DNSRecord, client: IPv4Address) -> None:
        """What the answer names may be reached from now on, if a domain of a policy is why it was asked for."""
        asker, answers = self._book.asker(client), [answer for answer in reply.rr if answer.rtype == QTYPE.A]
        if asker is None or asker.policy is None or not answers:
            return
        found = dict.fromkeys(IPv4Address(bytes(answer.rdata.data)) for answer in answers)
        public = [address for address in found if not is_private(IPv4Network(address))]
        if public:
            seconds = max(LEAST_S, *(min(int(answer.ttl), LONGEST_S) for answer in answers))
            self._book.learn(client, _host(reply), public, seconds)

    def _send(self, question: DNSRecord, reply: DNSRecord, addr: tuple[str, int]) -> None:
        """As much as whoever asks can take: what is longer is left out, and marked as cut off."""
        room = max([PLAIN, *(min(extra.edns_len, LARGEST) for extra in question.ar if extra.rtype == QTYPE.OPT)])
        wire = reply.pack()
        if len(wire) > room:
            short = _reply(question, reply.header.rcode)
            short.header.tc = 1
            wire = short.pack()
        self._transport.sendto(wire, addr)

    def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._transport is not None:
            self._transport.close()


class _Upstream(asyncio.DatagramProtocol):
    """One question to one name server, from a port of its own. Only an answer to that very question counts."""

    def __init__(self, asked: DNSRecord) -> None:
        self._asked = asked
        self.answer: asyncio.Future[DNSRecord] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002 - the socket is connected
        reply = _read(data)
        if reply is None or self.answer.done() or not reply.header.qr or reply.header.id != self._asked.header.id:
            return
        if len(reply.questions) == 1 and _host(reply) == _host(self._asked) and reply.q.qtype == self._asked.q.qtype:
            self.answer.set_result(reply)


async def _asked(question: DNSQuestion, upstream: tuple[str, int]) -> DNSRecord | None:
    """What a name server says; None when it says nothing in time."""
    ours = DNSRecord(DNSHeader(id=secrets.randbelow(1 << 16), rd=1), q=DNSQuestion(question.qname, question.qtype, question.qclass))
    ours.add_ar(EDNS0(udp_len=LARGEST))
    try:
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Upstream(ours), remote_addr=upstream)
    except OSError:
        return None
    try:
        transport.sendto(ours.pack())
        async with asyncio.timeout(PATIENCE_S):
            return await protocol.answer
    except (TimeoutError, OSError):
        return None
    finally:
        transport.close()


def _read(data: bytes) -> DNSRecord | None:
    """None for what is no message with a question."""
    try:
        found = DNSRecord.parse(data[:LARGEST])
    except Exception:  # noqa: BLE001 - a stranger's bytes, and the library raises whatever they bring about
        return None
    return found if found.questions else None


def _reply(question: DNSRecord, code: int) -> DNSRecord:
    reply = question.reply(ra=1, aa=0)
    reply.header.rcode = code
    if any(extra.rtype == QTYPE.OPT for extra in question.ar):
        reply.add_ar(EDNS0(udp_len=LARGEST))
    return reply


def _host(message: DNSRecord) -> str:
    return str(message.q.qname).removesuffix(".").lower()
