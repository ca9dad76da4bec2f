"""Every view there is. A new one is a module here and a line in ``VIEWS``.

``audit`` is asked like a view but is none of these: it is answered from the log itself (``projections/trail.py``, docs/adr/0014).
"""

from __future__ import annotations

from typing import Final

from projections.view import View
from projections.views import (
    artifacts,
    compat_matrix,
    disk_leases,
    disks,
    endpoints,
    jobs,
    lineage,
    nodes,
    pools,
    replicas,
    rollouts,
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
    disk_leases.VIEW,
    disks.VIEW,
    endpoints.VIEW,
    jobs.VIEW,
    lineage.VIEW,
    nodes.VIEW,
    pools.VIEW,
    replicas.VIEW,
    rollouts.VIEW,
    runtime_refs.VIEW,
    sandboxes.VIEW,
    snapshots.VIEW,
    storage.VIEW,
    templates.VIEW,
    usage.VIEW,
)
