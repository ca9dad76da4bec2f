"""Reports about images, artifacts and replicas."""

from __future__ import annotations

from typing import Final

from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import ArtifactBuilt, BuildProgress, ImageResolved, ReplicaPrepared, Report, ReportKind, SandboxCommitted, Verb
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job, Phase, PullProgress
from domain.templates.progress import PROGRESS, progress_of
from domain.templates.replica import Replica
from domain.templates.template import Template
from handlers.control import Control
from handlers.processes import commits, replicas, stored, template_build
from handlers.reporting.taking import Taker, failure_of

MAX_TRIES: Final = 3
"""How often a retryable failure of a build step is tried again by itself."""


async def _alive(control: Control, report: Report, job_id: str) -> None:
    """Somebody works for the job: its lease begins anew (reference/cubesandbox.md §12 "Timers")."""
    cause = control.own_cause(report.project, "job", job_id, "alive", report.id)
    if (job := await control.find(Job, report.project, job_id)) is not None and job.active:
        await control.change(Job, report.project, job_id, cause, lambda j: j.renew(cause.at, control.deadline(control.deadlines.job_s)))


async def _image_resolved(control: Control, report: Report, cause: Cause) -> None:
    if report.kind is ReportKind.FAILED:
        await _build_failed(control, report, cause)
        return
    resolved = ImageResolved.model_validate(report.body)
    facts = resolved.model_dump(include={"digest", "egress_ca"}, exclude_defaults=True)

    def accept(job: Job) -> None:
        if job.facts.get("another_ca"):  # the image is the one that it was
            job.note(cause.at, egress_ca=resolved.egress_ca, another_ca=False)
        else:
            job.note(cause.at, config=resolved.config, **facts)

    await control.change(Job, report.project, report.process_id, cause, accept)


async def _sandbox_committed(control: Control, report: Report, cause: Cause) -> None:
    if report.kind is ReportKind.PROGRESS:
        await _build_progress(control, report, cause)
        return
    if report.kind is ReportKind.FAILED:
        await _build_failed(control, report, cause)
        return
    await _alive(control, report, report.process_id)
    await commits.kept(control, report.project, report.process_id, report.node, SandboxCommitted.model_validate(report.body).digest)


async def _artifact_built(control: Control, report: Report, cause: Cause) -> None:
    if report.kind is ReportKind.PROGRESS:
        await _build_progress(control, report, cause)
        return
    if report.kind is ReportKind.FAILED:
        await _build_failed(control, report, cause)
        return
    built = ArtifactBuilt.model_validate(report.body)
    await _alive(control, report, report.process_id)
    job = await control.get(Job, report.project, report.process_id)
    own = control.own_cause(SYSTEM_PROJECT, "artifact", job.facts["artifact_id"], "built", report.id)

    def accept(artifact: Artifact) -> None:
        if artifact.state is ArtifactState.DELETED:  # its job was over long ago; what is stored now is known again, and goes in its time
            artifact.claim(own.at, artifact.fingerprint, artifact.spec, job.id, report.project)
        artifact.built(own.at, job.id, built.sha256, built.size_bytes, job.facts["digest"], built.image_config, report.node)
        artifact.placed(own.at, report.node)  # who builds keeps a copy, also when the build came too late

    await control.change(Artifact, SYSTEM_PROJECT, job.facts["artifact_id"], own, accept)


async def _phase_of(control: Control, report: Report, progress: BuildProgress, job_id: str) -> Phase:
    """Raises ``report.unknown-phase`` for one of a newer agent: a sign of life, and no more."""
    try:
        return Phase(progress.phase)
    except ValueError:
        await _alive(control, report, job_id)
        raise Refused("report.unknown-phase", f"there is no phase {progress.phase[:64]!r}") from None


async def _build_progress(control: Control, report: Report, cause: Cause) -> None:
    progress = BuildProgress.model_validate(report.body)
    phase = await _phase_of(control, report, progress, report.process_id)
    pull = PullProgress(**progress.model_dump(include=set(PullProgress.model_fields)))

    def accept(job: Job) -> None:
        job.advance(cause.at, phase, _progress(job, phase, progress.fraction))
        if phase is Phase.PULLING:
            job.pull(cause.at, pull)
        job.renew(cause.at, control.deadline(control.deadlines.job_s))

    await control.change(Job, report.project, report.process_id, cause, accept)


def _progress(job: Job, phase: Phase, fraction: float) -> int:
    """Where the phase begins, and that part of the way to where the next one does. In steps of 5: every event is kept for ever."""
    begins = progress_of(job.operation, phase)
    later = [p for p in PROGRESS[job.operation].values() if p > begins]
    return begins + int(fraction * (min(later, default=100) - begins)) // 5 * 5


async def _build_failed(control: Control, report: Report, cause: Cause) -> None:
    failure = failure_of(report)
    job = await control.get(Job, report.project, report.process_id)
    tries = template_build.tries(job)
    if report.attempt < tries:
        return
    if failure.code == "template.origin-gone":
        await commits.forgotten(control, job, report.node)
        await control.change(Job, report.project, job.id, cause, lambda j: j.note(cause.at, tries=tries + 1))
        return
    if failure.code == "egress-ca.changed" and tries < MAX_TRIES:
        await control.change(Job, report.project, job.id, cause, lambda j: j.note(cause.at, tries=tries + 1, another_ca=True))
        return
    if failure.code == "registry.secret-unreadable" and await _given_to_another(control, report, cause, job):
        return
    if failure.retryable and tries < MAX_TRIES:
        await control.change(Job, report.project, job.id, cause, lambda j: j.note(cause.at, tries=tries + 1, last_failure=failure.message))
        return
    await template_build.fail(control, report.project, job, failure)


async def _given_to_another(control: Control, report: Report, cause: Cause, job: Job) -> bool:
    """The node that was asked cannot open the registry's secret; is there one that perhaps can?"""
    template = await control.get(Template, report.project, job.resource_id)
    unreadable = [*job.facts.get("unreadable", ()), report.node]
    if not template_build.able(control, template, unreadable):
        return False
    tries = template_build.tries(job) + 1
    await control.change(Job, report.project, job.id, cause, lambda j: j.note(cause.at, tries=tries, unreadable=unreadable))
    return True


async def _replica_distributed(control: Control, report: Report, cause: Cause) -> None:
    replica = await control.get(Replica, report.project, report.process_id)
    await _alive(control, report, replica.job_id)
    if report.kind is ReportKind.PROGRESS:
        return
    if report.kind is ReportKind.FAILED:
        await _replica_failed(control, report, replica)
        return
    if replica.artifact_id is not None:
        own = control.own_cause(SYSTEM_PROJECT, "artifact", replica.artifact_id, "placed", report.node, report.id)
        await control.change(Artifact, SYSTEM_PROJECT, replica.artifact_id, own, lambda a: a.placed(own.at, report.node))
    await control.change(Replica, report.project, replica.id, cause, lambda r: r.distributed(cause.at, r.job_id))


async def _replica_failed(control: Control, report: Report, replica: Replica) -> None:
    failure = failure_of(report)
    if not await stored.found_bad(control, report.project, replica, failure):
        await replicas.fail(control, report.project, replica, replica.job_id, failure.message)


async def _replica_prepared(control: Control, report: Report, cause: Cause) -> None:
    replica = await control.get(Replica, report.project, report.process_id)
    await _alive(control, report, replica.job_id)
    if report.kind is ReportKind.PROGRESS:
        phase = await _phase_of(control, report, BuildProgress.model_validate(report.body), replica.job_id)
        await template_build.advance(control, report.project, replica.job_id, phase)
        return
    if report.kind is ReportKind.FAILED:
        await _replica_failed(control, report, replica)
        return
    prepared = ReplicaPrepared.model_validate(report.body)
    await template_build.advance(control, report.project, replica.job_id, Phase.SNAPSHOTTING)
    await control.change(
        Replica, report.project, replica.id, cause, lambda r: r.ready(cause.at, r.job_id, prepared.versions, prepared.driver)
    )


async def _replica_removed(control: Control, report: Report, cause: Cause) -> None:
    if report.kind is ReportKind.DONE:
        await control.change(Replica, report.project, report.process_id, cause, lambda r: r.removed(cause.at))


async def _artifact_removed(control: Control, report: Report, cause: Cause) -> None:
    artifact = await control.find(Artifact, SYSTEM_PROJECT, report.process_id)
    if artifact is not None and report.kind is ReportKind.DONE and artifact.state is ArtifactState.CLEANUP_PENDING:
        await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, lambda a: a.unplaced(cause.at, report.node))


TAKERS: Final[dict[str, Taker]] = {
    Verb.IMAGE_RESOLVE: _image_resolved,
    Verb.ARTIFACT_BUILD: _artifact_built,
    Verb.ARTIFACT_REMOVE: _artifact_removed,
    Verb.REPLICA_DISTRIBUTE: _replica_distributed,
    Verb.REPLICA_PREPARE: _replica_prepared,
    Verb.REPLICA_REMOVE: _replica_removed,
    Verb.SANDBOX_COMMIT: _sandbox_committed,
}
