"""The Python client by itself: what it sends, what it gives back, and that nothing else is needed to import it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.command_line import JOB, SB, SNAP, TEMPLATE, TPL, job, sandbox
from support.responder import Scripted

from domain.kernel.errors import Refused
from strandline.client import Strandline
from strandline.client.jobs import failure

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]


def test_a_session_has_one_typed_object_per_noun(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    control.views = {"templates": [TEMPLATE], "sandboxes": [sandbox()], "nodes": [{"node_id": "n1", "status": "ready"}]}
    control.replies["sandbox.create"] = {"sandbox_id": SB, "state": "RUNNING", "node_id": "n1", "settled": True, "new_field": 1}

    async def main() -> None:
        async with Strandline.connect(dir, project="blue") as s:
            template = await s.templates.get("python")
            assert (template.template_id, template.replicas.ready, template.created_at.year) == (TPL, 2, 2026)
            made = await s.sandboxes.create("python", env={"A": "1"}, wait_s=5, idempotency_key="k-1")
            assert (made.sandbox_id, made.settled, made.seq) == (SB, True, control.seq)
            assert s.seq == control.seq
            assert [one.ports[0].port async for one in s.sandboxes.list(state="RUNNING")] == [8080]
            assert (await s.nodes.get("n1")).capacity.cpu == 0

    run(main())
    assert [asked.project for asked in control.asked] == ["blue"] * 4
    assert control.commands[0].command_id == "k-1"
    assert control.asked[2].body["min_seq"] == control.seq


def test_a_wrong_argument_is_refused_before_anything_is_sent(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    async def main() -> None:
        async with Strandline.connect(dir) as s:
            with pytest.raises(Refused) as refused:
                await s.sandboxes.create("python", cpu=-1, ports=[0])
            assert refused.value.code == "command.invalid"
            assert set(refused.value.details) == {"cpu", "ports.0"}

    run(main())
    assert control.asked == []


def test_refusals_come_back_whole(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    control.replies["snapshot.delete"] = Refused("snapshot.in-use", "used", retryable=True, details={"sandboxes": [SB]})

    async def main() -> None:
        async with Strandline.connect(dir) as s:
            with pytest.raises(Refused) as refused:
                await s.snapshots.delete(SNAP)
            assert (refused.value.code, refused.value.retryable, refused.value.details) == ("snapshot.in-use", True, {"sandboxes": [SB]})

    run(main())


def test_lists_are_read_page_by_page_and_only_as_far_as_needed(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    control.views["sandboxes"] = [sandbox(f"sb-aaaaaaaaaaaaaaaaa{a}{b}{c}") for a in letters[:2] for b in letters for c in letters]

    async def main() -> None:
        async with Strandline.connect(dir) as s:
            assert len([one async for one in s.sandboxes.list()]) == 2048
            assert len([one async for one in s.sandboxes.list(limit=1500)]) == 1500

    run(main())
    assert [asked.body["limit"] for asked in control.asked] == [1000, 1000, 1000, 1000, 500]


def test_waiting_ends_with_the_state_with_death_or_in_time(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    control.views["sandboxes"] = [sandbox(state="PENDING")]
    control.views["jobs"] = [job(status="FAILED", error={"code": "image.not-found", "message": "gone"})]

    async def main() -> None:
        async with Strandline.connect(dir) as s:
            waiting = asyncio.create_task(s.sandboxes.wait(SB, timeout=10))
            control.views["sandboxes"] = [sandbox(state="RUNNING")]
            await asyncio.to_thread(control.poke, "sandbox", SB)
            assert (await waiting).state == "RUNNING"
            control.views["sandboxes"] = [sandbox(state="DEAD", reason="oom")]
            assert (await s.sandboxes.wait(SB, "PAUSED")).reason == "oom"
            control.views["sandboxes"] = [sandbox(state="PENDING")]
            with pytest.raises(Refused) as refused:
                await s.sandboxes.wait(SB, timeout=0.1)
            assert (refused.value.code, refused.value.details["state"]) == ("wait.timeout", "PENDING")
            refusal = failure(await s.jobs.wait(JOB))
            assert refusal is not None
            assert (refusal.code, refusal.message, refusal.details["job_id"]) == ("image.not-found", "gone", JOB)

    run(main())


def test_an_unknown_place_is_unavailable(tmp_path: Path, run) -> None:
    async def main() -> None:
        with pytest.raises(Refused) as refused:
            async with Strandline.connect(tmp_path):
                pass
        assert (refused.value.code, refused.value.retryable) == ("bus.unavailable", True)

    run(main())


def test_the_client_needs_nothing_but_itself_the_bus_and_the_domain(tmp_path: Path) -> None:
    for name in ("strandline", "bus", "domain"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = """
        import sys
        sys.path[:] = [p for p in sys.path if not p.endswith("/main")]
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", str(f)).lower()]
        sys.path.insert(0, sys.argv[1])
        import strandline.client
        from strandline import Strandline
        assert strandline.client.__file__.startswith(sys.argv[1]), strandline.client.__file__
        ours = {"handlers", "projections", "agents", "gateway", "tests", "benchmarks"}
        for name in ours:
            try:
                __import__(name)
            except ModuleNotFoundError:
                continue
            raise SystemExit(f"{name} is importable, the test proves nothing")
        assert not ours & {name.partition(".")[0] for name in sys.modules}
        assert "typer" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_overview_loads_neither_the_bus_nor_the_client() -> None:
    script = "import sys, strandline; assert not {'nats', 'bus', 'strandline.client'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
