"""A control plane and a scripted node on a server of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.places import Place, placed

from bus.server import Server
from handlers.control import Deadlines


@pytest.fixture
def at(server: Server, run: Callable[[Awaitable[Any]], Any]) -> Callable[..., Any]:
    """Run an async test function with a :class:`Place`."""

    def place_for(test: Callable[[Place], Awaitable[None]], deadlines: Deadlines | None = None, **more: Any) -> None:
        async def whole() -> None:
            async with placed(server, deadlines, **more) as place:
                await test(place)

        run(whole())

    return place_for
