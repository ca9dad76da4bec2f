"""``audit``: every commit once, in the log's order, narrowed and paged like a view."""

from fnmatch import fnmatchcase

import orjson
import pytest
from support.histories import History, subject

from domain.kernel.errors import Refused
from projections import trail
from projections.log import Page
from projections.question import parse

pytestmark = pytest.mark.quick


class ListLog:
    """The part of the log's port that is asked here; pages as the server makes them, by subject."""

    def __init__(self, messages):
        self.messages = messages

    async def page(self, wanted, seq, count):
        found = [m for m in self.messages if m[0] >= seq and fnmatchcase(subject(m[1]), wanted)]
        return Page(found[:count], found[count][0] if len(found) > count else None)


@pytest.fixture(scope="module")
def messages():
    return History(11).walk(3000)


@pytest.fixture
def asked(messages, run):
    log = ListLog(messages)

    def ask(project="default", end=None, verb="list", **body):
        end = len(messages) if end is None else end
        question = parse(orjson.dumps(body), verb, trail.FILTERS)
        answer = trail.list_commits if verb == "list" else trail.get_commit
        return run(answer(log, project, question, end)).result

    return ask


def everything(asked, **body):
    """All pages."""
    items, cursor = [], {}
    while True:
        page = asked(**body, **cursor)
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = {"cursor": page["next"]}


@pytest.mark.parametrize("project", ["default", "acme", "system"])
def test_every_commit_of_a_project_is_one_row_in_the_logs_order(asked, messages, project):
    bodies = [(seq, orjson.loads(data)) for seq, data in messages]
    wanted = [
        {
            "seq": seq,
            **{name: body.get(name) for name in ("time", "actor", "command", "cause", "project", "type", "id", "commit")},
            "events": [event["type"] for event in body["events"]],
        }
        for seq, body in bodies
        if body["project"] == project
    ]
    assert wanted
    assert everything(asked, project=project, limit=7) == wanted
    assert everything(asked, project=project, limit=1000) == wanted


def test_rows_are_narrowed_by_what_they_say(asked):
    rows = everything(asked, limit=1000)
    for name, value in (("type", "sandbox"), ("id", rows[5]["id"]), ("command", rows[9]["command"]), ("actor", "nobody")):
        assert everything(asked, limit=3, **{name: value}) == [row for row in rows if row[name] == value]
    created = everything(asked, event="sandbox.created")
    assert created == [row for row in rows if "sandbox.created" in row["events"]] != []


def test_a_page_that_finds_little_says_where_to_go_on(asked, monkeypatch):
    monkeypatch.setattr(trail, "SCAN", 10)
    monkeypatch.setattr(trail, "PAGE", 4)
    last = everything(asked, limit=1000)[-1]
    first = asked(command=last["command"], limit=5)
    assert first["items"] == []
    assert first["next"] is not None
    assert everything(asked, command=last["command"], limit=5) == [last]


def test_the_past_ends_where_it_was(asked):
    rows = everything(asked, limit=1000)
    end = rows[20]["seq"]
    assert everything(asked, end=end, limit=6) == rows[:21]
    assert asked(verb="get", id=str(end), end=end)["items"] == [rows[20]]
    with pytest.raises(Refused, match="commit"):
        asked(verb="get", id=str(rows[21]["seq"]), end=end)


def test_a_row_of_another_project_is_not_there(asked):
    other = everything(asked, project="acme", limit=10)[0]
    with pytest.raises(Refused) as refused:
        asked(verb="get", id=str(other["seq"]))
    assert refused.value.code == "commit.not-found"


@pytest.mark.parametrize("body", [{"cursor": "eA"}, {"nonsense": 1}, {"type": "a.b"}, {"limit": 0}])
def test_what_cannot_be_asked_is_refused_by_name(asked, body):
    with pytest.raises(Refused) as refused:
        asked(**body)
    assert refused.value.code == "query.invalid"
