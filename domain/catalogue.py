"""Every module that defines aggregates, events or commands: importing this fills the registries (``domain.kernel.registry``).

A process that decodes the log, validates commands or draws documentation calls :func:`load` once.
"""

from __future__ import annotations

import importlib
from typing import Final

MODULES: Final = (
    "domain.nodes.commands",
    "domain.nodes.node",
    "domain.sandboxes.commands",
    "domain.sandboxes.provisioning",
    "domain.sandboxes.sandbox",
    "domain.templates.alias",
    "domain.templates.artifact",
    "domain.templates.commands",
    "domain.templates.job",
    "domain.templates.replica",
    "domain.templates.snapshot",
    "domain.templates.template",
    "domain.views.commands",
)


def load() -> None:
    """Import them all; the second time this does nothing."""
    for module in MODULES:
        importlib.import_module(module)


load()
