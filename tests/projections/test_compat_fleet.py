"""A fleet whose nodes join, die, return and upgrade: the matrix is right whenever it is asked, and comes to rest when the fleet does."""

from __future__ import annotations

from pathlib import Path
from random import Random

from support.bus import connected
from support.histories import JOBS, START, History, publish
from support.waiting import run

from bus.client import Caller
from bus.server import Server
from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.node import Liveness, Node
from domain.nodes.orders import Capacity, Versions
from domain.templates.compat import Compat, Policy, evaluate, judge, overall, summarise
from domain.templates.replica import Replica, ReplicaState
from domain.templates.template import Template, TemplateRequest, TemplateState
from projections.buslog import BusLog
from projections.projector import Projector
from projections.sqlite import SqliteStore
from projections.views import VIEWS

NODES = tuple(f"node-{n:03}" for n in range(200))
TEMPLATES = tuple(f"tpl-{n:024x}" for n in range(100))
FIRST, LAST = Versions(guest_image="1", agent="1"), Versions(guest_image="3", agent="3")
KNOWN = tuple(Versions(guest_image=g, agent=a) for g in ("1", "2", "3", "") for a in ("1", "2", "3", "unknown"))


class Fleet:
    """200 nodes and 100 templates, as the domain's own aggregates: the model, and what the log gets from it."""

    def __init__(self, seed: int) -> None:
        self.random, self.log = Random(seed), History(seed)
        self.nodes = {n: Node.create(n, START) for n in NODES}
        self.templates = {t: Template.create(t, START, TemplateRequest(image="docker://r/i:1"), None, JOBS[0]) for t in TEMPLATES}
        self.replicas: dict[tuple[str, str], Replica] = {}
        for node in self.nodes.values():
            self.says(node, FIRST)
        for template in self.templates.values():
            template.settle(START, JOBS[0], 1, 0, 1)
            self.stored(template)
            for node_id in self.random.sample(NODES, 20):
                self.made(template.id, node_id, JOBS[0])

    def stored(self, thing: Node | Template | Replica) -> None:
        self.log.commit((type(thing), SYSTEM_PROJECT if isinstance(thing, Node) else "default", thing.id), thing)

    def says(self, node: Node, versions: Versions) -> None:
        """It says hello, enrolled again if it was evicted."""
        node.enroll(START)
        node.hello(START, f"boot-{self.random.random()}", versions, (), Capacity(), (), {})
        self.stored(node)

    def made(self, template: str, node: str, job: str) -> None:
        """A replica is made (again), bound to what its node runs now."""
        replica = self.replicas.get((template, node))
        if replica is None:
            replica = self.replicas[template, node] = Replica.create(replica_id(template, node), START, template, node, None, job)
        replica.redo(START, job, None, "DISTRIBUTING")
        replica.distributed(START, job)
        replica.ready(START, job, self.nodes[node].versions, "sim")
        self.stored(replica)

    def happens(self) -> None:
        """Something does: mostly to nodes."""
        pick = self.random.choice
        node, template = self.nodes[pick(NODES)], self.templates[pick(TEMPLATES)]
        match self.random.randrange(10):
            case 0 | 1 | 2:
                self.says(node, pick(KNOWN))
            case 3 | 4:
                node.go_offline(START)
            case 5:
                node.evict(START)
            case 6:
                self.made(template.id, node.id, pick(JOBS))
            case 7 if (known := self.replicas.get((template.id, node.id))) is not None:
                pick((known.lost, lambda at: known.adopt_baseline(at, node.versions, template.compat_policy)))(START)
                self.stored(known)
            case 8:
                template.set_compat_policy(START, pick(tuple(Policy))) if template.state is TemplateState.READY else None
            case 9 if self.random.random() < 0.05:
                template.begin_delete(START, "c1")
                template.judge_delete(START, "c1")
                template.finish_delete(START)
        self.stored(node)
        self.stored(template)

    def comes_to_rest(self) -> None:
        """Every node is back with the last versions, and every template of it is made again."""
        for node in self.nodes.values():
            self.says(node, LAST)
        for template, node in list(self.replicas):
            self.made(template, node, JOBS[1] if self.replicas[template, node].job_id != JOBS[1] else JOBS[2])

    def matrix(self) -> dict[str, dict[str, Compat]]:
        """Template → node → word, by the rules alone."""
        there = [t for t in self.templates.values() if t.state is not TemplateState.DELETED]
        return {t.id: {n.id: word for n in self.nodes.values() if (word := self.cell(t, n)) is not None} for t in there}

    def cell(self, template: Template, node: Node) -> Compat | None:
        replica = self.replicas.get((template.id, node.id))
        if node.liveness is Liveness.EVICTED:
            return None
        if replica is not None and replica.state is ReplicaState.READY:
            return judge(replica.bound, node.versions, node.liveness is Liveness.ONLINE, template.compat_policy)
        return Compat.MISSING if node.liveness is Liveness.ONLINE else None

    def foretold(self, node: str, versions: Versions) -> dict[str, str]:
        """Template → word, if that node ran these."""
        ready = [r for (_, on), r in self.replicas.items() if on == node and r.state is ReplicaState.READY]
        policies = {t.id: t.compat_policy for t in self.templates.values() if t.state is not TemplateState.DELETED}
        return {r.template_id: evaluate(r.bound, versions, policies[r.template_id]) for r in ready if r.template_id in policies}


async def asked(caller: Caller, verb: str, **body) -> list[dict]:
    found, cursor = [], {}
    while True:
        reply = await caller.query("default", "compat-matrix", verb, {**body, **cursor})
        found += reply["items"]
        if reply["next"] is None:
            return found
        cursor = {"cursor": reply["next"]}


def test_the_matrix_of_a_restless_fleet_is_right_at_every_moment_and_comes_to_rest_with_it(tmp_path: Path) -> None:
    """200 nodes, 100 templates, 2,000 replicas and more (§11 scenario 24 at scale), against the rules applied to everything."""

    async def main() -> None:
        store = SqliteStore(tmp_path / "views.db")
        async with connected(server) as nc, Projector(nc, store, BusLog(nc), VIEWS):
            fleet, caller, told = Fleet(11), Caller(nc), 0
            for moment in range(6):
                if moment == 5:
                    fleet.comes_to_rest()
                for _ in range(200 if 0 < moment < 5 else 0):
                    fleet.happens()
                await publish(nc, fleet.log.messages[told:])
                told = len(fleet.log.messages)
                model = fleet.matrix()
                rows = await asked(caller, "list", min_seq=told)
                assert {row["template_id"]: {cell["node_id"]: cell["compat"] for cell in row["nodes"]} for row in rows} == model, moment
                assert {row["template_id"]: row["overall"] for row in rows} == {t: overall(row.values()) for t, row in model.items()}
                [summary] = await asked(caller, "summary")
                expected = summarise(model).model_dump()
                assert {name: summary[name] for name in expected} == expected, moment
                node = next(n.id for n in fleet.nodes.values() if n.liveness is not Liveness.EVICTED)
                cells = await asked(caller, "what-if", node_id=node, guest_image="2", agent="2")
                foretold = fleet.foretold(node, Versions(guest_image="2", agent="2"))
                assert {cell["template_id"]: cell["what_if"] for cell in cells} == foretold
            assert {word for row in model.values() for word in row.values()} == {Compat.OK, Compat.MISSING}
            assert (summary["stale_replicas"], summary["unknown_replicas"], summary["online_nodes"]) == (0, 0, 200)
        store.close()

    with Server(tmp_path / "nats", sync="2m") as server:  # thousands of messages that need not outlive a power cut
        run(main())
