"""A sandbox's token, put where its workload finds it: in its own /dev, which every driver that runs on this kernel mounts as a tmpfs."""

from __future__ import annotations

from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import inside

FOLDER: Final = "strandline"
FILE: Final = "identity-token"
IDENTITY_PATH: Final = f"/dev/{FOLDER}/{FILE}"


def give_identity(pid: int, token: str, owner: int | None = None) -> None:
    """``pid``: a process of the sandbox; ``owner``: the host's number of its root, None for this process's own.

    Raises ``RuntimeFault`` (``identity.not-given``).
    """
    try:
        inside.put(pid, FOLDER, FILE, token.encode(), owner)
    except OSError as error:
        raise RuntimeFault("identity.not-given", f"no token for process {pid}: {error}", retryable=True) from error
