"""QEMU's monitor: commands with ids, several under way at once, and the events it says of itself.

Replies are matched by id: pipelined ones answer out of turn otherwise (reference/runtimes.md §5).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import sockets

_ANSWER_S: Final = 30.0


class Monitor:
    """One connection to one machine. QEMU takes one at a time; a killed agent's is closed by the kernel.

    Commands may be sent at once, also before QEMU has been executed.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``."""
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._awaited: list[tuple[str, Callable[[dict[str, Any]], bool], asyncio.Future[dict[str, Any]]]] = []
        self._rest = b""
        self._connection = sockets.Connection(path, self._received, self._lost)
        self.send("qmp_capabilities")

    @property
    def usable(self) -> bool:
        return self._connection.usable

    def send(self, command: str, **arguments: Any) -> asyncio.Future[Any]:
        """Ask without waiting; the future is the answer, or ``RuntimeFault``."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # pipelined ones may be nobody's concern
        if not self._connection.usable:
            answer.set_exception(_gone(command))
            return answer
        identifier = next(self._ids)
        self._answers[identifier] = answer
        self._connection.write(json.dumps({"execute": command, "arguments": arguments, "id": identifier}).encode() + b"\n")
        return answer

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Raises ``RuntimeFault``: ``vm.monitor-refused``, ``vm.gone``, ``vm.monitor-silent``."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self.send(command, **arguments)
        except TimeoutError as error:
            raise RuntimeFault("vm.monitor-silent", f"{command}: no answer within {_ANSWER_S:g} s", retryable=True) from error

    def when(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> asyncio.Future[dict[str, Any]]:
        """The next event of that name whose data are wanted. To be asked for before it can happen."""
        seen: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._awaited.append((name, wanted, seen))
        return seen

    def _received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "event" in said:
                self._happened(said["event"], said.get("data", {}))
            elif (answer := self._answers.pop(said.get("id", 0), None)) is not None and not answer.done():
                _settle(answer, said)

    def _happened(self, event: str, data: dict[str, Any]) -> None:
        for entry in [entry for entry in self._awaited if entry[0] == event and entry[1](data)]:
            self._awaited.remove(entry)
            if not entry[2].done():
                entry[2].set_result(data)

    def _lost(self) -> None:
        for waiting in [*self._answers.values(), *(entry[2] for entry in self._awaited)]:
            if not waiting.done():
                waiting.set_exception(_gone("the monitor"))
                waiting.exception()
        self._answers.clear()
        self._awaited.clear()

    def close(self) -> None:
        self._connection.close()


def _settle(answer: asyncio.Future[Any], said: dict[str, Any]) -> None:
    if "error" in said:
        answer.set_exception(RuntimeFault("vm.monitor-refused", str(said["error"].get("desc"))[:1000]))
    else:
        answer.set_result(said.get("return"))


def _gone(what: str) -> RuntimeFault:
    return RuntimeFault("vm.gone", f"{what}: the machine is gone", retryable=True)
