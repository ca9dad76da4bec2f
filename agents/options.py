"""What an agent is told on its command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from agents.fingerprint import MAX_SANDBOXES, Promise, Role
from agents.images.options import Trust
from agents.node import Settings
from agents.watchdog import Rhythm
from domain.kernel.ids import NAME_PATTERN

STARTS_WAITING: Final = 1
"""Starts that are held for the next sandbox of each kind, unless somebody says otherwise."""


@dataclass(frozen=True, slots=True)
class Options:
    """``dir`` is the installation's directory; the agent's own is ``nodes/<node>`` in it unless ``data`` says otherwise."""

    dir: Path
    node: str
    driver: str = "auto"
    connect: Path | None = None
    data: Path | None = None
    stop_sandboxes: bool = False
    purge: bool = False
    egress: bool = False
    metrics_port: int | None = None
    starts_waiting: int = STARTS_WAITING
    trust: Trust = field(default_factory=Trust)
    promise: Promise = field(default_factory=Promise)
    settings: Settings = field(default_factory=Settings)
    rhythm: Rhythm = field(default_factory=Rhythm)

    @property
    def own(self) -> Path:
        return self.data or self.dir / "nodes" / self.node


def parse(argv: Sequence[str] | None = None) -> Options:
    """Exits with a message on what cannot be understood."""
    parser = argparse.ArgumentParser(prog="python -m agents", description="The agent of one node: it runs sandboxes as ordered.")
    parser.add_argument("--dir", type=Path, required=True, help="the installation's data directory, with connect.json")
    parser.add_argument("--node", required=True, help="the node's name: lower-case letters, digits, dashes")
    parser.add_argument("--driver", default="auto", help="auto, or names by commas, the default first: oci, process, vm, sim")
    parser.add_argument("--connect", type=Path, help="a directory with another connect.json")
    parser.add_argument("--data", type=Path, help="the agent's own directory (DIR/nodes/NODE)")
    parser.add_argument("--roles", default="builder,runner", help="what the node may be used for")
    parser.add_argument("--cpu", type=float, help="cores to promise, instead of all")
    parser.add_argument("--memory-mb", type=int, help="memory to promise, instead of all")
    parser.add_argument("--max-sandboxes", type=int, default=MAX_SANDBOXES)
    parser.add_argument("--port-wait", type=float, default=Settings().port_wait_s, help="seconds that a probe port may take")
    parser.add_argument("--heartbeat", type=float, default=Settings().heartbeat_s, help="seconds between heartbeats")
    parser.add_argument("--look", type=float, default=Rhythm().look_s, help="seconds between looks for what is nobody's")
    parser.add_argument("--usage", type=float, default=Settings().usage_s, help="seconds between words on what sandboxes use")
    parser.add_argument("--egress", action="store_true", help="let sandboxes reach the world, as this node")
    parser.add_argument("--registry-ca", type=Path, metavar="FILE", help="believe registries that these PEM certificates vouch for, too")
    parser.add_argument(
        "--registry-insecure", action="append", default=[], metavar="HOST[:PORT]", help="speak plain HTTP with this registry; repeatable"
    )
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on this port of 127.0.0.1")
    waiting = os.environ.get("STRAND_STARTS_WAITING", str(STARTS_WAITING))
    parser.add_argument(
        "--starts-waiting",
        type=int,
        default=waiting,
        choices=range(65),
        metavar="N",
        help="starts to hold for the next sandbox of each kind that was asked for lately; 0: none (STRAND_STARTS_WAITING, 1)",
    )
    parser.add_argument("--stop-sandboxes", action="store_true", help="when told to end, end all sandboxes too")
    parser.add_argument("--purge", action="store_true", help="remove every trace of this node from the host, and exit")
    said = parser.parse_args(argv)
    roles = tuple(role for role in get_args(Role) if role in said.roles.split(","))
    if not _is_name(said.node) or not roles:
        parser.error("--node is no name" if roles else f"--roles are some of {', '.join(get_args(Role))}")
    if said.registry_ca is not None and not said.registry_ca.is_file():
        parser.error(f"--registry-ca: there is no file {said.registry_ca}")
    return Options(
        dir=said.dir.absolute(),
        node=said.node,
        driver=said.driver,
        connect=said.connect,
        data=said.data and said.data.absolute(),
        stop_sandboxes=said.stop_sandboxes,
        purge=said.purge,
        egress=said.egress,
        starts_waiting=said.starts_waiting,
        metrics_port=said.metrics_port,
        trust=Trust(said.registry_ca and said.registry_ca.absolute(), frozenset(said.registry_insecure)),
        promise=Promise(cpu=said.cpu, memory_mb=said.memory_mb, sandboxes=said.max_sandboxes, roles=roles),
        settings=Settings(port_wait_s=said.port_wait, heartbeat_s=said.heartbeat, usage_s=said.usage),
        rhythm=Rhythm(look_s=said.look),
    )


def _is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None
