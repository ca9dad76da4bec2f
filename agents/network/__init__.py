"""Networks of sandboxes: addresses, namespaces, what may pass, names."""

from typing import Final

ZONE: Final = "sandbox.internal"
"""Names of sandboxes end so. ``internal`` is nobody's on the internet (ICANN, 2024)."""
