"""The embedded server and the connections to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from pathlib import Path

import pytest
from support.bus import connected
from support.waiting import eventually, run

from bus.connection import connect, connect_from
from bus.server import Server, ServerError
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick


def test_a_server_answers_when_start_returns_and_keeps_port_and_messages_over_a_kill(server):
    async def scenario() -> None:
        url = server.url
        async with connected(server) as nc:
            await nc.jetstream().publish("strand.evt.p.counter.a", b"kept")
            pid = server.pid
            server.kill()
            assert server.pid == 0
            server.start()
            assert (server.url, server.pid != pid) == (url, True)
            await eventually(lambda: nc.stats["reconnects"] == 1)
            assert (await nc.jetstream().get_msg("EVENTS", 1)).data == b"kept"

    run(scenario())


def test_what_the_server_writes_about_itself_is_readable_by_its_owner_only(server):
    for name in ("nats.conf", "nats.log"):
        assert stat.S_IMODE((server.dir / name).stat().st_mode) == 0o600, name


def test_a_server_that_cannot_come_up_says_why(tmp_path):
    with pytest.raises(ServerError, match="Parse error on line"):
        Server(tmp_path, config="no_such_option: {").start()


def test_a_server_does_not_take_a_port_that_another_one_has(server, tmp_path):
    with pytest.raises(ServerError, match="address already in use"):
        Server(tmp_path / "other", port=server.port, name="other").start()


def test_connecting_to_nothing_is_refused_as_retryable(tmp_path):
    stopped = Server(tmp_path)
    with pytest.raises(Refused) as refused:
        run(connect(stopped.url, name="test", timeout=0.5))
    assert (refused.value.code, refused.value.retryable) == ("bus.unavailable", True)


def test_connect_json_says_how_to_connect(server, tmp_path):
    (tmp_path / "connect.json").write_text(
        json.dumps({"url": server.url, "creds": None, "inbox_prefix": "_INBOX_ours", "http": None, "pids": {}})
    )

    async def scenario() -> None:
        nc = await connect_from(tmp_path, "test", on_closed=lambda: None)
        assert nc.new_inbox().startswith("_INBOX_ours.")
        assert (await nc.jetstream().account_info()).streams == 0
        await nc.close()

    run(scenario())


def test_a_missing_connect_json_is_refused_as_retryable(tmp_path):
    with pytest.raises(Refused, match=r"connect\.json"):
        run(connect_from(tmp_path, "test"))


def test_a_read_loop_that_died_is_noticed_and_replaced(server):
    async def scenario() -> None:
        nc = await connect(server.url, name="test", on_closed=lambda: None, watch_s=0.2)
        nc._reading_task.cancel()  # what an unexpected exception inside nats-py amounts to
        await asyncio.wait([nc._reading_task])
        assert nc.is_connected
        await eventually(lambda: nc.stats["reconnects"] == 1 and nc.is_connected)
        await nc.request("$JS.API.INFO", b"")
        await nc.close()

    run(scenario())


def test_an_end_that_nobody_asked_for_is_reported_and_a_wanted_one_is_not(tmp_path: Path):
    password = "authorization {{ users: [{{ user: a, password: {} }}] }}"
    ends: list[str] = []

    async def scenario(server: Server) -> None:
        url = server.url.replace("//", "//a:one@")
        wanted = await connect(url, name="wanted", on_closed=lambda: ends.append("wanted"))
        await wanted.close()
        unwanted = await connect(url, name="unwanted", on_closed=lambda: ends.append("unwanted"))
        conf = server.dir / "nats.conf"
        conf.write_text(conf.read_text().replace("one", "two"))
        os.kill(server.pid, signal.SIGHUP)
        await eventually(lambda: unwanted.is_closed)

    with Server(tmp_path, config=password.format("one")) as server:
        run(scenario(server))
    assert ends == ["unwanted"]
