"""``python -m projections`` as a process: killed without warning it loses nothing, told to stop it stops, and it stays small."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest
from support.bus import connected
from support.histories import History, publish
from support.waiting import eventually, run

from bus.client import Caller
from bus.server import Server
from projections.postgres import PostgresStore
from projections.sqlite import SqliteStore
from projections.store import Role


@contextmanager
def process(directory, server, **environment):
    """A projector process. It ends with the block, one way or another."""
    directory.mkdir(exist_ok=True)
    (directory / "connect.json").write_text(json.dumps({"url": server.url, "creds": None, "inbox_prefix": None, "http": None, "pids": {}}))
    with (directory / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "projections", "--dir", str(directory)], stderr=log, env={**os.environ, **environment}
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)


async def digests(caller, **when):
    reply = await caller.query("default", "views", "digest", when, timeout=30)
    return {i["view"]: i["sha256"] for i in reply["items"]}


def killed_again_and_again(server, directory, **environment):
    async def main():
        async with connected(server) as nc:
            history, caller = History(8), Caller(nc)
            for _ in range(2):
                with process(directory, server, **environment) as child:
                    writing = asyncio.create_task(publish(nc, history.walk(1500)))
                    await eventually(lambda: position(caller), within=30)
                    child.send_signal(signal.SIGKILL)
                    await writing
            with process(directory, server, **environment):
                live = await digests(caller, min_seq=len(history.messages))
                assert live == await digests(caller, as_of=len(history.messages))

    run(main())


async def position(caller):
    """How far some view is, as soon as the process answers."""
    reply = await caller.query("default", "views", "list", timeout=30)
    return reply["items"][0]["position"]


def test_killed_in_the_middle_it_goes_on_where_it_had_saved(server, tmp_path):
    killed_again_and_again(server, tmp_path / "data")


@pytest.mark.root
def test_killed_in_the_middle_over_postgres_it_goes_on_where_it_had_saved(server, tmp_path, postgres_url):
    killed_again_and_again(server, tmp_path / "data", STRAND_VIEWS=postgres_url)


def killed_while_it_rebuilds(server, directory, roles, **environment):
    """Killed as soon as it has said that it began; ``roles`` are those of the generations that are then in its store."""

    async def main():
        async with connected(server) as nc:
            history, caller = History(8), Caller(nc)
            await publish(nc, history.walk(3000))
            with process(directory, server, **environment) as child:
                before = await digests(caller, min_seq=len(history.messages))
                begun = await caller.command("default", "view.rebuild", {"view": "sandboxes"})
                child.send_signal(signal.SIGKILL)
                child.wait(10)
            assert Role.BUILDING in roles(), begun
            with process(directory, server, **environment):
                assert await digests(caller, min_seq=len(history.messages)) == before
                assert Role.BUILDING not in roles(), "half of a generation is none"
                await caller.command("default", "view.rebuild", {"view": "sandboxes"})
                await eventually(lambda: rebuilt(caller), within=30)
                assert await digests(caller) == before

    run(main())


async def rebuilt(caller):
    reply = await caller.query("default", "views", "list", timeout=30)
    return all(item.get("rebuild") is None or item["rebuild"]["state"] == "done" for item in reply["items"])


def roles_in(store):
    try:
        return {generation.role for generation in store.generations()}
    finally:
        store.close()


def test_killed_while_it_rebuilds_a_view_it_shows_the_former_one(server, tmp_path):
    data = tmp_path / "data"
    killed_while_it_rebuilds(server, data, lambda: roles_in(SqliteStore(data / "views.db")))


@pytest.mark.root
def test_killed_while_it_rebuilds_a_view_over_postgres_it_shows_the_former_one(server, tmp_path, postgres_url):
    killed_while_it_rebuilds(server, tmp_path / "data", lambda: roles_in(PostgresStore(postgres_url)), STRAND_VIEWS=postgres_url)


def test_told_to_stop_it_stops_and_has_saved_everything(server, tmp_path):
    async def main():
        async with connected(server) as nc:
            history, caller = History(8), Caller(nc)
            await publish(nc, history.walk(1500))
            with process(tmp_path / "data", server) as child:
                before = await digests(caller, min_seq=len(history.messages))
                child.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(child.wait, 10) == 0
            with process(tmp_path / "data", server):
                assert await digests(caller, min_seq=len(history.messages)) == before

    run(main())


def test_ten_thousand_sandboxes_do_not_live_in_memory(tmp_path):
    async def main(server):
        async with connected(server) as nc:
            history, caller = History(8), Caller(nc)
            await publish(nc, history.sandboxes(10_000))
            with process(tmp_path / "data", server) as child:
                reply = await caller.query("default", "sandboxes", "summary", {}, timeout=30)
                empty = psutil.Process(child.pid).memory_info().rss
                reply = await eventually(lambda: whole(caller, len(history.messages)), within=60)
                assert reply["items"][0]["total"] == 10_000
                assert psutil.Process(child.pid).memory_info().rss - empty < 100 * 2**20

    with Server(tmp_path / "nats", sync="2m") as server:
        run(main(server))


async def whole(caller, seq):
    reply = await caller.query("default", "sandboxes", "summary", {}, timeout=30)
    return reply if reply["seq"] >= seq else None
