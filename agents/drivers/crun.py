"""The command line of crun. Knows how it complains, nothing of sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import RuntimeFault
from agents.host import processes, spawn

_START_S: Final = 30.0
_LOOK_S: Final = 0.001
_LOOKS: Final = 1000
_NOT_FOUND: Final = ("not found", "no such file or directory")
_NOT_EXECUTABLE: Final = ("permission denied", "exec format error", "is a directory")


def find(name: str = "crun") -> str | None:
    """The runtime's absolute path."""
    return shutil.which(name, path=spawn.HOST_ENV["PATH"])


def mark(container: str) -> dict[str, str]:
    """In the environment of the runtime while it makes a container: it works on when the agent is killed, and has to be found then."""
    return {"STRANDLINE_CONTAINER": container}


class Runtime:
    """``root`` is where the runtime keeps its state: one per agent, so that container ids of several agents never meet."""

    def __init__(self, program: str, root: Path) -> None:
        self.program = program
        self.root = root

    def _argv(self, *words: str) -> list[str]:
        return [self.program, "--root", str(self.root), *words]

    async def version(self) -> str:
        return (await spawn.run([self.program, "--version"])).stdout.decode().splitlines()[0].replace(" version", "")

    async def create(
        self,
        container: str,
        bundle: Path,
        stdio: tuple[int, int, int],
        within: spawn.Within | None = None,
        *keep: int,
    ) -> int:
        """Make the container, whose first process then waits for ``start``. Returns its pid; it is a child of the nearest subreaper.

        crun itself also gets the descriptors ``keep``.

        Not ``run --detach``: that collects a main process itself which ends at once, and keeps the exit code.
        """
        pid_file = bundle / "pid"
        words = (
            "--log",
            str(bundle / "log"),
            "--log-format",
            "json",
            "create",
            "--bundle",
            str(bundle),
            "--pid-file",
            str(pid_file),
            container,
        )
        code = await spawn.wait_for(self._argv(*words), spawn.HOST_ENV | mark(container), stdio, _START_S, within, keep)
        if code != 0:
            raise RuntimeFault("sandbox.start-failed", complaint(_text(bundle / "log")) or f"exit code {code}")
        return int(pid_file.read_text(encoding="ascii"))

    async def start(self, container: str, bundle: Path, pid: int) -> None:
        """Let the first process become the workload."""
        excuse = "" if await self._released(container, pid) else await self._told_to_start(container)
        said = complaint(_text(bundle / "log"))  # the last step, execve, is the container's own, and may fail after ``start`` has ended
        if excuse or (said and ((seen := processes.stat(pid)) is None or seen.state == "Z")):
            raise RuntimeFault("sandbox.start-failed", said or excuse)

    async def _told_to_start(self, container: str) -> str:
        """Why ``crun start`` failed; empty when it did not."""
        done = await spawn.run(self._argv("start", container), timeout_s=_START_S)
        return done.complaint() if done.code != 0 else ""

    async def _released(self, container: str, pid: int) -> bool:
        """What ``crun start`` does, without a process for it (3 ms, reference/runtimes.md §1): a byte into the FIFO that is waited for.

        False when nobody waits there, or not yet: then crun says why.
        """
        fifo, before = self.root / container / "exec.fifo", _program_of(pid)
        try:
            file = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fifo.unlink()
            os.write(file, b"\0")
        finally:
            os.close(file)
        for _ in range(_LOOKS):  # until it is the workload, or has failed to become it
            if _program_of(pid) != before:
                break
            await asyncio.sleep(_LOOK_S)
        return True

    async def exec(
        self,
        container: str,
        process: Mapping[str, Any],
        stdin: bytes,
        timeout_s: float,
        max_output: int,
        on_kill: Callable[[], Awaitable[object]],
        owner: tuple[int, int],
    ) -> spawn.Finished:
        """One more process. Its environment may be secret, so it goes through a memfd; what the runtime complains about comes by one."""
        order, log = os.memfd_create("process"), os.memfd_create("log")
        try:
            os.write(order, json.dumps(process).encode())
            argv = self._argv(
                "--log", f"/proc/self/fd/{log}", "--log-format", "json", "exec", "--process", f"/proc/self/fd/{order}", container
            )
            keep = (order, log)
            done = await spawn.run(argv, stdin=stdin, timeout_s=timeout_s, max_output=max_output, keep=keep, on_kill=on_kill, owner=owner)
            said = complaint(os.pread(log, 1 << 16, 0).decode(errors="replace"))
        finally:
            os.close(order)
            os.close(log)
        return _translate(done, said) if said and done.code in (1, 255) else done

    def forget(self, container: str) -> None:
        """Remove what the runtime remembers. With its processes and cgroups gone, ``delete`` would do no more, in 5 ms instead of 0.1."""
        shutil.rmtree(self.root / container, ignore_errors=True)


def _program_of(pid: int) -> str | None:
    """What a process executes; None when it has ended."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return None


def complaint(log: str) -> str:
    """The last error of a JSON log."""
    for line in reversed(log.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if value.get("level") == "error":
            return str(value["msg"])
    return ""


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def _translate(done: spawn.Finished, said: str) -> spawn.Finished:
    """The runtime's own failures as a shell would number them: 127 not found, 126 not executable, and what else it may be."""
    lower = said.lower()
    code = 126 if any(text in lower for text in _NOT_EXECUTABLE) else 127 if any(text in lower for text in _NOT_FOUND) else 126
    return spawn.Finished(code, done.stdout, done.stderr or said.encode(), done.truncated, done.timed_out)
