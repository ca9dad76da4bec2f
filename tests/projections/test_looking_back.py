"""Moments, rebuilds and positions over a log that is a list: what is bounded, shared and refused."""

import asyncio
from datetime import datetime, timedelta

import orjson
import pytest
from support.histories import START, History
from support.waiting import run

from domain.kernel.errors import Refused
from projections.live import Live
from projections.log import Batch, Page, position_at
from projections.memory import MemoryStore
from projections.moments import MOMENTS, Moments
from projections.rebuild import COPIES, Rebuilder
from projections.settings import open_store, store_url
from projections.sqlite import SqliteStore
from projections.store import Role
from projections.views import VIEWS

pytestmark = pytest.mark.quick
BY_NAME = {view.name: view for view in VIEWS}


class ListLog:
    """The log port over a list of messages. ``gate`` holds readers back until it is set."""

    def __init__(self, messages):
        self.messages = messages
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def hurry(self):
        """Nothing here waits for more."""

    async def batches(self, after):
        self.reads += 1
        await self.gate.wait()
        for start in range(after, len(self.messages), 50):
            yield Batch(self.messages[start : start + 50], more=start + 50 < len(self.messages))
        yield Batch([], more=False)
        await asyncio.Event().wait()

    async def identity(self):
        return "list"

    async def last(self):
        return len(self.messages)

    async def page(self, subject, seq, count):
        found = self.messages[seq - 1 : seq - 1 + count]
        return Page(found, seq + count if seq + count <= len(self.messages) else None)


def log_of(steps, seed=3):
    return ListLog(History(seed).walk(steps))


def test_askers_of_the_same_moment_share_one_replay():
    async def main():
        log = log_of(2000)
        moments = Moments(log, BY_NAME)
        first, second = await asyncio.gather(moments.at("jobs", 40), moments.at("jobs", 40))
        assert first is second is await moments.at("jobs", 40)
        assert log.reads == 1

    run(main())


def test_only_a_few_moments_are_kept():
    async def main():
        log = log_of(2000)
        moments = Moments(log, BY_NAME)
        for position in range(1, MOMENTS + 3):
            await moments.at("jobs", position)
        assert len(moments._built) == MOMENTS
        before = log.reads
        await moments.at("jobs", MOMENTS + 2)
        assert log.reads == before
        await moments.at("jobs", 1)
        assert log.reads == before + 1

    run(main())


def test_a_long_replay_goes_on_for_the_next_asker(monkeypatch):
    monkeypatch.setattr("projections.moments.PATIENCE_S", 0.01)

    async def main():
        log = log_of(2000)
        log.gate.clear()
        moments = Moments(log, BY_NAME)
        with pytest.raises(Refused) as refused:
            await moments.at("jobs", 40)
        assert (refused.value.code, refused.value.retryable) == ("view.building", True)
        log.gate.set()
        monkeypatch.setattr("projections.moments.PATIENCE_S", 5)
        assert await moments.at("jobs", 40)
        assert log.reads == 1
        await moments.close()

    run(main())


def test_an_instant_is_the_last_commit_that_was_made_until_then():
    async def main():
        log = log_of(2000)
        times = [datetime.fromisoformat(orjson.loads(data)["time"]) for _, data in log.messages]
        assert await position_at(log, START - timedelta(seconds=1)) == 0
        assert await position_at(log, times[-1] + timedelta(days=1)) == len(times)
        for place in (0, 1, len(times) // 2, len(times) - 1):
            assert await position_at(log, times[place]) == place + 1
            assert await position_at(log, times[place] - timedelta(microseconds=1)) == place

    run(main())


def rebuilder(log, store=None):
    store = store or MemoryStore()
    live = Live(store, VIEWS, log)
    live.open()
    return Rebuilder(store, BY_NAME, log, live), live, store


def test_a_view_is_rebuilt_once_at_a_time():
    async def main():
        log = log_of(2000)
        log.gate.clear()
        rebuild, live, _ = rebuilder(log)
        live.engine.apply(log.messages)
        live.engine.save()
        number, task = await rebuild.start("jobs")
        with pytest.raises(Refused) as refused:
            await rebuild.start("jobs")
        assert (refused.value.code, refused.value.details) == ("view.rebuilding", {"generation": number})
        await rebuild.start("nodes")
        log.gate.set()
        assert (await task).role is Role.LIVE
        await rebuild.close()

    run(main())


def test_a_rebuild_reports_how_far_it_is():
    async def main():
        log, seen = log_of(4000), []
        rebuild, live, _ = rebuilder(log)
        live.engine.apply(log.messages)
        live.engine.save()
        _, task = await rebuild.start("sandboxes", watch=lambda progress: seen.append((progress.position, progress.target, progress.state)))
        await task
        assert seen[-1] == (len(log.messages), len(log.messages), "done")
        assert [position for position, _, _ in seen] == sorted(position for position, _, _ in seen)
        assert len(seen) > 3

    run(main())


def test_a_rebuild_that_was_given_up_leaves_nothing():
    async def main():
        log = log_of(500)
        log.gate.clear()
        rebuild, live, store = rebuilder(log)
        live.engine.apply(log.messages)
        before = store.generations()
        await rebuild.start("jobs")
        await rebuild.close()
        assert store.generations() == before
        assert rebuild.progress["jobs"].state == "failed"

    run(main())


def test_a_view_that_breaks_can_be_rebuilt_once_its_code_is_mended(monkeypatch):
    async def main():
        log = log_of(3000)
        rebuild, live, _ = rebuilder(log)
        jobs = BY_NAME["jobs"]

        def bug(_state, _fact):
            raise KeyError("bug")

        with monkeypatch.context() as patch:
            patch.setitem(jobs.routes, "job.started", bug)
            live.engine._reroute()
            live.engine.apply(log.messages)
            live.engine.save()
            assert live.target("jobs").broken
            _, task = await rebuild.start("jobs")
            with pytest.raises(Refused, match="cannot be rebuilt"):
                await task
        _, task = await rebuild.start("jobs")
        assert (await task).position == len(log.messages)
        assert live.target("jobs").broken is None

    run(main())


def test_copies_as_of_a_position_are_bounded(tmp_path):
    async def main():
        log = log_of(1000)
        store = SqliteStore(tmp_path / "views.db")
        rebuild, _, _ = rebuilder(log, store)
        for until in range(1, COPIES + 3):
            _, task = await rebuild.start("jobs", until=until)
            await task
        copies = [g.position for g in store.generations() if g.role is Role.COPY]
        assert copies == list(range(3, COPIES + 3))
        store.close()

    run(main())


def test_the_store_is_what_the_environment_says(tmp_path):
    assert store_url(tmp_path, {}) == f"sqlite:{tmp_path / 'views.db'}"
    assert store_url(tmp_path, {"STRAND_VIEWS": "postgresql://h/d"}) == "postgresql://h/d"
    store = open_store(f"sqlite:{tmp_path / 'deep' / 'views.db'}")
    assert isinstance(store, SqliteStore)
    store.close()
    for nonsense in ("", "sqlite:", "mysql://x", "views.db"):
        with pytest.raises(ValueError, match="STRAND_VIEWS"):
            open_store(nonsense)
