"""The guest image of the tests' microVMs: built once, kept beside the environment, and used by every later run."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest
import uvloop

from agents.drivers.driver import RuntimeFault
from agents.guest import image

GUESTS = Path(os.environ.get("STRAND_GUEST_DIR") or Path(__file__).parents[2] / ".guest")


@functools.cache
def _why_not() -> str:
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is not installed"
    try:
        uvloop.run(image.ensure(GUESTS))
    except RuntimeFault as fault:
        return f"{fault.code}: {fault}"
    return ""


def ready() -> None:
    """Have it, or skip the test and say why."""
    if reason := _why_not():
        pytest.skip(reason)
