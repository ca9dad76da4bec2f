"""``strandline event verify`` says yes to a log as it was written, and names the place where one byte of it is another one.

JetStream guards its files with a checksum per message. So the byte is changed twice: in a copy that is published anew, message by message,
into another server (whoever can write files can write checksums), and in the file itself, where the server then keeps the message back.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.installation import STRANDLINE, up
from support.patient import Patient
from support.waiting import eventually, run

from bus import direct
from bus.connection import connect, connect_from
from bus.requests import store
from bus.server import Server
from bus.streams import ensure_streams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
Messages = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    """Subjects and bodies of a genuine log: what two nodes and a template went through."""

    async def work(directory: Path) -> Messages:
        async with Patient.connect(directory) as p:
            for node in ("node-1", "node-2"):
                await p.cmd("node.cordon", node_id=node)
                await p.cmd("node.uncordon", node_id=node)
            await p.cmd("template.create", image="oci:/nowhere", alias="base")
            nc = await connect_from(directory, "copy", on_closed=lambda: None)
            async with nc:
                return [(found.subject, found.data) for found in (await direct.batch(nc, "EVENTS", "strand.evt.>")).messages]

    with up(tmp_path_factory.mktemp("source") / "state", "--driver", "sim", "--nodes", "2") as running:
        found = run(work(running.dir))
        assert verify("--dir", str(running.dir)).returncode == 0
        return found


def verify(*where: str) -> subprocess.CompletedProcess[str]:
    """``strandline event verify`` of everything, as a person runs it."""
    words = [*STRANDLINE, *where, "--project", "system", "-o", "json", "event", "verify"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def a_copy(directory: Path, messages: Messages) -> Iterator[Server]:
    """Another server with these messages in its log, and a projector that answers for it."""

    async def publish(url: str) -> None:
        nc = await connect(url, name="copy", on_closed=lambda: None)
        async with nc:
            await ensure_streams(nc)
            for subject, data in messages:
                await store(nc, subject, data)

    with Server(directory / "nats") as server:
        run(publish(server.url))
        with answered(directory, server):
            yield server


@contextlib.contextmanager
def answered(directory: Path, server: Server) -> Iterator[None]:
    """A projector of this server."""
    connect_json = {"url": server.url, "creds": None, "inbox_prefix": "_INBOX"}
    (directory / "connect.json").write_text(json.dumps(connect_json))
    with (directory / "projector.log").open("wb") as log:
        projector = subprocess.Popen([sys.executable, "-m", "projections", "--dir", str(directory)], stderr=log, stdout=log)
        try:
            run(eventually(lambda: b"projector.serving" in (directory / "projector.log").read_bytes(), within=30))
            yield
        finally:
            projector.terminate()
            projector.wait(30)


def test_a_copy_of_the_log_is_as_good_as_the_log(tmp_path: Path, messages: Messages) -> None:
    with a_copy(tmp_path, messages) as server:
        verdict = verify("--url", server.url)
        assert verdict.returncode == 0, verdict.stderr
        said = json.loads(verdict.stdout)
        assert (said["intact"], said["commits"], said["faults"]) == (True, len(messages), [])


@pytest.mark.parametrize("needle", [b'"node.cordoned"', b'"actor":"', b'"prev":"', b'"hash":"'])
def test_one_other_byte_in_a_stored_event_is_found_and_named(tmp_path: Path, messages: Messages, needle: bytes) -> None:
    place = next(n for n, (_, data) in enumerate(messages) if b'"node.cordoned"' in data)
    subject, data = messages[place]
    at = data.index(needle) + len(needle) - (2 if needle.endswith(b'ed"') else 0)
    other = bytes([data[at] ^ 1])
    altered = [*messages[:place], (subject, data[:at] + other + data[at + 1 :]), *messages[place + 1 :]]
    with a_copy(tmp_path, altered) as server:
        verdict = verify("--url", server.url)
        assert verdict.returncode == 1
        faults = json.loads(verdict.stderr.strip().splitlines()[-1])["error"]["details"]["faults"]
        assert (faults[0]["seq"], faults[0]["subject"]) == (place + 1, subject)
        assert "does not match its hash" in faults[0]["what"] or "does not follow" in faults[0]["what"]


def test_a_byte_that_rots_in_the_file_is_missed_and_nobody_decides_on_the_rest(tmp_path: Path, messages: Messages) -> None:
    with a_copy(tmp_path, messages) as server:
        server.stop()
        [block] = (tmp_path / "nats").rglob("EVENTS/msgs/*.blk")
        rotten = bytearray(block.read_bytes())
        rotten[rotten.index(b"node.cordoned") + 1] ^= 1
        block.write_bytes(rotten)
        server.start()
        verdict = verify("--url", server.url)
        assert verdict.returncode == 1
        place = next(n for n, (_, data) in enumerate(messages, 1) if b'"node.cordoned"' in data)
        assert f"messages {place} to {place} are missing" in verdict.stderr
        control = [sys.executable, "-m", "handlers", "--dir", str(tmp_path)]
        refused = subprocess.run(control, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode != 0
        assert f"messages {place} to {place} of the log are missing" in refused.stderr.splitlines()[-1]
