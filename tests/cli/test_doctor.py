"""``doctor`` and the one list of host packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strandline import doctor, host_checks, host_packages
from strandline.cli.main import app
from strandline.host_checks import Check, Host

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]


def packages(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The list as the Makefile asks for it: an interpreter with nothing but its standard library."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; runpy.run_module('strandline.host_packages', run_name='__main__')",
    ]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **env})


def test_the_list_runs_with_a_bare_interpreter() -> None:
    done = packages("--for", "tests")
    assert done.returncode == 0, done.stderr
    assert {"crun", "bubblewrap", "e2fsprogs", "skopeo", "postgresql", "docker-registry"} <= set(done.stdout.split())
    assert set(packages("--for", "demo").stdout.split()) < set(packages().stdout.split())


def test_only_missing_packages_are_printed_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_packages, "SBIN", ())
    assert "crun" in packages("--for", "oci").stdout
    for program in ("crun", "ip", "nft", "unshare", "nsenter", "losetup"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    assert packages("--for", "oci", "--missing", PATH=str(tmp_path)).stdout == ""


def test_an_unknown_purpose_is_an_error_that_names_the_known_ones() -> None:
    done = packages("--for", "fun")
    assert done.returncode == 2
    assert "demo" in done.stderr


def test_every_package_says_what_for_and_why() -> None:
    names = [package.name for package in host_packages.PACKAGES]
    assert len(names) == len(set(names))
    for package in host_packages.PACKAGES:
        assert set(package.purposes) <= set(host_packages.PURPOSES)
        assert package.why


def test_doctor_says_for_each_thing_whether_it_is_there_and_how_to_mend_it() -> None:
    result = CliRunner().invoke(app, ["doctor", "-o", "json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["ok"] else 1)
    names = {check["name"] for check in found["checks"]}
    assert {
        "nats-server",
        "user namespaces",
        "driver process",
        "driver oci",
        "ext4 tools",
        "cgroups",
        "loop devices",
        "overlayfs",
        "ports",
        "disk",
    } <= names
    assert {"python3-venv", "postgresql"} <= names
    assert all(check["status"] == "ok" or check["mend"] for check in found["checks"])


def test_what_root_has_to_do_is_said_as_the_reader_has_to_type_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host_packages.as_root("modprobe kvm", "usermod x") == "sudo modprobe kvm; sudo usermod x"
    checks = [check for make in host_checks.CHECKS for check in make(Host("/"))]
    needing_root = re.compile(r"(?:^|; )(?:apt-get|modprobe|sysctl|mount|usermod|ip) ")
    assert not [check.mend for check in checks if needing_root.search(check.mend)]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert host_packages.as_root("modprobe kvm") == "modprobe kvm"


def test_the_nats_server_of_the_wheel_is_found() -> None:
    (check,) = host_checks.nats_server(Host("/"))
    assert check.ok, check.detail


def test_a_missing_program_is_missing_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host_checks, "SBIN", ())
    (ext4,) = host_checks.ext4(Host("/"))
    assert not ext4.ok
    assert ext4.mend.endswith("apt-get install -y e2fsprogs")
    (oci,) = host_checks.oci_driver(Host("/"))
    assert not oci.ok
    assert oci.row()["status"] == "missing"
    monkeypatch.setattr(doctor, "CHECKS", (host_checks.ext4, host_checks.oci_driver))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "the demo cannot run yet" in result.stderr


def test_a_full_disk_is_found_where_the_data_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_checks, "LEAST_DISK", 1 << 60)
    (check,) = host_checks.disk(Host(str(tmp_path / "not" / "there" / "yet")))
    assert not check.ok
    assert str(tmp_path) in check.detail


def test_the_demo_needs_everything_required_and_one_driver() -> None:
    required = Check("ext4 tools", True, "", ("demo",), required=True)
    process = Check("driver process", False, "", ("demo",))
    oci = Check("driver oci", True, "", ("oci",))
    assert doctor.can_run_demo([required, process, oci])
    assert not doctor.can_run_demo([required, process])
    assert not doctor.can_run_demo([Check("ext4 tools", False, "", ("demo",), required=True), oci])
