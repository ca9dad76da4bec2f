"""A connection that ends for good ends its process, so that a supervisor starts it again; one that was closed on purpose does not."""

from __future__ import annotations

import asyncio
import sys

from bus import accounts
from bus.accounts import Authority
from bus.connection import EXIT_CODE, connect
from bus.server import Server

PROCESS = """
import asyncio, sys
from bus.connection import connect

async def main():
    nc = await connect(sys.argv[1], name="process", creds=sys.argv[2])
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await nc.close()

asyncio.run(main())
"""


def test_a_process_whose_account_is_deleted_ends_with_the_status_that_asks_for_a_restart(tmp_path, run) -> None:
    async def main(server: Server, authority: Authority) -> None:
        system, creds = tmp_path / "system.creds", tmp_path / "n1.creds"
        member = authority.node("n1")
        accounts.write_secret(system, authority.system_creds())
        accounts.write_secret(creds, member.creds)

        async def begun() -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROCESS, server.url, str(creds), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            started.append(process)
            while b"connected" not in (line := await process.stdout.readline()):
                assert line, "it did not connect"
            return process

        started: list[asyncio.subprocess.Process] = []
        async with await connect(server.url, name="system", creds=system, on_closed=lambda: None) as nc, asyncio.timeout(60):
            await accounts.push(nc, member)
            try:
                cut_off, closes = await begun(), await begun()
                await closes.communicate(b"close\n")
                assert closes.returncode == 0
                await accounts.delete(nc, authority, authority.forget("node-n1"))
                assert await cut_off.wait() == EXIT_CODE == 75
                assert b"connection.closed" in await cut_off.stdout.read()
            finally:
                for process in started:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()

    authority = Authority.load(tmp_path / "auth")
    with Server(tmp_path / "nats", config=authority.server_config(tmp_path / "jwt")) as server:
        run(main(server, authority))
