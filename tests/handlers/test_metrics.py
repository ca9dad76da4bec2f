"""Metrics: what happened, in Prometheus' text format, on a port of this machine; nothing unless asked for."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

import pytest
from support.waiting import eventually
from support.worlds import T0

from agents.metrics import metrics as agent_metrics
from agents.records import SandboxRecord
from bus.commit import Commit
from bus.metrics import Metrics, serving
from domain.kernel.errors import Refused
from handlers.fleet import Fleet
from handlers.metrics import ControlMetrics
from projections.buslog import BusLog
from projections.memory import MemoryStore
from projections.metrics import metrics as projector_metrics
from projections.projector import Projector
from projections.views import VIEWS

pytestmark = pytest.mark.quick

LINE = re.compile(r'^[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+$')


async def get(port: int, path: str = "/metrics") -> tuple[str, str]:
    """Status line and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head.splitlines()[0], body


async def scraped(metrics: Metrics) -> dict[str, float]:
    """Sample → value, as Prometheus would read it."""
    async with serving(metrics, 0) as port:
        status, body = await get(port)
        assert (await get(port, "/"))[0] == "HTTP/1.1 404 Not Found"
    assert status == "HTTP/1.1 200 OK"
    lines = [line for line in body.splitlines() if not line.startswith("# ")]
    assert [line for line in lines if not LINE.match(line)] == []
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_a_control_plane_says_what_happened_and_what_is(at) -> None:
    """The names of reference/cubesandbox.md §7, ours prefixed."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        taken = await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10})
        await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": taken["snapshot_id"], "wait_s": 10})
        await place.do("snapshot.delete", {"snapshot_id": taken["snapshot_id"]})
        with pytest.raises(Refused):
            await place.sandbox("nothing")
        said = await scraped(place.plane.metrics)
        assert said['strandline_snapshot_commit_total{result="success"}'] == 1
        assert said['strandline_snapshot_rollback_total{result="success"}'] == 1
        assert said["strandline_snapshot_orphan_count"] == 1, "the sandbox still runs on it"
        modes = {name: value for name, value in said.items() if name.startswith("strandline_snapshot_storage_mode")}
        assert (len(modes), sum(modes.values())) == (5, 1)
        assert modes['strandline_snapshot_storage_mode{node_id="node-1",mode="healthy"}'] == 1
        assert said['strandline_node_count{status="ready"}'] == said['strandline_sandbox_count{node_id="node-1"}'] == 1
        assert said['strandline_command_seconds_count{command="snapshot.create",code="ok"}'] == 1
        assert said['strandline_template_resolve_seconds_count{code="ok"}'] == 1
        assert said['strandline_template_resolve_seconds_count{code="template.not-found"}'] == 1
        assert said['strandline_template_resolve_seconds_sum{code="ok"}'] > 0
        stages = {name.partition("{")[2]: value for name, value in said.items() if "resolve_stage_seconds_count" in name}
        assert stages == {
            **{f'stage="{stage}",code="ok"}}': 1 for stage in ("resolve", "request", "place")},
            'stage="resolve",code="template.not-found"}': 1,
        }
        await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})

        async def removed() -> bool:
            said = await scraped(place.plane.metrics)
            return said.get('strandline_snapshot_delete_total{result="success"}') == 1 and not said["strandline_snapshot_orphan_count"]

        await eventually(removed)

    at(test, measured=True)


def brought_up(metrics: ControlMetrics, seq: int, sandbox: str, name: str, **data: Any) -> None:
    """A commit of the saga that brings ``sandbox`` up, as the log has it; ten seconds for each position."""
    event = {"type": f"provisioning.{name}", "schema": 1, "version": 1, "data": {"attempt": 1, **data}}
    at = T0 + timedelta(seconds=10 * seq)
    metrics.count(Commit("c", "c", "d", None, "a", "default", "provisioning", sandbox, at, None, "0", "0", (event,), None, seq))


def test_sagas_are_counted_by_how_they_ended_and_those_that_did_not_by_their_age(run) -> None:
    """The metrics of reference/miren-sandbox.md §2.7."""
    metrics = ControlMetrics(Fleet(), lambda: T0 + timedelta(seconds=200))
    steps: list[tuple[str, str, dict[str, Any]]] = [
        *((sandbox, "begun", {"node_id": "n1"}) for sandbox in "abcde"),
        ("a", "completed", {}),
        ("b", "failed", {}),
        ("c", "failed", {"uncompensated": ["network"]}),
        ("c", "undo-failed", {"uncompensated": ["network"]}),
        ("c", "retried", {}),
        ("c", "failed", {}),
        ("d", "superseded", {}),
    ]
    for seq, (sandbox, name, data) in enumerate(steps, 1):
        brought_up(metrics, seq, sandbox, name, **data)
    said = run(scraped(metrics))
    assert {name: value for name, value in said.items() if name.startswith("strandline_saga")} == {
        "strandline_saga_executions_started_total": 5,
        'strandline_saga_executions_finished_total{outcome="completed"}': 1,
        'strandline_saga_executions_finished_total{outcome="rolled_back"}': 2,
        'strandline_saga_executions_finished_total{outcome="superseded"}': 1,
        "strandline_saga_compensation_failures_total": 2,
        "strandline_saga_recoveries_total": 1,
        "strandline_saga_incomplete_executions": 1,
        "strandline_saga_incomplete_oldest_age_seconds": 150,
    }


def test_nothing_is_counted_unless_somebody_asked_for_it(at) -> None:
    async def test(place) -> None:
        await place.template()
        assert (place.plane.metrics, place.plane.control.metrics) == (None, None)

    at(test)


def test_a_projector_says_how_far_its_views_have_read(at) -> None:
    async def test(place) -> None:
        await place.template()
        async with Projector(place.nc, MemoryStore(), BusLog(place.nc), VIEWS) as projector:
            await projector.caught_up()
            said = await scraped(projector_metrics(projector.states))
        assert said['strandline_view_position{view="templates"}'] > 5
        assert said['strandline_view_broken{view="templates"}'] == 0
        assert len([name for name in said if name.startswith("strandline_view_generation")]) == len(VIEWS)

    at(test)


def test_an_agent_says_what_runs_and_what_is_used(run) -> None:
    beat = {"used": {"cpu": 1.5, "memory_mb": 512}, "storage_pct": 12.5, "orders": 3}
    record = SandboxRecord.model_construct(condition="running")
    said = run(scraped(agent_metrics(lambda: beat, {"a": record, "b": record})))
    assert said == {
        'strandline_agent_sandbox_count{condition="running"}': 2,
        'strandline_agent_used{what="cpu"}': 1.5,
        'strandline_agent_used{what="memory_mb"}': 512,
        "strandline_agent_storage_used_percent": 12.5,
        "strandline_agent_order_count": 3,
    }


def test_a_label_can_say_anything(run) -> None:
    metrics = Metrics({"x_total": ("counter", "Things.")})
    metrics.add("x_total", what='a "b"\n\\')
    assert metrics.text() == '# HELP x_total Things.\n# TYPE x_total counter\nx_total{what="a \\"b\\"\\n\\\\"} 1\n'
