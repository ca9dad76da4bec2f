"""A soak (``make soak``): callers at work for as long as is wanted while everything under them is killed, cut off and filled up.

Two nodes with real sandboxes on a disk of their own, which gets full. Several callers create, use, snapshot, roll back, clone, pause and
delete at random, and repeat what is refused if that is worth it; meanwhile one part after the other dies by SIGKILL, one node is cut off
from the bus, and the disk is filled to its last byte. In the end all of that stops, everything is deleted, and what design.md §10 promises
is looked for: nothing is open, nothing acted twice, every chain is whole, every view is what the log says, nothing is left on the host.

``--seed`` makes callers and faults choose the same; the moments at which they meet are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import structlog
import uvloop
from support import patient, truth
from support.cut import Wire, wired
from support.disks import Disk, tiny_disk
from support.installation import Running, compose_image, up
from support.killing import kill, pid_of
from support.patient import Patient
from support.remains import remains
from support.waiting import eventually

from benchmarks.machine import resident
from domain import catalogue
from domain.kernel.errors import Refused

PARTS = ("nats", "control", "projector", "node-1", "node-2")
CUT_OFF = "node-2"
CALLERS, MOST = 4, 6
"""How many callers, and how many sandboxes each of them has at most."""
THINK_S = 1.0
"""Between two commands of a caller, at most: it is to last, and its whole log is read in the end."""
DISK_MB, WAIT_S = 2048, 20
PATIENCE_S = 240.0
"""Longer than any fault lasts: who repeats for so long and is still refused has found a fault of ours."""
MIB = 1 << 20
BUGS = {"internal", "command.mismatch", "command.invalid", "command.unknown"}


class Worker:
    """One caller with sandboxes of its own, and the snapshots of each."""

    def __init__(self, p: Patient, seed: float, counts: Counter[str]) -> None:
        self.p = p
        p.takes_for_an_answer = frozenset({"storage.blocked"})  # a node whose disk was full eases by one mode a minute
        self._choose = random.Random(seed)
        self._counts = counts
        self._boxes: dict[str, list[str]] = {}

    async def run(self, ending: asyncio.Event) -> None:
        """Until the end; then everything of its own is deleted."""
        acts = (self._exec, self._exec, self._exec, self._snapshot, self._roll_back, self._clone, self._pause, self._delete)
        while not ending.is_set():
            await pause(ending, self._choose.uniform(0, THINK_S))
            if not self._boxes or (len(self._boxes) < MOST and self._choose.random() < 0.3):
                await self._create()
            else:
                await self._choose.choice(acts)(self._choose.choice(sorted(self._boxes)))
        for box in sorted(self._boxes):
            await self._delete(box)

    async def ask(self, what: str, **body: Any) -> dict[str, Any] | None:
        """A refusal for good is an answer too: what was asked for is not possible now. One that names a bug is none."""
        self._counts["commands"] += 1
        try:
            return await self.p.cmd(what, **body, wait_s=WAIT_S)
        except Refused as refused:
            if refused.code in BUGS:
                raise
            self._counts[f"refused {refused.code}"] += 1
            return None

    async def _create(self) -> None:
        if (made := await self.ask("sandbox.create", template="base")) is not None:
            self._boxes[made["sandbox_id"]] = []

    async def _exec(self, box: str) -> None:
        with contextlib.suppress(Refused):
            acts = (await self.p.sh(box, "cat /acts")).split()
            assert len(acts) == len(set(acts)), f"one command ran twice in {box}: {acts}"

    async def _snapshot(self, box: str) -> None:
        if len(self._boxes[box]) < 2 and (made := await self.ask("snapshot.create", sandbox_id=box)) is not None:
            self._boxes[box].append(made["snapshot_id"])

    async def _roll_back(self, box: str) -> None:
        if self._boxes[box]:
            await self.ask("sandbox.rollback", sandbox_id=box, snapshot_id=self._choose.choice(self._boxes[box]))

    async def _clone(self, box: str) -> None:
        if len(self._boxes) < MOST and (made := await self.ask("sandbox.clone", sandbox_id=box, count=1)) is not None:
            self._boxes |= {clone: [] for clone in made["sandbox_ids"]}

    async def _pause(self, box: str) -> None:
        await self.ask("sandbox.pause", sandbox_id=box)
        await self.ask("sandbox.resume", sandbox_id=box)

    async def _delete(self, box: str) -> None:
        for snapshot in self._boxes.pop(box):
            await self.ask("snapshot.delete", snapshot_id=snapshot)
        await self.ask("sandbox.delete", sandbox_id=box)


class Soak:
    """The work, the faults, and the look at what is left."""

    def __init__(self, running: Running, disk: Disk, wire: Wire, seed: int) -> None:
        self.running, self.disk, self.wire = running, disk, wire
        self.random = random.Random(seed)
        self.ending = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.workers: list[Worker] = []

    # -- faults

    async def faults(self) -> None:
        while not self.ending.is_set():
            await pause(self.ending, self.random.uniform(3, 15))
            if self.ending.is_set():
                return
            match self.random.choice((*PARTS, "partition", "disk")):
                case "partition":
                    await self.partition(self.random.choice((5, 20, 60)))
                case "disk":
                    await self.full_disk(self.random.uniform(3, 15))
                case part:
                    self.counts[f"killed {part}"] += 1
                    await kill(self.running.dir, part)

    async def partition(self, seconds: float) -> None:
        self.counts[f"cut off for {seconds:g} s"] += 1
        self.wire.cut()
        try:
            await pause(self.ending, seconds)
        finally:
            self.wire.heal()

    async def full_disk(self, seconds: float) -> None:
        self.counts["full disk"] += 1
        try:
            self.disk.fill()
            await pause(self.ending, seconds)
        finally:
            self.disk.empty()

    # -- the whole

    async def run(self, image: str, minutes: float) -> None:
        async with Patient.connect(self.running.dir, "soak") as p:
            made = await p.cmd("template.create", image=image, alias="base", memory_mb=16, cpu=0.1, wait_s=WAIT_S)
            await p.job(made["job_id"])
            before = sizes(self.running)
            await self.work(minutes)
            self.report(before)
            await self.all_goes(p)
            await self.invariants()

    async def work(self, minutes: float) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(CALLERS):
                p = await stack.enter_async_context(Patient.connect(self.running.dir, f"caller-{number}"))
                self.workers.append(Worker(p, self.random.random(), self.counts))
            work = [asyncio.create_task(worker.run(self.ending)) for worker in self.workers]
            work.append(asyncio.create_task(self.faults()))
            try:
                await asyncio.wait(work, timeout=minutes * 60, return_when=asyncio.FIRST_EXCEPTION)
                self.ending.set()
                await asyncio.gather(*work)
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)

    def report(self, before: dict[str, int]) -> None:
        for what, count in sorted(self.counts.items()):
            say(f"{count:6,} {what}")
        again = Counter(refused.code for worker in self.workers for refused in worker.p.refused if refused.retryable)
        for code, count in sorted(again.items()):
            say(f"{count:6,} times told to come back: {code}")
        for part, now in sizes(self.running).items():
            say(f"{now:6,} MiB {part}, {now - before[part]:+,} since the beginning")

    async def tell(self) -> None:
        """What went wrong is gone with its directory: say what there is to be seen, and keep what the parts have written down."""
        self.wire.heal()
        kept = Path(tempfile.mkdtemp(prefix="strandline-soak-failed-"))
        for part in ("logs", *(f"nodes/{node}/journal" for node in ("node-1", "node-2"))):
            shutil.copytree(self.running.dir / part, kept / part)
        for worker in self.workers:
            say(f"{worker.p.bodies and list(worker.p.bodies.items())[-1]}: {worker.p.refused[-3:]}")
        async with Patient.connect(self.running.dir, "tell") as p:
            for box in await p.items("sandboxes", limit=500):
                say(json.dumps(box, default=str))
            log = await truth.whole_log(self.running.dir)
            (kept / "log.jsonl").write_text("".join(json.dumps(dataclasses.asdict(commit), default=str) + "\n" for commit in log))
        say(f"logs, journals and the log are in {kept}")

    async def all_goes(self, p: Patient) -> None:
        """Also what was made by a command whose caller was refused for good."""
        for box in await p.items("sandboxes", limit=500):
            if box["state"] != "DEAD":
                await p.cmd("sandbox.delete", sandbox_id=box["sandbox_id"], wait_s=WAIT_S)
        await p.cmd("template.delete", template="base", wait_s=WAIT_S)

        async def closed() -> bool:
            return truth.open_work(await truth.whole_log(self.running.dir)) == []

        try:
            await eventually(closed, within=120)
        except AssertionError:
            raise AssertionError(f"still open: {truth.open_work(await truth.whole_log(self.running.dir))}") from None

    async def invariants(self) -> None:
        log = await truth.whole_log(self.running.dir)
        truth.check_chains(log)
        await truth.check_views(self.running.dir)
        counted = truth.count(log)
        say(
            f"{len(log):6,} commits, {counted['sandbox.created']:,} sandboxes, {counted['snapshot.created']:,} snapshots: all chains whole,"
        )
        say("       every view is what the log says, nothing is open")


async def pause(ending: asyncio.Event, seconds: float) -> None:
    """So long, or until the end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ending.wait()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def sizes(running: Running) -> dict[str, int]:
    """MiB of each part that runs."""
    return {part: resident(pid) // MIB for part in PARTS if (pid := pid_of(running.dir, part)) is not None}


async def soak(running: Running, disk: Disk, image: str, minutes: float, seed: int) -> None:
    connect = running.dir / "nodes" / CUT_OFF / "connect.json"
    said = json.loads(connect.read_text())
    async with wired(said["url"]) as wire:
        connect.write_text(json.dumps({**said, "url": wire.url}))
        await kill(running.dir, CUT_OFF)  # the next one goes by the wire
        work = Soak(running, disk, wire, seed)
        try:
            await work.run(image, minutes)
        except BaseException:
            await work.tell()
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description="Work and fail for a while, and look at what is left.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--driver", default="process", choices=("process", "oci"))
    given = parser.parse_args()
    catalogue.load()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # connections come and go here
    patient.PATIENCE_S = PATIENCE_S
    say(f"seed {given.seed}, {given.minutes:g} minutes, driver {given.driver}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strandline-soak-", ignore_cleanup_errors=True) as place:
        image = compose_image(Path(place) / "image")
        with tiny_disk(Path(place) / "disk", DISK_MB) as disk:
            state = disk.path / "state"
            with up(state, "--driver", given.driver, "--nodes", "2") as running:
                uvloop.run(soak(running, disk, image, given.minutes, given.seed))
            left = remains(state, nodes=2)
            assert left == [], left
    say(f"nothing is left on the host ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
