"""``strandline sandbox …``: one module per kind of thing that is done with sandboxes; importing them registers their commands."""

from strandline.cli.nouns.sandbox import create, inside, life, logs, look, why
from strandline.cli.nouns.sandbox.group import app

__all__ = ["app", "create", "inside", "life", "logs", "look", "why"]
