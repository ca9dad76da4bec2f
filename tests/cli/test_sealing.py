"""Registry secrets leave the client's process sealed, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import TEMPLATE, TPL, job
from support.responder import Scripted

from bus import sealed
from domain.kernel.errors import Refused
from strandline.client import Strandline

pytestmark = pytest.mark.quick
SECRET = "s3cr3t-of-the-test"
IMAGE = "docker://registry.example:5000/private/app:1"
KEYS = {name: sealed.private_key() for name in ("n1", "n2", "n3", "n4", "n5")}


def node(name: str, status: str = "ready", roles: tuple[str, ...] = ("builder", "runner"), **host: str) -> dict[str, object]:
    return {"node_id": name, "status": status, "roles": list(roles), "host": host or {"sealing_key": sealed.public_key(KEYS[name])}}


def test_it_is_sealed_to_the_nodes_that_can_build_now(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    control.views = {
        "nodes": [node("n1"), node("n2", "cordoned"), node("n3", "offline"), node("n4", roles=("runner",)), node("n5", hostname="old")]
    }
    control.replies["template.create"] = {"template_id": TPL, "job_id": "job-" + "0" * 24}

    async def main() -> None:
        async with Strandline.connect(dir) as s:
            await s.templates.create(IMAGE, registry_user="u", registry_secret=SECRET)

    run(main())
    [asked] = control.commands
    text = asked.body["registry_secret"]
    assert sealed.recipients(text) == {"n1", "n2"}
    assert sealed.unseal(text, "n2", KEYS["n2"], "registry.example:5000") == SECRET
    assert SECRET not in str(control.asked)


def test_without_a_node_to_seal_to_nothing_is_sent(dir: Path, control: Scripted, run) -> None:  # noqa: A002 - a fixture
    control.views = {"nodes": [node("n3", "offline")]}

    async def main() -> None:
        async with Strandline.connect(dir) as s:
            with pytest.raises(Refused) as refused:
                await s.templates.create(IMAGE, registry_user="u", registry_secret=SECRET)
            assert refused.value.code == "template.no-nodes"

    run(main())
    assert control.commands == []


@pytest.mark.parametrize("where", ["file", "-"])
def test_the_command_line_reads_it_from_a_file_or_standard_input(cli, control: Scripted, tmp_path: Path, where: str) -> None:
    control.views = {"nodes": [node("n1")], "templates": [TEMPLATE], "jobs": [job(status="READY")]}
    control.replies["template.create"] = {"template_id": TPL, "job_id": job()["job_id"]}
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    words = ["--registry-user", "u", "--registry-secret-file", str(file) if where == "file" else "-"]
    found = cli("template", "create", IMAGE, *words, "--no-wait", input=None if where == "file" else SECRET + "\n")
    assert found.exit_code == 0, found.output
    text = control.commands[0].body["registry_secret"]
    assert sealed.unseal(text, "n1", KEYS["n1"], "registry.example:5000") == SECRET
    assert SECRET not in found.output
