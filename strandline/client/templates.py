"""Templates: made from an image or a sandbox, made again, looked at, deleted. Wherever a template is asked for, an alias will do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from bus import sealed
from domain.kernel.errors import Refused
from domain.templates.commands import (
    TemplateAdoptBaseline,
    TemplateCommit,
    TemplateCreate,
    TemplateDelete,
    TemplateRedo,
    TemplateSetCompatPolicy,
)
from domain.templates.image_ref import parse_image
from strandline.client.call import Call, given
from strandline.client.items import Node, Replica, Template
from strandline.client.noun import Noun
from strandline.client.replies import Accepted, BaselineAdopted, CompatPolicy, JobAccepted, TemplateAccepted

RedoMode = Literal["ALL", "NODES", "FAILED_ONLY", "FAILED_NODES"]
CompatPolicyName = Literal["STRICT", "GUEST_ONLY"]


class Templates(Noun):
    """``template.*`` and the views ``templates`` and ``replicas``."""

    async def create(
        self,
        image: str,
        *,
        alias: str | None = None,
        cpu: float | None = None,
        memory_mb: int | None = None,
        disk_mb: int | None = None,
        env: Mapping[str, str] | None = None,
        cmd: Sequence[str] | None = None,
        ports: Sequence[int] | None = None,
        probe_port: int | None = None,
        driver: str | None = None,
        nodes: Sequence[str] | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        priority: int | None = None,
        egress_ca: bool | None = None,
        registry_user: str | None = None,
        registry_secret: str | None = None,
        **call: Unpack[Call],
    ) -> TemplateAccepted:
        """Make a template from an image: ``docker://host/name:tag``, ``oci:folder[:tag]`` or ``oci-archive:file``.

        ``min_replicas`` (0 to 10000) nodes get it before others get theirs, the greater ``priority`` (-1000 to 1000) first, and no more
        than ``max_replicas`` (1 to 10000) do. Raises ``command.invalid``, also when at most is less than at least.

        ``registry_secret`` is the plain secret. It is sealed here, to the nodes that can build now, and leaves this process in no other
        form. Raises ``template.no-nodes`` when there are none.
        """
        return await self._calls.command(
            TemplateCreate,
            TemplateAccepted,
            call,
            image=image,
            alias=alias,
            cpu=cpu,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            env=env,
            cmd=cmd,
            ports=ports,
            probe_port=probe_port,
            driver=driver,
            nodes=nodes,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            priority=priority,
            egress_ca=egress_ca,
            registry_user=registry_user,
            registry_secret=None if registry_secret is None else await self._sealed(registry_secret, image),
        )

    async def _sealed(self, secret: str, image: str) -> str:
        """``secret`` for the image's registry, to be opened by the nodes that the control plane would choose from, the best first."""
        registry = parse_image(image).host
        found = [node async for node in self._calls.each("nodes", Node, {}) if _builds(node)]
        found.sort(key=lambda node: (node.status != "ready", node.used.sandboxes, node.node_id))
        keys = {node.node_id: node.host["sealing_key"] for node in found[: sealed.MAX_NODES]}
        if not keys:
            raise Refused("template.no-nodes", "no node that builds is online, so there is none to seal the registry's secret to")
        return sealed.seal(secret, keys, registry)

    async def commit(self, sandbox_id: str, *, alias: str | None = None, **call: Unpack[Call]) -> TemplateAccepted:
        """Make a template from the disk of a running sandbox."""
        return await self._calls.command(TemplateCommit, TemplateAccepted, call, sandbox_id=sandbox_id, alias=alias)

    async def redo(self, template: str, mode: RedoMode = "ALL", *, nodes: Sequence[str] | None = None, **call: Unpack[Call]) -> JobAccepted:
        """Make replicas again: all, those on ``nodes``, or only those that failed."""
        return await self._calls.command(TemplateRedo, JobAccepted, call, template=template, mode=mode, nodes=nodes)

    async def adopt_baseline(self, template: str, **call: Unpack[Call]) -> BaselineAdopted:
        """Declare that replicas of unknown origin fit what their nodes run now."""
        return await self._calls.command(TemplateAdoptBaseline, BaselineAdopted, call, template=template)

    async def set_compat_policy(self, template: str, policy: CompatPolicyName, **call: Unpack[Call]) -> CompatPolicy:
        """Say whether a node's agent counts beside its guest image (STRICT), or the guest image alone does (GUEST_ONLY)."""
        return await self._calls.command(TemplateSetCompatPolicy, CompatPolicy, call, template=template, policy=policy)

    async def delete(self, template: str, *, force: bool = False, **call: Unpack[Call]) -> Accepted:
        """Delete it. Refused as ``template.in-use`` while sandboxes of it live; ``force`` ends a running job first."""
        return await self._calls.command(TemplateDelete, Accepted, call, template=template, force=force or None)

    async def get(self, template: str, *, as_of: int | str | None = None) -> Template:
        """One template by id or alias. Raises ``template.not-found``."""
        return await self._calls.one("templates", Template, "template", template, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Template]:
        """Templates whose fields equal the filters."""
        return self._calls.each("templates", Template, {**filters, "as_of": as_of}, limit=limit)

    def replicas(self, template_id: str | None = None, *, limit: int | None = None, **filters: Any) -> AsyncIterator[Replica]:
        """What each node holds of a template, or of all."""
        return self._calls.each("replicas", Replica, {**filters, **given(template_id=template_id)}, limit=limit)


def _builds(node: Node) -> bool:
    return node.status not in {"offline", "evicted"} and "builder" in node.roles and "sealing_key" in node.host
