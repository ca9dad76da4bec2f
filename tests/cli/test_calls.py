"""What the command line asks of the control plane: bodies, ids, keys, projects, waiting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import JOB, SB, SB2, SB3, SNAP, TEMPLATE, TPL, TPL2, Cli, error_of, job, sandbox
from support.responder import Scripted
from typer.testing import CliRunner

from domain.kernel.errors import Refused
from strandline.cli import watching
from strandline.cli.main import app

pytestmark = pytest.mark.quick

DISK_VERBS = ("create", "grow", "snapshot", "delete-snapshot", "delete")
ROLLOUT = "ro-" + "a" * 24


@pytest.fixture
def fleet(control: Scripted) -> Scripted:
    control.views["templates"] = [TEMPLATE, {**TEMPLATE, "template_id": TPL2, "alias": None}]
    control.views["sandboxes"] = [sandbox(), sandbox(SB2, name="db"), sandbox(SB3, name="web", state="DEAD")]
    control.views["snapshots"] = [{"snapshot_id": SNAP, "name": "before upgrade", "status": "READY"}]
    control.views["jobs"] = [job()]
    control.views["nodes"] = [{"node_id": "n1", "status": "ready"}]
    control.replies["sandbox.create"] = {"sandbox_id": SB, "state": "RUNNING", "node_id": "n1", "settled": True}
    control.replies["sandbox.delete"] = lambda body: {"sandbox_id": body["sandbox_id"], "state": "DEAD", "settled": True}
    control.replies["template.create"] = {"template_id": TPL, "job_id": JOB, "settled": False}
    return control


def test_creating_a_sandbox_sends_exactly_what_was_said(cli: Cli, fleet: Scripted) -> None:
    words = (
        "--name web2 --cpu 2 --memory 1G --env A=1 -e B=x=y --port 80 --ttl 1h30m --ttl-kind idle --on-ttl pause --auto-resume "
        "--restart always -l team=blue --disk data:/srv/data --disk set:/set:ro"
    )
    result = cli("sandbox", "create", "python", *words.split(), "--", "sleep", "--for", "a while")
    assert result.exit_code == 0, result.stderr
    assert fleet.commands[-1].name == "sandbox.create"
    assert fleet.commands[-1].body == {
        "template": TPL,
        "name": "web2",
        "cpu": 2.0,
        "memory_mb": 1024,
        "env": {"A": "1", "B": "x=y"},
        "cmd": ["sleep", "--for", "a while"],
        "ports": [80],
        "ttl_s": 5400.0,
        "ttl_kind": "idle",
        "on_ttl": "pause",
        "auto_resume": True,
        "restart": "always",
        "labels": {"team": "blue"},
        "disks": [
            {"disk": "data", "mount_path": "/srv/data", "read_only": False},
            {"disk": "set", "mount_path": "/set", "read_only": True},
        ],
        "wait_s": 60,
    }


@pytest.mark.parametrize("said", ["data", "data:srv", ":/srv", "data:/srv:rw"])
def test_a_disk_that_nobody_can_make_out_is_a_usage_error(cli: Cli, fleet: Scripted, said: str) -> None:
    result = cli("sandbox", "create", "python", "--disk", said)
    assert result.exit_code == 2
    assert "data:/srv/data" in result.stderr
    assert not fleet.commands


def test_creating_a_template_says_on_how_many_nodes_it_is_to_be_and_what_comes_first(cli: Cli, fleet: Scripted) -> None:
    words = "--min-replicas 2 --max-replicas 5 --priority -7"
    result = cli("template", "create", "docker://x/y", *words.split())
    assert result.exit_code == 0, result.stderr
    sent = next(command.body for command in fleet.commands if command.name == "template.create")
    assert sent == {"image": "docker://x/y", "min_replicas": 2, "max_replicas": 5, "priority": -7}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--min-replicas -1", "--min-replicas"),
        ("--min-replicas 10001", "--min-replicas"),
        ("--max-replicas 0", "--max-replicas"),
        ("--max-replicas two", "--max-replicas"),
        ("--priority 1001", "--priority"),
        ("--priority -1001", "--priority"),
        ("--min-replicas 3 --max-replicas 2", "--max-replicas"),
    ],
)
def test_a_number_of_replicas_that_makes_no_sense_is_a_usage_error_and_nothing_is_sent(
    cli: Cli, fleet: Scripted, words: str, named: str
) -> None:
    result = cli("template", "create", "docker://x/y", *words.split())
    assert result.exit_code == 2
    assert named in result.stderr
    assert fleet.commands == []


def test_no_wait_asks_for_no_waiting(cli: Cli, fleet: Scripted) -> None:
    cli("sandbox", "create", "--no-wait", "python")
    assert "wait_s" not in fleet.commands[-1].body


def test_a_sandbox_from_a_snapshot_takes_every_word_as_the_program(cli: Cli, fleet: Scripted) -> None:
    cli("sandbox", "create", "--snapshot", "before upgrade", "--", "sleep", "9")
    assert fleet.commands[-1].body == {"snapshot_id": SNAP, "cmd": ["sleep", "9"], "wait_s": 60}


def test_the_idempotency_key_is_the_command_id(cli: Cli, fleet: Scripted) -> None:
    cli("sandbox", "create", "--idempotency-key", "order-42", "python")
    assert fleet.commands[-1].command_id == "order-42"


def test_the_project_goes_into_the_subject(dir: Path, fleet: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: A002 - a fixture
    CliRunner().invoke(app, ["--dir", str(dir), "sandbox", "list", "--project", "blue"])
    assert fleet.asked[-1].project == "blue"
    monkeypatch.setenv("STRANDLINE_PROJECT", "green")
    monkeypatch.setenv("STRANDLINE_DIR", str(dir))
    CliRunner().invoke(app, ["sandbox", "list"])
    assert fleet.asked[-1].project == "green"
    CliRunner().invoke(app, ["-p", "red", "sandbox", "list"])
    assert fleet.asked[-1].project == "red"


def test_names_aliases_and_unique_prefixes_mean_ids(cli: Cli, fleet: Scripted) -> None:
    for word, expected in (("db", SB2), (SB2, SB2), ("k3f2b", SB2), ("sb-k3f2b", SB2), ("web", SB)):
        assert cli("sandbox", "get", word, "-o", "name").stdout == expected + "\n", word


def test_a_name_that_a_dead_one_had_too_means_the_living_one(cli: Cli, fleet: Scripted) -> None:
    assert cli("sandbox", "get", "web", "-o", "name").stdout == SB + "\n"


def test_an_ambiguous_prefix_is_refused_with_the_candidates(cli: Cli, fleet: Scripted) -> None:
    result = cli("template", "get", "tpl-3f", "-o", "json")
    assert result.exit_code == 2
    assert error_of(result)["code"] == "template.ambiguous"
    assert error_of(result)["details"]["candidates"] == [TPL, TPL2]
    text = cli("sandbox", "delete", "k3f2").stderr
    assert f"  candidate: {SB}\n  candidate: {SB2}\n" in text
    assert fleet.commands == []


def test_a_prefix_of_less_than_four_characters_means_nothing(cli: Cli, fleet: Scripted) -> None:
    assert cli("sandbox", "get", "k3f").exit_code == 3


def test_a_full_id_is_not_looked_up_first(cli: Cli, fleet: Scripted) -> None:
    cli("sandbox", "delete", SB)
    assert [asked.name for asked in fleet.asked] == ["sandbox.delete"]


def test_a_prefix_is_found_behind_the_first_page(cli: Cli, fleet: Scripted) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    fleet.views["sandboxes"] = [sandbox(f"sb-aaaaaaaaaaaaaaaaa{a}{b}{c}") for a in letters[:2] for b in letters for c in letters]
    fleet.views["sandboxes"].append(sandbox(SB3))
    assert cli("sandbox", "get", "zzzz", "-o", "name").stdout == SB3 + "\n"
    assert sum(asked.name == "sandboxes.list" and "name" not in asked.body for asked in fleet.asked) == 3


def test_filters_and_limits_are_sent(cli: Cli, fleet: Scripted) -> None:
    cli("template", "list", "status=READY", "--limit", "5", "--as-of", "1200")
    assert fleet.asked[-1].body == {"status": "READY", "limit": 5, "as_of": 1200}
    cli("template", "list", "--as-of", "1h")
    assert fleet.asked[-1].body["as_of"] == "2026-11-20T11:00:00+00:00"


def test_after_a_command_queries_ask_for_its_position(cli: Cli, fleet: Scripted) -> None:
    cli("template", "create", "docker://registry.example/python:3.12")
    assert fleet.asked[-1].name == "templates.get"
    assert fleet.asked[-1].body == {"id": TPL, "min_seq": fleet.seq}


def test_deleting_everything_needs_a_yes(cli: Cli, fleet: Scripted) -> None:
    result = cli("sandbox", "delete", "--all")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert fleet.commands == []
    result = cli("sandbox", "delete", "--all", "--yes", "-o", "name")
    assert result.exit_code == 0
    assert result.stdout == f"{SB}\n{SB2}\n"
    assert cli("sandbox", "delete", "--all", "web", "--yes").exit_code == 2
    assert cli("sandbox", "delete", "node_id=n1").exit_code == 2


def test_what_fails_among_several_is_said_and_the_rest_is_done(cli: Cli, fleet: Scripted) -> None:
    result = cli("sandbox", "stop", "db", "nobody-has-this-name")
    assert result.exit_code == 3
    assert fleet.commands == []

    def stop(body: dict[str, str]) -> dict[str, str]:
        if body["sandbox_id"] == SB:
            raise Refused("node.offline", "gone", retryable=True)
        return {"sandbox_id": body["sandbox_id"], "state": "STOPPED"}

    fleet.replies["sandbox.stop"] = stop
    result = cli("sandbox", "stop", SB, SB2, "-o", "jsonl", "--idempotency-key", "night")
    assert result.exit_code == 6
    assert [json.loads(line)["sandbox_id"] for line in result.stdout.splitlines()] == [SB2]
    assert json.loads(result.stderr)["error"]["code"] == "node.offline"
    assert len({asked.command_id for asked in fleet.commands}) == 2


def test_if_not_exists_answers_with_the_one_that_is_there(cli: Cli, fleet: Scripted) -> None:
    result = cli("sandbox", "create", "--name", "db", "--if-not-exists", "-o", "name", "python")
    assert result.stdout == SB2 + "\n"
    result = cli("template", "create", "docker://x/y", "--alias", "python", "--if-not-exists", "-o", "json")
    assert json.loads(result.stdout)["template_id"] == TPL
    assert fleet.commands == []
    cli("sandbox", "create", "--name", "new", "--if-not-exists", "python")
    assert fleet.commands[-1].body["name"] == "new"


def test_template_create_shows_phases_as_lines_when_piped_and_prints_the_template(cli: Cli, fleet: Scripted) -> None:
    result = cli("template", "create", "docker://registry.example/python:3.12", "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["template_id"] == TPL
    assert result.stderr == "READY 100%\n"


def test_other_verbs_reach_their_commands(cli: Cli, fleet: Scripted) -> None:
    fleet.replies |= {
        "sandbox.stop": {"state": "STOPPED"},
        "sandbox.pause": {"state": "PAUSED", "settled": True},
        "sandbox.resume": {"state": "RUNNING", "settled": True},
        "sandbox.set-ttl": {"ends_at": None},
        "sandbox.wait-port": {"sandbox_id": SB, "port": 80, "status": "listening", "settled": True},
        "sandbox.rollback": {"generation": 2, "job_id": JOB},
        "sandbox.clone": {"sandbox_ids": [SB, SB2], "settled": True},
        "snapshot.create": {"snapshot_id": SNAP, "job_id": JOB},
        "snapshot.delete": {"settled": True},
        "template.redo": {"job_id": JOB},
        "template.adopt-baseline": {"updated": 3},
        "template.set-compat-policy": {"template_id": TPL, "policy": "GUEST_ONLY"},
        "artifact.collect": {"deleted": [], "kept": 4},
        "node.sweep": {
            "node_id": "n1",
            "dry_run": True,
            "removed": [{"kind": "sandbox", "id": SB, "why": "dead"}],
            "failed": [],
            "kept": 0,
        },
        "compat.rescan": {"changed": 1},
        **{
            f"disk.{verb}": {"disk_id": "data", "status": "PROVISIONED", "node_id": "n1", "size_mb": 2048, "settled": True}
            for verb in DISK_VERBS
        },
        "disk.release": {"disk_id": "data", "sandbox_id": SB, "settled": True},
        "rollout.start": {"rollout_id": ROLLOUT, "state": "COMPLETED", "settled": True},
        "rollout.cancel": {"rollout_id": ROLLOUT},
        "job.cancel": {"status": "FAILED"},
        "view.rebuild": {"generation": 2, "settled": True},
        "sandbox.abandon": {"uncompensated": ["veth"]},
    }
    fleet.views["rollouts"] = [{"rollout_id": ROLLOUT, "state": "RUNNING", "nodes": {"n1": "DRAINING"}}]
    fleet.summaries["compat-matrix"] = {"stale_templates": 1, "stale_replicas": 2}
    for words, name, body in (
        ("sandbox pause web", "sandbox.pause", {"sandbox_id": SB, "wait_s": 60}),
        ("sandbox resume web", "sandbox.resume", {"sandbox_id": SB, "wait_s": 60}),
        ("sandbox stop web --grace 30s --no-wait", "sandbox.stop", {"sandbox_id": SB, "grace_s": 30}),
        ("sandbox set-ttl web never", "sandbox.set-ttl", {"sandbox_id": SB, "ttl_s": -1}),
        ("sandbox wait-port web 80", "sandbox.wait-port", {"sandbox_id": SB, "port": 80, "wait_s": 60}),
        ("sandbox rollback web snap-0011", "sandbox.rollback", {"sandbox_id": SB, "snapshot_id": SNAP}),
        ("sandbox clone web -n 2", "sandbox.clone", {"sandbox_id": SB, "count": 2, "wait_s": 120}),
        ("sandbox snapshot web --name x", "snapshot.create", {"sandbox_id": SB, "name": "x"}),
        ("sandbox abandon web", "sandbox.abandon", {"sandbox_id": SB}),
        ("snapshot delete snap-0011", "snapshot.delete", {"snapshot_id": SNAP, "wait_s": 60}),
        ("template redo python", "template.redo", {"template": TPL, "mode": "ALL"}),
        ("template redo python --nodes n1,n2", "template.redo", {"template": TPL, "mode": "NODES", "nodes": ["n1", "n2"]}),
        ("template adopt-baseline python", "template.adopt-baseline", {"template": TPL}),
        (
            "template set-compat-policy python GUEST_ONLY",
            "template.set-compat-policy",
            {"template": TPL, "policy": "GUEST_ONLY"},
        ),
        ("template delete python --force", "template.delete", {"template": TPL, "force": True, "wait_s": 60}),
        ("artifact collect --dry-run", "artifact.collect", {"dry_run": True}),
        (f"job cancel {JOB}", "job.cancel", {"job_id": JOB}),
        ("compat rescan", "compat.rescan", {"all": True, "wait_s": 30}),
        ("compat rescan n1", "compat.rescan", {"nodes": ["n1"], "wait_s": 30}),
        ("rollout start --guest-image 2 --no-wait", "rollout.start", {"all": True, "guest_image": "2"}),
        (
            "rollout start n1 n2 --agent 2 --at-once 2 --stop-after 1h",
            "rollout.start",
            {"nodes": ["n1", "n2"], "agent": "2", "at_once": 2, "stop_after_s": 3600, "wait_s": 600},
        ),
        (f"rollout cancel {ROLLOUT[:7]}", "rollout.cancel", {"rollout_id": ROLLOUT}),
        ("disk create data --size 2G", "disk.create", {"name": "data", "size_mb": 2048, "wait_s": 60}),
        (
            "disk create copy --size 2G --filesystem xfs --node n1 --from data/s1 --no-wait",
            "disk.create",
            {"name": "copy", "size_mb": 2048, "filesystem": "xfs", "node": "n1", "source": {"disk": "data", "snapshot": "s1"}},
        ),
        ("disk grow data --size 4G", "disk.grow", {"name": "data", "size_mb": 4096, "wait_s": 60}),
        ("disk snapshot data s1", "disk.snapshot", {"name": "data", "snapshot": "s1", "wait_s": 120}),
        ("disk delete-snapshot data s1", "disk.delete-snapshot", {"name": "data", "snapshot": "s1", "wait_s": 60}),
        ("disk release data --force", "disk.release", {"name": "data", "force": True, "wait_s": 60}),
        ("disk rm data", "disk.delete", {"name": "data", "wait_s": 60}),
        ("node enroll n2", "node.enroll", {"node_id": "n2"}),
        ("node cordon n1", "node.cordon", {"node_id": "n1"}),
        ("node uncordon n1", "node.uncordon", {"node_id": "n1"}),
        ("node drain n1", "node.drain", {"node_id": "n1"}),
        ("node drain n1 --stop-after 1h", "node.drain", {"node_id": "n1", "stop_after_s": 3600}),
        ("node evict n1", "node.evict", {"node_id": "n1"}),
        ("node sweep n1 --dry-run", "node.sweep", {"node_id": "n1", "dry_run": True, "wait_s": 120}),
        ("view rebuild sandboxes --until 12", "view.rebuild", {"view": "sandboxes", "until": "12", "wait_s": 600}),
    ):
        result = cli(*words.split(), "-o", "json")
        assert result.exit_code == 0, (words, result.stderr)
        assert (fleet.commands[-1].name, fleet.commands[-1].body) == (name, body)
        assert json.loads(result.stdout)
    assert json.loads(cli("compat", "summary", "-o", "json").stdout)["stale_replicas"] == 2
    kept = [{"name": "s1", "created_at": "2026-11-20T09:00:00Z", "size_mb": 64, "size_bytes": 4096}]
    fleet.views["disks"] = [{"disk_id": "data", "status": "PROVISIONED", "size_mb": 64, "snapshots": kept}]
    fleet.views["disk-leases"] = [{"lease_id": f"{SB}_data", "disk": "data", "sandbox_id": SB, "status": "BOUND"}]
    assert cli("disk", "list", "-o", "name").stdout == "data\n"
    assert json.loads(cli("disk", "get", "data", "-o", "json").stdout)["size_mb"] == 64
    assert json.loads(cli("disk", "snapshots", "data", "-o", "json").stdout)[0]["name"] == "s1"
    assert json.loads(cli("disk", "leases", "-o", "json").stdout)[0]["sandbox_id"] == SB
    assert cli("disk", "create", "x", "--size", "1G", "--from", "data").exit_code == 2
    assert cli("rollout", "list", "-o", "name").stdout == f"{ROLLOUT}\n"
    assert json.loads(cli("rollout", "get", ROLLOUT, "-o", "json").stdout)["nodes"] == {"n1": "DRAINING"}
    assert cli("compat", "what-if", "n1", "--guest-image", "2", "what_if=STALE", "--as-of", "12").exit_code == 0
    asked = {"node_id": "n1", "guest_image": "2", "what_if": "STALE", "as_of": 12, "limit": 1000}
    assert (fleet.asked[-1].name, fleet.asked[-1].body) == ("compat-matrix.what-if", asked)


def test_raw_calls_pass_bodies_and_replies_through(cli: Cli, fleet: Scripted) -> None:
    reply = json.loads(cli("api", "command", "sandbox.delete", f'{{"sandbox_id": "{SB}"}}').stdout)
    assert reply["ok"] is True
    assert reply["result"]["state"] == "DEAD"
    found = json.loads(cli("api", "query", "sandboxes.list", "-", input='{"state": "DEAD"}').stdout)
    assert [item["sandbox_id"] for item in found["items"]] == [SB3]
    assert cli("api", "command", "sandbox.delete", "{").exit_code == 2
    assert "nearest" in cli("api", "command", "sandbox.deleet", "-o", "json").stderr


def test_digests_of_equal_views_are_equal(cli: Cli, fleet: Scripted) -> None:
    first = json.loads(cli("view", "digest", "sandboxes", "-o", "json").stdout)
    fleet.views["sandboxes"].reverse()
    assert json.loads(cli("view", "digest", "sandboxes", "-o", "json").stdout) == first
    fleet.views["sandboxes"].pop()
    assert json.loads(cli("view", "digest", "sandboxes", "-o", "json").stdout)["sha256"] != first["sha256"]


def test_a_limit_and_a_filter_reach_every_list(cli: Cli, fleet: Scripted) -> None:
    fleet.views["replicas"] = [{"template_id": TPL, "node_id": f"n{n}", "status": "READY"} for n in range(3)]
    fleet.views["usage"] = [{"sandbox_id": sb, "ended_at": ended} for sb, ended in ((SB, None), (SB2, None), (SB3, "2026-11-20T09:00:00Z"))]
    for words, found in (
        ("template replicas python --limit 2", 2),
        ("sandbox top --limit 1", 1),
        ("sandbox top", 2),
        ("sandbox top --all", 3),
        ("sandbox top ended_at=2026-11-20T09:00:00Z", 1),
    ):
        result = cli(*words.split(), "-o", "jsonl")
        assert result.exit_code == 0, (words, result.stderr)
        assert len(result.stdout.splitlines()) == found, words
    assert cli("template", "replicas", "python", f"template_id={TPL2}").exit_code == 2


@pytest.mark.parametrize("words", ["view rebuild sandboxes", "compat rescan"])
def test_what_has_not_settled_in_time_is_a_timeout(cli: Cli, fleet: Scripted, words: str) -> None:
    fleet.replies["view.rebuild"] = {"generation": 2, "settled": False}
    fleet.replies["compat.rescan"] = {"changed": 0, "settled": False}
    late = cli(*words.split(), "--timeout", "1s", "-o", "json")
    assert late.exit_code == 7
    assert error_of(late)["code"] == "wait.timeout"
    assert cli(*words.split(), "--no-wait").exit_code == 0


@pytest.mark.parametrize("words", ["node drain n1", "node enroll n1", "artifact collect"])
def test_waiting_looks_until_it_is_so_or_the_time_is_over(cli: Cli, fleet: Scripted, words: str) -> None:
    fleet.replies["artifact.collect"] = {"deleted": ["rfs-1"], "kept": 0}
    fleet.views["artifacts"] = [{"artifact_id": "rfs-1", "status": "CLEANUP_PENDING"}]
    fleet.views["nodes"] = [{"node_id": "n1", "status": "offline"}]
    assert cli(*words.split()).exit_code == 0, "nobody waits unasked"
    assert cli(*words.split(), "--wait", "--timeout", "0.2s").exit_code == 7
    fleet.views["artifacts"].clear()
    fleet.views["sandboxes"] = [sandbox(state="DEAD")]
    fleet.views["nodes"] = [{"node_id": "n1", "status": "ready"}]
    assert cli(*words.split(), "--wait", "--timeout", "10s").exit_code == 0
    assert "wait_s" not in fleet.commands[-1].body


@pytest.mark.parametrize("words", ["compat matrix", "artifact list", "template replicas python", "view list", "view get templates"])
def test_what_is_listed_can_be_watched(cli: Cli, fleet: Scripted, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    class EnoughError(Exception):
        """Somebody has seen enough: a watch has no end of its own."""

    said: list[dict[str, object]] = []

    def see(text: str) -> None:
        said.append(json.loads(text))
        raise EnoughError

    fleet.views["artifacts"] = [{"artifact_id": "rfs-1", "status": "READY"}]
    fleet.views["replicas"] = [{"template_id": TPL, "node_id": "n1", "status": "READY"}]
    fleet.views["compat-matrix"] = [{"template_id": TPL, "overall": "OK", "nodes": []}]
    monkeypatch.setattr(watching, "out", see)
    assert cli(*words.split(), "--watch").exit_code == 1
    assert said[0]["change"] == "added"
