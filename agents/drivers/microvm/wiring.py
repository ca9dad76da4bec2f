"""A machine's network: its tap, plugged into the namespace of its sandbox."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface

from agents.drivers.driver import RuntimeFault, Spec
from agents.network import taps


async def plug(tap: str, spec: Spec) -> None:
    """Connect a machine to its sandbox's network, if it has one. Raises ``network.attach-failed``, and what the node's rules raise."""
    if spec.netns is None:
        return
    try:
        await asyncio.to_thread(taps.plug, tap, spec.netns, IPv4Interface(spec.address))
    except (OSError, ValueError) as error:
        raise RuntimeFault("network.attach-failed", f"{spec.sandbox_id}: {error}", retryable=True) from error
