"""``strandline up`` and ``down``: one per directory, sandboxes that outlive it and are found again, and no trace after a purge."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.installation import DOWN_S, STRANDLINE, Running, compose_image, up
from support.killing import pid_of
from support.patient import Patient
from support.remains import remains
from support.remains import running as still_running
from support.waiting import eventually, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PARTS = ("nats", "control", "projector", "node-1")
DRIVERS = [
    pytest.param("process", id="process"),
    pytest.param("oci", id="oci", marks=[pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compose_image(tmp_path_factory.mktemp("image") / "layout")


async def with_a_sandbox(running: Running, image: str, project: str = "default") -> str:
    """A sandbox with a file and a program that runs in it. Its id."""
    async with Patient.connect(running.dir) as p:
        p.project = project
        await p.job((await p.cmd("template.create", image=image, alias="base", memory_mb=64, wait_s=20))["job_id"])
        box = (await p.cmd("sandbox.create", template="base", wait_s=10))["sandbox_id"]
        await p.sandbox(box, "RUNNING")
        await p.sh(box, "echo here > /file; sleep 7777 > /dev/null 2>&1 & echo $! > /pid")
        return box


async def told_by(running: Running, box: str) -> tuple[str, str]:
    """What a sandbox says about itself: its file with its program's state, and when its first process was started."""
    async with Patient.connect(running.dir) as p:
        await p.sandbox(box, "RUNNING")
        return await p.sh(box, "cat /file; kill -0 $(cat /pid) && echo alive"), (await p.sh(box, "cat /proc/1/stat")).split(")")[1].split()[
            19
        ]


def test_a_second_up_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with up(tmp_path / "state", "--driver", "sim") as running:
        pids = running.pids
        second = subprocess.run([*STRANDLINE, "up", "--dir", str(running.dir)], capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 4
        assert "already runs" in second.stderr
        assert running.pids == pids
        assert all(pid_of(running.dir, part) for part in PARTS)
    assert remains(tmp_path / "state") == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_sandboxes_outlive_up_and_the_next_one_finds_them_again(tmp_path: Path, image: str, driver: str) -> None:
    with up(tmp_path / "state", "--driver", driver) as running:
        box = run(with_a_sandbox(running, image))
        before = run(told_by(running, box))
        assert before[0] == "here\nalive\n"
        pids = [pid_of(running.dir, part) for part in PARTS]
        assert running.stop() == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert still_running(running.dir), "the sandbox goes on"
        running.start()
        assert run(told_by(running, box)) == before
    assert remains(tmp_path / "state") == []


@pytest.mark.parametrize("project", ["default", "other"])
def test_up_with_stop_sandboxes_ends_them(tmp_path: Path, image: str, project: str) -> None:
    async def state(running: Running, box: str) -> str:
        async with Patient.connect(running.dir) as p:
            p.project = project
            return (await p.item("sandboxes", box))["state"]

    with up(tmp_path / "state", "--driver", "process", "--stop-sandboxes") as running:
        box = run(with_a_sandbox(running, image, project))
        assert running.stop() == 0
        assert still_running(running.dir) == []
        running.start()
        assert run(state(running, box)) == "DEAD"
    assert remains(tmp_path / "state") == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_down_finds_everything_after_up_itself_was_killed(tmp_path: Path, image: str, driver: str) -> None:
    with up(tmp_path / "state", "--driver", driver) as running:
        run(with_a_sandbox(running, image))
        kill_up(running)
        assert all(pid_of(running.dir, part) for part in PARTS), "they go on without it"
        running.purge()
    assert remains(tmp_path / "state") == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_down_purges_after_everything_was_killed(tmp_path: Path, image: str, driver: str) -> None:
    with up(tmp_path / "state", "--driver", driver) as running:
        run(with_a_sandbox(running, image))
        kill_up(running)
        for part in PARTS:
            os.kill(pid_of(running.dir, part) or 0, signal.SIGKILL)
        running.purge()
    assert remains(tmp_path / "state") == []


def test_the_next_up_takes_over_from_one_that_was_killed(tmp_path: Path, image: str) -> None:
    with up(tmp_path / "state", "--driver", "process") as running:
        box = run(with_a_sandbox(running, image))
        before = run(told_by(running, box))
        kill_up(running)
        orphans = [pid_of(running.dir, part) for part in PARTS]
        assert all(orphans)
        running.start()
        assert not [pid for pid in orphans if Path(f"/proc/{pid}").exists()]
        assert run(told_by(running, box)) == before
    assert remains(tmp_path / "state") == []


def test_up_that_is_told_to_stop_before_it_is_ready_leaves_nothing_running(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    process = subprocess.Popen([*STRANDLINE, "up", "--dir", str(directory), "--driver", "process"], stdout=subprocess.PIPE, text=True)
    run(eventually(lambda: pid_of(directory, "nats"), within=30))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=DOWN_S)
    assert (process.returncode, said) == (0, "")
    assert still_running(directory) == []
    Running(directory).purge()
    assert remains(directory) == []


def kill_up(running: Running) -> None:
    assert running.process is not None
    running.process.kill()
    running.process.communicate(timeout=DOWN_S)
