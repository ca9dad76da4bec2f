"""``strandline demo`` as a process: every step says what it should, it ends well, and nothing of it is left on the host."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.installation import DOWN_S, STRANDLINE, strandline
from support.killing import pid_of
from support.remains import remains
from support.unprivileged import NOBODY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ROOT = os.geteuid() == 0

STEPS = (
    r"start nats-server, control plane, projector and one node\n +bus nats://127\.0\.0\.1:\d+",
    r"the node has registered .*strand\.rpt\.node-1\.observed\n +driver (oci|process) ",
    r"compose an OCI image .*\n.* sha256:[0-9a-f]{64}\n",
    r"make a template .*template\.create\n( +[A-Z0-9_]+ +\S+ +100% .*\n){4,} +template tpl-\w+ .*\n.* not built a second time",
    r"start a sandbox .*sandbox\.create\n +sandbox sb-\w+  state RUNNING  node node-1",
    r"run a command inside .*sandbox\.exec\n.*\n +hello from demo\n +0\n",
    r"write a file and take a snapshot .*snapshot\.create\n.*\n +the tide was here\n +snapshot snap-\w+ .*status READY",
    r"delete the file, roll back.*sandbox\.rollback\n(.*\n)+? +exit code 1\n +generation 1\n.*\n +the tide was here\n",
    r"clone the sandbox twice .*sandbox\.clone\n(.*\n +the tide was here\n){2}",
    r"a new guest image .*cmd\.default\.compat\.rescan .*qry\.default\.compat-matrix\.list\n.*\n.* OK +1 +1 *\n.*\n.* STALE +1 +2 *\n",
    r"make its replicas again: OK .*template\.redo\n.*\n.* OK +2 +2 *\n",
    r'the matrix as of a moment ago.*qry\.default\.compat-matrix\.list \{"as_of": \d+\}\n.*\n.* OK +1 +1 *\n',
    r"the audit .*strand\.evt\.default\.sandbox\..*\n(.*\n)*.*sandbox\.created\n(.*\n)*.*sandbox\.started\n(.*\n)*.*sandbox\.rolled-back",
    r"build the compat view anew.*cmd\.default\.view\.rebuild .*views\.digest\n +generation 1 → 2 .*\n.* byte-equal",
    r"verify the hash chain .*events\.verify\n.* intact True",
    r"delete everything .*sandbox\.delete",
)
"""What each step says, in order."""


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty home of ``nobody``, or ours, which is where the demo makes its directory too; pytest's own folders nobody else may enter."""
    with tempfile.TemporaryDirectory(prefix="strandline-home-") as name:
        path = Path(name)
        if ROOT:
            os.chown(path, NOBODY, NOBODY)
        yield path


def as_nobody(home: Path) -> dict[str, Any]:
    return strandline(NOBODY, home) if ROOT else strandline(env={"HOME": str(home), "TMPDIR": str(home)})


def as_we_are(home: Path) -> dict[str, Any]:
    return strandline(env={"TMPDIR": str(home)})


def demo(how: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    """To its end; only pytest's own timeout bounds it."""
    return subprocess.run(**{**how, "args": [*how["args"], "demo", *words]}, capture_output=True, text=True, check=False)


def begun(how: dict[str, Any], *words: str) -> subprocess.Popen[str]:
    whole = {**how, "args": [*how["args"], "demo", *words]}
    return subprocess.Popen(**whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def told(text: str) -> list[str]:
    """The steps of it, without their numbers."""
    return re.split(r"\n *\d+ (?=\S)", "\n" + text.strip())[1:]


def directory_of(text: str) -> Path:
    found = re.search(r"directory (\S+)", text)
    assert found, text
    return Path(found[1])


def test_with_the_best_driver_it_tells_every_step_and_leaves_nothing(home: Path) -> None:
    done = demo(as_we_are(home))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    steps = told(done.stdout)
    assert len(steps) == len(STEPS), done.stdout
    for step, words in zip(steps, STEPS, strict=True):
        assert re.match(words, step), step
    best = "oci" if ROOT and shutil.which("crun") else "process"
    assert f"driver {best} " in steps[1]
    assert f"driver chosen: {best}" in steps[1]
    assert "nothing is left of" in steps[-1]
    assert re.search(r"\ndone in [0-9.]+ s\n$", done.stdout)
    assert remains(directory_of(done.stdout)) == []
    assert list(home.iterdir()) == []


@pytest.mark.root
def test_a_user_without_rights_and_an_empty_home_sees_the_same_with_the_process_driver(home: Path) -> None:
    done = demo(as_nobody(home))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    steps = told(done.stdout)
    assert len(steps) == len(STEPS), done.stdout
    for step, words in zip(steps, STEPS, strict=True):
        assert re.match(words, step), step
    assert "driver chosen: process: without root there is no other; with root (sudo make demo) there is oci" in steps[1]
    assert remains(directory_of(done.stdout)) == []
    assert list(home.iterdir()) == []


def test_a_driver_that_cannot_run_here_ends_it_at_once_with_the_reason_and_without_a_traceback(home: Path) -> None:
    done = demo(as_nobody(home), "--driver", "oci")
    assert done.returncode == 1
    assert "the OCI driver needs root - mend: " in done.stderr
    assert "hint: strandline doctor; logs are in " in done.stderr
    assert "Traceback" not in done.stderr
    assert "done in" not in done.stdout
    assert [path.name.rpartition("-")[0] for path in home.iterdir()] == ["strandline-demo-logs"]


@pytest.mark.parametrize("words", [["--driver", "kvm"], ["--keep", "."]], ids=["unknown driver", "used directory"])
def test_what_makes_no_sense_is_a_usage_error_before_anything_starts(words: list[str]) -> None:
    done = subprocess.run([*STRANDLINE, "demo", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_directory_before_the_word_demo_is_not_ignored(tmp_path: Path) -> None:
    done = subprocess.run([*STRANDLINE, "--dir", str(tmp_path / "x"), "demo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--keep" in done.stderr


def test_when_interrupted_it_cleans_up_and_says_so_by_its_exit_code(home: Path) -> None:
    process = begun(as_we_are(home))
    assert process.stdout is not None
    seen = ""
    while "start a sandbox from it" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=DOWN_S)
    assert process.returncode == 130, errors
    assert errors.strip() == "error: the demo was stopped before its end"
    assert "nothing is left of" in said
    assert "done in" not in said
    assert remains(directory_of(seen)) == []
    assert list(home.iterdir()) == []


def test_kept_it_goes_on_with_its_sandboxes_until_it_is_told_to_end(home: Path, tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    try:
        done = demo(as_we_are(home), "--keep", str(directory))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"down --dir {directory} --purge" in done.stdout
        assert "delete everything" not in done.stdout
        assert all(pid_of(directory, part) for part in ("nats", "control", "projector", "node-1"))
        listed = subprocess.run(
            [*STRANDLINE, "--dir", str(directory), "sandbox", "list", "-o", "name"], capture_output=True, text=True, check=True
        )
        assert len(listed.stdout.split()) == 3
    finally:
        down = subprocess.run([*STRANDLINE, "down", "--dir", str(directory), "--purge"], check=False)
    assert down.returncode == 0
    assert remains(directory) == []
