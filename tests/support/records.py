"""Records of sandboxes in each condition."""

from __future__ import annotations

from typing import Any

from agents.records import SandboxRecord
from domain.sandboxes.spec import SandboxSpec


def record(condition: str, **more: Any) -> SandboxRecord:
    """A sandbox called ``sb-<condition>``."""
    artifact = {"artifact_id": "rfs-" + "0" * 24, "sha256": "0" * 64, "size_bytes": 1}
    spec = SandboxSpec.model_validate({"template_id": "tpl-" + "0" * 24, "artifact": artifact, "recipe": {"cmd": ["true"]}})
    return SandboxRecord.model_validate(
        {"id": f"sb-{condition}", "project": "default", "spec": spec, "driver": "sim", "condition": condition, **more}
    )
