"""Every view there is. A new one is a module here and a line in ``VIEWS``.

``audit`` is no view: events are read from the log itself (``events.read``), which is complete and ordered already; a table of them would
only be the log twice.
"""

from __future__ import annotations

from typing import Final

from projections.view import View
from projections.views import (
    artifacts,
    compat_matrix,
    endpoints,
    jobs,
    nodes,
    replicas,
    runtime_refs,
    sandboxes,
    snapshots,
    storage,
    templates,
    usage,
)

VIEWS: Final[tuple[View, ...]] = (
    artifacts.VIEW,
    compat_matrix.VIEW,
    endpoints.VIEW,
    jobs.VIEW,
    nodes.VIEW,
    replicas.VIEW,
    runtime_refs.VIEW,
    sandboxes.VIEW,
    snapshots.VIEW,
    storage.VIEW,
    templates.VIEW,
    usage.VIEW,
)
