"""Answering a registry's challenge: basic credentials, or a bearer token from the service it names.

Source: https://distribution.github.io/distribution/spec/auth/token/.
"""

from __future__ import annotations

import base64
import re
import threading
from typing import Final
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from agents.images.faults import ImageFault
from agents.images.options import Auth
from agents.images.transport import Dropped, Transport, is_loopback

_PARAMETER: Final = re.compile(r'([A-Za-z_]+)=(?:"([^"]*)"|([^\s,"]+))')
_MAX_TOKEN: Final = 256 * 1024


class _Token(BaseModel):
    token: str = ""
    access_token: str = ""


class Authorizer:
    """The ``Authorization`` header for one repository, learnt from challenges. Shared by the threads that pull."""

    def __init__(self, transport: Transport, auth: Auth | None, repository: str) -> None:
        self._http = transport
        self._credentials = auth
        self._repository = repository
        self._lock = threading.Lock()
        self._header: dict[str, str] = {}

    def header(self) -> dict[str, str]:
        with self._lock:
            return self._header

    def answer(self, challenges: list[str], used: dict[str, str], url: str) -> None:
        """Get a new header after ``used`` was refused. Raises ``image.unauthorized``, ``Dropped``."""
        with self._lock:
            if self._header != used:
                return  # another thread has already answered
            self._header = self._answer(challenges, url, refused=bool(used))

    def _answer(self, challenges: list[str], url: str, *, refused: bool) -> dict[str, str]:
        offered = {scheme.lower(): rest for scheme, _, rest in (challenge.strip().partition(" ") for challenge in challenges)}
        if "bearer" in offered:
            return {"Authorization": f"Bearer {self._token(offered['bearer'], url)}"}
        if "basic" in offered and self._credentials and not refused:
            return self._basic(self._credentials)
        raise ImageFault(
            "image.unauthorized", "the registry refuses the credentials" if self._credentials else "the registry wants credentials"
        )

    def _token(self, challenge: str, url: str) -> str:
        fields = {name: quoted or bare for name, quoted, bare in _PARAMETER.findall(challenge)}
        realm = urlsplit(fields.get("realm", ""))
        plain_is_fine = realm.scheme == "http" and urlsplit(url).scheme == "http" and is_loopback(realm.hostname or "")
        if realm.scheme != "https" and not plain_is_fine:
            raise ImageFault("image.insecure", "the registry names a token service in plain text")
        query = {"service": fields.get("service", ""), "scope": fields.get("scope") or f"repository:{self._repository}:pull"}
        joined = f"{realm.geturl()}{'&' if realm.query else '?'}{urlencode({k: v for k, v in query.items() if v})}"
        with self._http.get(joined, self._basic(self._credentials) if self._credentials else {}) as response:
            if response.status == 429 or response.status >= 500:
                raise Dropped(f"{realm.hostname}: the token service answers {response.status}")
            if response.status != 200:
                raise ImageFault("image.unauthorized", f"the token service {realm.hostname} answers {response.status}")
            try:
                answer = _Token.model_validate_json(response.read_all(_MAX_TOKEN))
            except ValidationError as error:
                raise ImageFault("image.registry-error", f"the token service {realm.hostname} answers nonsense") from error
        token = answer.token or answer.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise ImageFault("image.registry-error", f"the token service {realm.hostname} gives no token")
        return token

    @staticmethod
    def _basic(credentials: Auth) -> dict[str, str]:
        pair = f"{credentials.user}:{credentials.secret}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
