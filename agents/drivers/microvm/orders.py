"""What a guest is told about itself: at a start, and when it goes on from a snapshot."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from typing import Final

from agents.drivers.driver import ExecRequest, Limits, Spec
from agents.drivers.microvm.memory import Memory
from agents.network.spoofing import hardware_of

Fields = list[tuple[str, str]]
"""Tagged texts (``channel.fields``)."""

_ENTROPY: Final = 64


def prepare() -> Fields:
    """It shall wait for one of the others."""
    return _now("waiting")


def _now(hostname: str) -> Fields:
    """What only this machine may have: its clock, its random numbers, its name."""
    return [("h", hostname), ("t", str(time.time_ns())), ("s", secrets.token_hex(_ENTROPY))]


def _process(argv: Sequence[str], env: Mapping[str, str], cwd: str, user: str) -> Fields:
    return [("d", cwd), ("u", user), *(("a", word) for word in argv), *(("e", f"{name}={value}") for name, value in env.items())]


def start(spec: Spec) -> Fields:
    """Who it is from now on, and what to run."""
    return [*_now(spec.hostname), ("n", network(spec)), ("l", limits(spec.limits)), *_process(spec.argv, spec.env, spec.cwd, spec.user)]


def restored(spec: Spec, memory: Memory) -> Fields:
    """It goes on: a copy is a machine of its own, a rollback the same one again."""
    wanted = limits(spec.limits)
    changed = [("l", wanted)] if wanted != memory.limits else []
    return [*_now(spec.hostname), ("n", network(spec)), *changed, *([("c", "")] if spec.sandbox_id != memory.sandbox else [])]


def network(spec: Spec) -> str:
    """Address, netmask, gateway and hardware address of its interface; empty for none."""
    if not spec.address:
        return ""
    interface = IPv4Interface(spec.address)
    return f"{interface.ip} {interface.netmask} {spec.gateway} {hardware_of(interface.ip)}"


def execute(spec: Spec, request: ExecRequest) -> Fields:
    """One more process."""
    said = _process(request.argv, {**spec.env, **request.env}, request.cwd or spec.cwd, request.user or spec.user)
    return [*said, ("m", str(request.max_output))]


def limits(wanted: Limits) -> str:
    """As the guest's control groups count: microseconds of each tenth of a second, bytes, processes."""
    return f"{max(1000, int(wanted.cpu * 100_000))} {wanted.memory_mb << 20} {wanted.pids}"
