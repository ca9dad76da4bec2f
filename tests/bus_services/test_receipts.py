"""Receipts: a command id is bound to its first body, and the first answer to it stays, in memory and on the bus."""

from __future__ import annotations

import asyncio

import pytest

from bus import receipts
from bus.endpoints import Reply, Request
from bus.receipts import Receipt, Receipts
from bus.requests import call
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick


def asked(command_id: str, project: str = "p", *, explicit: bool = True) -> Request:
    return Request(project, "thing.do", b"", command_id, explicit)


def doing(result: dict, done: list | None = None):
    async def act() -> Reply:
        if done is not None:
            done.append(result)
        return Reply(result, "x", 3)

    return act


async def put(mine: Receipts, command_id: str, result: dict, digest: str = "d") -> Reply:
    return await mine.once(asked(command_id), digest, doing(result))


def kept(result: dict, digest: str = "d") -> Receipt:
    return Receipt(digest, {"result": result, "id": "x", "seq": 3})


def test_an_answer_is_found_by_its_writer_and_by_everybody_before_it_is_given(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine, other, done = Receipts(nc), Receipts(nc), []
            assert await mine.get("p", "c-1") is None
            assert await mine.once(asked("c-1"), "d", doing({"x": [1, None]}, done)) == Reply({"x": [1, None]}, "x", 3)
            assert await other.get("p", "c-1") == kept({"x": [1, None]})
            assert await other.get("q", "c-1") is None
            for again in (mine, other):
                assert await again.once(asked("c-1"), "d", doing({}, done)) == Reply({"x": [1, None]}, "x", 3)
            assert len(done) == 1

    run(main())


def test_the_first_answer_stays_and_is_everybodys(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            both = asyncio.Barrier(2)

            async def act(who: str) -> Reply:
                await both.wait()
                return Reply({"who": who})

            told = await asyncio.gather(*[Receipts(nc).once(asked("c-1"), "d", lambda who=who: act(who)) for who in ("one", "two")])
            assert told[0].result == told[1].result == (await Receipts(nc).get("p", "c-1")).reply["result"]

    run(main())


def test_an_id_is_nobodys_but_its_first_bodys_while_that_acts_after_it_and_when_its_process_died(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            begun, end = asyncio.Event(), asyncio.Event()

            async def act() -> Reply:
                begun.set()
                await end.wait()
                return Reply({"a": 1})

            async def mismatched() -> bool:
                with pytest.raises(Refused) as refused:
                    await put(Receipts(nc), "c-1", {}, "other")
                return refused.value.code == "command.mismatch"

            first = asyncio.create_task(Receipts(nc).once(asked("c-1"), "d", act))
            await begun.wait()
            assert await mismatched()
            first.cancel()
            await asyncio.wait([first])
            assert await mismatched()
            assert (await put(Receipts(nc), "c-1", {"b": 2})).result == {"b": 2}
            assert await mismatched()

    run(main())


def test_a_refused_id_may_succeed_later_with_its_body_and_is_free_again_some_day(connecting, run, eventually, monkeypatch) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine = Receipts(nc)

            async def refuse(code: str) -> Reply:
                raise Refused(code, "no")

            async def refused(command_id: str, code: str) -> None:
                with pytest.raises(Refused) as why:
                    await mine.once(asked(command_id), "d", lambda: refuse(code))
                assert why.value.code == code
                await mine.flush()

            await refused("c-1", "thing.busy")
            with pytest.raises(Refused, match="another"):
                await put(Receipts(nc), "c-1", {}, "other")
            assert (await put(mine, "c-1", {"a": 1})).result == {"a": 1}
            monkeypatch.setattr(receipts, "REFUSED_S", 1)
            await refused("c-2", "thing.busy")
            await refused("c-3", "bus.unavailable")

            async def free() -> bool:
                return await mine.get("p", "c-2") is None

            await eventually(free)
            assert (await put(mine, "c-2", {"b": 1}, "other")).result == {"b": 1}
            assert await mine.get("p", "c-1") == kept({"a": 1})
            assert await mine.get("p", "c-3") == Receipt("d")

    run(main())


def test_an_id_made_up_for_one_call_is_remembered_here_and_never_written(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine, done = Receipts(nc), []
            for _ in range(2):
                assert (await mine.once(asked("c-1", explicit=False), "d", doing({"a": 1}, done))).result == {"a": 1}
            assert len(done) == 1
            assert (await call(nc, "STREAM.INFO.RECEIPTS"))["state"]["last_seq"] == 0

    run(main())


def test_receipts_outlive_a_killed_server_and_one_that_is_away(connecting, server, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine = Receipts(nc)
            await put(mine, "before", {})
            server.kill()
            putting = asyncio.create_task(put(mine, "while-away", {}))
            await asyncio.to_thread(server.start)
            await putting
            other = Receipts(nc)
            assert await other.get("p", "before") == await other.get("p", "while-away") == kept({})

    run(main())


def test_memory_is_bounded(connecting, run, monkeypatch) -> None:
    monkeypatch.setattr(receipts, "CACHED", 10)

    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine = Receipts(nc)
            await asyncio.gather(*[put(mine, f"c-{number}", {}) for number in range(100)])
            await put(mine, "large", {"stdout": "x" * receipts.LARGEST, "stderr": "y"})
            assert len(mine._known) == 10
            assert ("p", "large") not in mine._known
            assert (await put(mine, "large", {})).result["stderr"] == "y"
            assert (await put(mine, "c-0", {"another": 1})).result == {}

    run(main())


def test_what_notes_refusals_is_bounded_too(connecting, run, monkeypatch) -> None:
    monkeypatch.setattr(receipts, "BACKLOG", 20)

    async def main() -> None:
        async def refuse() -> Reply:
            raise Refused("thing.busy", "no")

        async with connecting(streams=True) as nc:
            mine = Receipts(nc)
            for number in range(100):
                mine._refused_soon("p", f"c-{number}", "d")
            assert len(mine._writing) == 20
            await mine.flush()
            assert not mine._writing

    run(main())
