"""``jobs``: long operations, with phase, progress and outcome (reference/cubesandbox.md §1.5, §2.2)."""

from __future__ import annotations

from typing import Final

from domain.templates.progress import PullProgress
from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "jobs",
    noun="job",
    key="job_id",
    counted="status",
    indexed=("resource_id", "status"),
    fields={
        "job_id": "",
        "operation": "",
        "resource_type": "",
        "resource_id": "",
        "status": "PENDING",
        "phase": "",
        "progress": 0,
        "pull": PullProgress().model_dump(),
        "attempt": 1,
        "retry_of": None,
        "targets": [],
        "sandbox_id": None,
        "result": {},
        "error": None,
        "lease_until": None,
        "created_at": "",
        "updated_at": "",
    },
)


@VIEW.on("job.created")
def created(state: State, fact: Fact) -> None:
    d = fact.data
    item = VIEW.item(
        job_id=fact.id,
        operation=d["operation"],
        resource_type=d["resource_type"],
        resource_id=d["resource_id"],
        phase=d["phase"],
        attempt=d["attempt"],
        retry_of=d["retry_of"],
        targets=d["targets"],
        sandbox_id=d["sandbox_id"],
        lease_until=d["lease_until"],
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("job.started")
def started(item: Item, fact: Fact) -> None:
    item.update(status="RUNNING", lease_until=fact.data["lease_until"], progress=fact.data["progress"], updated_at=fact.time)
    item["phase"] = fact.data.get("phase") or item["phase"]


@VIEW.update("job.advanced")
def advanced(item: Item, fact: Fact) -> None:
    item.update(phase=fact.data["phase"], progress=fact.data["progress"], updated_at=fact.time)


@VIEW.update("job.pulled")
def pulled(item: Item, fact: Fact) -> None:
    item.update(pull=fact.data["pull"], updated_at=fact.time)


@VIEW.update("job.targets-set")
def targets_set(item: Item, fact: Fact) -> None:
    item["targets"] = fact.data["targets"]


@VIEW.update("job.lease-renewed")
def lease_renewed(item: Item, fact: Fact) -> None:
    item["lease_until"] = fact.data["until"]


@VIEW.update("job.succeeded")
def succeeded(item: Item, fact: Fact) -> None:
    item.update(status="READY", phase=fact.data["phase"], progress=100, result=fact.data["result"], updated_at=fact.time)


@VIEW.update("job.failed")
def failed(item: Item, fact: Fact) -> None:
    item.update(status="FAILED", phase=fact.data["phase"], progress=100, error=fact.data["failure"], updated_at=fact.time)
