"""What each replica of a stream really has: every server in turn is made the leader, which answers from its own store."""

from __future__ import annotations

import contextlib

from support.waiting import eventually

from bus.connection import Connection
from bus.direct import Reader, Stored
from bus.requests import ApiError, Publisher, accepted, patiently
from bus.server import Cluster


class Replicas:
    """The replicas of one stream of a cluster whose servers all run."""

    def __init__(self, nc: Connection, cluster: Cluster, stream: str) -> None:
        self._publisher = Publisher(nc)
        self._reader = Reader(self._publisher, stream)
        self._cluster = cluster
        self._stream = stream

    async def settled(self, within: float = 30) -> None:
        """Wait until every replica says that it has everything."""

        async def level() -> bool:
            cluster = (await self._api(f"STREAM.INFO.{self._stream}"))["cluster"]
            others = cluster.get("replicas", [])
            return bool(cluster.get("leader")) and len(others) == len(self._cluster.servers) - 1 and all(map(_level, others))

        await eventually(level, within)

    async def check(self) -> int:
        """Raise ``AssertionError`` unless all replicas hold the same messages at the same positions; returns how many."""
        await self.settled()
        first = await self._all_of(self._cluster.servers[0].name)
        for server in self._cluster.servers[1:]:
            assert await self._all_of(server.name) == first, f"{server.name} has another log than {self._cluster.servers[0].name}"
        return len(first)

    async def _all_of(self, name: str) -> list[Stored | None]:
        await self._lead(name)
        last = await self._reader.position()
        return [await patiently(lambda _, seq=seq: self._reader.leader_at(seq), 10) for seq in range(1, last + 1)]

    async def _lead(self, name: str) -> None:
        async def leads() -> bool:
            if (await self._api(f"STREAM.INFO.{self._stream}"))["cluster"].get("leader") == name:
                return True
            with contextlib.suppress(ApiError):  # it has become the leader meanwhile, or cannot yet
                await self._api(f"STREAM.LEADER.STEPDOWN.{self._stream}", f'{{"placement":{{"preferred":"{name}"}}}}'.encode())
            return False

        await eventually(leads, 30)

    async def _api(self, verb: str, body: bytes = b""):
        """Asked with little patience: during an election nobody answers, and then the question is gone."""

        async def once(left: float):
            return accepted((await self._publisher.ask(f"$JS.API.{verb}", body, timeout=min(left, 0.25))).data)

        return await patiently(once, 30)


def _level(replica) -> bool:
    return replica["current"] and not replica.get("offline") and not replica.get("lag")
