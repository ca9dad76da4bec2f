"""Output of sandboxes on its way from their files to the bus: all of it, in whole lines, over restarts of both ends."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.records import record

from agents.journal import Journal
from agents.logs import HOLE, PIECE, LogShipper
from agents.records import Memory, box_entry
from domain.kernel.errors import Refused
from domain.sandboxes.loglines import LONGEST

pytestmark = pytest.mark.quick


class Bus:
    """What was shipped, by stream. ``gone``: it takes nothing now."""

    def __init__(self):
        self.pieces: list[tuple[str, str, str, bytes]] = []
        self.gone = False

    async def ship(self, *piece):
        if self.gone:
            raise Refused("bus.unavailable", "gone", retryable=True)
        self.pieces.append(piece)

    def text(self, stream="stdout"):
        return b"".join(data for _, _, name, data in self.pieces if name == stream)


@pytest.fixture
def place(tmp_path):
    journal = Journal.open(tmp_path / "journal", Memory())
    journal.write(box_entry(record("running")))
    (tmp_path / "logs" / "sb-running").mkdir(parents=True)
    yield tmp_path
    journal.close()


@asynccontextmanager
async def shipping(place, bus):
    """One agent process, as far as logs go."""
    journal = Journal.open(place / "journal", Memory())
    shipper = LogShipper(place / "logs", journal, bus.ship)
    running = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        shipper.close()
        journal.close()


def append(place, data: bytes, stream="stdout"):
    with (place / "logs" / "sb-running" / stream).open("ab") as file:
        file.write(data)


def test_lines_are_shipped_whole_and_each_once(place, run, eventually):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus):
            append(place, b"one\ntw")
            await eventually(lambda: bus.text() == b"one\n")
            append(place, b"o\n")
            append(place, b"oops\n", "stderr")
            await eventually(lambda: (bus.text(), bus.text("stderr")) == (b"one\ntwo\n", b"oops\n"))
        assert bus.pieces[0] == ("default", "sb-running", "stdout", b"one\n")

    run(scenario())


def test_a_log_that_its_sandbox_empties_begins_again(place, run, eventually):
    """``echo > /dev/stderr`` opens it anew."""

    async def scenario():
        bus = Bus()
        async with shipping(place, bus):
            append(place, b"a long line before it\n", "stderr")
            await eventually(lambda: bus.text("stderr") == b"a long line before it\n")
            (place / "logs" / "sb-running" / "stderr").write_bytes(b"short\n")
            append(place, b"and more\n", "stderr")
            await eventually(lambda: bus.text("stderr") == b"a long line before it\nshort\nand more\n")

    run(scenario())


def test_an_unfinished_line_is_shipped_after_a_while(place, run, eventually):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus):
            append(place, b"password: ")
            await eventually(lambda: bus.text() == b"password: ")

    run(scenario())


def test_shipping_goes_on_where_the_last_process_stopped(place, run, eventually):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus):
            append(place, b"one\n")
            await eventually(bus.text)
        append(place, b"two\n")
        async with shipping(place, bus):
            await eventually(lambda: bus.text() == b"one\ntwo\n")

    run(scenario())


def test_what_the_bus_does_not_take_waits_in_its_file(place, run, eventually):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus) as shipper:
            bus.gone = True
            append(place, b"one\n")
            append(place, b"two\n")
            await shipper.drain("sb-running", 0.05)
            assert bus.pieces == []
            bus.gone = False
            await eventually(lambda: bus.text() == b"one\ntwo\n")

    run(scenario())


def test_the_last_words_of_a_sandbox_are_shipped_before_it_goes(place, run):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus) as shipper:
            append(place, b"last words")
            await shipper.drain("sb-running")
            assert bus.text() == b"last words"

    run(scenario())


def test_what_was_shipped_takes_no_disk_space(place, run, eventually):
    async def scenario():
        bus = Bus()
        line = b"x" * 1023 + b"\n"
        async with shipping(place, bus):
            append(place, line * (3 * HOLE // 1024))
            await eventually(lambda: len(bus.text()) == 3 * HOLE, 20)
            file = place / "logs" / "sb-running" / "stdout"
            await eventually(lambda: file.stat().st_blocks * 512 < HOLE)
            assert file.stat().st_size == 3 * HOLE
            append(place, b"more\n")
            await eventually(lambda: bus.text().endswith(b"x\nmore\n"))

    run(scenario())


def test_a_line_of_the_agents_own_goes_into_the_runtime_stream(place, run, eventually):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus) as shipper:
            shipper.runtime_line("sb-running", "started")
            shipper.runtime_line("sb-unknown", "nobody's")
            await eventually(lambda: bus.text("runtime"))
            assert bus.pieces == [("default", "sb-running", "runtime", b"[strandline] started\n")]

    run(scenario())


def test_a_line_is_shipped_up_to_its_longest_and_the_next_one_is_whole_again(place, run, eventually):
    async def scenario():
        bus = Bus()
        async with shipping(place, bus):
            append(place, b"x" * (LONGEST + 3 * PIECE) + b"\nnext\n")
            await eventually(lambda: bus.text().endswith(b"next\n"))
            assert bus.text() == b"x" * LONGEST + b"\nnext\n"
            append(place, b"y" * LONGEST + b"\n")
            await eventually(lambda: bus.text().endswith(b"y\n"))
            assert bus.text().endswith(b"next\n" + b"y" * LONGEST + b"\n")

    run(scenario())


def test_output_waits_without_loss_up_to_a_bound_and_what_is_given_up_is_said(place, run, eventually, monkeypatch):
    monkeypatch.setattr("agents.logs.WAITING", 1000)

    async def scenario():
        bus = Bus()
        bus.gone = True
        async with shipping(place, bus) as shipper:
            append(place, b"a" * 999 + b"\n")
            await shipper.drain("sb-running", 0.05)
            append(place, b"b" * 49 + b"\n")
            await shipper.drain("sb-running", 0.05)
            bus.gone = False
            await eventually(lambda: bus.text("runtime") and bus.text().endswith(b"b\n"))
            assert bus.text() == b"a" * 949 + b"\n" + b"b" * 49 + b"\n"
            assert bus.text("runtime") == b"[strandline] 50 bytes of stdout lost: the bus did not take them in time\n"

    run(scenario())
