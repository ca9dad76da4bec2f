"""``python -m strandline.cluster DIR …``: keys, certificates and configurations of a cluster, for the processes of ``compose.yaml``.

Writes ``keys/`` (the authority and credentials), ``tls/`` (a CA and a certificate per server, by openssl), ``<server>.conf`` for each
nats-server, and ``connect.json`` for the control plane. A node gets a directory of its own with all that it may know (``connect.json``,
its credentials, the CA's certificate), to be given to that node and nothing else. A second run keeps what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bus.accounts import Authority, write_secret

DAYS: Final = "3650"

SERVER: Final = """\
server_name: {name}
listen: "{listen}:{port}"
max_payload: 8MB
jetstream {{ store_dir: "{store}" }}
# nats-py dies on the second version of ack subjects (docs/adr/0011)
feature_flags {{ js_ack_fc_v2: false }}
tls {{ cert_file: "{tls}/{name}.pem", key_file: "{tls}/{name}.key", ca_file: "{tls}/ca.pem", timeout: 5 }}
cluster {{
  name: strandline
  listen: "{listen}:{route}"
  routes: [{routes}]
  tls {{ cert_file: "{tls}/{name}.pem", key_file: "{tls}/{name}.key", ca_file: "{tls}/ca.pem", timeout: 5 }}
}}
{accounts}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """``name=host:port:route-port`` of a server."""

    name: str
    host: str
    port: int
    route: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``ValueError``."""
        name, _, rest = text.partition("=")
        host, port, route = rest.split(":")
        return cls(name, host, int(port), int(route))


def prepare(directory: Path, servers: list[Place], nodes: dict[str, Path], listen: str) -> None:
    """Write everything; ``nodes`` says where each node's own directory is. Raises ``subprocess.CalledProcessError`` when openssl does."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = Authority.load(directory / "keys")
    _secret(directory / "keys" / "admin.creds", authority.control_creds("admin"))
    _secret(directory / "keys" / "system.creds", authority.system_creds())
    tls = directory / "tls"
    _ca(tls)
    routes = ", ".join(f'"nats-route://{s.host}:{s.route}"' for s in servers)
    for server in servers:
        _certificate(tls, server)
        store = directory / "data" / server.name
        text = SERVER.format(
            name=server.name, listen=listen, port=server.port, route=server.route, routes=routes, store=store, tls=tls,
            accounts=authority.server_config(store / "jwt"),
        )  # fmt: skip
        write_secret(directory / f"{server.name}.conf", text)
    url = ",".join(f"tls://{s.host}:{s.port}" for s in servers)
    _connect(directory, url, directory / "keys" / "admin.creds", tls / "ca.pem")
    for node, own in nodes.items():
        _secret(own / "node.creds", authority.node(node).creds)
        write_secret(own / "ca.pem", (tls / "ca.pem").read_text())
        _connect(own, url, own / "node.creds", own / "ca.pem")


def _connect(where: Path, url: str, creds: Path, ca: Path) -> None:
    said = {"url": url, "creds": str(creds), "inbox_prefix": "_INBOX", "ca": str(ca), "http": None}
    write_secret(where / "connect.json", json.dumps(said, indent=1))


def _secret(path: Path, text: str) -> None:
    if not path.exists():
        write_secret(path, text)


def _ca(tls: Path) -> None:
    tls.mkdir(exist_ok=True, mode=0o700)
    if not (tls / "ca.pem").exists():
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", DAYS, "-subj", "/CN=strandline",
            "-keyout", str(tls / "ca.key"), "-out", str(tls / "ca.pem"),
        )  # fmt: skip


def _certificate(tls: Path, server: Place) -> None:
    if (tls / f"{server.name}.pem").exists():
        return
    kind = "IP" if server.host.replace(".", "").isdigit() else "DNS"
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", DAYS, "-subj", f"/CN={server.name}",
        "-addext", f"subjectAltName={kind}:{server.host},DNS:{server.name}", "-CA", str(tls / "ca.pem"), "-CAkey", str(tls / "ca.key"),
        "-keyout", str(tls / f"{server.name}.key"), "-out", str(tls / f"{server.name}.pem"),
    )  # fmt: skip


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S603, S607 - names and paths of our own


def main() -> None:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(prog="python -m strandline.cluster", description="Keys, certificates and configurations of a cluster.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--server", type=Place.parse, action="append", required=True, help="name=host:port:route-port")
    parser.add_argument("--node", action="append", default=[])
    parser.add_argument("--nodes-dir", type=Path, help="where the nodes' own directories are made (DIR/nodes)")
    parser.add_argument("--listen", default="0.0.0.0", help="the address that servers listen on")  # noqa: S104 - inside a container
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()
    nodes = (arguments.nodes_dir or directory / "nodes").absolute()
    prepare(directory, arguments.server, {node: nodes / node for node in arguments.node}, arguments.listen)


if __name__ == "__main__":
    main()
