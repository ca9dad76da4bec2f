"""What simulated sandboxes run: a tiny shell, and programs that end at once or never. Pure but for files under the given root.

Enough for tests and demos that speak to a sandbox: ``;`` ``&&`` ``||``, ``> >> >&2`` redirection, ``$NAME``, quotes, and the programs of
``PROGRAMS``. Anything else is "not found" (127), as in an empty image.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from agents.host.syscalls import open_in_root

_SHELLS: Final = ("sh", "bash", "/bin/sh", "/bin/bash")
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
FOREVER: Final = float("inf")


@dataclass(slots=True)
class Outcome:
    """``seconds`` that it took in simulated time; ``FOREVER`` for what does not end by itself."""

    code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0


@dataclass(slots=True)
class Shell:
    """One run. ``root`` is the sandbox's root directory, or None when there are no real files behind it."""

    root: Path | None
    env: Mapping[str, str]
    cwd: str = "/"
    stdin: bytes = b""
    user: str = "0"
    out: Outcome = field(default_factory=Outcome)

    def run(self, argv: Sequence[str]) -> Outcome:
        if argv[0] in _SHELLS and len(argv) > 2 and argv[1] == "-c":
            self._script(argv[2])
        elif argv[0] in _SHELLS:
            self.out.seconds = FOREVER  # an interactive shell, whose input never ends
        else:
            self._command(list(argv))
        return self.out

    def _script(self, script: str) -> None:
        lexer = shlex.shlex(script.replace("\n", ";"), posix=True, punctuation_chars=";&|>")
        lexer.whitespace_split = True
        words: list[str] = []
        joined = ";"
        for word in [*lexer, ";"]:
            if word not in (";", "&&", "||", ";;"):
                words.append(self._expand(word))
                continue
            wanted = {"&&": self.out.code == 0, "||": self.out.code != 0}.get(joined, True)
            if words and wanted and not self._line(words):
                return
            words, joined = [], word

    def _expand(self, word: str) -> str:
        return _VARIABLE.sub(lambda match: self.env.get(match[1] or match[2], ""), word)

    def _line(self, words: list[str]) -> bool:
        """One simple command with its redirection. False ends the script."""
        target, mode = "", ""
        if len(words) > 2 and words[-2] in (">", ">>"):
            *words, mode, target = words
        if words[-1] in (">&2", "1>&2") or words[-2:] == [">&", "2"]:
            words = words[:-1] if words[-1] != "2" else words[:-2]
            target = "&2"
        if words[0] == "exit":
            self.out.code = int(words[1]) % 256 if len(words) > 1 else self.out.code
            return False
        before = len(self.out.stdout)
        self._command(words)
        if target:
            said = self.out.stdout[before:]
            self.out.stdout = self.out.stdout[:before]
            self._redirect(target, mode, said)
        return self.out.seconds != FOREVER

    def _redirect(self, target: str, mode: str, data: bytes) -> None:
        if target == "&2":
            self.out.stderr += data
            return
        fd = self._open(target, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == ">>" else os.O_TRUNC))
        if fd is None:
            self._fail(1, f"sh: can't create {target}")
            return
        with os.fdopen(fd, "wb") as file:
            file.write(data)

    def _open(self, path: str, flags: int) -> int | None:
        try:
            return (
                None
                if self.root is None
                else open_in_root(self.root, str(PurePosixPath(self.cwd, path)), flags, 0o644 if flags & os.O_CREAT else 0)
            )
        except OSError:
            return None

    def _fail(self, code: int, text: str) -> None:
        self.out.code = code
        self.out.stderr += text.encode() + b"\n"

    def _command(self, words: list[str]) -> None:
        name = PurePosixPath(words[0]).name
        program = PROGRAMS.get(name)
        if program is None:
            self._fail(127, f"{words[0]}: not found")
            return
        self.out.code = 0
        program(self, words[1:])

    # ---------------------------------------------------------------------------------------------------------- programs

    def echo(self, words: list[str]) -> None:
        newline = b"" if words[:1] == ["-n"] else b"\n"
        self.out.stdout += " ".join(words[1:] if not newline else words).encode() + newline

    def cat(self, words: list[str]) -> None:
        if not words:
            self.out.stdout += self.stdin
        for path in words:
            fd = self._open(path, os.O_RDONLY)
            if fd is None:
                self._fail(1, f"cat: {path}: No such file or directory")
                continue
            with os.fdopen(fd, "rb") as file:
                self.out.stdout += file.read()

    def sleep(self, words: list[str]) -> None:
        self.out.seconds += float(words[0])

    def true(self, words: list[str]) -> None:
        """Nothing, successfully."""

    def false(self, words: list[str]) -> None:  # noqa: ARG002  # as every program here
        self.out.code = 1

    def print_env(self, words: list[str]) -> None:  # noqa: ARG002  # as every program here
        self.out.stdout += "".join(f"{name}={value}\n" for name, value in self.env.items()).encode()

    def pwd(self, words: list[str]) -> None:  # noqa: ARG002  # as every program here
        self.out.stdout += self.cwd.encode() + b"\n"

    def whoami(self, words: list[str]) -> None:
        if words == ["-u"]:
            self.out.stdout += self.user.encode() + b"\n"


PROGRAMS: Final[Mapping[str, Callable[[Shell, list[str]], None]]] = {
    "cat": Shell.cat,
    "echo": Shell.echo,
    "env": Shell.print_env,
    "false": Shell.false,
    "id": Shell.whoami,
    "pwd": Shell.pwd,
    "sleep": Shell.sleep,
    "true": Shell.true,
}
