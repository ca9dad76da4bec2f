"""Where views are kept: ``STRAND_VIEWS=sqlite:<path>`` or ``postgresql://…``; without it, SQLite in the data directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from projections.sqlite import SqliteStore
from projections.store import Store

VARIABLE: Final = "STRAND_VIEWS"
FILE: Final = "views.db"


def store_url(directory: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The store's address for an installation."""
    return environment.get(VARIABLE) or f"sqlite:{directory / FILE}"


def open_store(url: str) -> Store:
    """The store at an address. Raises ``ValueError`` for one that nobody knows, ``ConnectionError`` when the server is not there.

    ``psycopg`` is only needed, and only imported, for PostgreSQL.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "sqlite" if rest:
            return SqliteStore(Path(rest.removeprefix("//")))
        case "postgres" | "postgresql":
            from projections.postgres import PostgresStore  # noqa: PLC0415 - an optional dependency

            return PostgresStore(url)
        case _:
            raise ValueError(f"{VARIABLE}: not sqlite:<path> or postgresql://…: {scheme!r}")
