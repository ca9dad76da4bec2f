"""Child processes, started without threads and without a copy of the agent: posix_spawn, pidfd, pipes on the event loop.

``run`` is the bounded request and answer that execs and helper programs need; ``start`` a process that outlives the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.host import processes
from agents.host.reaper import shell_code

HOST_ENV: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""What helper programs of the host see. A sandbox's variables never reach them: LD_PRELOAD would be code run as the agent."""

Within = Callable[[Callable[[], int]], int]
"""Calls what starts a process, and gives back its pid."""

_CHUNK: Final = 65536
_LAST_WORDS_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a process ended, and what it said."""

    code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False

    def complaint(self) -> str:
        """What it said about its failure, at most 2,000 characters."""
        return (self.stderr or self.stdout).decode(errors="replace").strip()[-2000:]


def start(argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int], keep: Iterable[int] = ()) -> int:
    """Start a process in a session of its own, with three descriptors as its stdio and ``keep`` at their own numbers. The caller reaps."""
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep]  # onto itself: clears close-on-exec (glibc 2.29, musl)
    return os.posix_spawnp(argv[0], list(argv), dict(env), file_actions=actions, setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE,))


def _inheritable() -> list[int]:
    """What the agent's own parent left open in it: a descriptor of the host in a sandbox would be a way out."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # numbers, not paths
        with contextlib.suppress(OSError):  # the one that lists is closed by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


async def wait_for(
    argv: Sequence[str],
    env: Mapping[str, str],
    stdio: tuple[int, int, int],
    timeout_s: float,
    within: Within | None = None,
    keep: Iterable[int] = (),
) -> int:
    """Run a helper whose streams belong to what it leaves behind, and return its exit code; 137 when time was up.

    ``within`` calls what starts it, in surroundings of its making.
    """
    pid = start(argv, env, stdio, keep) if within is None else within(lambda: start(argv, env, stdio, keep))
    pidfd = os.pidfd_open(pid)
    try:
        if not await processes.readable(pidfd, timeout_s):
            os.killpg(pid, signal.SIGKILL)
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        raise
    finally:
        os.close(pidfd)
        code = _bury(pid)
    return code


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] = HOST_ENV,
    stdin: bytes = b"",
    timeout_s: float | None = 60,
    max_output: int = 1024 * 1024,
    keep: Iterable[int] = (),
    on_kill: Callable[[], Awaitable[object]] | None = None,
    owner: tuple[int, int] | None = None,
) -> Finished:
    """Run a program to its end. When time is up, or the caller is cancelled, ``on_kill`` first, then its whole process group.

    ``owner``: the user and group whose pipes these are, so that it may open them again (``/dev/stderr``).

    What has been started in the background and holds the pipes open does not delay the answer.
    Raises ``FileNotFoundError`` when there is no such program.
    """
    pipes = _Pipes(max_output)
    timed_out = False
    try:
        if owner is not None:
            for fd in pipes.child_ends:
                os.fchown(fd, *owner)
        pid = start(argv, env, pipes.child_ends, keep)
    except OSError:
        pipes.close()
        raise
    ended = False
    pidfd = os.pidfd_open(pid)
    try:
        pipes.attach(stdin)
        ended = await processes.readable(pidfd, timeout_s)
        if not ended:
            timed_out = True
            await _kill(pid, pidfd, on_kill)
        pipes.drain()
    except BaseException:
        if not ended and not timed_out:
            await _kill(pid, pidfd, on_kill)
        raise
    finally:
        os.close(pidfd)
        pipes.close()
        code = _bury(pid)
    return Finished(code, bytes(pipes.out.data), bytes(pipes.err.data), pipes.out.more or pipes.err.more, timed_out)


def _bury(pid: int) -> int:
    """It has ended: this does not wait."""
    return shell_code(os.waitpid(pid, 0)[1])


async def _kill(pid: int, pidfd: int, on_kill: Callable[[], Awaitable[object]] | None) -> None:
    """Leave nothing: what ran inside first, so that the helper in front of it can still say how it ended."""
    if on_kill is not None:
        await on_kill()
        if await processes.readable(pidfd, _LAST_WORDS_S):
            return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    await processes.readable(pidfd, _LAST_WORDS_S)


@dataclass(slots=True)
class _Sink:
    """One output stream: keeps ``limit`` bytes, reads and drops the rest so that the writer never blocks on us."""

    fd: int
    limit: int
    data: bytearray = field(default_factory=bytearray)
    more: bool = False

    def read(self) -> bool:
        """Take what is there. False: that was the end. Raises ``BlockingIOError`` when there is nothing for now."""
        chunk = os.read(self.fd, _CHUNK)
        room = self.limit - len(self.data)
        self.data += chunk[:room]
        self.more = self.more or len(chunk) > room
        return bool(chunk)


class _Pipes:
    """The three pipes of one child, and both ends of each until it has been started."""

    def __init__(self, limit: int) -> None:
        (self._in_child, self._in), (out, self._out_child), (err, self._err_child) = os.pipe(), os.pipe(), os.pipe()
        self.out, self.err = _Sink(out, limit), _Sink(err, limit)
        self._open = {self._in_child, self._in, out, self._out_child, err, self._err_child}
        self._input = memoryview(b"")
        for fd in (self._in, out, err):
            os.set_blocking(fd, False)

    @property
    def child_ends(self) -> tuple[int, int, int]:
        return self._in_child, self._out_child, self._err_child

    def attach(self, stdin: bytes) -> None:
        loop = asyncio.get_running_loop()
        for fd in self.child_ends:
            self._shut(fd)
        for sink in (self.out, self.err):
            loop.add_reader(sink.fd, self._readable, sink)
        self._input = memoryview(stdin)
        if stdin:
            loop.add_writer(self._in, self._writable)
        else:
            self._shut(self._in)

    def _readable(self, sink: _Sink) -> None:
        with contextlib.suppress(BlockingIOError):
            if not sink.read():
                asyncio.get_running_loop().remove_reader(sink.fd)

    def _writable(self) -> None:
        try:
            self._input = self._input[os.write(self._in, self._input[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._input = memoryview(b"")
        if not self._input:
            asyncio.get_running_loop().remove_writer(self._in)
            self._shut(self._in)

    def drain(self) -> None:
        """Everything that a dead writer wrote is in the pipe by now. A living one may write for ever: stop at the limit."""
        for sink in (self.out, self.err):
            with contextlib.suppress(BlockingIOError):
                while sink.read() and not sink.more:
                    pass

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in (self.out.fd, self.err.fd):
            loop.remove_reader(fd)
        if self._in in self._open:
            loop.remove_writer(self._in)
        for fd in tuple(self._open):
            self._shut(fd)

    def _shut(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)
