"""The documents: links lead somewhere, decisions have their four parts, the changelog keeps its format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repo.tree import ROOT, documents, name

pytestmark = pytest.mark.quick

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
VERSION = re.compile(r"## \[(Unreleased|\d+\.\d+\.\d+)\](?: - \d{4}-\d{2}-\d{2})?")
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def headings(text: str) -> set[str]:
    """The anchors that a document offers, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_relative_link_resolves() -> None:
    missing = []
    for document in documents():
        for target in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            found = file.exists() and (not anchor or file.suffix != ".md" or anchor in headings(file.read_text(encoding="utf-8")))
            missing += [] if found else [f"{name(document)}: {target}"]
    assert not missing, "\n".join(missing)


def test_paths_that_documents_name_exist() -> None:
    """``tests/agents/drivers`` and the like, in backquotes."""
    named = re.compile(r"`((?:domain|bus|handlers|projections|agents|strandline|tests|scripts|docs|benchmarks)/[\w./-]*)`")
    missing = [
        f"{name(document)}: {path}"
        for document in documents()
        for path in named.findall(document.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=lambda path: path.stem)
def test_a_decision_has_its_four_parts(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    number = int(record.name.partition("-")[0])
    assert re.match(rf"# (?:ADR )?0*{number}\b", text), "the title begins with the number"
    assert re.search(r"^(?:## Status\n+|Status: |\*\*Status:?\*\*:? )\w+", text, re.MULTILINE), "Status"
    for part in ("Context", "Decision", "Consequences"):
        assert re.search(rf"^(?:## {part}\b|\*\*{part})", text, re.MULTILINE), part


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name.partition("-")[0]) for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_changelog_keeps_its_format() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions
    assert versions[0] == "## [Unreleased]"
    assert all(VERSION.fullmatch(line) for line in versions)
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} <= CHANGES
    entries = [line for line in lines[lines.index("## [Unreleased]") :] if line and not line.startswith(("#", "  ", "["))]
    assert all(line.startswith("- ") for line in entries), "changes are list items"


def test_no_document_names_a_machine() -> None:
    """Paths and hosts of whoever wrote it would be of no use to anybody else."""
    own = re.compile(r"/wor[k]/|/tmp/v\d|/home/(?!user)\w|localhost:\d{5}")
    assert not [name(document) for document in documents() if own.search(document.read_text(encoding="utf-8"))]
