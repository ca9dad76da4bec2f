"""Snapshots in several places: what survives what, and how often storing one is tried."""

from __future__ import annotations

import pytest
from support import worlds
from support.gwt import did, given

from domain.nodes.orders import Failure

pytestmark = pytest.mark.quick


def test_a_snapshot_that_is_stored_or_elsewhere_survives_the_loss_of_a_node() -> None:
    stored = given(worlds.snapshot, worlds.TAKEN, worlds.EXPORT, worlds.STORED)
    stored.when("lost", "gone").then("snapshot.unplaced", places=set())
    placed = given(worlds.snapshot, worlds.TAKEN, worlds.EXPORT, worlds.STORED, worlds.ELSEWHERE, did("unstored", "f" * 64, "damaged"))
    placed.when("lost", "gone", "n1").then("snapshot.unplaced", places={"n2"})
    placed.when("lost", "gone", "n2").then("snapshot.failed", error_code="snapshot.lost")


def test_a_stored_snapshot_without_a_place_is_lost_with_what_is_stored() -> None:
    only = given(worlds.snapshot, worlds.TAKEN, worlds.EXPORT, worlds.STORED, did("lost", "gone"))
    only.when("unstored", "0" * 64, "another one's").then_nothing()
    only.when("unstored", "f" * 64, "damaged").then("snapshot.unstored", "snapshot.failed", error_code="snapshot.bytes-lost")
    only.when("require_usable").then_refused("snapshot.lost")


def test_an_export_is_tried_again_only_while_that_can_help() -> None:
    passing, for_good = Failure(code="x.y", message="no", retryable=True), Failure(code="x.y", message="no")
    asked = given(worlds.snapshot, worlds.TAKEN, worlds.EXPORT)
    asked.when("request_export", worlds.LATER).then_nothing()
    asked.when("export_failed", 7, for_good).then_nothing()
    asked.when("export_failed", 1, passing).then("snapshot.export-requested")
    asked.when("export_failed", 2, passing).then("snapshot.export-requested")
    asked.when("export_failed", 3, passing).then("snapshot.export-failed", export=None)
    asked.when("request_export", worlds.LATER).then("snapshot.export-requested", exports=4)
    asked.when("stored", 1, worlds.EXPORTED).then("snapshot.stored")


def test_a_memory_is_stored_like_a_disk_alone() -> None:
    held = given(worlds.snapshot, did("ready", worlds.JOB, 4096, ("disk", "memory")))
    held.when("request_export", worlds.LATER).then("snapshot.export-requested")
