"""The async, typed Python client: one object per noun, commands and queries over NATS (contract.md)."""

from domain.kernel.errors import Refused
from strandline.client.call import Call
from strandline.client.session import Strandline

__all__ = ["Call", "Refused", "Strandline"]
