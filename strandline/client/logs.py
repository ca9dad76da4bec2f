"""Output of sandboxes, followed or looked back at."""

from __future__ import annotations

from strandline.client.noun import Noun


class Logs(Noun):
    """The stream ``LOGS`` of one project."""
