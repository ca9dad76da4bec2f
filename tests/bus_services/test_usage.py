"""What nodes say of use: heard, believed for a while, and never more of it than can be kept."""

from __future__ import annotations

import pytest

from bus import usage
from bus.usage import Heard, messages, tell

ROW = (1.5, 0.5, 0.25, 4096, 8192, 0, 0, 3)
SAID = dict(zip(usage.COLUMNS, ROW, strict=True))
AT = "2026-01-01T00:00:00.000Z"


class Ear:
    """Somebody who hears, and a clock."""

    def __init__(self):
        self.now = 0.0
        self.heard = Heard(lambda: self.now)

    def say(self, rows, node="n1", every_s=5.0):
        for part, body in enumerate(messages("boot", AT, every_s, rows)):
            self.heard.take(f"strand.usage.{node}.{part}", body)


@pytest.mark.quick
def test_what_a_node_says_is_believed_of_its_own_sandboxes_until_it_is_overdue():
    ear = Ear()
    ear.say({"sb-1": ROW})
    assert ear.heard.of("n1", "sb-1") == {"at": AT, **SAID}
    assert (ear.heard.of("n2", "sb-1"), ear.heard.of("n1", "sb-2")) == (None, None)
    ear.now = 15
    assert ear.heard.of("n1", "sb-1") is not None
    ear.now = 15.1
    assert ear.heard.of("n1", "sb-1") is None


@pytest.mark.quick
def test_many_sandboxes_are_said_in_parts_and_the_last_word_counts():
    ear = Ear()
    ear.say({f"sb-{number}": ROW for number in range(usage.PER_MESSAGE + 1)})
    last = f"sb-{usage.PER_MESSAGE}"
    assert ear.heard.of("n1", last) is not None
    ear.now = 5
    ear.say({last: (2.5, *ROW[1:])})
    assert ear.heard.of("n1", last)["cpu_s"] == 2.5


@pytest.mark.quick
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"at":1}',
        b'{"at":"","every_s":5,"columns":["cpu_s"],"sandboxes":{"sb-1":[1]}}',
        b" " * (1 << 20),
    ],
)
def test_a_message_that_is_none_says_nothing(body):
    ear = Ear()
    ear.heard.take("strand.usage.n1.0", body)
    assert ear.heard.of("n1", "sb-1") is None


@pytest.mark.quick
def test_what_is_remembered_is_bounded_and_what_is_old_makes_room(monkeypatch):
    monkeypatch.setattr(usage, "MAX_SAID", 2)
    ear = Ear()
    for node in ("n1", "n2", "n3"):
        ear.say({"sb-1": ROW}, node)
    assert [ear.heard.of(node, "sb-1") is not None for node in ("n1", "n2", "n3")] == [True, True, False]
    ear.now = 100
    ear.say({"sb-1": ROW}, "n3")
    assert ear.heard.of("n3", "sb-1") is not None


def test_samples_travel_over_the_bus_and_none_waits_for_a_bus_that_is_away(connecting, run, eventually):
    async def main():
        async with connecting() as nc, usage.hearing(nc) as heard:
            await tell(nc, "n1", messages("boot", AT, 5.0, {"sb-1": ROW}))
            await eventually(lambda: heard.of("n1", "sb-1"))
        await tell(nc, "n1", messages("boot", AT, 5.0, {"sb-1": ROW}))

    run(main())
