"""What ``strandline up`` was told, and what each part is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LARGEST_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Options:
    """What ``strandline up`` was told. ``port`` 0: the one of last time, else a free one.

    ``registry_ca``, ``registry_insecure``: the agents' options of these names. ``metrics_port``: the control plane's, the others follow;
    ``artifacts_port``: where the control plane serves artifacts. None: not served. ``egress``: sandboxes get out of this machine.
    ``identity_port``, ``identity_url``: the control plane's options.
    """

    dir: Path
    port: int = 0
    nodes: int = 1
    driver: str = "auto"
    registry_ca: Path | None = None
    registry_insecure: tuple[str, ...] = ()
    metrics_port: int | None = None
    artifacts_port: int | None = None
    egress: bool = False
    identity_port: int | None = None
    identity_url: str | None = None

    def served(self) -> list[int]:
        """Every port beside the bus's that its parts are to listen on."""
        metrics = range(self.metrics_port, self.metrics_port + 2 + self.nodes) if self.metrics_port else ()
        return [*metrics, *(port for port in (self.artifacts_port, self.identity_port) if port)]

    def metrics(self, place: int) -> list[str]:
        """What a part is told of its metrics; the control plane has place 0, the projector 1, nodes those after it."""
        return ["--metrics-port", str(self.metrics_port + place)] if self.metrics_port else []

    def for_control(self) -> list[str]:
        """What the control plane is told."""
        ports = {"--artifacts-port": self.artifacts_port, "--identity-port": self.identity_port, "--identity-url": self.identity_url}
        return [*self.metrics(0), *(word for option, value in ports.items() if value for word in (option, str(value)))]

    def for_agents(self) -> list[str]:
        """What every agent is told besides its name."""
        ca = ["--registry-ca", str(self.registry_ca.absolute())] if self.registry_ca else []
        insecure = (word for host in self.registry_insecure for word in ("--registry-insecure", host))
        return ["--driver", self.driver, *ca, *insecure, *(["--egress"] if self.egress else [])]

    def clash(self) -> str | None:
        """Why these ports cannot be; None when they can."""
        ports = [*self.served(), *([self.port] if self.port else [])]
        if max(ports, default=0) > LARGEST_PORT:
            return f"the nodes' metrics would need ports up to {max(ports)}"
        twice = sorted({port for port in ports if ports.count(port) > 1})
        return f"port {twice[0]} would be used for two things" if twice else None
