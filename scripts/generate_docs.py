"""``python -m scripts.generate_docs``: write the documents that follow from the code. With ``--check`` only say which are out of date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from domain.catalogue import lifecycles
from scripts.asyncapi import document
from strandline.cli.reference import reference

DOCS: Final = Path(__file__).parents[1] / "docs"


def asyncapi() -> str:
    """The AsyncAPI document, indented: its differences are meant to be read."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "asyncapi.json": asyncapi,
    "lifecycles.md": lifecycles,
    "cli.md": reference,
}


def outdated() -> dict[str, str]:
    """File name → what it should say, for those that say something else."""
    wanted = {name: make() for name, make in GENERATED.items()}
    return {name: text for name, text in wanted.items() if not _says(DOCS / name, text)}


def _says(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def main() -> int:
    """Write, or check, and name what differed."""
    check = "--check" in sys.argv[1:]
    changed = outdated()
    for name, text in changed.items():
        if not check:
            (DOCS / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{'out of date' if check else 'written'}: docs/{name}\n")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
