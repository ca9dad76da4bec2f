"""A PostgreSQL server of our own, and the three view stores."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

POSTGRES_USER = "postgres"


def _postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return found[0] if found else None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def postgres():
    """The URL of a server that exists for this run only. It refuses to run as root, so it runs as Debian's ``postgres`` user."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    user = pwd.getpwnam(POSTGRES_USER)
    home = Path(tempfile.mkdtemp(prefix="strandline-pg-"))
    os.chown(home, user.pw_uid, user.pw_gid)
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": home}
    data, port = home / "data", _free_port()
    subprocess.run(
        [binaries / "initdb", "-D", data, "-A", "trust", "-N", "-E", "UTF8", "--locale=C.UTF-8"], check=True, capture_output=True, **who
    )
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", home, "-c", "fsync=off"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **who,
    )
    try:
        url = f"postgresql://{POSTGRES_USER}@127.0.0.1:{port}/postgres"
        for _ in range(1000):  # each try waits up to a second itself
            if subprocess.run([binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"], check=False).returncode == 0:
                break
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it does not wait for clients
        server.wait(20)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def schema(postgres: str, name: str):
    """The URL of a schema of its own, so that tests share a server and nothing else."""
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f'create schema "{name}"')
    try:
        yield f"{postgres}?options=-csearch_path%3D{name}"
    finally:
        with psycopg.connect(postgres, autocommit=True) as db:
            db.execute(f'drop schema "{name}" cascade')


@pytest.fixture
def postgres_url(postgres, request):
    """A schema per test."""
    with schema(postgres, f"t{abs(hash(request.node.nodeid))}") as url:
        yield url


@pytest.fixture(scope="session")
def postgres_schema(postgres):
    """``with postgres_schema() as url:`` one for each example of a property."""
    numbers = count()
    return lambda: schema(postgres, f"example{next(numbers)}")
