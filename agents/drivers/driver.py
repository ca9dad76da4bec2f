"""The driver port: how an agent runs things.

A driver knows its runtime and nothing else: not the bus, not templates, not other drivers. Every method is idempotent per sandbox id and
may be cancelled at each await. What a driver cannot do it does not have: capabilities are separate Protocols, asked for with
``isinstance`` and published as ``flags``; a request that needs a missing one is refused, never pretended (design.md §7).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from agents.host.counters import Counters
from agents.host.ports import Listener

MAIN = "main"
"""The container of a sandbox that has one."""


class RuntimeFault(Exception):  # noqa: N818  # a fault is what the house calls it, at every border
    """A driver could not do what it was asked. ``retryable``: the same call may succeed later."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class Condition(StrEnum):
    """What a driver sees of a sandbox. ``GONE``: it knows nothing of it, or nothing is left."""

    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds: cores (fractions allowed), MiB of memory, number of processes."""

    cpu: float = 1
    memory_mb: int = 512
    pids: int = 1024


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory of the host that a sandbox sees at ``target``, which is there in its root, and no symbolic link on the way.

    What belongs to user n in ``source`` belongs to user n inside, as far as the driver knows users.
    """

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """What to start. ``root`` is the sandbox's own, writable root file system, already made by storage: a directory, or, for a driver
    that takes disks (``TakesDisk``), a disk image.

    ``memory``: go on from this saved memory, and not from the beginning, with the disk that belongs to it; only for a driver that has
    saved it (``CanSnapshot``). What is running in it runs on, and ``argv`` and ``env`` are what later execs start from.
    ``netns`` is the path of a network namespace made for it (drivers without network support ignore it), where ``eth0`` has ``address``
    (with its prefix's length) and a route by ``gateway``; ``logs`` a directory that the driver writes ``stdout`` and ``stderr`` of the main
    process into, as plain files that it only appends to.
    """

    sandbox_id: str
    generation: int
    root: Path
    argv: Sequence[str]
    env: Mapping[str, str]
    logs: Path
    cwd: str = "/"
    user: str = ""
    hostname: str = "sandbox"
    limits: Limits = Limits()
    netns: Path | None = None
    ids: int = 0
    """The host's number of user 0 in ``root``: the files of its user n belong to ``ids`` + n."""
    memory: Path | None = None
    address: str = ""
    gateway: str = ""
    mounts: Sequence[Mount] = ()
    """Only for a driver with the flag ``disks``."""


@dataclass(frozen=True, slots=True)
class Handle:
    """How a driver finds a sandbox again, also after the agent was killed. JSON-ready, versioned, journalled by the agent."""

    driver: str
    sandbox_id: str
    generation: int
    version: int = 1
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a main process ended. ``code`` is None when nobody could see it; 128+n for signal n."""

    code: int | None
    reason: str = "exited"


@dataclass(frozen=True, slots=True)
class Observed:
    """What ``inspect`` saw. ``exit`` only with ``EXITED``."""

    condition: Condition
    exit: Exit | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """One more process inside. Output beyond ``max_output`` bytes per stream is read and dropped; then ``truncated`` is set."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    stdin: bytes = b""
    timeout_s: float = 60
    max_output: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExecResult:
    """``code`` as a shell would say it (126, 127, 128+n). ``timed_out``: it was killed, with everything that it had started."""

    code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a driver cannot work here, and the command that mends it, for ``strandline doctor``."""

    what: str
    mend: str = ""


class Driver(Protocol):
    """What every driver can do. Raises ``RuntimeFault`` with a stable code."""

    name: str
    flags: tuple[str, ...]
    """Sorted names of what works on this host: ``exec`` ``limits`` ``live-limits`` ``pause`` ``network`` ``userns`` ``seccomp`` ..."""

    async def version(self) -> str:
        """The runtime's version, for the node's fingerprint."""
        ...

    async def check(self) -> list[Fault]:
        """Why it cannot work here; empty when it can. Really starts something: an installed binary proves nothing."""
        ...

    async def start(self, spec: Spec) -> Handle:
        """Start the main process; when this returns it is running. A sandbox of this id and generation that already runs is adopted."""
        ...

    async def recover(self, handle: Handle) -> Observed:
        """Take up a sandbox that an earlier agent process started: find its processes again and watch them."""
        ...

    async def inspect(self, handle: Handle) -> Observed: ...

    async def wait(self, handle: Handle) -> Exit:
        """Wait until the main process has ended."""
        ...

    async def exec(self, handle: Handle, request: ExecRequest) -> ExecResult:
        """Run a process inside. Raises ``sandbox.not-running`` when there is nothing to run it in."""
        ...

    async def stop(self, handle: Handle, grace_s: float) -> Exit:
        """SIGTERM, wait at most ``grace_s``, then SIGKILL everything. A stopped sandbox stays stopped: its answer is its exit."""
        ...

    async def destroy(self, sandbox_id: str) -> None:
        """Remove every trace the driver has of any generation of this sandbox: processes, cgroups, state. Works without a handle."""
        ...

    async def list(self) -> Mapping[str, Observed]:
        """Every sandbox the driver knows of on this host (of this agent's data directory), whoever started it."""
        ...

    async def close(self) -> None:
        """Let go of everything without touching running sandboxes."""
        ...


@runtime_checkable
class MapsUsers(Protocol):
    ids: int
    """The host's number that user 0 of a sandbox's root is to have: the first of 65,536 that nobody else on this host has. 0: none."""


@runtime_checkable
class CanHold(Protocol):
    """A start may be made before anybody asks for it: all of it but the program itself (docs/adr/0023)."""

    holds: bool
    """Whether this host and this user let it."""

    async def hold(self, spec: Spec) -> None:
        """Make the start under a name of its own, and stop short of the program. ``destroy`` ends it; the next agent finds an orphan."""
        ...

    async def give(self, held: str, spec: Spec) -> Handle | None:
        """``start`` of a sandbox that differs from what is held in its name, host name, generation and the paths of root and logs alone.

        Those have been moved there. None: it is not held any more, and nothing of it is left.
        """
        ...


@runtime_checkable
class CanPause(Protocol):
    async def pause(self, handle: Handle) -> None: ...
    async def resume(self, handle: Handle) -> None: ...


@runtime_checkable
class CanLimitLive(Protocol):
    async def set_limits(self, handle: Handle, limits: Limits) -> None: ...


@runtime_checkable
class CanMeasure(Protocol):
    async def usage(self, handle: Handle) -> Mapping[str, float]:
        """``cpu_s``, ``memory_bytes``, ``pids``, as far as the host says."""
        ...


@runtime_checkable
class CanSample(Protocol):
    def sample(self, handles: Sequence[Handle]) -> Mapping[str, Mapping[str, Counters]]:
        """By sandbox and container, what each has used; all in one pass, without asking anything inside. Blocks: called in a thread.

        What cannot be read now is left out.
        """
        ...


@runtime_checkable
class CanWatchPorts(Protocol):
    async def listening(self, handle: Handle) -> frozenset[int]:
        """TCP ports that something inside listens on."""
        ...


@runtime_checkable
class CanTellListeners(Protocol):
    async def listeners(self, handle: Handle) -> frozenset[Listener]:
        """The same, and which of them can be reached from outside of the sandbox."""
        ...


@runtime_checkable
class CanStream(Protocol):
    def follow(self, handle: Handle) -> AsyncIterator[tuple[str, bytes]]:
        """(``stdout`` | ``stderr``, bytes) as it appears."""
        ...


@runtime_checkable
class HasFiles(Protocol):
    """Files inside, without a process there. Paths are the sandbox's; no symbolic link leads out of it."""

    async def read_file(self, handle: Handle, path: str, most: int) -> bytes:
        """At most ``most`` bytes. Raises ``file.not-read``."""
        ...

    async def write_file(self, handle: Handle, path: str, data: bytes, mode: int = 0o644) -> None:
        """Replace its content; ``mode`` for a new one. Raises ``file.not-written``."""
        ...


@runtime_checkable
class TakesIdentity(Protocol):
    async def give_identity(self, handle: Handle, token: str) -> None:
        """Have the token inside, at ``agents.drivers.inside.IDENTITY_PATH``, whole or not at all. Raises ``identity.not-given``."""
        ...


@runtime_checkable
class TakesDisk(Protocol):
    """Its ``Spec.root`` is a disk image, and ``disk_format`` is what storage has to make: ``qcow2``."""

    disk_format: str


@runtime_checkable
class HasGuestImage(Protocol):
    """It boots a kernel and programs of its own, whose version replicas are bound to (reference/cubesandbox.md §6)."""

    @property
    def guest_image(self) -> str: ...


@runtime_checkable
class CanSnapshot(Protocol):
    """Memory snapshots. Restore, clone and rollback are starts with ``Spec.memory``; many may start from one memory, and share it."""

    async def snapshot(self, handle: Handle, memory: Path, disk: Path, *, settled: bool = False) -> Path:
        """Save memory and disk at one moment. The sandbox goes on as it was, running or paused.

        ``settled``: the disk can be used without the memory. Raises ``sandbox.paused`` for one that cannot see to that now.

        The memory goes into the empty directory ``memory``. ``disk`` is an empty overlay over the sandbox's disk: from that moment on it
        writes there, and the disk that it had until then, which is returned, never changes again.
        """
        ...

    def needs(self, memory: Path) -> str:
        """The flag that a driver has which can go on from a memory that was saved."""
        ...
