"""Each node is an account of its own on the bus, and an evicted one is cut off at once."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import nats
import pytest
from support.installation import up
from support.waiting import eventually

from bus.client import Caller
from bus.connection import connect, connect_from


@pytest.mark.timeout(120)
def test_a_node_cannot_forge_and_an_evicted_one_is_disconnected(tmp_path: Path) -> None:
    async def test(directory: Path) -> None:
        node = json.loads((directory / "nodes" / "node-1" / "connect.json").read_text())
        closed = asyncio.Event()
        agent = await connect(node["url"], name="thief", creds=node["creds"], on_closed=closed.set)
        with pytest.raises(nats.errors.NoRespondersError):
            await agent.request("strand.evt.default.sandbox.sb-forged", b"{}", timeout=2)
        with pytest.raises(nats.errors.NoRespondersError):
            await agent.request("strand.v1.cmd.default.sandbox.create", b"{}", timeout=2)
        async with await connect_from(directory, "test", on_closed=lambda: None) as nc:
            await Caller(nc).command("default", "node.evict", {"node_id": "node-1"})
            await eventually(closed.is_set, within=20)
        await agent.close()

    with up(tmp_path / "state", "--driver", "sim") as running:
        asyncio.run(test(running.dir))


@pytest.mark.timeout(60)
def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    with up(tmp_path / "state", "--driver", "sim") as running:
        secrets = [
            *running.dir.rglob("*.creds"),
            *running.dir.rglob("*.nk"),
            *running.dir.rglob("*.conf"),
            *running.dir.rglob("connect.json"),
        ]
        assert len(secrets) >= 7
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
