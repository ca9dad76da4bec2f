"""The command line and the real thing: ``strandline up`` with simulated nodes, and a working day on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import strandline


@contextlib.contextmanager
def up(directory: Path) -> Iterator[None]:
    """An installation that is ended by SIGINT, as from the keyboard, and leaves nothing behind when it is purged."""
    command = [sys.executable, "-m", "strandline.cli", "--dir", str(directory), "up", "--driver", "sim", "--nodes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ready nats://")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(60) == 0
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                strandline("--dir", str(directory), "down", "--purge")
    assert not directory.exists()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("real") / "d"
    with up(directory):
        yield directory


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small genuine image, composed of this host's tools."""
    folder = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "agents.images.compose", str(folder)], check=True, capture_output=True, timeout=60)
    return f"oci:{folder}:demo"


def said(place: Path, *words: str, code: int = 0, **options: Any) -> Any:
    """What a command answered with ``-o json``."""
    done = strandline("--dir", str(place), "-o", "json", *words, **options)
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout or done.stderr)


def test_a_working_day(place: Path, image: str, tmp_path: Path) -> None:
    template = said(place, "template", "create", image, "--alias", "base", "--idempotency-key", "first")
    assert (template["alias"], template["status"], template["replicas"]) == ("base", "READY", {"ready": 2, "failed": 0, "total": 2})
    assert (
        said(place, "template", "create", image, "--alias", "base", "--idempotency-key", "first")["template_id"] == template["template_id"]
    )
    made = said(place, "sandbox", "create", "base", "--name", "web", "--ttl", "1h", "--label", "team=blue")
    identifier = made["sandbox_id"]
    assert made["state"] == "RUNNING"
    assert said(place, "sandbox", "create", "base", "--name", "web", "--if-not-exists")["sandbox_id"] == identifier
    done = strandline("--dir", str(place), "sandbox", "exec", "web", "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert said(place, "sandbox", "exec", "web", "--", "cat", input=b"through the pipe")["stdout"] == "through the pipe"
    assert said(place, "sandbox", "pause", identifier[:12])["state"] == "PAUSED"
    assert said(place, "sandbox", "wait", "web", "--for", "PAUSED")["sandbox_id"] == identifier
    assert said(place, "sandbox", "exec", "web", "true", code=125)["error"]["code"] == "sandbox.illegal-state"
    assert said(place, "sandbox", "resume", "web")["state"] == "RUNNING"
    assert said(place, "template", "delete", "base", code=4)["error"]["code"] == "template.in-use"
    assert said(place, "compat", "summary")["stale_replicas"] == 0
    assert said(place, "sandbox", "delete", "web")["state"] == "DEAD"
    assert said(place, "sandbox", "list") == []
    assert [one["state"] for one in said(place, "sandbox", "list", "--all")] == ["DEAD"]
    assert said(place, "sandbox", "events", identifier)[0]["type"] == "sandbox.created"
    before = said(place, "view", "digest", "sandboxes")
    said(place, "view", "rebuild", "sandboxes")
    assert said(place, "view", "digest", "sandboxes")["sha256"] == before["sha256"]
    assert said(place, "event", "verify")["intact"] is True
    file = tmp_path / "audit.jsonl"
    manifest = said(place, "event", "export", "--to", str(file))
    assert manifest["count"] == len(said(place, "event", "list"))
    assert said(place, "event", "verify", "--file", str(file))["ok"] is True


def test_the_past_can_be_looked_at(place: Path) -> None:
    events = said(place, "event", "list", "--type", "sandbox.started")
    then = events[0]["seq"]
    assert [one["state"] for one in said(place, "sandbox", "list", "--as-of", str(then))] == ["RUNNING"]


def test_nodes_rest_and_come_back(place: Path) -> None:
    said(place, "node", "cordon", "node-2")
    assert said(place, "node", "get", "node-2")["status"] == "cordoned"
    said(place, "node", "uncordon", "node-2")
    assert {one["status"] for one in said(place, "node", "list")} == {"ready"}
