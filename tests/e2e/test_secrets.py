"""A registry of a private authority that wants a password, and an installation in which that is nowhere, on disk or in what is said."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import strandline
from support.images import Pki, Registry, basic, htpasswd, make_pki
from support.installation import Running, up

from agents.images import Trust
from agents.options import parse
from domain.kernel.errors import Refused
from strandline import Strandline
from strandline.options import Options

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("docker-registry", "htpasswd", "openssl"))), reason="needs docker-registry, htpasswd and openssl"
)
USER = "puller"
SECRET = "Pa55-of-the-test-zR9!q7Lm2"
WRONG = "Wr0ng-of-the-test-kT4!w8Xn5"
CLEAR = "Cl3ar-of-the-test-bV6!e2Jd1"


def forms(secret: str) -> set[bytes]:
    """How it may look when it got out: plain, hex, base64 with what stands before it in a header, and with anything else before it."""
    plain = secret.encode()
    found = {plain, plain.hex().encode(), plain.hex().upper().encode(), basic(USER, secret).removeprefix("Basic ").encode()}
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + plain)
        found.add(encoded[-(-offset * 8 // 6) : len(encoded) - 4])
    return found


def holding(directory: Path, wanted: set[bytes]) -> list[str]:
    """The files under ``directory`` with any of it."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in files if any(one in path.read_bytes() for one in wanted)]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[str]:
    """A private image in a real registry, whose certificate only that authority vouches for."""
    folder = tmp_path_factory.mktemp("registry")
    subprocess.run([sys.executable, "-m", "agents.images.compose", str(folder / "image")], check=True, stdout=subprocess.DEVNULL)
    with Registry(folder, pki, auth=htpasswd(folder / "htpasswd", USER, SECRET)) as registry:
        registry.push(folder / "image", "private/app", "1", authorization=basic(USER, SECRET))
        yield f"docker://{registry.host}/private/app:1"


def create(running: Running, image: str, secret: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """``template create`` with the secret on standard input, as no program of this machine can read it."""
    place = ["--dir", str(running.dir), "-o", "json", "template", "create", image]
    return strandline(*place, "--registry-user", USER, "--registry-secret-file", "-", *words, input=secret.encode() + b"\n")


async def in_clear(running: Running, image: str) -> Refused:
    """What a caller is told who seals nothing."""
    async with Strandline.connect(running.dir) as s:
        with pytest.raises(Refused) as refusal:
            await s.command("template.create", {"image": image, "registry_user": USER, "registry_secret": CLEAR})
    return refusal.value


def test_agents_are_told_whom_to_believe(pki: Pki) -> None:
    told = Options(Path("/x"), registry_ca=pki.ca, registry_insecure=("a:5000", "b"))
    trust = parse(["--dir", "/x", "--node", "n1", *told.for_agents()]).trust
    assert trust == Trust(pki.ca, frozenset({"a:5000", "b"}))
    assert parse(["--dir", "/x", "--node", "n1", *Options(Path("/x")).for_agents()]).trust == Trust()


@pytest.mark.timeout(180)
def test_a_registrys_secret_is_opened_on_the_node_and_found_nowhere(tmp_path: Path, image: str, pki: Pki) -> None:
    with up(tmp_path / "state", "--driver", "process", "--registry-ca", str(pki.ca)) as running:
        made = create(running, image, SECRET, "--alias", "app", "--idempotency-key", "once")
        assert made.returncode == 0, made.stderr.decode()
        template = json.loads(made.stdout)
        assert template["status"] == "READY"
        again = create(running, image, SECRET, "--alias", "app", "--idempotency-key", "once")
        assert json.loads(again.stdout)["template_id"] == template["template_id"], "sealed anew, and the same command all the same"
        sandbox = strandline("--dir", str(running.dir), "-o", "json", "sandbox", "create", "app", "--name", "one")
        assert sandbox.returncode == 0, sandbox.stderr.decode()
        done = strandline("--dir", str(running.dir), "sandbox", "exec", "one", "--", "echo", "from the private image")
        assert done.stdout == b"from the private image\n"
        gone = strandline("--dir", str(running.dir), "sandbox", "delete", "one")
        assert gone.returncode == 0, "its root would be searched too, with all of /proc in it"

        wrong = create(running, image, WRONG)
        assert wrong.returncode != 0
        assert b"image.unauthorized" in wrong.stderr
        unsealed = asyncio.run(in_clear(running, image))
        assert unsealed.code == "template.unsealed-secret"
        export = tmp_path / "events.jsonl"
        exported = strandline("--dir", str(running.dir), "-o", "json", "event", "export", "--to", str(export))
        assert exported.returncode == 0
        listed = strandline("--dir", str(running.dir), "-o", "json", "event", "list")

        key = running.dir / "nodes" / "node-1" / "sealing.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        said = [part for p in (made, again, sandbox, wrong, listed) for part in (p.stdout, p.stderr)]
        said += [export.read_bytes(), repr(unsealed.as_dict()).encode()]
        assert running.stop() == 0
        assert b'"registry_secret":"sealed-1.' in export.read_bytes()
        assert [path for path in holding(running.dir, {b"sealed-1."}) if "EVENTS" in path], "what is looked for would be found"
        for secret in (SECRET, WRONG, CLEAR):
            assert holding(running.dir, forms(secret)) == []
            assert not [form for form in forms(secret) if any(form in part for part in said)]
