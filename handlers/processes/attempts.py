"""Another attempt at a template: the job that makes replicas again, whoever asks for it (reference/cubesandbox.md §4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from bus.store import Part
from domain.kernel import ids
from domain.templates.job import Job
from domain.templates.redo import ReplicaView
from domain.templates.replica import Replica
from domain.templates.template import Template
from handlers.control import Control, Parts, part


async def another_attempt(
    control: Control, project: str, template: Template, at: datetime, job_id: str, mode: str, nodes: Sequence[str]
) -> Parts:
    """The job and the template that it works on, to be stored in one commit. Raises what ``Job.redo`` and ``Template.begin_job`` do."""
    last = await control.get(Job, project, template.last_job)
    replicas = await _replicas(control, project, template.id)
    healthy = [n.node_id for n in control.fleet.healthy_nodes()]
    job = partial(Job.redo, job_id, at, template.id, last, mode, nodes, replicas, healthy)
    return [
        part(Template, project, template.id, lambda t: t.begin_job(at, job_id, mode)),
        Part(Job, project, job_id, lambda known: known or job()),
    ]


async def _replicas(control: Control, project: str, template_id: str) -> list[ReplicaView]:
    views = []
    for node_id in sorted(control.fleet.by_template.get(template_id, {})):
        replica = await control.find(Replica, project, ids.replica_id(template_id, node_id))
        if replica is not None:
            views.append(
                ReplicaView(
                    node_id=node_id,
                    state=replica.state.value,
                    cleanup_required=replica.cleanup_required,
                    last_error_phase=replica.last_error_phase,
                )
            )
    return views
