"""``strandline template …``"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from domain.kernel.errors import Refused
from strandline.cli import args, parse, shapes
from strandline.cli.bulk import do_all, settled, split, targets
from strandline.cli.errors import UsageProblem
from strandline.cli.progress import follow_job
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch
from strandline.client import Call
from strandline.client.replies import JobAccepted

app = typer.Typer(help="What sandboxes start from: an image made ready on every node.", no_args_is_help=True)

BUILD_S = 900
REDO = shapes.fields("job_id", "template_id", "status")


@verb(
    app,
    "create",
    mutates=True,
    waits=BUILD_S,
    examples="""
    strandline template create docker://docker.io/library/python:3.12 --alias python
    strandline template create oci:./image:latest --memory 2G --port 8080 -e MODE=prod --no-wait -o name
    strandline template create docker://registry.example/app:1 --alias app --if-not-exists
    strandline template create docker://registry.example/app:1 --registry-user ci --registry-secret-file ./token
    """,
)
async def create(
    run: Run,
    image: Annotated[str, typer.Argument(help="docker://host/name:tag, oci:folder[:tag] or oci-archive:file.", show_default=False)],
    alias: Annotated[str | None, typer.Option("--alias", help="A name for it.", show_default=False)] = None,
    cpu: args.Cpu = None,
    memory: args.Memory = None,
    disk: Annotated[str | None, typer.Option("--disk", metavar="SIZE", help="Size of the root file system.", show_default=False)] = None,
    env: args.Env = None,
    port: args.Ports = None,
    cmd: Annotated[
        str | None, typer.Option("--cmd", help="Program to start instead of the image's own, in shell words.", show_default=False)
    ] = None,
    probe_port: Annotated[int | None, typer.Option("--probe-port", help="Ready when this port answers.", show_default=False)] = None,
    driver: Annotated[
        Literal["process", "oci", "vm", "sim"] | None, typer.Option("--driver", help="How nodes run it.", show_default=False)
    ] = None,
    nodes: args.Nodes = None,
    min_replicas: args.MinReplicas = None,
    max_replicas: args.MaxReplicas = None,
    priority: args.Priority = None,
    egress_ca: Annotated[bool, typer.Option("--egress-ca", help="Trust the egress proxy's certificate inside.")] = False,
    registry_user: Annotated[str | None, typer.Option("--registry-user", help="User at the registry.", show_default=False)] = None,
    registry_secret_file: Annotated[
        str | None,
        typer.Option(
            "--registry-secret-file",
            metavar="FILE|-",
            help="File with the registry's password or token; - is stdin. It is sealed to the nodes that build.",
            show_default=False,
        ),
    ] = None,
    if_not_exists: args.IfNotExists = False,
) -> None:
    """Make a template from an image.

    Waits with a progress bar until it is ready on its nodes.
    """
    if max_replicas is not None and max_replicas < (min_replicas or 0):
        raise UsageProblem("--max-replicas is less than --min-replicas")
    if if_not_exists and await _existing(run, alias):
        return
    call = run.call | Call(wait_s=0)
    made = await run.s.templates.create(
        image,
        alias=alias,
        cpu=cpu,
        memory_mb=parse.mebibytes(memory) if memory else None,
        disk_mb=parse.mebibytes(disk) if disk else None,
        env=parse.pairs(env, "a variable"),
        cmd=parse.words(cmd) if cmd else None,
        ports=port or None,
        probe_port=probe_port,
        driver=driver,
        nodes=parse.listed(nodes),
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        priority=priority,
        egress_ca=egress_ca or None,
        registry_user=registry_user,
        registry_secret=_secret(registry_secret_file),
        **call,
    )
    if not run.wait:
        run.out.one(made, shapes.fields("template_id", "job_id", "status"))
        return
    await follow_job(run, made.job_id)
    run.out.one(await run.s.templates.get(made.template_id), shapes.TEMPLATE)


async def _existing(run: Run, alias: str | None) -> bool:
    if alias is None:
        raise UsageProblem("--if-not-exists needs --alias")
    try:
        known = await run.s.templates.get(await run.id("template", alias))
    except Refused as refused:
        if refused.code == "template.not-found":
            return False
        raise
    if known.alias != alias:
        return False
    run.note(f"template {alias} exists")
    run.out.one(known, shapes.TEMPLATE)
    return True


def _secret(file: str | None) -> str | None:
    if file is None:
        return None
    return (sys.stdin.read() if file == "-" else Path(file).read_text()).strip()


@verb(
    app,
    "commit",
    mutates=True,
    waits=BUILD_S,
    examples="""
    strandline template commit sb-k3f2 --alias warm
    """,
)
async def commit(
    run: Run, sandbox: args.Sandbox, alias: Annotated[str | None, typer.Option("--alias", help="A name for it.", show_default=False)] = None
) -> None:
    """Make a template from what a running sandbox is now."""
    made = await run.s.templates.commit(await run.id("sandbox", sandbox), alias=alias, **run.call | Call(wait_s=0))
    if run.wait:
        await follow_job(run, made.job_id)
        run.out.one(await run.s.templates.get(made.template_id), shapes.TEMPLATE)
        return
    run.out.one(made, shapes.fields("template_id", "job_id", "status"))


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline template list
    strandline template list status=READY -o wide
    strandline template list --columns template_id,alias,replicas.failed -o csv
    strandline template list --watch
    """,
)
async def list_(run: Run, as_of: args.AsOf = None) -> None:
    """Templates and how ready they are."""

    def read() -> AsyncIterator[Any]:
        return run.s.templates.list(as_of=parse.moment(as_of) if as_of else None, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, shapes.TEMPLATE, ("template", "replica", "alias"), read)
    else:
        await run.out.rows(read(), shapes.TEMPLATE)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline template get python
    strandline template get tpl-3fa9 -o json
    strandline template get python --as-of 2h
    """,
)
async def get(run: Run, template: args.Template, as_of: args.AsOf = None) -> None:
    """One template with all its fields."""
    moment = parse.moment(as_of) if as_of else None
    run.out.record(await run.s.templates.get(await run.id("template", template), as_of=moment), shapes.TEMPLATE)


@verb(
    app,
    "replicas",
    lists=True,
    watches=True,
    examples="""
    strandline template replicas python
    strandline template replicas python status=FAILED -o wide
    """,
)
async def replicas(run: Run, template: args.Template) -> None:
    """What each node holds of a template."""
    if "template_id" in run.filters:
        raise UsageProblem("template_id is no filter here: the template is named already", "strandline view get replicas template_id=…")
    identifier = await run.id("template", template)

    def read() -> AsyncIterator[Any]:
        return run.s.templates.replicas(identifier, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, shapes.REPLICA, ("replica", "node"), read)
    else:
        await run.out.rows(read(), shapes.REPLICA)


@verb(
    app,
    "redo",
    mutates=True,
    waits=BUILD_S,
    examples="""
    strandline template redo python
    strandline template redo python --mode FAILED_ONLY
    strandline template redo python --nodes n1,n2
    """,
)
async def redo(
    run: Run,
    template: args.Template,
    mode: Annotated[
        Literal["ALL", "NODES", "FAILED_ONLY", "FAILED_NODES"] | None,
        typer.Option("--mode", help="Which replicas; ALL, or NODES with --nodes.", show_default=False),
    ] = None,
    nodes: args.Nodes = None,
) -> None:
    """Make replicas again."""
    listed = parse.listed(nodes)
    chosen = mode or ("NODES" if listed else "ALL")
    identifier = await run.id("template", template)
    reply = await run.s.templates.redo(identifier, chosen, nodes=listed, **run.call | Call(wait_s=0))
    await _job_done(run, reply, identifier)


async def _job_done(run: Run, reply: JobAccepted, template_id: str) -> None:
    status = getattr(reply, "status", "PENDING")
    if run.wait:
        status = (await follow_job(run, reply.job_id)).status
    run.out.one(
        {"job_id": reply.job_id, "template_id": template_id, "status": status, "seq": reply.seq, "command_id": reply.command_id}, REDO
    )


@verb(
    app,
    "adopt-baseline",
    aliases=("adopt",),
    mutates=True,
    examples="""
    strandline template adopt-baseline python
    """,
)
async def adopt_baseline(run: Run, template: args.Template) -> None:
    """Declare that replicas of unknown origin fit what their nodes run now."""
    identifier = await run.id("template", template)
    reply = await run.s.templates.adopt_baseline(identifier, **run.call)
    run.out.one({"template_id": identifier, **reply.model_dump(exclude_none=True)}, shapes.fields("template_id", "updated"))


@verb(
    app,
    "set-compat-policy",
    mutates=True,
    examples="""
    strandline template set-compat-policy python GUEST_ONLY
    strandline template set-compat-policy python STRICT
    """,
)
async def set_compat_policy(
    run: Run,
    template: args.Template,
    policy: Annotated[Literal["STRICT", "GUEST_ONLY"], typer.Argument(metavar="STRICT|GUEST_ONLY", help="Which versions count.")],
) -> None:
    """Say whether another agent on a node makes replicas stale (STRICT), or only another guest image does (GUEST_ONLY)."""
    identifier = await run.id("template", template)
    reply = await run.s.templates.set_compat_policy(identifier, policy, **run.call)
    run.out.one(reply, shapes.fields("template_id", "policy"))


@verb(
    app,
    "delete",
    aliases=("rm",),
    mutates=True,
    waits=60,
    examples="""
    strandline template delete python
    strandline template delete --all status=FAILED --yes
    """,
)
async def delete(
    run: Run,
    templates: args.Templates = None,
    every: args.All = False,
    yes: args.Yes = False,
    force: Annotated[bool, typer.Option("--force", help="End a job that is still running on it first.")] = False,
) -> None:
    """Delete templates. One that sandboxes use is refused."""
    names, filters = split(templates, every=every)
    found = (t.template_id async for t in run.s.templates.list(**parse.filters(filters))) if every else None

    async def act(identifier: str, call: Call) -> dict[str, Any]:
        reply = settled(
            run, await run.s.templates.delete(identifier, force=force, **call), f"template {identifier}", template_id=identifier
        )
        return {"template_id": identifier, **reply.model_dump(exclude={"id"}, exclude_none=True)}

    chosen = await targets(run, "template", names, every=found, yes=yes, what="Delete")
    await do_all(run, chosen, act, shapes.fields("template_id", "settled"))


@verb(
    app,
    "watch",
    waits=BUILD_S,
    examples="""
    strandline template watch python
    """,
)
async def watch_(run: Run, template: args.Template) -> None:
    """Follow the template's latest job to its end."""
    identifier = await run.id("template", template)
    known = await run.s.templates.get(identifier)
    if known.job_id:
        await follow_job(run, known.job_id)
    run.out.one(await run.s.templates.get(identifier), shapes.TEMPLATE)
