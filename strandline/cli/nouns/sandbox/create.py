"""``strandline sandbox create`` and ``clone``: how sandboxes come to be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from domain.kernel.errors import Refused
from strandline.cli import args, parse, shapes
from strandline.cli.bulk import settled
from strandline.cli.errors import UsageProblem
from strandline.cli.nouns.sandbox.group import app
from strandline.cli.resolve import GONE
from strandline.cli.verb import Run, verb

MADE = shapes.fields("sandbox_id", "state", "node_id")


Origin = Annotated[
    str | None,
    typer.Argument(
        metavar="TEMPLATE", help="Its id or alias; none with --snapshot.", autocompletion=args.complete("template"), show_default=False
    ),
]
Program = Annotated[
    list[str] | None, typer.Argument(metavar="-- COMMAND", help="Program to run instead of the template's own.", show_default=False)
]
FromSnapshot = Annotated[
    str | None, typer.Option("--snapshot", help="Start from this snapshot.", autocompletion=args.complete("snapshot"), show_default=False)
]
Name = Annotated[str | None, typer.Option("--name", help="A name for it.", show_default=False)]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="Label; repeatable.", show_default=False)]
TimeToLive = Annotated[
    str | None, typer.Option("--ttl", metavar="DURATION", help="Time to live, e.g. 15m; never for none.", show_default=False)
]
TtlKind = Annotated[
    Literal["absolute", "idle"] | None, typer.Option("--ttl-kind", help="Counted from the start, or from the last use.", show_default=False)
]
OnTtl = Annotated[Literal["delete", "pause"] | None, typer.Option("--on-ttl", help="What happens at its end.", show_default=False)]
AutoResume = Annotated[bool, typer.Option("--auto-resume", help="Wake up by itself when it is used.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="WHERE",
        help="It may connect there: an address, network or domain, with :PORT or not; repeatable.",
        show_default=False,
    ),
]
Deny = Annotated[
    list[str] | None, typer.Option("--deny", metavar="WHERE", help="It may not connect there; --allow comes first.", show_default=False)
]
NoInternet = Annotated[bool, typer.Option("--no-internet", help="It may connect to nothing but what --allow says.")]
NodeLabels = Annotated[
    list[str] | None,
    typer.Option("--node-label", metavar="KEY=VALUE", help="Only on nodes that have this label; repeatable.", show_default=False),
]
Strategy = Annotated[
    Literal["spread", "pack", "affinity"] | None,
    typer.Option("--strategy", help="Of the nodes that fit: the emptiest, the fullest, or with most of its kind.", show_default=False),
]
Again = Annotated[
    Literal["never", "always"] | None,
    typer.Option("--restart", help="Start the program again when it ends, each time later.", show_default=False),
]
OnNode = Annotated[str | None, typer.Option("--node", help="On this node.", autocompletion=args.complete("node"), show_default=False)]

Disks = Annotated[
    list[str] | None, typer.Option("--disk", metavar="DISK:PATH[:ro]", help="Mount this disk there; repeatable.", show_default=False)
]


@verb(
    app,
    "create",
    mutates=True,
    waits=60,
    examples="""
    strandline sandbox create python
    strandline sandbox create python --name web --port 8080 --ttl 1h --on-ttl pause
    strandline sandbox create python -o name -- python -m http.server 8080
    strandline sandbox create --snapshot before-upgrade
    strandline sandbox create python --no-internet --allow 192.0.2.10:5432
    strandline sandbox create python --disk data:/srv/data
    """,
)
async def create(
    run: Run,
    template: Origin = None,
    command: Program = None,
    snapshot: FromSnapshot = None,
    name: Name = None,
    cpu: args.Cpu = None,
    memory: args.Memory = None,
    env: args.Env = None,
    port: args.Ports = None,
    label: Labels = None,
    ttl: TimeToLive = None,
    ttl_kind: TtlKind = None,
    on_ttl: OnTtl = None,
    auto_resume: AutoResume = False,
    restart: Again = None,
    node: OnNode = None,
    allow: Allow = None,
    deny: Deny = None,
    no_internet: NoInternet = False,
    node_label: NodeLabels = None,
    strategy: Strategy = None,
    disk: Disks = None,
    if_not_exists: args.IfNotExists = False,
) -> None:
    """Start a sandbox from a template or a snapshot, and wait until it runs.

    What follows -- is the program.
    """
    if if_not_exists and await _existing(run, name):
        return
    reply = await run.s.sandboxes.create(
        None if snapshot else await _template(run, template),
        snapshot_id=await run.id("snapshot", snapshot) if snapshot else None,
        name=name,
        cpu=cpu,
        memory_mb=parse.mebibytes(memory) if memory else None,
        env=parse.pairs(env, "a variable"),
        cmd=_program(command, template, from_snapshot=snapshot is not None),
        ports=port or None,
        labels=parse.pairs(label, "a label"),
        ttl_s=parse.ttl(ttl) if ttl else None,
        ttl_kind=ttl_kind,
        on_ttl=on_ttl,
        auto_resume=auto_resume or None,
        restart=restart,
        node=node,
        egress=_egress(allow, deny, internet=not no_internet),
        node_labels=parse.pairs(node_label, "a label"),
        strategy=strategy,
        disks=[parse.mount(text) for text in disk or ()] or None,
        **run.call,
    )
    run.out.one(settled(run, reply, f"sandbox {reply.sandbox_id}", sandbox_id=reply.sandbox_id), MADE)


def _egress(allow: list[str] | None, deny: list[str] | None, *, internet: bool) -> dict[str, Any] | None:
    """None, when nothing was said: then it is as the node does it for all."""
    return {"allow": allow or [], "deny": deny or [], "internet": internet} if allow or deny or not internet else None


async def _template(run: Run, text: str | None) -> str:
    """An alias goes as it is: the control plane resolves it without a race; a prefix is looked up."""
    if text is None:
        raise UsageProblem("from what? name a template, or --snapshot", "strandline template list")
    return await run.id("template", text)


def _program(command: list[str] | None, first: str | None, *, from_snapshot: bool) -> list[str] | None:
    """The words behind the template; with ``--snapshot`` the first word is the program's too."""
    words = [first] if from_snapshot and first else []
    return [*words, *(command or ())] or None


async def _existing(run: Run, name: str | None) -> bool:
    if name is None:
        raise UsageProblem("--if-not-exists needs --name")
    try:
        known = await run.s.sandboxes.get(await run.id("sandbox", name))
    except Refused as refused:
        if refused.code == "sandbox.not-found":
            return False
        raise
    if known.name != name or known.state in GONE:
        return False
    run.note(f"sandbox {name} exists")
    run.out.one(known, MADE)
    return True


@verb(
    app,
    "clone",
    aliases=("fork",),
    mutates=True,
    waits=120,
    examples="""
    strandline sandbox clone sb-k3f2 --count 3 -o name
    """,
)
async def clone(
    run: Run, sandbox: args.Sandbox, count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many.")] = 1
) -> None:
    """Start sandboxes from what this one is now, memory included where the driver can."""
    identifier = await run.id("sandbox", sandbox)
    reply = settled(run, await run.s.sandboxes.clone(identifier, count, **run.call), f"clone of {identifier}", sandbox_id=identifier)
    rows: list[dict[str, Any]] = [{"sandbox_id": one, "origin": identifier} for one in reply.sandbox_ids]
    run.out.all(rows, shapes.fields("sandbox_id", "origin"))
