"""What a caller may choose about an image: credentials, whom to trust, and how much to accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Auth:
    """Credentials for the image's registry. They go to that registry and to the token service that it names, nowhere else."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """Which registries are believed: the system's certificate authorities (``SSL_CERT_FILE`` replaces them), and ``ca_file`` besides.

    Plain HTTP is spoken with loopback addresses and with the ``host[:port]`` names in ``plain_http``, and only if they do not speak TLS.
    """

    ca_file: Path | None = None
    plain_http: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What an image may cost. Bytes, counts, seconds; exceeding the first five is ``image.too-large``.

    ``max_ratio`` is unpacked over packed bytes of one layer, looked at beyond its first 64 MiB: text compresses 10:1, gzip can do 1030:1.
    """

    max_compressed_bytes: int = 16 * GIB
    max_unpacked_bytes: int = 32 * GIB
    max_entries: int = 500_000
    max_layers: int = 127
    max_ratio: int = 200
    parallel_pulls: int = 3
    attempts: int = 5
    retry_delay_s: float = 0.2
    timeout_s: float = 30


SYSTEM_TRUST = Trust()
DEFAULT_LIMITS = BuildLimits()
