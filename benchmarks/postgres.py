"""A PostgreSQL server of the run's own, as Debian packages it, with its default settings: every commit is synced to the disk."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

USER = "postgres"
DATABASE = "postgres"


def binaries() -> Path | None:
    """Where its newest version is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return found[-1] if found else None


@contextmanager
def postgres() -> Iterator[int]:
    """Its port. PostgreSQL does not run as root: then it runs as the user that Debian made for it."""
    programs = binaries()
    assert programs is not None
    who = pwd.getpwnam(USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    home = Path(tempfile.mkdtemp(prefix="strandline-bench-pg-"))
    os.chown(home, who.pw_uid, who.pw_gid)
    as_user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": [], "cwd": home} if os.geteuid() == 0 else {"cwd": home}
    port = _free_port()
    initdb = [programs / "initdb", "-D", home / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
    subprocess.run(initdb, check=True, capture_output=True, **as_user)
    argv = [programs / "postgres", "-D", home / "data", "-p", str(port), "-h", "127.0.0.1", "-k", home]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user)
    try:
        _wait_for(port)
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # its fast shutdown
        server.wait(20)
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            psycopg.connect(host="127.0.0.1", port=port, user=USER, dbname=DATABASE, connect_timeout=1).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("PostgreSQL did not come up")
