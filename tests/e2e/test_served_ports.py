"""``strandline up`` with ports beside the bus's: metrics of every part, and artifacts over HTTP."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest
from support.installation import STRANDLINE, Running, compose_image, up
from support.patient import Patient
from support.waiting import run

from bus import objects
from bus.connection import connect_from
from bus.server import free_port
from bus.subjects import ARTIFACTS_BUCKET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def ports_in_a_row(number: int) -> int:
    """The first of so many ports of loopback that nobody listens on now."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + number):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def got(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read()


def holding(directory: Path, text: str) -> list[Path]:
    """The files below it that have this in them."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if text.encode() in path.read_bytes()]


async def built(running: Running, image: str, where: Path) -> str:
    """An artifact, and its bytes as the object store has them at ``where``. Its id."""
    async with Patient.connect(running.dir) as p:
        await p.job((await p.cmd("template.create", image=image, alias="base", memory_mb=64, disk_mb=64, wait_s=30))["job_id"])
        artifact = await p.item("artifacts", (await p.items("templates"))[0]["artifact_id"])
    async with await connect_from(running.dir, "test") as nc:
        await objects.get_file(nc, ARTIFACTS_BUCKET, artifact["artifact_id"], where, sha256=artifact["sha256"])
    return str(artifact["artifact_id"])


def test_an_artifact_is_downloaded_by_its_link_and_every_part_tells_its_metrics(tmp_path: Path) -> None:
    image = compose_image(tmp_path / "image")
    first = ports_in_a_row(4)
    served = ("--metrics-port", str(first), "--artifacts-port", str(first + 3))
    with up(tmp_path / "state", "--driver", "sim", *served) as running:
        artifact_id = run(built(running, image, tmp_path / "stored"))
        stored = (tmp_path / "stored").read_bytes()
        asked = [*STRANDLINE, "artifact", "link", artifact_id, "--for", "10m", "-o", "json", "--dir", str(running.dir)]
        link = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout)
        token = {"Authorization": f"Bearer {link['token']}"}
        whole = got(link["url"], **token)
        assert hashlib.sha256(whole).hexdigest() == link["sha256"]
        assert whole == stored
        middle = len(stored) // 2
        assert got(link["url"], **token, Range=f"bytes={middle}-{middle + 4_000_000}") == stored[middle : middle + 4_000_001]
        assert holding(running.dir, link["token"].rpartition(".")[2]) == [], "it is in no log and no stream"
        for number, says in enumerate(("strandline_log_position", "strandline_view_position", "strandline_agent_used")):
            assert says in got(f"http://127.0.0.1:{first + number}/metrics").decode()


@pytest.mark.parametrize("option", ["--metrics-port", "--artifacts-port"])
def test_a_port_that_is_taken_is_an_error_by_its_name(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = [*STRANDLINE, "up", "--dir", str(tmp_path / "state"), option, str(port)]
        refused = subprocess.run(told, capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, f"port {port} of 127.0.0.1 is taken" in refused.stderr) == (4, True)


@pytest.mark.parametrize("ports", [("--metrics-port", "9600", "--artifacts-port", "9602"), ("--metrics-port", "65534")])
def test_ports_that_cannot_be_are_a_usage_error(tmp_path: Path, ports: tuple[str, ...]) -> None:
    told = [*STRANDLINE, "up", "--dir", str(tmp_path / "state"), *ports]
    assert subprocess.run(told, capture_output=True, text=True, timeout=60, check=False).returncode == 2
    assert not (tmp_path / "state").exists()
