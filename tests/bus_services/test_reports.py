"""Reports: stored once, handled in order per process until an aggregate has answered, never believed about their sender."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from bus.dead import DeadLetters
from bus.reader import Work
from bus.reports import ReportReader, report
from bus.requests import call
from domain.kernel.errors import Refused
from domain.nodes.orders import Report, ReportKind

QUICK = Work(tries=3, pauses=(0.01,), grace=0.2)


def said(name: str, process_id: str = "x", node: str = "n1") -> Report:
    return Report(
        id=name,
        node=node,
        verb="sandbox-stop",
        kind=ReportKind.DONE,
        project="p",
        process="sandbox",
        process_id=process_id,
        at=datetime.now(UTC),
    )


async def left(nc) -> int:
    return (await call(nc, "STREAM.INFO.REPORTS"))["state"]["messages"]


async def is_empty(nc) -> bool:
    return await left(nc) == 0


def test_a_report_sent_twice_is_stored_once(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            assert not (await report(nc, said("a"))).duplicate
            assert (await report(nc, said("a"))).duplicate
            assert await left(nc) == 1

    run(main())


def test_reports_of_one_process_are_handled_in_order_also_when_one_fails(connecting, run, eventually) -> None:
    async def main() -> None:
        seen: list[str] = []
        faults = {"x1": [Refused("bus.unavailable", "", retryable=True), RuntimeError()]}

        async def handle(report: Report) -> None:
            seen.append(report.id)
            if faults.get(report.id):
                raise faults[report.id].pop()

        async with connecting(streams=True) as nc:
            for name in ("x1", "x2", "y1"):
                await report(nc, said(name, name[0]))
            async with ReportReader(nc, handle, work=QUICK):
                await eventually(lambda: is_empty(nc))
        assert [name for name in seen if name[0] == "x"] == ["x1", "x1", "x1", "x2"]
        assert seen.count("y1") == 1

    run(main())


def test_a_refused_report_and_one_that_never_works_end_in_dead(connecting, run, eventually) -> None:
    async def main() -> None:
        async def handle(report: Report) -> None:
            if report.id == "refused":
                raise Refused("sandbox.illegal-state", "no")
            raise RuntimeError("broken")

        async with connecting(streams=True) as nc, ReportReader(nc, handle, work=QUICK):
            await report(nc, said("refused"))
            await report(nc, said("broken"))
            await eventually(lambda: is_empty(nc))

            async def two_are_dead() -> bool:
                return len(await DeadLetters(nc).list(stream="REPORTS")) == 2

            await eventually(two_are_dead)

    run(main())


def test_a_report_that_was_given_up_is_kept_and_handled_when_it_is_put_back(connecting, run, eventually) -> None:
    async def main() -> None:
        seen: list[Report] = []
        broken = True

        async def handle(report: Report) -> None:
            if broken:
                raise RuntimeError("broken")
            seen.append(report)

        async with connecting(streams=True) as nc, ReportReader(nc, handle, work=QUICK):
            letters, sent = DeadLetters(nc), said("a")
            await report(nc, sent)
            await nc.request("strand.rpt.n1.done", b"nonsense", headers={"X-Mine": "1", "Nats-Msg-Id": "n"}, timeout=5)

            async def both() -> list:
                found = {letter.body: letter for letter in await letters.list()}
                return list(found.values()) if len(found) == 2 else []

            given_up, nonsense = sorted(await eventually(both), key=lambda letter: letter.body == b"nonsense")
            assert (given_up.reason, given_up.subject) == ("a: RuntimeError: broken", "strand.rpt.n1.done")
            assert (nonsense.body, nonsense.headers["X-Mine"]) == (b"nonsense", "1")
            broken = False
            await letters.put_back(given_up)
            await eventually(lambda: seen == [sent])
            assert [letter.body for letter in await letters.list()] == [b"nonsense"]
            await letters.forget(nonsense)
            assert (await call(nc, "STREAM.INFO.DEAD"))["state"]["messages"] == 0

    run(main())


def test_a_report_in_the_name_of_another_node_is_not_handled(connecting, run, eventually) -> None:
    async def main() -> None:
        seen: list[str] = []

        async def handle(report: Report) -> None:
            seen.append(report.id)

        async with connecting(streams=True) as nc, ReportReader(nc, handle, work=QUICK):
            await nc.request("strand.rpt.n2.done", said("forged", node="n1").model_dump_json().encode(), timeout=5)
            await nc.request("strand.rpt.n1.failed", said("kind").model_dump_json().encode(), timeout=5)
            await report(nc, said("true"))
            await eventually(lambda: is_empty(nc))
            assert seen == ["true"]

    run(main())


def test_reports_survive_a_killed_server(connecting, server, run, eventually) -> None:
    async def main() -> None:
        seen: list[str] = []
        gate = asyncio.Event()

        async def handle(report: Report) -> None:
            await gate.wait()
            seen.append(report.id)

        async with connecting(streams=True) as nc, ReportReader(nc, handle, work=QUICK) as reader:
            await report(nc, said("a"))
            await report(nc, said("b"))
            await eventually(lambda: reader.in_hand == 2)
            server.kill()
            sending = asyncio.create_task(report(nc, said("c")))
            await asyncio.to_thread(server.start)
            await sending
            gate.set()
            await eventually(lambda: is_empty(nc), within=20)
            assert seen == ["a", "b", "c"]

    run(main())
