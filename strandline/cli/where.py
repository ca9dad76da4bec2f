"""Where the control plane is: flags, then environment, then the context in use, then the data directory that ``up`` uses by default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from domain.kernel.errors import not_found
from strandline.cli.errors import UsageProblem

DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class Where:
    """A control plane and a project on it. ``dir`` or ``url`` says where; ``creds`` and ``inbox_prefix`` go with a URL."""

    dir: str | None = None
    url: str | None = None
    project: str | None = None
    creds: str | None = None
    inbox_prefix: str | None = None

    @property
    def target(self) -> str:
        """What to connect to."""
        return self.url or self.dir or str(default_dir())


@dataclass(frozen=True, slots=True)
class Contexts:
    """The contexts of the configuration file, and which one is in use."""

    current: str | None = None
    known: Mapping[str, Where] = field(default_factory=dict)


def default_dir() -> Path:
    """``$XDG_STATE_HOME/strandline``: where ``up`` puts an installation that nobody gave a directory."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "strandline"


def config_file() -> Path:
    """``$XDG_CONFIG_HOME/strandline/config.toml``."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "strandline" / "config.toml"


def read_contexts() -> Contexts:
    """The configuration file; nothing when there is none. Raises ``UsageProblem`` when it is no TOML."""
    path = config_file()
    try:
        said = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Contexts()
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{path}: {error}", "mend the file, or remove it") from error
    names = {f.name for f in fields(Where)}
    known = {name: Where(**{k: str(v) for k, v in one.items() if k in names}) for name, one in said.get("contexts", {}).items()}
    return Contexts(said.get("current"), known)


def write_contexts(contexts: Contexts) -> None:
    """Replace the configuration file in one step, readable by its owner only."""
    lines = [] if contexts.current is None else [f"current = {_quoted(contexts.current)}"]
    for name, where in sorted(contexts.known.items()):
        lines.append(f"\n[contexts.{_quoted(name)}]")
        lines += [f"{f.name} = {_quoted(getattr(where, f.name))}" for f in fields(where) if getattr(where, f.name) is not None]
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text("\n".join(lines) + "\n")
    draft.chmod(0o600)
    draft.replace(path)


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'


def find(flags: Where, context: str | None = None) -> Where:
    """Where to go, from the flags given. Raises ``UsageProblem``, ``context.not-found``."""
    if flags.dir and flags.url:
        raise UsageProblem("--dir and --url exclude each other")
    env = Where(
        dir=os.environ.get("STRANDLINE_DIR") or None,
        url=os.environ.get("STRANDLINE_URL") or None,
        project=os.environ.get("STRANDLINE_PROJECT") or None,
        creds=os.environ.get("STRANDLINE_CREDS") or None,
        inbox_prefix=os.environ.get("STRANDLINE_INBOX_PREFIX") or None,
    )
    named = context or os.environ.get("STRANDLINE_CONTEXT") or None
    if flags.dir or flags.url:
        base = replace(flags, creds=flags.creds or env.creds, inbox_prefix=flags.inbox_prefix or env.inbox_prefix)
    elif context is None and (env.dir or env.url):
        base = replace(env, dir=None) if env.url else env
    else:
        contexts = read_contexts()
        name = named or contexts.current
        if name is not None and name not in contexts.known:
            raise not_found("context", name)
        base = contexts.known[name] if name is not None else Where()
    return replace(base, project=flags.project or env.project or base.project or DEFAULT_PROJECT)
