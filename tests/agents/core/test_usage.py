"""What sandboxes use: counters that only grow, sums over containers, and what is said of them (reference/miren-sandbox.md §8.1)."""

from __future__ import annotations

import asyncio
import urllib.request
from types import SimpleNamespace

import pytest
from support.agents import AgentProcess
from support.records import record
from support.waiting import eventually

from agents.drivers.crun import find
from agents.drivers.driver import Handle
from agents.host.counters import Counters
from agents.metrics import metrics
from agents.node import Drivers
from agents.usage import sampler
from agents.usage.kept import keep, kept
from agents.usage.sampler import Sampler, Subject
from agents.usage.service import Usage
from bus.server import free_port
from bus.usage import Heard
from domain.nodes.orders import Verb


class Counting:
    """A driver whose counters a test sets, by sandbox and container."""

    name = "sim"

    def __init__(self):
        self.seen: dict[str, dict[str, Counters]] = {}
        self.broken = False

    def sample(self, handles):
        if self.broken:
            raise OSError(5, "told to fail")
        return {handle.sandbox_id: self.seen[handle.sandbox_id] for handle in handles if handle.sandbox_id in self.seen}


class Bench:
    """A sampler over ``running``, with a clock that moves one second at each tick."""

    def __init__(self, known=None):
        self.driver = Counting()
        self.running: list[Subject] = [self.subject("sb-1")]
        self.now = 0.0
        self.sampler = Sampler(lambda: self.running, clock=lambda: self.now, known=known)

    def subject(self, name, generation=0, driver=None):
        return Subject(name, driver or self.driver, Handle("sim", name, generation))

    async def tick(self, name="sb-1", **containers):
        """One second later the containers say this."""
        self.now += 1
        if containers:
            self.driver.seen[name] = containers
        await self.sampler.tick()
        return self.sampler.series[name].total


def used(cpu_us, memory=0, **more):
    return Counters(cpu_us, memory=memory, **more)


@pytest.mark.quick
def test_the_first_tick_is_a_baseline_and_later_ones_say_how_many_cores_are_in_use(run):
    async def scenario():
        bench = Bench()
        first = await bench.tick(main=used(3_000_000, 10))
        assert (first.cpu_s, first.cpu, first.memory) == (3, None, 10)
        second = await bench.tick(main=used(3_500_000, 20))
        assert (second.cpu_s, second.cpu, second.memory) == (3.5, 0.5, 20)

    run(scenario())


@pytest.mark.quick
def test_a_counter_that_goes_back_is_a_new_baseline_and_nothing_is_ever_negative(run):
    async def scenario():
        bench = Bench()
        await bench.tick(main=used(3_000_000))
        back = await bench.tick(main=used(1_000_000))
        assert (back.cpu_s, back.cpu) == (3, 0)
        assert (await bench.tick(main=used(1_250_000))).cpu_s == 3.25

    run(scenario())


@pytest.mark.quick
def test_containers_are_summed_and_a_new_one_adds_what_it_has_used(run):
    async def scenario():
        bench = Bench()
        await bench.tick(a=used(1_000_000, 5, pids=1, peak=7))
        both = await bench.tick(a=used(1_100_000, 6, pids=1, peak=8), b=used(400_000, 4, pids=2, peak=4))
        assert (both.cpu_s, both.cpu, both.memory, both.peak, both.pids) == (1.5, 0.5, 10, 12, 3)

    run(scenario())


@pytest.mark.quick
def test_another_generation_goes_on_counting_where_the_last_one_was(run):
    async def scenario():
        bench = Bench()
        await bench.tick(main=used(2_000_000))
        bench.running = [bench.subject("sb-1", generation=1)]
        assert (await bench.tick(main=used(300_000))).cpu_s == pytest.approx(2.3)

    run(scenario())


@pytest.mark.quick
def test_what_cannot_be_read_keeps_its_last_values_and_stops_nobody_else(run):
    async def scenario():
        bench = Bench()
        other = Counting()
        other.seen["sb-2"] = {"main": used(1)}
        bench.running.append(bench.subject("sb-2", driver=other))
        await bench.tick(main=used(2_000_000))
        bench.driver.broken = True
        other.seen["sb-2"] = {"main": used(1_000_001)}
        assert (await bench.tick()).cpu_s == 2
        assert bench.sampler.series["sb-2"].total.cpu == 1
        bench.driver.broken = False
        late = await bench.tick(main=used(3_000_000))
        assert (late.cpu_s, late.cpu) == (3, 0.5), "over the two seconds since it was read"

    run(scenario())


@pytest.mark.quick
def test_only_what_runs_is_sampled_and_only_so_many(run, monkeypatch):
    async def scenario():
        bench = Bench()
        await bench.tick(main=used(1))
        monkeypatch.setattr(sampler, "MOST", 2)
        bench.running = [bench.subject(f"sb-{number}") for number in (2, 3, 4)]
        await bench.sampler.tick()
        assert sorted(bench.sampler.series) == ["sb-2", "sb-3"]

    run(scenario())


@pytest.mark.quick
def test_the_next_agent_goes_on_counting_with_what_was_used_meanwhile(run, tmp_path):
    async def scenario():
        bench = Bench()
        await bench.tick(main=used(5_000_000))
        await bench.tick(main=used(4_000_000))
        keep(tmp_path / "usage.json", bench.sampler.series)
        following = Bench(kept(tmp_path / "usage.json"))
        first = await following.tick(main=used(4_750_000))
        assert (first.cpu_s, first.cpu) == (5.75, None)

    run(scenario())


@pytest.mark.quick
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"sb-1": 1}', '{"sb-1": [0, "x", 0, {}]}', '{"sb-1": [0, 1, 0, {"main": 1}]}'])
def test_a_damaged_account_is_none(tmp_path, text):
    (tmp_path / "usage.json").write_text(text)
    assert kept(tmp_path / "usage.json") == {}
    assert kept(tmp_path / "nothing.json") == {}


@pytest.mark.quick
def test_users_labels_are_shown_and_ours_win(run, tmp_path):
    async def scenario():
        driver = Counting()
        known = record("running", handle={"driver": "sim", "sandbox_id": "sb-running", "generation": 0})
        labels = {"entity": "mine", "app.kubernetes.io/name": 'a"b', "2nd": "x"}
        known = known.model_copy(update={"spec": known.spec.model_copy(update={"labels": labels})})
        driver.seen["sb-running"] = {"main": used(1_500_000, 4096)}
        memory = SimpleNamespace(sandboxes={"sb-running": known, "sb-exited": record("exited")})
        drivers, handle = Drivers({"sim": driver}), lambda known: Handle(**known.handle)
        node = SimpleNamespace(name="n1", directory=tmp_path, drivers=drivers, memory=memory, handle=handle)
        usage = Usage(node, "boot-1", None)
        await usage.sampler.tick()
        text = metrics(lambda: {"used": {}, "storage_pct": None, "orders": 0}, memory.sandboxes, usage.samples).text()
        labelled = r'_2nd="x",app_kubernetes_io_name="a\"b",entity="sb-running",instance="boot-1",node="n1",project="default",kind="sim"'
        assert f"strandline_cpu_usage_seconds_total{{{labelled}}} 1.5\n" in text
        assert f"strandline_memory_usage_bytes{{{labelled}}} 4096\n" in text
        assert text.count("strandline_pids{") == 1

    run(scenario())


def got(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


DRIVERS = [
    pytest.param("process"),
    pytest.param("oci", marks=[pytest.mark.root, pytest.mark.skipif(find("crun") is None, reason="crun is not installed")]),
]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_node_tells_what_its_sandboxes_use_and_goes_on_after_its_agents_death(installed, run, driver):
    busy = ["/bin/sh", "-c", "while :; do :; done"]

    async def scenario():
        async with installed() as place:
            heard = Heard()

            async def take(message):
                heard.take(message.subject, message.data)

            await place.nc.subscribe("strand.usage.>", cb=take)
            port = free_port()
            async with AgentProcess(place, driver, "--usage", "0.2", "--metrics-port", str(port)) as agent:
                body = place.provision("one", cmd=busy, cpu=0.5)
                await place.tell(Verb.SANDBOX_PROVISION, body)
                sandbox = body["sandbox_id"]
                first = await eventually(lambda: (said := heard.of("n1", sandbox)) and said["cpu"] and said, 15)
                assert first["cpu_s"] > 0
                assert (first["memory_bytes"] > 0, first["pids"] >= 1) == (True, True)
                assert heard.of("n2", sandbox) is None
                shown = await asyncio.to_thread(got, f"http://127.0.0.1:{port}/metrics")
                assert f'strandline_cpu_usage_seconds_total{{entity="{sandbox}",' in shown
                await agent.kill()
            async with AgentProcess(place, driver, "--usage", "0.2"):
                later = await eventually(lambda: (said := heard.of("n1", sandbox)) and said["at"] > first["at"] and said, 15)
                assert later["cpu_s"] >= first["cpu_s"]
                await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})

    run(scenario())
