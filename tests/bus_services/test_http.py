"""Our own small HTTP: what is no request is told so, nobody holds it up, and what is cut off does not look whole."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus

import pytest

from bus import http
from bus.http import Answer, Asked, parsed

pytestmark = pytest.mark.quick


async def said(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def drained(client: socket.socket) -> int:
    """How much comes until the other side has closed."""
    size = 0
    while part := client.recv(1 << 20):
        size += len(part)
    return size


async def hello(asked: Asked) -> Answer:
    return http.plain(HTTPStatus.OK, asked.path)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /x?token=1 HTTP/1.1\r\n\r\n", b"200"), (b"HEAD / HTTP/1.0\r\n\r\n", b"200"), (b"POST / HTTP/1.1\r\n\r\n", b"405"),
        (b"GET x HTTP/1.1\r\n\r\n", b"400"), (b"GET / HTTP/2\r\n\r\n", b"400"), (b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000 + b"\r\n\r\n", b"431"),
    ],
)  # fmt: skip
def test_a_request_is_answered_or_told_what_is_wrong(run, request_: bytes, status: bytes) -> None:
    async def main() -> None:
        async with http.serving(hello, 0) as port:
            assert (await said(port, request_)).split()[1] == status

    run(main())


def test_a_request_is_read_as_it_was_written() -> None:
    assert parsed(b"GET /a?b HTTP/1.1\r\nRange:  bytes=1-2 \r\nX-Y: a:b\r\n\r\n") == Asked(
        "GET", "/a", {"range": "bytes=1-2", "x-y": "a:b"}
    )


def test_more_than_can_be_answered_at_one_time_are_told_to_come_back(run, eventually) -> None:
    async def main() -> None:
        release, inside = asyncio.Event(), []

        async def waits(asked: Asked) -> Answer:
            inside.append(asked)
            await release.wait()
            return http.plain(HTTPStatus.OK, "done")

        async with http.serving(waits, 0) as port:
            first = [asyncio.create_task(said(port, b"GET / HTTP/1.1\r\n\r\n")) for _ in range(http.MOST)]
            await eventually(lambda: len(inside) == http.MOST)
            answer = await said(port, b"GET / HTTP/1.1\r\n\r\n")
            assert (answer.split()[1], b"Retry-After" in answer) == (b"503", True)
            release.set()
            assert {answer.split()[1] for answer in await asyncio.gather(*first)} == {b"200"}

    run(main())


def test_the_end_of_serving_cuts_off_what_is_being_sent(run) -> None:
    async def main() -> None:
        async def endless():
            while True:
                yield b"x" * 65_536

        async def answer(_: Asked) -> Answer:
            return Answer(HTTPStatus.OK, parts=endless(), size=1 << 50)

        async with http.serving(answer, 0) as port:
            client = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert await asyncio.to_thread(client.recv, 15) == b"HTTP/1.1 200 OK"
        with client, contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(drained, client) < 1 << 30

    run(main())
