"""What a node says of itself."""

from __future__ import annotations

import os

import pytest
from support.records import record

from agents.fingerprint import Fingerprint, Promise, used
from agents.options import parse
from agents.registry import NoDriverError, wanted, working

pytestmark = pytest.mark.quick


def test_a_node_says_what_it_is(tmp_path, run):
    async def scenario():
        drivers = await working("sim", tmp_path / "drivers")
        hello = await Fingerprint("b1", (tmp_path,), drivers.values(), Promise(memory_mb=100), roots="copies").hello()
        assert (hello.boot, hello.drivers[0].name, hello.capacity.memory_mb) == ("b1", "sim", 100)
        assert hello.capacity.cpu == len(os.sched_getaffinity(0))
        assert hello.versions.kernel == os.uname().release
        assert hello.host["reflink"] in {"yes", "no"}
        assert hello.host["roots"] == "copies"
        assert 0 < hello.storage_pct <= 100
        await drivers["sim"].close()

    run(scenario())


def test_the_guest_image_is_the_nodes_own_or_the_installations_or_the_first(tmp_path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    shared.mkdir()
    fingerprint = Fingerprint("b1", (own, shared), (), Promise())
    assert fingerprint.versions().guest_image == "1"
    (shared / "guest-image-version").write_text(" 7 \n")
    assert fingerprint.versions().guest_image == "1", "not before somebody asks"
    fingerprint.refresh()
    assert fingerprint.versions().guest_image == "7"
    (own / "guest-image-version").write_text("8")
    fingerprint.refresh()
    assert fingerprint.versions().guest_image == "8"


def test_what_is_used_is_what_was_promised_to_live_sandboxes():
    live = {r.id: r for r in map(record, ("running", "paused", "exited"))}
    found = used(live)
    assert (found.sandboxes, found.memory_mb, found.cpu) == (2, 1024, 2.0)


@pytest.mark.parametrize(("choice", "names"), [("sim", ("sim",)), ("process,sim", ("process", "sim")), ("sim,sim", ("sim",))])
def test_drivers_are_chosen_by_name(choice, names):
    assert wanted(choice) == names


def test_auto_is_never_the_simulator():
    assert "sim" not in wanted("auto")
    with pytest.raises(NoDriverError, match="no driver 'vmware'"):
        wanted("vmware")


def test_a_driver_that_was_asked_for_must_work(tmp_path, run, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoDriverError, match=r"process: .* - mend: "):
        run(working("process", tmp_path))


def test_options_name_the_nodes_own_directory(tmp_path, capsys):
    options = parse(["--dir", str(tmp_path), "--node", "n1", "--roles", "runner", "--cpu", "4"])
    assert (options.own, options.promise.roles, options.promise.cpu) == (tmp_path / "nodes" / "n1", ("runner",), 4)
    with pytest.raises(SystemExit):
        parse(["--dir", str(tmp_path), "--node", "../n1"])
    assert "no name" in capsys.readouterr().err
