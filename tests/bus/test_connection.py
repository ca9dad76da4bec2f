"""Connections come back, whatever becomes of nats-py's own way of reconnecting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.connection import connect
from bus.server import Server

WATCH_S = 0.1


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the connections log."""
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("bus.connection.log.warning", lambda event, **facts: said.append((event, facts)))
    return said


def test_reconnecting_that_dies_of_an_unexpected_error_is_begun_again(server: Server, run, eventually, reported) -> None:
    async def scenario() -> None:
        async with await connect(server.url, name="test", on_closed=lambda: None, watch_s=WATCH_S) as nc:
            genuine, failures = nc._process_connect_init, iter([RuntimeError("the handler is closed"), AssertionError()])

            async def fails_twice() -> None:
                for error in failures:
                    raise error
                await genuine()

            nc._process_connect_init = fails_twice  # type: ignore[method-assign]  # what uvloop does to a socket closed meanwhile
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await eventually(lambda: nc.is_connected)
            assert [event for event, _ in reported if event == "connection.reconnecting-again"] == ["connection.reconnecting-again"] * 2

    run(scenario())


def test_a_read_loop_that_dies_of_anything_is_noticed(server: Server, run, eventually, reported) -> None:
    async def scenario() -> None:
        async with await connect(server.url, name="test", on_closed=lambda: None, watch_s=WATCH_S) as nc:
            genuine = nc.rtt

            async def fails() -> float:
                nc.rtt = genuine  # type: ignore[method-assign]
                raise RuntimeError("the handler is closed")

            nc.rtt = fails  # type: ignore[method-assign]
            await eventually(lambda: nc.stats["reconnects"] >= 1 and nc.is_connected)

    run(scenario())


def test_an_outage_is_reported_once_and_not_with_every_attempt(server: Server, run, eventually, reported) -> None:
    async def scenario() -> None:
        async with await connect(server.url, name="test", on_closed=lambda: None, watch_s=WATCH_S) as nc:
            await asyncio.to_thread(server.kill)
            await eventually(lambda: nc._current_server.reconnects >= 4)
            errors = [facts["error"] for event, facts in reported if event == "connection.error"]
            assert errors
            assert len(errors) == len(set(errors))

    run(scenario())


def test_a_connection_without_a_server_can_be_closed(server: Server, run, eventually) -> None:
    async def scenario() -> None:
        nc = await connect(server.url, name="test", on_closed=lambda: None, watch_s=WATCH_S)
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not nc.is_connected)
        await nc.publish("anything", b"kept for later")
        await nc.close()
        assert nc.is_closed

    run(scenario())
