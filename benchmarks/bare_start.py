"""``python -m benchmarks.bare_start DRIVER DIRECTORY LOWER [CONFIG]``: starts by the runtime alone, as a person with its manual would do
them.

For each line on stdin: mount an overlay over LOWER, start the sandbox's own program in it, print the seconds that took, and clean up.

- oci: ``crun run --detach`` on a bundle with the ``config.json`` that the product wrote for a sandbox of its own (CONFIG), but for root,
  cgroup and network namespace, which are new ones. Ends when crun does, which is when the program runs.
- process: ``bwrap`` with the words that the product gives it. Ends when the program file of the sandbox's process is no longer bwrap's.

Like the agent it runs in a mount namespace where crun bears the host's cgroups (``agents/drivers/hostns.py``), and reaps what it leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agents.drivers import hostns
from agents.drivers.driver import Limits, Spec
from agents.drivers.identity import Who, environment
from agents.drivers.launchers import Bubblewrap, Launch
from agents.host import spawn, syscalls
from agents.host.reaper import become_subreaper

PROGRAM = ("/bin/sleep", "1000000")
OVERLAY = "redirect_dir=off,metacopy=off,index=off"


class Start:
    """One sandbox of the bare runtime in a directory of its own."""

    def __init__(self, directory: Path, lower: Path, number: int) -> None:
        self.name = f"bare-{os.getpid()}-{number}"
        self.directory = directory / self.name
        self.root = self.directory / "root"
        self._lower = lower
        self.pid = 0

    def mount(self) -> None:
        for name in ("root", "upper", "work"):
            (self.directory / name).mkdir(parents=True)
        layers = f"lowerdir={self._lower},upperdir={self.directory / 'upper'},workdir={self.directory / 'work'},{OVERLAY}"
        syscalls.mount("bare", self.root, "overlay", syscalls.MS_NODEV, layers)

    def remove(self) -> None:
        syscalls.umount(self.root, syscalls.MNT_DETACH)
        shutil.rmtree(self.directory)

    def output(self) -> tuple[int, int, int]:
        """The same three streams as a sandbox of the product has: nothing to read, two files to write."""
        names = (Path(os.devnull), self.directory / "stdout", self.directory / "stderr")
        flags = (os.O_RDONLY, *(os.O_WRONLY | os.O_CREAT | os.O_APPEND,) * 2)
        first, second, third = (os.open(name, flag | os.O_CLOEXEC, 0o600) for name, flag in zip(names, flags, strict=True))
        return first, second, third


def oci(start: Start, config: dict[str, object]) -> Callable[[], None]:
    """Start it; returns how to end it."""
    linux = dict(config["linux"])  # type: ignore[call-overload]  # of the runtime specification
    linux["cgroupsPath"] = f"/{start.name}"
    linux["namespaces"] = [{"type": space["type"]} for space in linux["namespaces"]]
    changed = {**config, "root": {"path": str(start.root), "readonly": False}, "linux": linux}
    (start.directory / "config.json").write_text(json.dumps(changed))
    runtime = ["crun", "--root", str(start.directory.parent / "crun")]
    stdio = start.output()
    pid = spawn.start([*runtime, "run", "--detach", "--bundle", str(start.directory), start.name], spawn.HOST_ENV, stdio)
    _, status = os.waitpid(pid, 0)
    assert status == 0, (start.directory / "stderr").read_text()

    def end() -> None:
        subprocess.run([*runtime, "delete", "--force", start.name], check=True)
        _close(stdio)
        _reap()

    return end


def process(start: Start, _config: dict[str, object]) -> Callable[[], None]:
    """Start it; returns how to end it."""
    spec = Spec(start.name, 0, start.root, PROGRAM, {}, start.directory, hostname="bare", limits=Limits(cpu=1, memory_mb=64, pids=64))
    info, info_child = os.pipe()
    block_child, block = os.pipe()
    status = os.open(start.directory / "status", os.O_WRONLY | os.O_CREAT, 0o600)
    order = os.memfd_create("order")
    stdio = start.output()
    who = Who()
    launch = Launch(spec, who, environment(who, {}), start.directory / "status", info_child, block_child, status, order)
    monitor = spawn.start(Bubblewrap().command(launch), spawn.HOST_ENV, stdio, (info_child, block_child, status, order))
    os.write(block, b"x")  # nobody sets limits first
    os.close(info_child)
    first = _first(info)
    mine = os.stat(f"/proc/{monitor}/exe")
    while not any(_executes_another(child, mine) for child in _children(first)):
        time.sleep(0.0001)

    def end() -> None:
        os.kill(first, signal.SIGKILL)
        _close((*stdio, info, block_child, block, status, order))
        _reap()

    return end


def _first(info: int) -> int:
    """The process that bwrap says it has started; it says so bit by bit."""
    said = b""
    while True:
        said += os.read(info, 4096)
        try:
            return int(json.loads(said)["child-pid"])
        except ValueError:
            continue


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _executes_another(pid: str, program: os.stat_result) -> bool:
    try:
        return not os.path.samestat(os.stat(f"/proc/{pid}/exe"), program)
    except OSError:
        return False


def _close(files: tuple[int, ...]) -> None:
    for file in files:
        os.close(file)


def _reap() -> None:
    """Until every child, and every orphan that came to us, has ended."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def main() -> None:
    driver, directory, lower, *config = sys.argv[1:]
    Path(directory).chmod(0o711)  # a runtime that has mapped its users walks to the root as nobody
    hostns.enter(Path(directory))
    become_subreaper()
    given = json.loads(Path(config[0]).read_text()) if config else {}
    work = {"oci": oci, "process": process}[driver]
    for number, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        start = Start(Path(directory), Path(lower), number)
        start.mount()
        try:
            end = work(start, given)
            print(time.perf_counter() - began, flush=True)
            end()
        finally:
            start.remove()
        print("clean", flush=True)
    hostns.leave(Path(directory))


if __name__ == "__main__":
    main()
