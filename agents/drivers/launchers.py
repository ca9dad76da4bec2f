"""How the process driver puts a workload into namespaces: bubblewrap, or ``unshare`` where it is missing. Neither needs root.

A launcher builds the command; its contract with the driver is one pipe ("info": JSON with the host pid of the namespace's first process),
one pipe that holds the workload back until limits are set ("block"), and one file ("status") that ends with ``{"exit-code": n}`` whoever
is alive to see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agents.drivers.driver import Fault, RuntimeFault, Spec
from agents.drivers.identity import Who
from agents.drivers.pivot import DEVICES, LINKS
from agents.host import processes, spawn

_EXECUTED_S: Final = 5.0
_QUIET_LOOKS: Final = 3
_ATTEMPTS: Final = 3
_SOON_LOOKS, _SOON_S = 2, 0.0003
_PIVOT: Final = Path(__file__).with_name("pivot.py")
_MONITOR: Final = 'exec 8>>"$1" 9>&2 2>/dev/null; shift; "$@" 2>&9 8>&- 9>&-; printf "{ \\"exit-code\\": %d }\\n" $? >&8'
"""Outlives the agent, waits, and writes how it ended. Its own stderr is closed: shells comment on killed children.
The file is opened first: pivot_root(2) takes everybody in the mount namespace along, this shell too.
Not ``unshare --fork``, which answers 1 for a child that was killed by SIGKILL (util-linux 2.38)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launcher is asked to start, with the descriptors that it passes on."""

    spec: Spec
    who: Who
    env: Mapping[str, str]
    status: Path
    info_fd: int
    block_fd: int
    status_fd: int
    order_fd: int
    """A memfd for what must not stand in argv: the environment holds secrets."""


class Launcher(Protocol):
    name: str
    holds: bool
    """Whether everything but the program is there when it is held back, the host name too."""
    has_init: bool
    """Whether process 1 of the namespace is the launcher's, and the workload its oldest child."""

    async def version(self) -> str: ...

    async def check(self) -> list[Fault]: ...

    def command(self, launch: Launch) -> list[str]:
        """To be started in the sandbox's network namespace, if it has one of the node's making."""
        ...

    async def at_gate(self, root: Path, first: int, monitor: tuple[int, int]) -> None:
        """Wait until everything but the program is there, if it ``holds``; or has died before."""
        ...

    async def executed(self, info_fd: int, first: int, monitor: tuple[int, int]) -> None:
        """Wait until the workload itself runs (or has run already). Raises ``sandbox.start-failed``."""
        ...


def rlimits(spec: Spec) -> dict[int, int]:
    """What setrlimit(2) can bound, per process. DATA, not AS: runtimes reserve address space that they never touch.

    NPROC counts per user and user namespace, but never for real root, so it says nothing when the agent is root.
    """
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_DATA: spec.limits.memory_mb << 20}
    return limits if os.geteuid() == 0 else {**limits, resource.RLIMIT_NPROC: spec.limits.pids}


def bound(pid: int, limits: Mapping[int, int]) -> None:
    """Set the limits of a process that may have ended. Raises ``limits.refused``."""
    try:
        for number, value in limits.items():
            resource.prlimit(pid, number, (value, value))
    except ProcessLookupError:
        return
    except (PermissionError, ValueError) as error:
        raise RuntimeFault("limits.refused", f"it takes CAP_SYS_RESOURCE to give a process more than it had: {error}") from error


async def bound_all(find: Callable[[], Iterable[int]], limits: Mapping[int, int]) -> None:
    """The same of everything that ``find`` finds, until there is nothing new for a while: a fork has its parent's limits, which may be the
    old ones, and is not to be seen before it is whole.
    """
    done, quiet = set[int](), 0
    while quiet < _QUIET_LOOKS:
        new = set(find()) - done
        for pid in new:
            bound(pid, limits)
        done |= new
        quiet = 0 if new else quiet + 1
        await asyncio.sleep(0.002)


def exit_code(status: Path) -> int | None:
    """What the monitor wrote into its status file, if it came so far."""
    code: int | None = None
    with contextlib.suppress(OSError):
        for line in status.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                code = json.loads(line).get("exit-code", code)
    return code


def tool(name: str) -> str:
    """The absolute path of a host program."""
    found = shutil.which(name, path=spawn.HOST_ENV["PATH"])
    if found is None:
        raise RuntimeFault("driver.missing-program", f"{name} is not installed")
    return found


async def _works(argv: Sequence[str], what: str, mend: str) -> list[Fault]:
    """Nothing, or why it does not. Tried again: the host's mounts are all looked at, and another agent's may come and go meanwhile."""
    why: object = ""
    for _ in range(_ATTEMPTS):
        try:
            tried = await spawn.run(argv, timeout_s=10)
        except OSError as error:
            why = error
        else:
            if tried.code == 0:
                return []
            why = tried.complaint()
    return [Fault(f"{what}: {why}", mend)]


class Bubblewrap:
    """bwrap: 5 ms from nothing to running (reference/runtimes.md §2). Its own process 1 in the namespace buries orphans."""

    name = "bwrap"
    holds = True
    has_init = True

    async def version(self) -> str:
        return (await spawn.run([tool("bwrap"), "--version"])).stdout.decode().removeprefix("bubblewrap").strip()

    async def check(self) -> list[Fault]:
        argv = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--proc", "/proc", "--dev", "/dev", "--", "/bin/true"]
        return await _works(argv, "bubblewrap cannot make namespaces", "apt-get install bubblewrap; sysctl user.max_user_namespaces=15000")

    def command(self, launch: Launch) -> list[str]:
        spec, who = launch.spec, launch.who
        order = ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--new-session", "--clearenv"]
        order += [] if spec.netns else ["--unshare-net"]
        order += ["--hostname", spec.hostname, "--uid", str(who.uid), "--gid", str(who.gid), "--cap-drop", "ALL"]
        order += ["--bind", str(spec.root), "/", "--proc", "/proc", *_devices(who), "--chdir", spec.cwd]  # in order: root first
        for mount in spec.mounts:
            order += ["--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target]
        for name, value in launch.env.items():
            order += ["--setenv", name, value]
        order += ["--info-fd", str(launch.info_fd), "--json-status-fd", str(launch.status_fd), "--block-fd", str(launch.block_fd)]
        _fill(launch.order_fd, "\0".join(order).encode() + b"\0")
        return [tool("bwrap"), "--args", str(launch.order_fd), "--", *spec.argv]

    async def at_gate(self, root: Path, first: int, monitor: tuple[int, int]) -> None:
        """The last that it does before it waits is to make the sandbox's root its own; the host name comes before that."""

        def there() -> bool:
            with contextlib.suppress(OSError):
                return os.path.samestat(os.stat(f"/proc/{first}/root"), os.stat(root))  # noqa: PTH116  # a magic link
            return False

        await _until(there, monitor)

    async def executed(self, info_fd: int, first: int, monitor: tuple[int, int]) -> None:  # noqa: ARG002  # its end says nothing
        """Process 1 is bwrap; it forks, and the fork executes: the program file changes. Nothing else tells."""
        await _until(lambda: any(_other_program(child, first) for child in processes.children(first)), monitor)


class Unshare:
    """``unshare`` of util-linux and a short Python program (``pivot``): some 40 ms, but nothing to install."""

    name = "unshare"
    holds = False
    has_init = False

    async def version(self) -> str:
        return (await spawn.run([tool("unshare"), "--version"])).stdout.decode().rpartition(" ")[2].strip()

    async def check(self) -> list[Fault]:
        argv = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--net",
            "--fork",
            "--mount-proc",
            "/bin/true",
        ]
        return await _works(
            argv, "unshare cannot make namespaces", "sysctl user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1"
        )

    def command(self, launch: Launch) -> list[str]:
        spec, who = launch.spec, launch.who
        order = {
            "root": str(spec.root),
            "cwd": spec.cwd,
            "hostname": spec.hostname,
            "argv": list(spec.argv),
            "env": dict(launch.env),
            "rlimits": {str(number): value for number, value in rlimits(spec).items()},
            "network": spec.netns is None,
            "mounts": [[str(mount.source), mount.target, mount.read_only] for mount in spec.mounts],
            "info_fd": launch.info_fd,
            "block_fd": launch.block_fd,
        }
        _fill(launch.order_fd, json.dumps(order).encode())
        argv = [tool("unshare"), "--user", f"--map-user={who.uid}", f"--map-group={who.gid}", "--keep-caps"]
        argv += ["--mount", "--ipc", "--uts", "--pid", "--cgroup", *([] if spec.netns else ["--net"])]
        argv += ["--", tool("sh"), "-c", _MONITOR, "sh", str(launch.status)]  # its first child is process 1: no --fork
        return [*argv, sys.executable, "-I", "-S", str(_PIVOT), str(launch.order_fd)]

    async def at_gate(self, root: Path, first: int, monitor: tuple[int, int]) -> None:
        """It does not hold."""

    async def executed(self, info_fd: int, first: int, monitor: tuple[int, int]) -> None:
        """Process 1 stops being Python, or says why it could not."""
        os.set_blocking(info_fd, False)
        said = b""

        def settled() -> bool:
            nonlocal said
            with contextlib.suppress(BlockingIOError):
                said += os.read(info_fd, 4096)
            return said != b"" or _other_program(first, os.getpid())

        await _until(settled, monitor)
        if said:
            raise RuntimeFault("sandbox.start-failed", str(json.loads(said)["error"]))


def _other_program(pid: int, reference: int) -> bool:
    try:
        return not os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(f"/proc/{reference}/exe"))  # noqa: PTH116  # magic links
    except OSError:
        return False


async def _until(settled: Callable[[], bool], monitor: tuple[int, int]) -> None:
    """Look every millisecond, which is the shortest that an event loop can wait: to look without a pause slows down what is waited for.

    At first a little sooner: what was held back at its gate is there at once.
    """
    for _ in range(_SOON_LOOKS):
        if settled():
            return
        time.sleep(_SOON_S)  # noqa: ASYNC251  # of the loop too, but shorter than it could
    deadline = time.monotonic() + _EXECUTED_S
    while not settled() and processes.alive(*monitor) and time.monotonic() < deadline:  # noqa: ASYNC110  # the kernel tells nobody
        await asyncio.sleep(0.001)


def default_launcher() -> Launcher:
    """Bubblewrap is seven times faster; ``unshare`` is always there."""
    return Bubblewrap() if shutil.which("bwrap", path=spawn.HOST_ENV["PATH"]) else Unshare()


async def read_info(fd: int) -> dict[str, object]:
    """The next JSON line of an info pipe; empty at its end."""
    data = b""
    while await processes.readable(fd, _EXECUTED_S):
        chunk = os.read(fd, 4096)
        data += chunk
        try:
            value: dict[str, object] = json.loads(data)
        except ValueError:
            if not chunk:
                break
        else:
            return value
    return {}


def _devices(who: Who) -> list[str]:
    """/dev. bwrap's own has a devpts, for which an unprivileged bwrap needs user 0 in an outer user namespace of its own.

    A process of another user is then in a user namespace that does not own its other ones, and nobody without rights can join it: so no
    pseudo-terminals for those.
    """
    if who.uid == 0 or os.geteuid() == 0:
        return ["--dev", "/dev"]
    binds = [word for name in DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")]
    links = [word for name, target in LINKS.items() if name != "ptmx" for word in ("--symlink", target, f"/dev/{name}")]
    return ["--tmpfs", "/dev", *binds, *links, "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108  # the sandbox's


def _fill(fd: int, data: bytes) -> None:
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
