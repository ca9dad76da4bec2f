"""Building an artifact from a registry: the disk it needs at its peak, against the image; and the same specification once more.

Image: programs of this host with their libraries, in a ``docker-registry`` on loopback.
Ours, disk: the builder alone, everything below its folder looked at every few milliseconds, against what the finished file takes there.
Bare: ``skopeo copy``, ``umoci unpack``, ``mke2fs -d``, one after the other, each keeping what the one before it made.
Ours, again: ``template.create`` of an image that was built before, from the command until the log says that the template has its artifact:
the registry is asked what the tag means now, and nothing is built. Bare: asking the registry alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from agents import images
from agents.images.compose import compose
from benchmarks.harness import Budget, Row, in_turn, millis, ratio
from benchmarks.installed import WAIT_S, installed
from bus.client import Caller

PEAK = Budget(1.3)
AGAIN = Budget(50, "ms")
LOOK_S = 0.004
PROGRAMS = (
    sys.executable,
    "perl",
    "openssl",
    "git",
    "gcc",
    "skopeo",
    "nats-server",
    "docker-registry",
    "qemu-system-x86_64",
    "ssh",
    "gdb",
    "vim",
)
TOOLS = ("docker-registry", "skopeo", "umoci", "mke2fs")


async def run(*, short: bool = False) -> list[Row]:
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/sbin:/usr/sbin") is None]:
        return [Row("build", f"needs {', '.join(missing)}")]
    with tempfile.TemporaryDirectory(prefix="strandline-bench-") as directory, _registry(Path(directory)) as host:
        image = f"docker://{host}/bench:1"
        composed = await asyncio.to_thread(compose, Path(directory) / "layout", "1", [p for p in PROGRAMS if shutil.which(p)])
        pushing = ["skopeo", "copy", "-q", "--dest-tls-verify=false", composed.reference, image]
        await asyncio.to_thread(subprocess.run, pushing, check=True)
        first = [await _first(Path(directory), image) for _ in range(1 if short else 3)]
        return [*_disk(first), await _again(image, 5 if short else 30)]


@contextmanager
def _registry(directory: Path) -> Iterator[str]:
    """``host:port`` of a registry with nothing in it."""
    configuration = directory / "registry.yml"
    where = directory / "registry"
    configuration.write_text(
        f"version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {where}}}}}\n"
        'http: {addr: "127.0.0.1:0", secret: x}\n'
    )
    process = subprocess.Popen(["docker-registry", "serve", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        host = next(found[1] for line in process.stderr if (found := re.search(r"listening on (127\.0\.0\.1:\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield host
    finally:
        process.kill()
        process.wait()


class _First:
    """Bytes at the peak, of the result, and seconds: ours and bare."""

    def __init__(self, ours: tuple[int, int, float], bare: tuple[int, int, float]) -> None:
        self.ours, self.bare = ours, bare


async def _first(directory: Path, image: str) -> _First:
    async def ours(folder: Path) -> Path:
        return (await images.build(image, None, 1024, folder / "work", folder / "rootfs.ext4")).path

    async def bare(folder: Path) -> Path:
        await asyncio.to_thread(_by_hand, folder, image)
        return folder / "rootfs.ext4"

    return _First(await _watched(directory / "ours", ours), await _watched(directory / "bare", bare))


def _by_hand(folder: Path, image: str) -> None:
    layout, bundle, file = folder / "layout", folder / "bundle", folder / "rootfs.ext4"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    for words in (
        ["skopeo", "copy", "-q", "--src-tls-verify=false", image, f"oci:{layout}:1"],
        ["umoci", "unpack", *rootless, "--image", f"{layout}:1", str(bundle)],
    ):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    size = _allocated(bundle) * 5 // 4 // 1024 + 8192
    subprocess.run(
        ["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", bundle / "rootfs", file, f"{size}k"], check=True, stdout=subprocess.DEVNULL
    )


async def _watched(folder: Path, work: Callable[[Path], Any]) -> tuple[int, int, float]:
    await asyncio.to_thread(folder.mkdir)
    with _peak(folder) as peak:
        began = time.perf_counter()
        file = await work(folder)
        took = time.perf_counter() - began
    found = (peak(), file.stat().st_blocks * 512, took)
    await asyncio.to_thread(shutil.rmtree, folder)
    return found


@contextmanager
def _peak(folder: Path) -> Iterator[Callable[[], int]]:
    """The most that was allocated below a folder while the block ran."""
    seen, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            seen.append(max(seen.pop(), _allocated(folder)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield lambda: seen[0]
    finally:
        over.set()
        watcher.join()


def _allocated(folder: Path) -> int:
    """Each inode once."""
    found: dict[int, int] = {}
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                stat = os.lstat(f"{path}/{name}")
                found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def _disk(first: list[_First]) -> list[Row]:
    ours, bare = max(first, key=lambda one: one.ours[0]).ours, max(first, key=lambda one: one.bare[0]).bare
    times = [one.ours[2] for one in first], [one.bare[2] for one in first]
    beside = f"{_mb(bare[0])} ({bare[0] / bare[1]:.2f} × its own)"
    return [
        Row(f"peak disk of a build, against its {_mb(ours[1])}", _mb(ours[0]), beside, ours[0] / ours[1], budget=PEAK),
        Row("time of a build", f"{min(times[0]):.2f} s", f"{min(times[1]):.2f} s", ratio(*times)),
    ]


async def _again(image: str, turns: int) -> Row:
    async with installed("process") as (_, caller):
        await _created(caller, image, WAIT_S)

        async def ours() -> float:
            began = time.time()
            template_id, seq = await _created(caller, image, 0)
            return await _bound(caller, template_id, seq) - began

        async def bare() -> float:
            began = time.perf_counter()
            await images.resolve(image)
            return time.perf_counter() - began

        found = await in_turn(turns, {"bare": bare, "ours": ours})
    value = sorted(found["ours"])[len(found["ours"]) // 2] * 1000
    return Row("the same specification again, p50", millis(found["ours"]), millis(found["bare"]), value, "ms", AGAIN)


async def _created(caller: Caller, image: str, wait_s: int) -> tuple[str, int]:
    body = {"image": image, "cmd": ["/bin/sleep", "1000000"], "memory_mb": 64, "cpu": 0.1, "wait_s": wait_s}
    reply = await caller.command("default", "template.create", body)
    assert not wait_s or reply["result"]["status"] == "READY", reply
    return reply["result"]["template_id"], reply["seq"]


async def _bound(caller: Caller, template_id: str, seq: int) -> float:
    """When the log says that the template has its artifact (seconds since 1970); returns when its job is over."""
    while True:
        reply = await caller.query("default", "templates", "get", {"id": template_id, "min_seq": seq})
        if reply["items"][0]["status"] != "PENDING":
            assert reply["items"][0]["status"] == "READY", reply
            break
        await asyncio.sleep(0.05)
    reply = await caller.query("default", "events", "read", {"type": "template", "id": template_id, "after": 0, "limit": 100})
    events = [item for item in reply["items"] if item["type"] == "template.artifact-bound"]
    return datetime.fromisoformat(events[0]["time"]).timestamp()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
