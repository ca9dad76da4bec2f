"""The journal: any prefix of it is a state that once was, and nothing that was synced is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples

from agents.drivers.driver import RuntimeFault
from agents.journal import CHUNK, Journal

pytestmark = pytest.mark.quick

KEYS = st.sampled_from("abcdef")
ENTRIES = st.lists(st.tuples(KEYS, st.one_of(st.none(), st.text(max_size=40))), max_size=30)


class Table:
    """A state as simple as one can be: the last value of each key."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def apply(self, entry):
        if entry["v"] is None:
            self.values.pop(entry["k"], None)
        else:
            self.values[entry["k"]] = entry["v"]

    def entries(self):
        return [{"k": key, "v": value} for key, value in self.values.items()]


def opened(path: Path, **options) -> Journal[Table]:
    return Journal.open(path, Table(), **options)


def states_of(entries) -> list[dict[str, str]]:
    """What the state is after each prefix of the entries."""
    table, states = Table(), [{}]
    for key, value in entries:
        table.apply({"k": key, "v": value})
        states.append(dict(table.values))
    return states


@examples.times(1.5)
@given(entries=ENTRIES, cut=st.floats(0, 1))
def test_a_file_that_was_cut_anywhere_is_a_state_that_once_was(tmp_path_factory, entries, cut):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = opened(path)
    ends = [0]
    for key, value in entries:
        journal.write({"k": key, "v": value})
        ends.append(journal.size)
    size = journal.size
    journal.close()
    at = round(size * cut)
    os.truncate(path, at)
    whole = max(n for n, end in enumerate(ends) if end <= at)

    again = opened(path)
    assert again.state.values == states_of(entries)[whole]
    again.write({"k": "z", "v": "after"})
    again.close()
    last = opened(path)
    assert last.state.values == {**states_of(entries)[whole], "z": "after"}
    last.close()


@examples.times(1)
@given(entries=ENTRIES, at=st.floats(0, 1), flip=st.integers(1, 255))
def test_a_damaged_byte_ends_the_journal_before_it(tmp_path_factory, entries, at, flip):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = opened(path)
    ends = [0]
    for key, value in entries:
        journal.write({"k": key, "v": value})
        ends.append(journal.size)
    size = journal.size
    journal.close()
    if size == 0:
        return
    data = bytearray(path.read_bytes())
    place = min(int(size * at), size - 1)
    data[place] ^= flip
    path.write_bytes(data)
    whole = max(n for n, end in enumerate(ends) if end <= place)
    again = opened(path)
    assert again.state.values == states_of(entries)[whole]
    again.close()


@examples.times(0.75)
@given(entries=ENTRIES)
def test_compaction_changes_the_file_and_not_the_state(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = opened(path)
    for n, (key, value) in enumerate(entries):
        journal.write({"k": key, "v": value})
        if n % 7 == 3:
            journal.compact()
    journal.close()
    again = opened(path)
    assert again.state.values == states_of(entries)[-1]
    again.close()


def test_the_file_stays_bounded_however_much_is_written(tmp_path):
    journal = opened(tmp_path / "journal", compact_at=10_000)
    for n in range(5_000):
        journal.write({"k": "abc"[n % 3], "v": f"value {n}"})
        assert journal.size < 10_000 + 200
    journal.close()
    assert opened(tmp_path / "journal").state.values == {"a": "value 4998", "b": "value 4999", "c": "value 4997"}


def test_a_crash_during_compaction_keeps_the_old_file(tmp_path, monkeypatch):
    journal = opened(tmp_path / "journal")
    journal.write({"k": "a", "v": "1"})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "told to fail")))
    journal.compact()
    monkeypatch.undo()
    journal.write({"k": "b", "v": "2"})
    journal.close()
    assert opened(tmp_path / "journal").state.values == {"a": "1", "b": "2"}


def test_writers_that_sync_together_share_a_disk_flush(tmp_path, monkeypatch, run):
    flushes = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (flushes.append(file), real(file)))

    async def scenario():
        journal = opened(tmp_path / "journal")
        flushes.clear()
        await asyncio.gather(*(journal.append({"k": "a", "v": str(n)}) for n in range(100)))
        assert 1 <= len(flushes) <= 3
        journal.close()

    run(scenario())


def test_after_a_failed_flush_nothing_is_accepted(tmp_path, monkeypatch, run):
    broken = []

    async def scenario():
        journal = opened(tmp_path / "journal", on_broken=lambda: broken.append(True))
        monkeypatch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(RuntimeFault, match="Input/output"):
            await journal.append({"k": "a", "v": "1"})
        with pytest.raises(RuntimeFault) as caught:
            journal.write({"k": "b", "v": "2"})
        assert caught.value.code == "node.journal-broken"
        assert broken == [True]
        journal.close()

    run(scenario())


def test_a_full_disk_refuses_new_work_and_lets_begun_work_end(tmp_path, monkeypatch):
    journal = opened(tmp_path / "journal")
    journal.room()
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    text = "x" * 1000

    def fill():
        while True:
            journal.room()
            journal.write({"k": "a", "v": text})

    with pytest.raises(RuntimeFault) as caught:
        fill()
    assert (caught.value.code, caught.value.retryable) == ("node.disk-full", True)
    assert journal.size >= CHUNK // 2 - 2000
    journal.write({"k": "b", "v": "the end of what had begun"})
    monkeypatch.undo()
    journal.room()
    journal.close()
    assert opened(tmp_path / "journal").state.values["b"] == "the end of what had begun"


def test_entries_behind_a_damaged_one_are_set_aside(tmp_path):
    journal = opened(tmp_path / "journal")
    journal.write({"k": "a", "v": "1"})
    end = journal.size
    journal.write({"k": "b", "v": "2"}, {"k": "c", "v": "3"})
    journal.close()
    data = bytearray((tmp_path / "journal").read_bytes())
    data[end + 12] ^= 1
    (tmp_path / "journal").write_bytes(data)
    assert opened(tmp_path / "journal").state.values == {"a": "1"}
    assert b'"c"' in (tmp_path / "journal.damaged").read_bytes()
