"""What the objects of all nouns have: the session's calls."""

from __future__ import annotations

from strandline.client.call import Calls


class Noun:
    """One noun of the contract. Make none yourself: they are attributes of the session."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
