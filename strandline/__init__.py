"""What people hold in their hands: the Python client and the command line.

from strandline import Strandline

async with Strandline.connect("/var/lib/strandline") as s:
    made = await s.sandboxes.create("python", wait_s=30)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domain.kernel.errors import Refused
    from strandline.client import Strandline

__all__ = ["Refused", "Strandline"]


def __getattr__(name: str) -> Any:
    """The client, imported when it is asked for: ``strandline --help`` needs no bus."""
    if name in __all__:
        from strandline import client  # noqa: PLC0415 - lazy on purpose, see above

        return getattr(client, name)
    raise AttributeError(name)
