"""``strandline event …``: importing the modules registers their commands."""

from strandline.cli.nouns.event import export, look
from strandline.cli.nouns.event.group import app

__all__ = ["app", "export", "look"]
