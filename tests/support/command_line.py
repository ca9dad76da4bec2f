"""The things that the command line's tests talk about, and how they read what it said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from typer.testing import Result

Cli = Callable[..., Result]
"""``cli("sandbox", "list")``: the result of the command line in the test's installation."""

TPL = "tpl-3fa91c0d2b7e4a5566778899"
TPL2 = "tpl-3fb91c0d2b7e4a5566778899"
SB = "sb-k3f2aaaaaaaaaaaaaaaa"
SB2 = "sb-k3f2bbbbbbbbbbbbbbbb"
SB3 = "sb-zzzzaaaaaaaaaaaaaaaa"
SNAP = "snap-00112233445566778899aabb"
JOB = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)

TEMPLATE = {
    "template_id": TPL,
    "alias": "python",
    "status": "READY",
    "artifact_id": "rfs-00112233445566778899aabb",
    "image": "docker://registry.example/python:3.12",
    "image_digest": "sha256:" + "a" * 64,
    "replicas": {"ready": 2, "failed": 1, "total": 3},
    "job_id": JOB,
    "created_at": "2026-11-20T09:00:00Z",
    "last_error": None,
}


def sandbox(identifier: str = SB, **fields: Any) -> dict[str, Any]:
    return {
        "sandbox_id": identifier,
        "name": "web",
        "state": "RUNNING",
        "reason": None,
        "template_id": TPL,
        "snapshot_id": None,
        "node_id": "n1",
        "driver": "process",
        "address": "10.8.0.2",
        "ports": [{"port": 8080, "address": "10.8.0.2", "status": "bound"}],
        "generation": 1,
        "exit": None,
        "started_at": "2026-11-20T11:55:00Z",
        "ends_at": "2026-11-20T12:10:00Z",
        "labels": {"team": "blue"},
        **fields,
    }


def job(**fields: Any) -> dict[str, Any]:
    return {
        "job_id": JOB,
        "operation": "CREATE",
        "resource_type": "template",
        "resource_id": TPL,
        "status": "READY",
        "phase": "READY",
        "progress": 100,
        "pull": {"bytes": 10, "total_bytes": 10, "layers": 1, "total_layers": 1, "bytes_per_s": 5},
        "attempt": 1,
        "retry_of": None,
        "error": None,
        **fields,
    }


def error_of(result: Result) -> dict[str, Any]:
    """The error object of a ``-o json`` run that failed."""
    found: dict[str, Any] = json.loads(result.stderr.strip().splitlines()[-1])["error"]
    return found


def strandline(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command line as a process of its own."""
    return subprocess.run([sys.executable, "-m", "strandline.cli", *words], capture_output=True, timeout=60, check=False, **options)
