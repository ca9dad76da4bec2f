"""What can go wrong with an image, as refusals with stable codes.

| code | means |
|---|---|
| ``image.bad-reference`` ``image.not-found`` ``image.ambiguous`` | the reference says nothing, names nothing, or names several images |
| ``image.unauthorized`` ``image.untrusted-registry`` ``image.insecure`` | credentials, certificates, plain text |
| ``image.unreachable`` ``image.registry-error`` ``image.rate-limited`` | the registry does not answer properly (retryable) |
| ``image.bad-manifest`` ``image.unsupported-manifest`` ``image.unsupported-layer`` | the image is not one that we understand |
| ``image.wrong-platform`` | it is for other machines |
| ``image.digest-mismatch`` ``image.bad-layer`` | the bytes are not what they claim to be |
| ``image.unsafe-path`` ``image.unsafe-xattr`` ``image.device-node`` ``image.too-large`` | the image attacks whoever unpacks it |
| ``egress-ca.invalid`` ``host.missing-tool`` ``node.disk-full`` ``artifact.build-failed`` | this host cannot build it |
"""

from __future__ import annotations

import errno

from domain.kernel.errors import Refused

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class ImageFault(Refused):
    """An image could not be resolved or built; nothing of the attempt is left on the host."""

    def __repr__(self) -> str:
        return f"ImageFault({self.code!r}, {self.message!r})"


def host_fault(error: OSError, doing: str) -> ImageFault:
    """The host's own file system failed, not the image: a full disk may be emptied, so that one is retryable."""
    if error.errno in _FULL:
        return ImageFault("node.disk-full", f"the disk is full while {doing}", retryable=True)
    return ImageFault("artifact.build-failed", f"{doing}: {error.strerror or error}")
