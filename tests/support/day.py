"""An installation's day: what the demo does, by a patient caller, so that it can be done while parts of the installation die."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from support.patient import Patient

WAIT_S = 10


@dataclass
class Day:
    """What was made, for whoever counts it afterwards."""

    templates: list[str] = field(default_factory=list)
    sandboxes: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)


async def a_day(p: Patient, image: str, directory: Path) -> Day:
    """Everything once, each result looked at; nothing of it lives in the end."""
    day = Day()
    await _make(p, image, day)
    await _use(p, day)
    await _renew(p, day, directory)
    await _end(p, day)
    return day


async def _make(p: Patient, image: str, day: Day) -> None:
    for name, memory in (("one", 64), ("two", 96)):
        made = await p.cmd("template.create", image=image, alias=name, memory_mb=memory, wait_s=WAIT_S)
        await p.job(made["job_id"])
        day.templates.append(made["template_id"])
    first, second = [await p.item("templates", name) for name in ("one", "two")]
    assert (first["status"], second["status"]) == ("READY", "READY")
    assert first["artifact_id"] == second["artifact_id"]
    made = await p.cmd("sandbox.create", template="one", labels={"team": "tide"}, wait_s=WAIT_S)
    day.sandboxes.append(made["sandbox_id"])
    await p.sandbox(made["sandbox_id"], "RUNNING")


async def _use(p: Patient, day: Day) -> None:
    [box] = day.sandboxes
    assert await p.sh(box, "echo here > /file; cat /file") == "here\n"
    taken = await p.cmd("snapshot.create", sandbox_id=box, name="before", wait_s=WAIT_S)
    await p.job(taken["job_id"])
    day.snapshots.append(taken["snapshot_id"])
    assert await p.sh(box, "rm -f /file; echo later > /other; ls /file 2>/dev/null") == ""
    back = await p.cmd("sandbox.rollback", sandbox_id=box, snapshot_id=taken["snapshot_id"], wait_s=WAIT_S)
    await p.job(back["job_id"])
    assert (await p.item("sandboxes", box))["generation"] == back["generation"] == 1
    assert await p.sh(box, "cat /file; ls /other 2>/dev/null") == "here\n"
    cloned = await p.cmd("sandbox.clone", sandbox_id=box, count=2, wait_s=WAIT_S)
    day.sandboxes += cloned["sandbox_ids"]
    for clone in cloned["sandbox_ids"]:
        await p.sandbox(clone, "RUNNING")
        assert await p.sh(clone, "cat /file") == "here\n"
    committed = await p.cmd("template.commit", sandbox_id=box, alias="three", wait_s=WAIT_S)
    await p.job(committed["job_id"])
    day.templates.append(committed["template_id"])
    assert (await p.item("templates", "three"))["status"] == "READY"
    for verb, state in (("pause", "PAUSED"), ("resume", "RUNNING")):
        await p.cmd(f"sandbox.{verb}", sandbox_id=box, wait_s=WAIT_S)
        await p.sandbox(box, state)
    for each in day.sandboxes:
        acts = (await p.sh(each, "cat /acts")).split()
        assert len(acts) == len(set(acts)), acts


async def _renew(p: Patient, day: Day, directory: Path) -> None:
    (directory / "nodes" / "node-1" / "guest-image-version").write_text("2\n")
    await p.cmd("compat.rescan", nodes=["node-1"], wait_s=WAIT_S)
    redone = await p.cmd("template.redo", template="one", mode="ALL", wait_s=WAIT_S)
    await p.job(redone["job_id"])
    [row] = [row for row in await p.items("compat-matrix") if row["template_id"] == day.templates[0]]
    assert row["overall"] == "OK"


async def _end(p: Patient, day: Day) -> None:
    for box in day.sandboxes:
        await p.cmd("sandbox.delete", sandbox_id=box, wait_s=WAIT_S)
        await p.sandbox(box, "DEAD")
    for snapshot in day.snapshots:
        await p.cmd("snapshot.delete", snapshot_id=snapshot, wait_s=WAIT_S)
    for template in day.templates:
        await p.cmd("template.delete", template=template, wait_s=WAIT_S)
