"""docs/lifecycles.md says what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from domain.catalogue import lifecycles

pytestmark = pytest.mark.quick

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycles.md"
MEND = "python -c 'from domain.catalogue import lifecycles; print(lifecycles(), end=\"\")' > docs/lifecycles.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == lifecycles(), f"run: {MEND}"


def test_it_has_a_table_for_every_aggregate() -> None:
    headings = [line.removeprefix("## ") for line in lifecycles().splitlines() if line.startswith("## ")]
    nouns = "alias artifact disk disk-lease job node pool provisioning replica rollout sandbox snapshot template"
    assert headings == nouns.split()
    assert lifecycles().count("\n|--") == len(headings) + 1, "the node has two"
