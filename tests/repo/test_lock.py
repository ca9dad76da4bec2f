"""requirements.lock pins what pyproject.toml asks for, with hashes, and nothing of it has been forgotten."""

from __future__ import annotations

import re
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repo.tree import ROOT

pytestmark = pytest.mark.quick

PIN = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", re.MULTILINE)


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]]
    pins = {canonicalize_name(name): version for name, version in PIN.findall((ROOT / "requirements.lock").read_text())}
    missing = [
        str(requirement)
        for requirement in wanted
        if canonicalize_name(requirement.name) != project["name"]
        and not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]
    assert not missing, "run: make lock"


def test_every_pin_has_its_hashes() -> None:
    blocks = re.split(r"^(?=[\w.-]+(?:\[[\w,-]+\])?==)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    assert len(blocks) > 30
    assert not [block.split()[0] for block in blocks if "--hash=sha256:" not in block]
