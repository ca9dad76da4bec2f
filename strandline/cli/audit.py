"""Exports of the log and their manifests: first and last position, count and SHA-256, so that an auditor can prove completeness."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from domain.kernel.errors import Refused
from strandline.cli.errors import UsageProblem
from strandline.client.cloudevents import data_of

CHUNK: Final = 1 << 20
FLAT: Final = (
    "logsequence",
    "id",
    "type",
    "source",
    "subject",
    "time",
    "sequence",
    "correlationid",
    "causationid",
    "authtype",
    "authid",
    "traceparent",
    "dataschema",
    "data",
)
"""Columns of a CSV export: CloudEvents attributes, ``data`` as JSON."""


class Writer:
    """Writes one export and knows what is in it. The manifest is written when everything else is on disk."""

    def __init__(self, out: BinaryIO, path: Path | None, manifest: Path | None, form: str) -> None:
        self._out = out
        self._path = path
        self._manifest = manifest or (path and manifest_of(path))
        self._form = form
        self._hash = hashlib.sha256()
        self._about: dict[str, Any] = {}
        self._bytes = 0
        self.count = 0
        self.first_seq = 0
        self.last_seq = 0

    @classmethod
    def open(cls, to: str, form: str, *, resume: bool, manifest: Path | None) -> Self:
        """A writer for ``to``, ``-`` being stdout; with ``resume`` behind what a whole export holds already."""
        if to == "-":
            return cls(sys.stdout.buffer, None, manifest, form)
        path = Path(to)
        known = _read_manifest(manifest or manifest_of(path)) if resume else {}
        with contextlib.ExitStack() as failing:
            out = failing.enter_context(path.open("r+b" if known else "wb"))
            writer = cls(out, path, manifest, form)
            if known:
                writer._continue(known)
            failing.pop_all()
        return writer

    def _continue(self, known: Mapping[str, Any]) -> None:
        """Cut off what came after the manifest (a write that was interrupted) and go on from there."""
        while self._bytes < known["bytes"] and (part := self._out.read(min(CHUNK, known["bytes"] - self._bytes))):
            self._hash.update(part)
            self._bytes += len(part)
        if self._hash.hexdigest() != known["sha256"]:
            raise Refused("event.altered", f"{self._path} is not what its manifest says", details={"manifest": str(self._manifest)})
        self._out.truncate(self._bytes)
        self.count = known["count"]
        self.first_seq, self.last_seq = known["first_seq"], known["last_seq"]
        self._form = known["format"]

    def about(self, project: str, after: int, types: Sequence[str] | None, identifier: str | None) -> None:
        """What was asked for: an auditor must know what is not in the file."""
        self._about = {"project": project, "after": after, "types": list(types or ()), "id": identifier}

    def write(self, event: Mapping[str, Any]) -> None:
        """One CloudEvent."""
        if self._form == "csv":
            self._put(_csv_line(FLAT) if not self._bytes else b"")
            self._put(_csv_line([_cell(event.get(name)) for name in FLAT]))
        else:
            self._put(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        seq, _ = data_of(event)
        self.first_seq = self.first_seq or seq
        self.last_seq = seq
        self.count += 1

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def manifest(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "file": str(self._path) if self._path else "-",
            "format": self._form,
            "count": self.count,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
            **self._about,
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def manifest_text(self) -> str:
        """The manifest on one line."""
        return json.dumps(self.manifest(), ensure_ascii=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._out.flush()
        if self._path is not None:
            self._out.close()
        if kind is None and self._manifest is not None:
            self._manifest.write_text(json.dumps(self.manifest(), ensure_ascii=False, indent=2) + "\n")


def manifest_of(path: Path) -> Path:
    """Where the manifest of an export lies: ``<file>.manifest.json``."""
    return path.with_name(path.name + ".manifest.json")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageProblem(f"{path}: {error}") from error
    return known


def check(path: Path) -> dict[str, Any]:
    """Check a JSON lines export against its manifest and against itself: digest, count, ends, order, no repetition.

    Raises ``Refused`` (``event.altered``, ``file.not-found``, ``manifest.not-found``).
    """
    if not path.is_file():
        raise Refused("file.not-found", f"no file {path}")
    known = _read_manifest(manifest_of(path))
    if not known:
        raise Refused("manifest.not-found", f"no manifest {manifest_of(path)}")
    with path.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    places: list[tuple[int, int]] = []
    if known["format"] == "jsonl":
        with path.open() as lines:
            places = [(int(event["logsequence"]), int(event["sequence"])) for event in map(json.loads, lines)]
    faults = [
        text
        for text, wrong in (
            ("its SHA-256 is another", digest != known["sha256"]),
            ("it has another number of events", bool(places) and len(places) != known["count"]),
            ("its events are not in order, or one is there twice", any(b <= a for a, b in itertools.pairwise(places))),
            (
                "its first or last position is another",
                bool(places) and (places[0][0], places[-1][0]) != (known["first_seq"], known["last_seq"]),
            ),
        )
        if wrong
    ]
    if faults:
        raise Refused("event.altered", f"{path}: {'; '.join(faults)}", details={"file": str(path), "faults": faults})
    return {**{name: known[name] for name in ("count", "first_seq", "last_seq", "sha256")}, "file": str(path), "ok": True}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
