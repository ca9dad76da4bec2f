"""The parser hands out what nats-py's own would, however the bytes are cut; whole messages just go a shorter way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from bus.parser import MessageParser

pytestmark = pytest.mark.quick

WORD = st.text("abz.*>$_-09", min_size=1, max_size=12).map(str.encode)
HEADERS = st.dictionaries(st.text("AbZ-", min_size=1, max_size=8), st.text("xy :", max_size=8), min_size=1, max_size=3)
DIRECT = 7


@st.composite
def messages(draw: Any) -> bytes:
    subject, sid, data = draw(WORD), draw(st.sampled_from([1, DIRECT, 4242])), draw(st.binary(max_size=60))
    reply = b" " + draw(WORD) if draw(st.booleans()) else b""
    if draw(st.booleans()):
        head = b"NATS/1.0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in draw(HEADERS).items()) + b"\r\n"
        return b"HMSG %s %d%s %d %d\r\n%s%s\r\n" % (subject, sid, reply, len(head), len(head) + len(data), head, data)
    return b"MSG %s %d%s %d\r\n%s\r\n" % (subject, sid, reply, len(data), data)


STREAMS = st.lists(messages() | st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n"]), max_size=12).map(b"".join)


class Client:
    """What a parser calls, written down."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.heard.append((sid, bytes(subject), bytes(reply), bytes(data), bytes(headers) if headers else None))

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")

    def taking(self, sid: int) -> Any:
        return lambda *message: self.heard.append((sid, *message))


def ours(client: Client) -> MessageParser:
    return MessageParser(client, {DIRECT: client.taking(DIRECT)}, client._process_msg)


def heard(parser: Parser, client: Client, stream: bytes, cuts: list[int]) -> list[Any]:
    async def feed() -> None:
        at = 0
        for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
            await parser.parse(stream[at:cut])
            at = cut

    asyncio.run(feed())
    return client.heard


@given(STREAMS, st.lists(st.integers(0, 1000), max_size=6))
def test_it_hears_what_nats_py_hears_however_the_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    theirs, mine = Client(), Client()
    assert heard(ours(mine), mine, stream, cuts) == heard(Parser(theirs), theirs, stream, cuts)


@pytest.mark.parametrize("broken", [b"MSG a b c d e\r\n", b"MSG a 1 x\r\n", b"HMSG a 1\r\n", b"WHAT 1\r\n", b"\r\n"])
def test_what_is_no_protocol_is_an_error_as_it_is_to_nats_py(broken: bytes) -> None:
    for make in (ours, Parser):
        client = Client()
        with pytest.raises(ProtocolError):
            heard(make(client), client, broken, [])


def test_a_taker_that_fails_loses_its_message_and_nothing_else() -> None:
    client = Client()

    def fails(*_: Any) -> None:
        raise RuntimeError("no")

    parser = MessageParser(client, {1: fails}, client._process_msg)
    assert heard(parser, client, b"MSG a 1 1\r\nx\r\nMSG a 2 1\r\ny\r\n", []) == [(2, b"a", b"", b"y", None)]


def test_what_is_left_of_a_socket_that_is_gone_is_not_mixed_with_the_next_ones() -> None:
    client = Client()
    parser = ours(client)

    async def reconnects(*message: Any) -> None:
        client.heard.append(message[3])
        parser.reset()

    parser._process = reconnects
    assert heard(parser, client, b"MSG a 1 1\r\nx\r\nMSG a 1 9\r\nhal", []) == [b"x"]
    parser._process = client._process_msg
    assert heard(parser, client, b"MSG b 1 1\r\ny\r\n", [])[1:] == [(1, b"b", b"", b"y", None)]
