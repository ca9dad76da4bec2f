"""What an agent remembers: orders that it works on, sandboxes that it has, reports that are not stored yet. The fold of its journal.

| entry ``k`` | says |
|---|---|
| ``order`` ``begun`` | an order was accepted; an agent process began it for the ``n``-th time |
| ``saga`` | under which declaration its steps were begun |
| ``step`` ``unwind`` | what happened to one of its steps; from here on it is undone, and why |
| ``end`` | it is over, with this report; known again for a while, so that it is never done twice |
| ``say`` ``sent`` | something was noticed that belongs to no order; the bus has stored a report |
| ``box`` ``gone`` | a sandbox as it is now; nothing is left of it |
| ``log`` | how far its output was shipped |
| ``replica`` | a template is ready here, over that artifact (none: it is not any more) |
| ``machine`` | which boot of the machine everything from here on belongs to |
| ``unbegun`` | an order is as if it had never come: what was begun for it went with the machine |
| ``ended`` ``buried`` | ids in bulk, written by compaction |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal

from agents.journal import Entry
from domain.kernel.aggregate import Record
from domain.nodes.orders import DiskGrant, Failure, Order, Report, StepReport, StepState
from domain.sandboxes.spec import SandboxSpec

KEEP_S: Final = 7 * 86_400.0
KEEP_IDS: Final = 100_000
"""How long, and how many, ended orders and destroyed sandboxes are known again (reference/miren-sandbox.md §2.7)."""
KEEP_ANSWERS: Final = 256
ANSWER_BYTES: Final = 16_384
"""How many of the last reports are kept in case the control plane asks again, and how big such a report may be."""
_BULK: Final = 500

SandboxCondition = Literal["starting", "running", "paused", "replacing", "exited", "doomed"]


class SandboxRecord(Record):
    """A sandbox of this node. ``handle`` is the driver's (``Handle`` as an object).

    ``doomed``: it could not be taken down; that is tried again until it works, and then ``owed``, the order that failed, is told.
    """

    id: str
    project: str
    generation: int = 0
    spec: SandboxSpec
    driver: str
    handle: dict[str, Any] | None = None
    address: str = ""
    condition: SandboxCondition = "starting"
    stop_requested_at: datetime | None = None
    """When its main process was asked to end. It is asked once, whatever becomes of the agent (reference/miren-sandbox.md §3.6)."""
    exit_code: int | None = None
    exited_at: datetime | None = None
    bound: dict[int, int] = {}
    """Declared ports that are served on another one."""
    snapshot_id: str | None = None
    """What it was last rolled back to."""
    disks: tuple[DiskGrant, ...] = ()
    owed: Order | None = None
    issuer: str = ""
    """Who issues its tokens; empty: it has none."""
    throwaway: bool = False
    """A boot that only proves a template; nobody is told about it."""


@dataclass(slots=True)
class Trail:
    """How far an order is. ``steps`` is everything that was done, oldest first: what the control plane is told, by number."""

    order: Order
    accepted: datetime
    begun: int = 0
    saga: str = ""
    """The label of the declaration that its steps follow (``domain/kernel/saga.py``)."""
    steps: list[StepReport] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the steps that are done, in their order."""
    touched: list[str] = field(default_factory=list)
    """Steps that were started and not undone: what an undo has to look at."""
    failed_step: str = ""
    failure: Failure | None = None
    """Set: the order is being undone."""

    def note(self, step: StepReport) -> None:
        self.steps.append(step)
        match step.state:
            case StepState.STARTED if step.step not in self.touched:
                self.touched.append(step.step)
            case StepState.DONE:
                self.outputs[step.step] = step.output
            case StepState.UNDONE:
                self.outputs.pop(step.step, None)
                if step.step in self.touched:
                    self.touched.remove(step.step)
            case _:
                pass


class Memory:
    """The state of a journal. Read it freely; it changes by entries only."""

    def __init__(self) -> None:
        self.machine = ""
        """Boot id of the machine; empty in a journal that an older agent began."""
        self.orders: dict[str, Trail] = {}
        self.sandboxes: dict[str, SandboxRecord] = {}
        self.outbox: dict[str, Report] = {}
        self.answers: OrderedDict[str, Report] = OrderedDict()
        self.offsets: dict[str, dict[str, int]] = {}
        self.replicas: dict[str, str] = {}
        self.ended: OrderedDict[str, float] = OrderedDict()
        self.buried: OrderedDict[str, float] = OrderedDict()

    def apply(self, entry: Entry) -> None:
        take = getattr(self, f"_on_{entry['k']}", None)
        if take is not None:
            take(entry)

    def _on_machine(self, entry: Entry) -> None:
        self.machine = entry["boot"]

    def _on_unbegun(self, entry: Entry) -> None:
        self.orders.pop(entry["id"], None)

    def _on_order(self, entry: Entry) -> None:
        order = Order.model_validate(entry["order"])
        self.orders[order.id] = Trail(order, datetime.fromisoformat(entry["at"]))

    def _on_begun(self, entry: Entry) -> None:
        if entry["id"] in self.orders:
            self.orders[entry["id"]].begun = entry["n"]

    def _on_saga(self, entry: Entry) -> None:
        if entry["id"] in self.orders:
            self.orders[entry["id"]].saga = entry["saga"]

    def _on_step(self, entry: Entry) -> None:
        if entry["id"] in self.orders:
            self.orders[entry["id"]].note(StepReport.model_validate(entry["step"]))

    def _on_unwind(self, entry: Entry) -> None:
        trail = self.orders.get(entry["id"])
        if trail is not None and trail.failure is None:
            trail.failed_step = entry["step"]
            trail.failure = Failure.model_validate(entry["failure"])

    def _on_end(self, entry: Entry) -> None:
        report = Report.model_validate(entry["report"])
        self.orders.pop(entry["id"], None)
        for forgotten in _remember(self.ended, entry["id"], entry["at"]):
            self.answers.pop(forgotten, None)
        self.outbox[report.id] = report
        self.answers[entry["id"]] = report
        self.answers.move_to_end(entry["id"])

    def _on_say(self, entry: Entry) -> None:
        report = Report.model_validate(entry["report"])
        self.outbox[report.id] = report

    def _on_sent(self, entry: Entry) -> None:
        report = self.outbox.pop(entry["id"], None)
        if report is not None and report.order is not None and len(report.model_dump_json()) > ANSWER_BYTES:
            self.answers.pop(report.order, None)
        while len(self.answers) > KEEP_ANSWERS:
            self.answers.popitem(last=False)

    def _on_box(self, entry: Entry) -> None:
        record = SandboxRecord.model_validate(entry["box"])
        self.sandboxes[record.id] = record

    def _on_gone(self, entry: Entry) -> None:
        self.sandboxes.pop(entry["id"], None)
        self.offsets.pop(entry["id"], None)
        if entry["for_ever"]:
            _remember(self.buried, entry["id"], entry["at"])

    def _on_log(self, entry: Entry) -> None:
        if entry["id"] in self.sandboxes:
            self.offsets.setdefault(entry["id"], {}).update(entry["at"])

    def _on_replica(self, entry: Entry) -> None:
        if entry["artifact"] is None:
            self.replicas.pop(entry["template"], None)
        else:
            self.replicas[entry["template"]] = entry["artifact"]

    def _on_ended(self, entry: Entry) -> None:
        self.ended.update(entry["ids"])

    def _on_buried(self, entry: Entry) -> None:
        self.buried.update(entry["ids"])

    def entries(self) -> Iterator[Entry]:
        if self.machine:
            yield machine_entry(self.machine)
        yield from _bulk("ended", self.ended)
        yield from _bulk("buried", self.buried)
        yield from (replica_entry(template, artifact) for template, artifact in self.replicas.items())
        yield from map(box_entry, self.sandboxes.values())
        yield from ({"k": "log", "id": sandbox, "at": offsets} for sandbox, offsets in self.offsets.items())
        yield from self._retold_reports()
        for trail in self.orders.values():  # behind the reports: an order that ended may have come again
            yield from _retold(trail)

    def _retold_reports(self) -> Iterator[Entry]:
        for identifier, report in self.answers.items():
            yield {"k": "end", "id": identifier, "at": self.ended[identifier], "report": _json(report)}
            if report.id not in self.outbox:
                yield {"k": "sent", "id": report.id}
        answered = {report.id for report in self.answers.values()}
        yield from ({"k": "say", "report": _json(report)} for report in self.outbox.values() if report.id not in answered)


def machine_entry(boot: str) -> Entry:
    return {"k": "machine", "boot": boot}


def unbegun_entry(order_id: str) -> Entry:
    return {"k": "unbegun", "id": order_id}


def order_entry(order: Order, at: datetime) -> Entry:
    return {"k": "order", "order": _json(order), "at": at.isoformat()}


def end_entry(order_id: str, at: datetime, report: Report) -> Entry:
    return {"k": "end", "id": order_id, "at": at.timestamp(), "report": _json(report)}


def box_entry(record: SandboxRecord) -> Entry:
    return {"k": "box", "box": record.model_dump(mode="json", exclude_defaults=True)}


def gone_entry(sandbox_id: str, at: datetime, *, for_ever: bool) -> Entry:
    return {"k": "gone", "id": sandbox_id, "at": at.timestamp(), "for_ever": for_ever}


def replica_entry(template_id: str, artifact_id: str | None) -> Entry:
    return {"k": "replica", "template": template_id, "artifact": artifact_id}


def saga_entry(order_id: str, saga: str) -> Entry:
    return {"k": "saga", "id": order_id, "saga": saga}


def step_entry(order_id: str, step: StepReport) -> Entry:
    return {"k": "step", "id": order_id, "step": _json(step)}


def unwind_entry(order_id: str, step: str, failure: Failure) -> Entry:
    return {"k": "unwind", "id": order_id, "step": step, "failure": _json(failure)}


def _retold(trail: Trail) -> Iterator[Entry]:
    identifier = trail.order.id
    yield order_entry(trail.order, trail.accepted)
    yield {"k": "begun", "id": identifier, "n": trail.begun}
    if trail.saga:
        yield saga_entry(identifier, trail.saga)
    yield from (step_entry(identifier, step) for step in trail.steps)
    if trail.failure is not None:
        yield unwind_entry(identifier, trail.failed_step, trail.failure)


def _json(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude_defaults=True)


def _remember(ids: OrderedDict[str, float], identifier: str, at: float) -> list[str]:
    """Newest last; what is too old, or too many, is forgotten, and returned. Time is that of the entry, so that every fold is the same."""
    ids[identifier] = at
    ids.move_to_end(identifier)
    forgotten = []
    while ids and (len(ids) > KEEP_IDS or next(iter(ids.values())) < at - KEEP_S):
        forgotten.append(ids.popitem(last=False)[0])
    return forgotten


def _bulk(kind: str, ids: OrderedDict[str, float]) -> Iterator[Entry]:
    rest: Iterable[tuple[str, float]] = iter(ids.items())
    while part := dict(islice(rest, _BULK)):
        yield {"k": kind, "ids": part}
