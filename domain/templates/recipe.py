"""The recipe of a template: how its sandboxes start, from the image's configuration and the wishes of whoever made it.

A wished command replaces entrypoint and command of the image together; wished variables are merged over the image's, the wish winning;
wished ports replace the exposed ones. What nobody says has the defaults of :class:`~domain.sandboxes.spec.Recipe`
(reference/cubesandbox.md §3.5). The image's part is somebody else's data: what does not fit is left out, not believed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from domain.kernel.errors import Refused
from domain.sandboxes.spec import Recipe
from domain.templates.template import TemplateRequest

MAX_PORTS: Final = 16
MAX_ENV: Final = 256
MAX_TEXT: Final = 32_768
MAX_ARGUMENTS: Final = 256

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_EXPOSED: Final = re.compile(r"([0-9]{1,5})(/tcp)?")


def recipe_of(image_config: Mapping[str, Any], request: TemplateRequest) -> Recipe:
    """The recipe. Raises ``template.unusable-image`` when the image's own command cannot be one."""
    wishes: dict[str, Any] = {"cpu": request.cpu, "memory_mb": request.memory_mb, "disk_mb": request.disk_mb}
    argv = request.cmd or _argv(image_config)
    if argv:
        wishes["cmd"] = argv
    return Recipe(
        env=_merged(_env(image_config), request.env),
        cwd=_cwd(image_config),
        user=_text(image_config.get("User"), 256),
        ports=tuple(sorted(set(request.ports))) or _exposed(image_config),
        probe_port=request.probe_port,
        **{name: wish for name, wish in wishes.items() if wish is not None},
    )


def _argv(config: Mapping[str, Any]) -> tuple[str, ...]:
    argv = (*_strings(config.get("Entrypoint")), *_strings(config.get("Cmd")))
    if len(argv) > MAX_ARGUMENTS or any(len(word) > MAX_TEXT or "\0" in word for word in argv):
        raise Refused("template.unusable-image", "the image's command is too long, or is no command")
    return argv


def _env(config: Mapping[str, Any]) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in _strings(config.get("Env")))
    return {
        name: value
        for name, equals, value in pairs
        if equals and _ENV_NAME.fullmatch(name) and len(value) <= MAX_TEXT and "\0" not in value
    }


def _merged(image: dict[str, str], wished: Mapping[str, str]) -> dict[str, str]:
    """By name, so that the same recipe is the same bytes; the image's last ones give way when there are too many."""
    room = MAX_ENV - len(wished)
    kept = [name for name in sorted(image) if name not in wished][: max(0, room)]
    return dict(sorted({**{name: image[name] for name in kept}, **wished}.items()))


def _cwd(config: Mapping[str, Any]) -> str:
    directory = _text(config.get("WorkingDir"), 4096)
    return directory if directory.startswith("/") else f"/{directory}"


def _exposed(config: Mapping[str, Any]) -> tuple[int, ...]:
    exposed = config.get("ExposedPorts")
    matches = (_EXPOSED.fullmatch(str(key)) for key in exposed) if isinstance(exposed, Mapping) else ()
    ports = {int(match[1]) for match in matches if match}
    return tuple(sorted(port for port in ports if 1 <= port <= 65_535))[:MAX_PORTS]


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else ()


def _text(value: Any, limit: int) -> str:
    return value if isinstance(value, str) and len(value) <= limit and "\0" not in value else ""
