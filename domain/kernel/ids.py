"""Identifiers: their alphabets, and how the id of a new thing follows from the command that asks for it.

An id is always exactly one NATS subject token, so that it can stand in ``strand.evt.<project>.<type>.<id>`` unescaped.
Ids of new aggregates are derived from the command id: the same command, sent again after any failure, names the same thing.
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from typing import Annotated, Final

from pydantic import StringConstraints

SYSTEM_PROJECT: Final = "system"
"""Where aggregates live that belong to the installation and not to a tenant: nodes and artifacts."""

COMMAND_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"
TEMPLATE_PATTERN: Final = r"^tpl-[0-9a-f]{24}$"
SNAPSHOT_PATTERN: Final = r"^snap-[0-9a-f]{24}$"
ARTIFACT_PATTERN: Final = r"^rfs-[0-9a-f]{24}$"
SANDBOX_PATTERN: Final = r"^sb-[a-z2-7]{20}$"
VOLUME_PATTERN: Final = r"^vol-[0-9a-f]{24}$"
ROLLOUT_PATTERN: Final = r"^ro-[0-9a-f]{24}$"
JOB_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
TemplateId = Annotated[str, StringConstraints(pattern=TEMPLATE_PATTERN)]
SnapshotId = Annotated[str, StringConstraints(pattern=SNAPSHOT_PATTERN)]
ArtifactId = Annotated[str, StringConstraints(pattern=ARTIFACT_PATTERN)]
SandboxId = Annotated[str, StringConstraints(pattern=SANDBOX_PATTERN)]
VolumeId = Annotated[str, StringConstraints(pattern=VOLUME_PATTERN)]
RolloutId = Annotated[str, StringConstraints(pattern=ROLLOUT_PATTERN)]
JobId = Annotated[str, StringConstraints(pattern=JOB_PATTERN)]
NodeId = Name
ProjectId = Name

_NAMESPACE: Final = uuid.UUID("6f3c1d0e-7a53-5f0b-9d55-3b1f4f0c7a11")


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


def template_id(project: str, command_id: str) -> str:
    """``tpl-`` and 24 hex digits (reference/cubesandbox.md §1.1), derived from the command."""
    return "tpl-" + _digest("template", project, command_id).hex()[:24]


def snapshot_id(project: str, command_id: str) -> str:
    """``snap-`` and 24 hex digits, derived from the command."""
    return "snap-" + _digest("snapshot", project, command_id).hex()[:24]


def artifact_id(fingerprint: str) -> str:
    """``rfs-`` and the first 24 of the fingerprint's 64 hex digits: the same specification is the same artifact."""
    return "rfs-" + fingerprint[:24]


def sandbox_id(project: str, command_id: str) -> str:
    """``sb-`` and 20 lower-case base32 characters, derived from the command."""
    return "sb-" + base64.b32encode(_digest("sandbox", project, command_id)).decode().lower()[:20]


def rollout_id(project: str, command_id: str) -> str:
    """``ro-`` and 24 hex digits, derived from the command."""
    return "ro-" + _digest("rollout", project, command_id).hex()[:24]


def volume_id(project: str, command_id: str) -> str:
    """``vol-`` and 24 hex digits, derived from the command that created the disk: what its node knows it by."""
    return "vol-" + _digest("volume", project, command_id).hex()[:24]


def job_id(project: str, command_id: str) -> str:
    """A UUID (version 5) derived from the command that started the job."""
    return str(uuid.uuid5(_NAMESPACE, f"{project}/{command_id}"))


def replica_id(template: str, node: str) -> str:
    """The id of a template's replica on a node: both, in one token."""
    return f"{template}_{node}"


def derived(*parts: str | int) -> str:
    """A command id for something the system asks of itself: the same (process, step, attempt) gives the same id.

    32 characters of ``[A-Za-z0-9_-]``, so that a replay after a crash is recognised as a repetition (design.md §5).
    """
    return base64.urlsafe_b64encode(_digest(*(str(part) for part in parts))[:24]).decode()
