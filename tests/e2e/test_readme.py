"""What README.md shows to a caller works as it stands there: the Python program, and every subject and body of the `nats` command lines."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import DeliverPolicy
from support.installation import compose_image, up
from support.waiting import eventually, run

from strandline.cli.main import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PUBLIC_IMAGE = "docker://docker.io/library/alpine:3.20"


def fences(kind: str) -> list[str]:
    return [text for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE) if found == kind]


def nats_lines(*verb: str) -> list[list[str]]:
    """The words behind ``nats VERB`` of every such line."""
    lines = [shlex.split(line) for fence in fences("") for line in fence.splitlines() if line.startswith("nats ")]
    return [words[1 + len(verb) :] for words in lines if tuple(words[1 : 1 + len(verb)]) == verb]


@pytest.mark.quick
def test_every_command_of_the_readme_is_one_that_there_is() -> None:
    lines = [line.split() for fence in fences("") for line in fence.splitlines() if line.startswith("strandline ")]
    assert len(lines) > 5
    assert {words[1] for words in lines} <= COMMANDS.keys()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_examples_for_callers_do_what_is_said_beside_them(tmp_path: Path) -> None:
    image = compose_image(tmp_path / "image")
    with up(tmp_path / "state", "--driver", "process") as running:
        [program] = fences("python")
        assert PUBLIC_IMAGE in program
        program = program.replace(PUBLIC_IMAGE, image)
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.match(r"0 hello from \S+\n", done.stdout)
        assert re.search(r"^\d+ sandbox\.rolled-back$", done.stdout, re.MULTILINE)
        run(as_a_stranger(json.loads((running.dir / "connect.json").read_text())))


async def as_a_stranger(connect: dict[str, Any]) -> None:
    nc = await nats.connect(connect["url"], user_credentials=connect["creds"], inbox_prefix=connect["inbox_prefix"].encode())
    try:
        replies = []
        for subject, body, *_ in nats_lines("request"):
            replies.append(json.loads((await nc.request(subject, body.encode(), timeout=40)).data))
        sandbox, matrix = replies
        assert sandbox["ok"]
        assert (sandbox["result"]["state"], sandbox["result"]["settled"]) == ("RUNNING", True)
        assert sandbox.keys() == json.loads(fences("json")[0]).keys()
        assert matrix["items"][0]["overall"] == "OK"
        await follow(nc)
        await leave_a_command(nc, sandbox["id"])
    finally:
        await nc.close()


async def follow(nc: Any) -> None:
    [[_, stream, _, subject]] = nats_lines("sub")
    seen = await nc.jetstream().subscribe(subject, stream=stream, ordered_consumer=True, deliver_policy=DeliverPolicy.ALL)
    first = json.loads((await seen.next_msg(timeout=10)).data)
    assert first["events"][0]["type"] == "sandbox.created"
    await seen.unsubscribe()


async def leave_a_command(nc: Any, sandbox: str) -> None:
    [words] = nats_lines("pub")
    headers = dict(words[i + 1].split(":", 1) for i, word in enumerate(words) if word == "-H")
    subject, body = words[-2:]
    await nc.jetstream().publish(subject, body.replace("sb-…", sandbox).encode(), headers=headers)
    [[stream, _, outcome]] = nats_lines("stream", "get")

    async def kept() -> Any:
        try:
            return await nc.jetstream().get_last_msg(stream, outcome)
        except nats.js.errors.NotFoundError:
            return None

    assert json.loads((await eventually(kept, within=20)).data)["ok"]
