"""Templates made of sandboxes: the disk is copied on the sandbox's node, and what is made of the copy is an artifact like any other.

The node that copied it has the file, and so has every node that the template was made ready on: each of them can give the object store its
bytes back, for there is no image to build them from again. The sandbox is needed for nothing once its disk is copied
(reference/cubesandbox.md §4.1 and §4.2; the result does not stay on the source node).
"""

from __future__ import annotations

from typing import Final

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, artifact_id
from domain.nodes.orders import SandboxCommit, Verb
from domain.sandboxes.sandbox import Sandbox
from domain.sandboxes.spec import Recipe
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.fingerprint import ArtifactSpec, fingerprint
from domain.templates.job import Job
from domain.templates.template import Template, TemplateRequest
from handlers.control import Control
from handlers.processes import template_build

_GUESTS: Final = "vm"


def request_of(sandbox: Sandbox, source: Template) -> TemplateRequest:
    """What the template is to be: the sandbox's own recipe, and where its own template may be.

    A disk that a guest wrote is for guests: no other driver may be given it, whatever a node's default is.
    """
    recipe = sandbox.spec.recipe
    return TemplateRequest(
        cpu=recipe.cpu,
        memory_mb=recipe.memory_mb,
        disk_mb=recipe.disk_mb,
        env=recipe.env,
        cmd=recipe.cmd,
        ports=recipe.ports,
        probe_port=recipe.probe_port,
        driver=_GUESTS if sandbox.driver == _GUESTS else sandbox.spec.driver,
        nodes=source.request.nodes,
        origin_sandbox_id=sandbox.id,
    )


def targets(control: Control, request: TemplateRequest) -> tuple[str, ...]:
    """The healthy nodes that the template may be on. Raises ``template.no-nodes``."""
    found = tuple(n.node_id for n in control.fleet.healthy_nodes() if not request.nodes or n.node_id in request.nodes)
    if not found:
        raise Refused("template.no-nodes", "no node that it may be on is healthy", retryable=True)
    return found


async def recipe(control: Control, project: str, template: Template) -> Recipe | None:
    """How its origin was started; None for a template that was made of an image."""
    origin = template.request.origin_sandbox_id
    return None if origin is None else (await control.get(Sandbox, project, origin)).spec.recipe


async def order(control: Control, project: str, job: Job, template: Template) -> None:
    """Have the sandbox's node copy its disk. Raises ``sandbox.illegal-state`` when there is none any more."""
    sandbox = await control.get(Sandbox, project, template.request.origin_sandbox_id or "")
    sandbox.require_disk()
    body = SandboxCommit(sandbox_id=sandbox.id, generation=sandbox.generation, disk_mb=template.request.disk_mb)
    order = control.new_order(
        Verb.SANDBOX_COMMIT,
        project,
        ("job", job.id),
        body.model_dump(mode="json"),
        key=sandbox.id,
        attempt=template_build.tries(job),
        deadline_s=control.deadlines.job_s,
    )
    await control.order(sandbox.node_id, order)


async def kept(control: Control, project: str, job_id: str, node_id: str, digest: str) -> None:
    """A node has copied the disk and keeps the file: the artifact knows where, also when its job is over, so that it goes in the end."""
    job = await control.get(Job, project, job_id)
    template = await control.get(Template, project, job.resource_id)
    spec = ArtifactSpec(image_digest=digest, disk_mb=template.request.disk_mb)
    identifier = artifact_id(fingerprint(spec))
    known = await control.find(Artifact, SYSTEM_PROJECT, identifier)
    await template_build.claimed(control, project, job, identifier, spec, known)
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", identifier, "kept", job_id, node_id)

    def place(artifact: Artifact) -> None:
        artifact.placed(cause.at, node_id)
        if not job.active:
            artifact.expire_build(cause.at, job_id)

    await control.change(Artifact, SYSTEM_PROJECT, identifier, cause, place)
    await template_build.note(control, project, job_id, "committed", digest=digest, artifact_id=identifier)


def holder(control: Control, artifact: Artifact) -> str | None:
    """A healthy node that has the bytes; None while all that do are away. Raises ``template.origin-gone`` when none ever will."""
    nodes = [control.fleet.nodes[name] for name in sorted(artifact.placements) if name in control.fleet.nodes]
    if all(node.evicted for node in nodes):
        raise Refused("template.origin-gone", f"no node has the bytes of artifact {artifact.id} any more: commit the sandbox anew")
    return next((node.node_id for node in nodes if node.healthy), None)


async def forgotten(control: Control, job: Job, node_id: str) -> None:
    """That node turned out not to have the bytes."""
    identifier = job.facts.get("artifact_id")
    artifact = None if identifier is None else await control.find(Artifact, SYSTEM_PROJECT, identifier)
    if artifact is not None and artifact.state is ArtifactState.BUILDING:
        cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "forgotten", node_id, artifact.generation)
        await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, lambda a: a.unplaced(cause.at, node_id))
