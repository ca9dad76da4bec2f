"""From an image to an artifact and a recipe: references, fingerprints, recipes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import strategies, worlds

from domain.kernel.errors import Invalid, Refused
from domain.sandboxes.spec import Recipe
from domain.templates.fingerprint import ArtifactSpec, fingerprint
from domain.templates.image_ref import parse_image
from domain.templates.recipe import recipe_of
from domain.templates.template import TemplateRequest

pytestmark = pytest.mark.quick

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker://docker.io/library/alpine:3.20", "docker://docker.io/library/alpine:3.20"),
        ("docker://alpine", "docker://docker.io/library/alpine:latest"),
        (" alpine:3 ", "docker://docker.io/library/alpine:3"),
        ("acme/app", "docker://docker.io/acme/app:latest"),
        ("docker://127.0.0.1:5000/app:v1", "docker://127.0.0.1:5000/app:v1"),
        ("localhost/app", "docker://localhost/app:latest"),
        ("docker://ghcr.io/acme/deep/app_x", "docker://ghcr.io/acme/deep/app_x:latest"),
        (f"docker://ghcr.io/acme/app@{SHA}", f"docker://ghcr.io/acme/app@{SHA}"),
        (f"docker://ghcr.io/acme/app:v1@{SHA}", f"docker://ghcr.io/acme/app@{SHA}"),
        ("oci:/srv/layouts/app", "oci:/srv/layouts/app"),
        ("oci:layouts/app:v1", "oci:layouts/app:v1"),
        ("oci-archive:/srv/app.tar", "oci-archive:/srv/app.tar"),
        ("oci-archive:/srv/app.tar:v1", "oci-archive:/srv/app.tar:v1"),
    ],
)
def test_a_reference_is_understood(text: str, expected: str) -> None:
    assert str(parse_image(text)) == expected
    assert str(parse_image(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-rm",
        "docker://-oProxy",
        "docker://docker://alpine",
        "https://example.org/app",
        "alpine;id",
        "alpine\n",
        "al pine",
        "alpine:$(id)",
        "UPPER/case",
        "docker://ghcr.io/",
        "docker://ghcr.io/a//b",
        "docker://ghcr.io/a/../b",
        "docker://ghcr.io:99999/app",
        "docker://host:port/app",
        "alpine:",
        "alpine:-x",
        "alpine:" + "t" * 129,
        "alpine@sha256:abc",
        "alpine@md5:" + "a" * 32,
        "oci:",
        "oci:-x",
        "oci:../../etc",
        "oci:/srv/../etc",
        "oci:/a:b:c:d/e",
        "oci-archive:/srv/app.tar:",
        "oci:/srv/app@x",
        "a" * 513,
        "docker://docker.io/" + "a" * 300,
    ],
)
def test_what_is_no_reference_is_refused_by_field(text: str) -> None:
    if text == "alpine\n":
        assert str(parse_image(text)).endswith("alpine:latest"), "blanks around it do not count"
        return
    with pytest.raises(Invalid) as caught:
        parse_image(text)
    assert list(caught.value.details) == ["image"]


@given(st.text(max_size=60) | st.from_regex(r"[a-z:/@.-]{0,40}", fullmatch=True))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        reference = parse_image(text)
    except Invalid:
        return
    assert parse_image(str(reference)) == reference


# ------------------------------------------------------------------------------------------------------- fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"image_digest": SHA},
        {"disk_mb": 2048},
        {"egress_ca": "b" * 64},
        {"builder": "squashfs"},
        {"builder_version": "2"},
    ],
)
def test_what_the_bytes_depend_on_changes_the_fingerprint(change: dict[str, Any]) -> None:
    """reference/cubesandbox.md scenario 2."""
    assert fingerprint(ArtifactSpec(**{**worlds.SPEC.model_dump(), **change})) != fingerprint(worlds.SPEC)


def test_the_fingerprint_is_stable() -> None:
    """A stored artifact must be found again by a newer version of this program."""
    spec = ArtifactSpec(image_digest="sha256:" + "0" * 64, disk_mb=1024, builder="ext4", builder_version="1")
    assert fingerprint(spec) == "55954760cdbf85ee7f9a35c816d1d81d9038d16fb72eccb1345f2cc1239a3913"


def test_an_absent_ca_and_an_empty_one_are_the_same() -> None:
    assert fingerprint(ArtifactSpec(image_digest=SHA, disk_mb=64)) == fingerprint(ArtifactSpec(image_digest=SHA, disk_mb=64, egress_ca=""))


def test_nothing_but_the_bytes_can_enter_the_fingerprint() -> None:
    for foreign in ("alias", "nodes", "tag", "registry_user", "ports", "env", "cmd", "cpu"):
        with pytest.raises(ValidationError):
            ArtifactSpec(image_digest=SHA, disk_mb=64, **{foreign: "x"})


# ------------------------------------------------------------------------------------------------------------ recipe

CONFIG = {
    "Entrypoint": ["/entry"],
    "Cmd": ["serve", "--all"],
    "Env": ["PATH=/bin", "B=2", "A=1=1", "no-such-name=1", "EMPTY="],
    "WorkingDir": "srv/app",
    "User": "1000:1000",
    "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "80": {}, "0/tcp": {}, "x/tcp": {}},
}


def test_an_image_says_how_it_starts() -> None:
    recipe = recipe_of(CONFIG, TemplateRequest(disk_mb=64))
    assert recipe == Recipe(
        cmd=("/entry", "serve", "--all"),
        env={"A": "1=1", "B": "2", "EMPTY": "", "PATH": "/bin"},
        cwd="/srv/app",
        user="1000:1000",
        ports=(80, 8080),
        disk_mb=64,
    )
    assert list(recipe.env) == sorted(recipe.env)


def test_wishes_win() -> None:
    wishes = TemplateRequest(cmd=("sh",), env={"B": "3", "C": "4"}, ports=(9000, 22, 9000), probe_port=9000, cpu=0.5, memory_mb=64)
    recipe = recipe_of(CONFIG, wishes)
    assert (recipe.cmd, recipe.ports, recipe.probe_port, recipe.cpu, recipe.memory_mb) == (("sh",), (22, 9000), 9000, 0.5, 64)
    assert recipe.env == {"A": "1=1", "B": "3", "C": "4", "EMPTY": "", "PATH": "/bin"}


def test_what_nobody_says_has_a_default() -> None:
    assert recipe_of({}, TemplateRequest()) == Recipe(cmd=("/bin/sh",), disk_mb=1024)


def test_an_image_exposes_at_most_sixteen_ports_and_256_variables() -> None:
    config = {"ExposedPorts": {f"{port}/tcp": {} for port in range(1000, 1100)}, "Env": [f"V{n:03}=x" for n in range(300)]}
    recipe = recipe_of(config, TemplateRequest(env={"MINE": "1"}))
    assert (len(recipe.ports), len(recipe.env), recipe.env["MINE"]) == (16, 256, "1")


def test_a_command_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(Refused) as caught:
        recipe_of({"Cmd": ["x"] * 300}, TemplateRequest())
    assert caught.value.code == "template.unusable-image"
    assert recipe_of({"Cmd": ["x"] * 300}, TemplateRequest(cmd=("sh",))).cmd == ("sh",)


@given(st.dictionaries(st.sampled_from([*CONFIG, "Other"]), strategies.JSON))
def test_whatever_an_image_says_the_recipe_is_one_or_is_refused(config: dict[str, Any]) -> None:
    code = None
    try:
        recipe = recipe_of(config, TemplateRequest())
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    except Refused as refusal:
        code = refusal.code
    assert code in {None, "template.unusable-image"}
