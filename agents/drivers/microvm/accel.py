"""KVM or emulation: decided by a boot of the real guest, for a /dev/kvm that can be opened proves nothing (reference/runtimes.md §4)."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm.bases import Bases
from agents.drivers.microvm.command import Accel, Build, Shape
from agents.guest.image import GuestImage
from agents.host import processes

LEAST: Final = Shape(192, 1)
"""What a self-test boots: the smallest machine, which is then there for small sandboxes."""
_KVM_BOOT_S: Final = 10.0
_VERDICT: Final = "kvm.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which accelerator, and why that one."""

    accel: Accel
    why: str


async def choose(guest: GuestImage, bases: Bases, qemu: str) -> Verdict:
    """The verdict on that QEMU in this boot of the host, found once and written down beside the guest image."""
    refusal = _why_not_kvm()
    if refusal:
        return Verdict("tcg", refusal)
    file = guest.directory / "bases" / _VERDICT
    key = {"boot": processes.boot_id(), "qemu": qemu}
    try:
        said = json.loads(await asyncio.to_thread(file.read_text))
    except (OSError, ValueError):
        said = {}
    if said.get("key") != key:
        said = {"key": key, "why_not": await _try_kvm(guest, bases, qemu)}
        file.parent.mkdir(mode=0o700, exist_ok=True)
        await asyncio.to_thread(file.write_text, json.dumps(said))
    if said["why_not"]:
        return Verdict("tcg", f"the guest does not boot under KVM: {said['why_not']}")
    return Verdict("kvm", "the guest boots under KVM")


def _why_not_kvm() -> str:
    """Only the processor's own virtualisation boots a stock kernel; other modules open the same device."""
    if not any(Path("/sys/module", name).is_dir() for name in ("kvm_intel", "kvm_amd")):
        return "neither kvm_intel nor kvm_amd is loaded"
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm may not be opened by this user (group kvm)"


async def _try_kvm(guest: GuestImage, bases: Bases, qemu: str) -> str:
    try:
        await bases.get(guest, Build.here(qemu, "kvm", guest.version), LEAST, _KVM_BOOT_S)
    except RuntimeFault as fault:
        return str(fault)[-300:]
    return ""
