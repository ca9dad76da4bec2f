"""The fingerprint of an artifact: the same specification is the same artifact, built once (reference/cubesandbox.md §3.6).

Only what the bytes depend on enters: the image's digest, the size of the file system, the egress CA that is baked in, and who builds it
how. Not the image's tag, nor the alias, nodes, network policy or registry credentials. Ports, environment, command and resources do not
enter either: here they live in the template's recipe and never touch the artifact, so that templates which differ only in them share one.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Record
from domain.kernel.command import canonical

BUILDER: Final = "ext4"
BUILDER_VERSION: Final = "1"
"""Grows whenever the builder would make other bytes of the same input."""


class ArtifactSpec(Record):
    """What an artifact is built from. ``egress_ca``: SHA-256 of the CA certificate's DER, in hex; empty: none is baked in."""

    image_digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    disk_mb: Annotated[int, Field(ge=16, le=16_777_216)]
    egress_ca: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""
    builder: Annotated[str, StringConstraints(max_length=64)] = BUILDER
    builder_version: Annotated[str, StringConstraints(max_length=64)] = BUILDER_VERSION


def fingerprint(spec: ArtifactSpec) -> str:
    """64 hex digits. An absent CA and an empty one are the same."""
    return hashlib.sha256(canonical(spec.model_dump(exclude={"egress_ca"} if not spec.egress_ca else None))).hexdigest()
