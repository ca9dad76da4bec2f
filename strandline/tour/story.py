"""The demo's story, one method per chapter. Everything goes over the bus, as any caller's would."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path
from typing import Any, Protocol

from strandline.client import Strandline
from strandline.client.items import Node
from strandline.client.jobs import failure
from strandline.drivers import AUTO, why
from strandline.tour.screen import Screen

ALIAS = "demo"
NODE = "node-1"
WAIT_S = 120.0
PATH = "/root/note.txt"
COUNT = "/dev/shm/count"  # noqa: S108 - the sandbox's
COUNTER = f"i=0; while :; do i=$((i+1)); echo $i > {COUNT}.new; mv {COUNT}.new {COUNT}; sleep 0.1; done"


class Home(Protocol):
    """What the story needs of an installation."""

    dir: Path
    driver: str

    def python(self, module: str, *arguments: str) -> list[str]: ...

    async def start(self) -> str: ...


class Story:
    """Tells and does at the same time. Raises ``Refused`` or ``RuntimeError`` where something does not work."""

    def __init__(self, screen: Screen, installation: Home, image: str | None) -> None:
        self._screen = screen
        self._installation = installation
        self._image = image
        self._memory = False

    async def tell(self, *, keep: bool = False) -> None:
        """Every chapter, in order; with ``keep`` not the last one, which deletes everything."""
        await self._bring_up()
        async with Strandline.connect(self._installation.dir) as s:
            await self._node(s)
            template = await self._template(s)
            sandbox = await self._sandbox(s)
            await self._past(s, sandbox)
            clones = await self._clones(s, sandbox)
            await self._compat(s, template)
            await self._audit(s, sandbox)
            await self._views(s)
            await self._verify(s)
            if keep:
                self._screen.step("leave everything as it is")
            else:
                await self._end(s, [sandbox, *clones])

    async def _bring_up(self) -> None:
        self._screen.step("start nats-server, control plane, projector and one node")
        url = await self._installation.start()
        self._screen.facts(bus=url, directory=self._installation.dir)

    async def _node(self, s: Strandline) -> None:
        self._screen.step("the node has registered", "strand.v1.cmd.default.node.enroll → strand.rpt.node-1.observed")
        node: Node = await s.nodes.get(NODE)
        driver = node.drivers[0]
        self._memory = "memory-snapshot" in driver.flags
        self._screen.facts(driver=f"{driver.name} {driver.version}", can=", ".join(driver.flags))
        self._screen.facts(guest_image=node.versions.guest_image, agent=node.versions.agent, kernel=node.versions.kernel)
        asked = self._installation.driver
        better = asked == AUTO and driver.name == "process"
        (self._screen.lacks if better else self._screen.fact)(f"driver chosen: {why(asked, driver.name)}")

    async def _template(self, s: Strandline) -> str:
        image = self._image or await self._compose()
        self._screen.step("make a template from the image, with a bar per phase", "strand.v1.cmd.default.template.create")
        made = await s.templates.create(image, alias=ALIAS, memory_mb=128)
        with self._screen.progress() as progress:
            bars: dict[str, Any] = {}
            async for job in s.jobs.watch(made.job_id):
                if job.phase not in bars:
                    for bar in bars.values():
                        progress.update(bar, completed=100)
                    bars[job.phase] = progress.add_task(job.phase, total=100)
                progress.update(bars[job.phase], completed=100 if job.status == "READY" else job.progress)
        failed = failure(await s.jobs.wait(made.job_id, timeout=WAIT_S))
        if failed is not None:
            raise failed
        template = await s.templates.get(ALIAS)
        self._screen.facts(template=template.template_id, artifact=template.artifact_id, digest=(template.image_digest or "")[:19])
        again = await s.templates.create(image, alias="demo-again", memory_mb=256, wait_s=WAIT_S)
        second = await s.templates.get(again.template_id)
        self._screen.fact(f"the same image again: artifact {second.artifact_id}, not built a second time")
        await s.templates.delete(again.template_id, wait_s=WAIT_S)
        return template.template_id

    async def _compose(self) -> str:
        self._screen.step("compose an OCI image from this host's own shell and tools (several layers, one with a whiteout)")
        layout = self._installation.dir / "images" / "demo"
        process = await asyncio.create_subprocess_exec(
            *self._installation.python("agents.images.compose", str(layout)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise RuntimeError(err.decode(errors="replace"))
        self._screen.fact(out.decode().strip() or str(layout))
        return f"oci:{layout}"

    async def _sandbox(self, s: Strandline) -> str:
        self._screen.step("start a sandbox from it", "strand.v1.cmd.default.sandbox.create")
        began = time.perf_counter()
        made = await s.sandboxes.create(ALIAS, name="demo", wait_s=WAIT_S)
        took = (time.perf_counter() - began) * 1000
        sandbox = await s.sandboxes.get(made.sandbox_id)
        self._screen.facts(
            sandbox=sandbox.sandbox_id, state=sandbox.state, node=sandbox.node_id, address=sandbox.address or "none", ms=round(took)
        )
        self._screen.step("run a command inside", "strand.v1.cmd.default.sandbox.exec")
        await self._show(s, sandbox.sandbox_id, "echo hello from $(uname -n); id -u; ls /")
        return sandbox.sandbox_id

    async def _show(self, s: Strandline, sandbox: str, script: str) -> str:
        """Run a shell line inside, show it with its output."""
        done = await s.sandboxes.exec(sandbox, ["/bin/sh", "-c", script])
        out = base64.b64decode(done.stdout).decode(errors="replace")
        err = base64.b64decode(done.stderr).decode(errors="replace")
        self._screen.fact(f"$ {script}", "cyan")
        for line in [*out.splitlines(), *err.splitlines()]:
            self._screen.fact(f"  {line}")
        if done.exit_code:
            self._screen.fact(f"  exit code {done.exit_code}", "yellow")
        return out

    async def _past(self, s: Strandline, sandbox: str) -> None:
        self._screen.step("write a file and take a snapshot", "strand.v1.cmd.default.snapshot.create")
        await self._show(s, sandbox, f"mkdir -p /root; echo 'the tide was here' > {PATH}; cat {PATH}")
        if self._memory:
            self._screen.fact("a process in there begins to count, in memory alone")
            await self._show(s, sandbox, f"({COUNTER}) >/dev/null 2>&1 & sleep 1; cat {COUNT}")
        taken = await s.snapshots.create(sandbox, name="before", wait_s=WAIT_S)
        snapshot = await s.snapshots.get(taken.snapshot_id)
        self._screen.facts(snapshot=snapshot.snapshot_id, bytes=snapshot.size_bytes, status=snapshot.status)
        self._screen.facts(holds=" and ".join(snapshot.holds))
        if not self._memory:
            self._screen.lacks(
                "this driver keeps no memory in snapshots; this one holds the disk, and processes start anew after a rollback"
            )
        self._screen.step("delete the file, roll back, and see it again", "strand.v1.cmd.default.sandbox.rollback")
        await self._show(s, sandbox, f"rm {PATH}; cat {PATH}")
        before = await self._count(s, sandbox, after_s=3) if self._memory else 0
        back = await s.sandboxes.rollback(sandbox, snapshot.snapshot_id, wait_s=WAIT_S)
        self._screen.facts(generation=back.generation)
        if "tide" not in await self._show(s, sandbox, f"cat {PATH}"):
            raise RuntimeError("the rollback did not bring the file back")
        if self._memory:
            await self._counter_is_back(s, sandbox, before)

    async def _count(self, s: Strandline, sandbox: str, after_s: int = 0) -> int:
        """What the process has counted to; 0 when there is none."""
        return int((await self._show(s, sandbox, f"sleep {after_s}; cat {COUNT}")).strip() or 0)

    async def _counter_is_back(self, s: Strandline, sandbox: str, before: int) -> None:
        """It goes on from where it was at the snapshot."""
        self._screen.fact(f"the process had come to {before}; it is back at where it was at the snapshot, and counts on from there:")
        now = await self._count(s, sandbox)
        if await self._count(s, sandbox, after_s=1) <= now:
            raise RuntimeError("the rollback did not bring the process back")

    async def _clones(self, s: Strandline, sandbox: str) -> list[str]:
        self._screen.step("clone the sandbox twice", "strand.v1.cmd.default.sandbox.clone")
        cloned = await s.sandboxes.clone(sandbox, 2, wait_s=WAIT_S)
        for clone in cloned.sandbox_ids:
            await self._show(s, clone, f"cat {PATH}")
            if self._memory and await self._count(s, clone, after_s=1) == 0:
                raise RuntimeError("the process does not go on in the clone")
        return list(cloned.sandbox_ids)

    async def _compat(self, s: Strandline, template: str) -> None:
        subjects = "strand.v1.cmd.default.compat.rescan → strand.v1.qry.default.compat-matrix.list"
        self._screen.step("a new guest image arrives on the node: the template becomes STALE", subjects)
        before = s.seq
        await self._matrix(s, "OK")
        version = self._installation.dir / "nodes" / NODE / "guest-image-version"
        await asyncio.to_thread(version.write_text, "2\n")
        await s.compat.rescan([NODE], wait_s=WAIT_S)
        await self._matrix(s, "STALE")
        self._screen.step("make its replicas again: OK", "strand.v1.cmd.default.template.redo")
        await s.templates.redo(template, "ALL", wait_s=WAIT_S)
        await self._matrix(s, "OK")
        question = f'strand.v1.qry.default.compat-matrix.list {{"as_of": {before}}}'
        self._screen.step("the matrix as of a moment ago, from the log", question)
        self._screen.matrix([row.model_dump() async for row in s.compat.list(as_of=before)])

    async def _matrix(self, s: Strandline, overall: str) -> None:
        """Show it. Raises ``RuntimeError`` unless it says what the step is about."""
        rows = [row.model_dump() async for row in s.compat.list()]
        self._screen.matrix(rows)
        if [row["overall"] for row in rows] != [overall]:
            raise RuntimeError(f"the matrix does not say {overall}")

    async def _audit(self, s: Strandline, sandbox: str) -> None:
        self._screen.step("the audit trail of that sandbox, from the log", f"strand.evt.default.sandbox.{sandbox}")
        async for event in s.events.read(type="sandbox", id=sandbox):
            self._screen.fact(f"{event.seq:>5}  {event.time}  {event.actor:<14} {event.type}")

    async def _views(self, s: Strandline) -> None:
        subjects = "strand.v1.cmd.default.view.rebuild → strand.v1.qry.default.views.digest"
        self._screen.step("build the compat view anew from the log, in the place of the one that was read so far", subjects)
        before = await s.views.digest("compat-matrix")
        rebuilt = await s.views.rebuild("compat-matrix", wait_s=WAIT_S)
        after = await s.views.digest("compat-matrix")
        if not rebuilt.settled or (after.generation or 0) <= (before.generation or 0):
            raise RuntimeError(f"the view was not rebuilt: generation {before.generation} before, {after.generation} after")
        if before.sha256 != after.sha256:
            raise RuntimeError(f"the rebuilt view differs from the one before: {after.sha256} is not {before.sha256}")
        self._screen.facts(generation=f"{before.generation} → {after.generation}", digest=after.sha256[:16])
        self._screen.fact("the new generation and the one that it replaced are byte-equal")

    async def _verify(self, s: Strandline) -> None:
        self._screen.step("verify the hash chain of every aggregate", "strand.v1.qry.default.events.verify")
        result = await s.events.verify()
        if not result.intact:
            raise RuntimeError(f"the log was altered: {result.faults}")
        self._screen.facts(**{k: v for k, v in result.model_dump().items() if v is not None})

    async def _end(self, s: Strandline, sandboxes: list[str]) -> None:
        self._screen.step("delete everything", "strand.v1.cmd.default.sandbox.delete …")
        for sandbox in sandboxes:
            await s.sandboxes.delete(sandbox, wait_s=WAIT_S)
        async for snapshot in s.snapshots.list():
            await s.snapshots.delete(snapshot.snapshot_id, wait_s=WAIT_S)
        await s.templates.delete(ALIAS, wait_s=WAIT_S)
