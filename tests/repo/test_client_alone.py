"""``strandline`` is the one package that others import: its client must work without the rest of the product."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repo.tree import ROOT

pytestmark = pytest.mark.quick

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"handlers", "projections", "agents", "gateway", "benchmarks", "scripts"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import pkgutil
import strandline.client
for module in pkgutil.walk_packages(strandline.client.__path__, "strandline.client."):
    __import__(module.name)
from strandline import Strandline
print(Strandline.__module__)
"""


def test_the_client_imports_with_nothing_but_strandline_bus_and_domain() -> None:
    found = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("strandline.client")
