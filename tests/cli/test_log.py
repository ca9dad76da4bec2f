"""The log from the command line: list, follow, export, check; and lists that go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import SB, SB2, Cli, error_of, job, sandbox
from support.responder import AT, Scripted, serve

from strandline.client import Strandline

FIELDS = {"specversion", "id", "type", "source", "subject", "time", "datacontenttype", "sequence", "data"}


@pytest.fixture(scope="module")
def history(installation: tuple[Path, Scripted]) -> Scripted:
    """Twelve real commits in the log."""
    installation[1].happen(*[f"n{i}" for i in range(12)])
    return installation[1]


@contextlib.contextmanager
def running(dir: Path, *words: str) -> Iterator[subprocess.Popen[str]]:  # noqa: A002 - the fixture's name
    """The command line as a process whose output is read while it runs."""
    command = [sys.executable, "-m", "strandline.cli", "--dir", str(dir), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_events_are_listed_oldest_first_and_filtered(cli: Cli, history: Scripted) -> None:
    everything = [json.loads(one) for one in cli("event", "list", "-o", "jsonl").stdout.splitlines()]
    assert [event["id"] for event in everything] == [f"n{i}" for i in range(12)]
    assert cli("event", "list", "--type", "node", "-n", "2", "--columns", "id", "--no-headers").stdout == "n10\nn11\n"
    assert json.loads(cli("event", "list", "--type", "sandbox.*", "-o", "json").stdout) == []
    assert len(json.loads(cli("event", "list", "--since", "5", "--until", "8", "-o", "json").stdout)) == 3
    assert json.loads(cli("event", "list", "--id", "n3", "-o", "json").stdout)[0]["type"] == "node.enrolled"


def test_since_finds_the_position_of_an_instant(cli: Cli, history: Scripted) -> None:
    assert len(json.loads(cli("event", "list", "--since", "4h", "-o", "json").stdout)) == 12
    assert json.loads(cli("event", "list", "--since", "2h", "-o", "json").stdout) == []


def test_tail_prints_what_happened_and_what_happens(dir: Path, history: Scripted) -> None:  # noqa: A002 - a fixture
    with running(dir, "event", "tail", "--since", "10", "-o", "jsonl") as process:
        assert [line(process)["id"] for _ in range(2)] == ["n10", "n11"]
        history.happen("live-1")
        assert line(process)["id"] == "live-1"


def test_tail_stops_after_a_count(cli: Cli, history: Scripted) -> None:
    lines = cli("event", "tail", "--since", "0", "-n", "3").stdout.splitlines()
    assert len(lines) == 3
    assert "node.enrolled" in lines[0]


def test_an_export_is_cloudevents_with_a_manifest_that_fits(cli: Cli, history: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    result = cli("event", "export", "--to", str(file), "--until", "12", "-o", "json")
    assert result.exit_code == 0, result.stderr
    events = [json.loads(one) for one in file.read_text().splitlines()]
    assert all(set(event) >= FIELDS for event in events)
    first = events[0]
    assert (first["specversion"], first["type"], first["subject"]) == ("1.0", "io.strandline.node.enrolled.v1", "node/n0")
    assert (first["source"], first["authid"], first["correlationid"]) == ("/projects/default", "alice", "enroll-n0")
    assert first["time"].startswith("2026-11-20T09:00:00")
    assert first["data"] == history.events[0]["data"]
    assert len({event["id"] for event in events}) == 12
    manifest = json.loads((tmp_path / "audit.jsonl.manifest.json").read_text())
    assert (manifest["count"], manifest["first_seq"], manifest["last_seq"]) == (12, 1, 12)
    assert json.loads(result.stdout)["sha256"] == manifest["sha256"]
    assert cli("event", "verify", "--file", str(file)).exit_code == 0


def test_an_export_that_somebody_touched_does_not_verify(cli: Cli, history: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    cli("event", "export", "--to", str(file), "--until", "5")
    lines = file.read_text().splitlines(keepends=True)
    for forged in (lines[:-1], [lines[0].replace("alice", "mallory"), *lines[1:]], [lines[1], lines[0], *lines[2:]], [*lines, lines[-1]]):
        file.write_text("".join(forged))
        result = cli("event", "verify", "--file", str(file), "-o", "json")
        assert result.exit_code == 1
        assert error_of(result)["code"] == "event.altered"


def test_an_export_goes_on_where_it_ended_even_after_a_cut(cli: Cli, history: Scripted, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    cli("event", "export", "--to", str(whole), "--until", "12")
    cli("event", "export", "--to", str(parts), "--until", "7")
    with parts.open("a") as file:
        file.write('{"half a line')
    result = cli("event", "export", "--to", str(parts), "--resume", "--until", "12")
    assert result.exit_code == 0, result.stderr
    assert parts.read_bytes() == whole.read_bytes()
    assert cli("event", "verify", "--file", str(parts)).exit_code == 0
    parts.write_text("x" + parts.read_text()[1:])
    assert cli("event", "export", "--to", str(parts), "--resume").exit_code == 1


def test_an_export_to_stdout_keeps_the_manifest_off_it(cli: Cli, history: Scripted) -> None:
    result = cli("event", "export", "--until", "3", "--type", "node.*")
    assert [json.loads(one)["logsequence"] for one in result.stdout.splitlines()] == [1, 2, 3]
    assert json.loads(result.stderr)["count"] == 3


def test_an_export_as_csv_has_flat_columns(cli: Cli, history: Scripted) -> None:
    header, first, *_ = cli("event", "export", "--until", "2", "--format", "csv").stdout.splitlines()
    assert header.startswith("logsequence,id,type,source,subject,time")
    assert "io.strandline.node.enrolled.v1" in first


def test_verify_passes_on_what_the_control_plane_found(cli: Cli, history: Scripted) -> None:
    assert cli("event", "verify").exit_code == 0
    history.faults.append({"seq": 3, "what": "its content does not match its hash"})
    result = cli("event", "verify", "-o", "json")
    history.faults.clear()
    assert result.exit_code == 1
    assert error_of(result)["code"] == "event.altered"


def test_a_watched_list_is_json_lines_of_changes_when_piped(dir: Path, control: Scripted) -> None:  # noqa: A002 - a fixture
    control.views["sandboxes"] = [sandbox()]
    with running(dir, "sandbox", "list", "--watch") as process:
        assert line(process) == {"change": "added", **sandbox()}
        control.views["sandboxes"] = [sandbox(state="PAUSED"), sandbox(SB2)]
        control.poke("sandbox", SB)
        first, second = line(process), line(process)
        assert (first["change"], first["sandbox_id"], first["state"]) == ("changed", SB, "PAUSED")
        assert (second["change"], second["sandbox_id"]) == ("added", SB2)
        control.views["sandboxes"] = []
        control.poke("sandbox", SB2)
        assert {(one["change"], one["sandbox_id"]) for one in (line(process), line(process))} == {("removed", SB), ("removed", SB2)}


def test_an_event_wakes_whoever_waits_for_a_job(dir: Path, control: Scripted, run: Any) -> None:  # noqa: A002 - a fixture
    """Much sooner than the next tick: the job's state changes together with an event of its kind."""
    identifier = job()["job_id"]

    async def main() -> None:
        control.views["jobs"] = [job(status="RUNNING", phase="PULLING", progress=10)]
        async with Strandline.connect(dir) as s:
            seen = []
            async with contextlib.aclosing(s.jobs.watch(identifier)) as states:
                async for state in states:
                    seen.append(state.phase)
                    if state.status == "RUNNING":
                        control.views["jobs"] = [job()]
                        await asyncio.to_thread(control.poke, "job", identifier)
            assert seen == ["PULLING", "READY"]

    async def in_time() -> None:
        await asyncio.wait_for(main(), 4)

    run(in_time())


def test_two_installations_do_not_see_each_other(tmp_path: Path, dir: Path, run: Any) -> None:  # noqa: A002 - a fixture
    server, other = serve(tmp_path)
    try:
        other.happen("elsewhere", at=AT)

        async def main() -> None:
            async with Strandline.connect(tmp_path) as s:
                assert [event.id async for event in s.events.read()] == ["elsewhere"]

        run(main())
    finally:
        other.stop()
        server.stop()
