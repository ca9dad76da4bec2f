"""Image references: ``docker://host[:port]/name[:tag|@sha256:…]``, ``oci:folder[:tag]``, ``oci-archive:file[:tag]``.

What does not parse is refused before anybody passes it to a tool (reference/cubesandbox.md §3.1). ``docker://`` may be left out, and then
the usual short forms mean what they mean everywhere: ``alpine`` is ``docker.io/library/alpine:latest``.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from domain.kernel.aggregate import Record
from domain.kernel.errors import Invalid

MAX_LENGTH: Final = 512
MAX_NAME: Final = 255
DEFAULT_HOST: Final = "docker.io"

_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._:/@-]+")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_COMPONENT: Final = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class ImageRef(Record):
    """A parsed reference. ``docker`` has host and name, and a tag or a digest; the others a path, and a tag if there are several."""

    kind: Literal["docker", "oci", "oci-archive"]
    host: str = ""
    name: str = ""
    path: str = ""
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        if self.kind == "docker":
            return f"docker://{self.host}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")
        return f"{self.kind}:{self.path}" + (f":{self.tag}" if self.tag else "")


def parse_image(text: str) -> ImageRef:
    """The reference in ``text``. Raises ``Invalid`` with what is wrong with it."""
    given = text.strip()
    if not given or len(given) > MAX_LENGTH:
        raise _invalid(f"1 to {MAX_LENGTH} characters")
    if not _CHARACTERS.fullmatch(given):
        raise _invalid("only letters, digits and . _ : / @ - are allowed")
    for kind in ("oci", "oci-archive"):
        if given.startswith(f"{kind}:"):
            return _local("oci" if kind == "oci" else "oci-archive", given.removeprefix(f"{kind}:"))
    rest = given.removeprefix("docker://")
    if "://" in rest:
        raise _invalid("it begins with docker://, oci: or oci-archive:")
    return _remote(rest)


def _local(kind: Literal["oci", "oci-archive"], rest: str) -> ImageRef:
    path, colon, tag = rest.rpartition(":")
    if not colon:
        path, tag = rest, ""
    elif not _TAG.fullmatch(tag):
        raise _invalid("the tag is not valid")
    _check_path(path)
    return ImageRef(kind=kind, path=path, tag=tag)


def _check_path(path: str) -> None:
    if not path or path.startswith("-") or ":" in path or "@" in path:
        raise _invalid("the path is not valid")
    if ".." in path.split("/"):
        raise _invalid("the path must not contain ..")


def _remote(rest: str) -> ImageRef:
    if rest.startswith("-"):
        raise _invalid("it must not begin with -")
    named, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid("the digest is sha256: and 64 hex digits")
    first, slash, others = named.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host, named = (first, others) if has_host else (DEFAULT_HOST, named)
    name, colon, tag = named.partition(":")
    if not _HOST.fullmatch(host) or _port_of(host) > 65_535:
        raise _invalid("the registry is not valid")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid("the tag is not valid")
    if host == DEFAULT_HOST and "/" not in name:
        name = f"library/{name}"
    if len(name) > MAX_NAME or not all(_COMPONENT.fullmatch(part) for part in name.split("/")):
        raise _invalid("the name is not valid: lower-case letters, digits and . _ - between them")
    return ImageRef(kind="docker", host=host, name=name, tag="" if digest else tag or "latest", digest=digest)


def _port_of(host: str) -> int:
    port = host.partition(":")[2]
    return int(port) if port else 0


def _invalid(why: str) -> Invalid:
    return Invalid("the image reference is not valid", {"image": why})
