"""The egress CA put into an image, so that what runs in it trusts the proxy that inspects its traffic.

Targets and edge cases: reference/cubesandbox.md §3.8. Where the CA is in every target already, that is success (there it was an error).
"""

from __future__ import annotations

import binascii
import hashlib
import re
import ssl
from dataclasses import dataclass
from typing import Final

from agents.images.contents import Contents
from agents.images.faults import ImageFault, host_fault
from agents.images.options import MIB
from agents.images.tree import TOP, Kind, Node, Tree

BUNDLES: Final = (
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/pki/tls/certs/ca-bundle.crt",
)
"""Files that programs read: Debian, Alpine and Arch; Fedora's extracted form; older Red Hat."""
ANCHORS: Final = (
    "usr/local/share/ca-certificates",
    "etc/pki/ca-trust/source/anchors",
    "etc/ca-certificates/trust-source",
)
"""Folders that the distributions' own update tools read, so that the CA survives such an update."""
ANCHOR_NAME: Final = "strandline-egress-root.crt"

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*?)-----END CERTIFICATE-----")
_MAX_CA: Final = 64 * 1024
_MAX_BUNDLE: Final = 16 * MIB


@dataclass(frozen=True, slots=True)
class Baked:
    """What was done. ``targets``: paths written now. ``seeded``: the image trusted nobody, and now trusts this CA alone.

    ``skipped``: paths that were left alone, and why; ``present`` is one such reason.
    """

    fingerprint: str
    targets: tuple[str, ...]
    seeded: bool
    skipped: dict[str, str]


def fingerprint(pem: bytes) -> str:
    """SHA-256, hex, of the certificate's DER form: the same however it is wrapped. Raises ``egress-ca.invalid``."""
    return hashlib.sha256(_only_certificate(pem)).hexdigest()


def bake(tree: Tree, contents: Contents, pem: bytes) -> Baked:
    """Add the CA to the tree. Raises ``egress-ca.invalid``, ``node.disk-full``."""
    der = _only_certificate(pem)
    try:
        return _Oven(tree, contents, der).bake()
    except OSError as error:
        raise host_fault(error, "adding the egress CA") from error


def _only_certificate(pem: bytes) -> bytes:
    found = _PEM.findall(pem)
    if len(pem) > _MAX_CA or len(found) != 1 or pem.count(b"-----BEGIN ") != 1:
        raise ImageFault("egress-ca.invalid", "the egress CA file does not hold exactly one certificate")
    der = _der(found[0])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der or b"\0")
    except (ssl.SSLError, ValueError) as error:
        raise ImageFault("egress-ca.invalid", "the egress CA file holds no certificate that can be parsed") from error
    return der


def _der(body: bytes) -> bytes:
    """b"" for what is no base64: bundles are other people's files."""
    try:
        return binascii.a2b_base64(b"".join(body.split()))
    except binascii.Error:
        return b""


class _Oven:
    def __init__(self, tree: Tree, contents: Contents, der: bytes) -> None:
        self._tree = tree
        self._contents = contents
        self._der = der
        self._pem = ssl.DER_cert_to_PEM_cert(der).encode()
        self._targets: list[str] = []
        self._skipped: dict[str, str] = {}

    def bake(self) -> Baked:
        for bundle in BUNDLES:
            self._append(bundle)
        for folder in ANCHORS:
            self._anchor(folder)
        seeded = not self._targets and "present" not in self._skipped.values()
        if seeded:
            self._write(_path(BUNDLES[0]), self._pem)
            self._targets.append(BUNDLES[0])
        return Baked(hashlib.sha256(self._der).hexdigest(), tuple(self._targets), seeded, self._skipped)

    def _append(self, bundle: str) -> None:
        real = self._tree.follow(_path(bundle))
        entry = self._tree.entry(real) if real else None
        if real is None or entry is None:
            self._skipped[bundle] = "missing"
            return
        node = entry.node
        if node.kind is not Kind.FILE or node.size > _MAX_BUNDLE:
            self._skipped[bundle] = "no bundle"
            return
        text = self._contents.read(node.content, _MAX_BUNDLE)
        if any(_der(body) == self._der for body in _PEM.findall(text)):
            self._skipped[bundle] = "present"
            return
        self._write(real, text + (b"" if not text or text.endswith(b"\n") else b"\n") + self._pem)
        self._targets.append(bundle)

    def _anchor(self, folder: str) -> None:
        real = self._tree.follow(_path(folder))
        entry = self._tree.entry(real) if real else None
        if real is None or entry is None or entry.node.kind is not Kind.DIRECTORY:
            self._skipped[folder] = "missing"
            return
        path = (*real, ANCHOR_NAME.encode())
        old = self._tree.entry(path)
        if old and old.node.kind is Kind.FILE and self._contents.read(old.node.content, _MAX_CA) == self._pem:
            self._skipped[folder] = "present"
            return
        self._write(path, self._pem)
        self._targets.append(f"{folder}/{ANCHOR_NAME}")

    def _write(self, path: tuple[bytes, ...], text: bytes) -> None:
        """A new file in the place of the old one, 0644: other names of the old one keep what they had."""
        node = Node(Kind.FILE, 0o644, mtime_ns=self._tree.mtime_ns)
        node.content, node.size = self._contents.add([text])
        self._tree.put(path, node, layer=TOP)


def _path(text: str) -> tuple[bytes, ...]:
    return tuple(part.encode() for part in text.split("/"))
