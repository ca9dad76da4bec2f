"""One contract for every view store."""

import pytest

from projections.memory import MemoryStore
from projections.postgres import PostgresStore
from projections.sqlite import SqliteStore
from projections.store import Changes, NoSuchView, Overtaken, Role


def fill(store, generation, rows, position=1, expected=0):
    store.write([Changes(generation.view, generation.number, expected, position, rows)])


def live(store, view="things", rows=None):
    g = store.create(view, 1)
    if rows:
        fill(store, g, rows)
    store.switch(view, g.number)
    return g


def dump(store, g):
    with store.read(g.view, g.number) as reader:
        return list(reader.dump())


class StoreContract:
    @pytest.fixture
    def store(self):
        raise AssertionError("each adapter brings its own")

    def test_items_and_position_are_written_together(self, store):
        g = live(store, rows={("", "p", "a"): {"n": 1}})
        with store.read("things") as reader:
            assert reader.position == 1
            assert reader.get("", "p", "a") == {"n": 1}
            assert reader.get("", "q", "a") is None
        assert store.generations()[0].position == 1
        assert store.current("things", g.number).get("", "p", "a") == {"n": 1}

    def test_a_write_at_an_unexpected_position_changes_nothing(self, store):
        g, other = live(store), live(store, "others")
        with pytest.raises(Overtaken):
            store.write(
                [
                    Changes("others", other.number, 0, 5, {("", "p", "a"): {}}),
                    Changes("things", g.number, 3, 5, {("", "p", "a"): {}}),
                ]
            )
        assert [(g.position, dump(store, g)) for g in store.generations()] == [(0, []), (0, [])]

    def test_a_row_of_none_deletes_and_deleting_nothing_is_fine(self, store):
        g = live(store, rows={("", "p", "a"): {"n": 1}, ("", "p", "b"): {"n": 2}})
        fill(store, g, {("", "p", "a"): None, ("", "p", "zz"): None, ("", "p", "b"): {"n": 3}}, 2, 1)
        assert dump(store, g) == [(("", "p", "b"), {"n": 3})]

    def test_scans_are_ordered_by_bytes_bounded_and_resumed_by_key(self, store):
        live(store, rows={("", "p", i): {"i": i} for i in ["b", "a", "B", "a-1", "a_1", "é"]} | {("", "q", "a"): {}, ("x", "p", "a"): {}})
        with store.read("things") as reader:
            assert [i for _, i, _ in reader.scan("", "p", {}, "", 100)] == ["B", "a", "a-1", "a_1", "b", "é"]
            assert [i for _, i, _ in reader.scan("", "p", {}, "a", 2)] == ["a-1", "a_1"]
            assert [(p, i) for p, i, _ in reader.scan("", None, {}, "", 100)][-1] == ("q", "a")
            assert reader.scan("", "p", {}, "é", 100) == []

    @pytest.mark.parametrize("indexed", [(), ("v",)])
    def test_conditions_are_exact_in_value_and_type(self, store, indexed):
        values = {"int": 1, "text": "1", "true": True, "null": None, "float": 1.5, "quote": "a\"b'c", "uni": "ü\n", "word": "READY"}
        g = live(store, rows={("", "p", k): {"v": v} for k, v in values.items()} | {("", "p", "none"): {}})
        store.index("things", g.number, indexed)
        with store.read("things") as reader:
            for key, value in values.items():
                assert [i for _, i, _ in reader.scan("", "p", {"v": value}, "", 10)] == [key]
            assert reader.scan("", "p", {"v": "1", "w": 1}, "", 10) == []

    def test_counts_go_by_value(self, store):
        rows = {("", "p", str(n)): {"s": s} for n, s in enumerate(["UP", "UP", "DOWN", None])}
        live(store, rows=rows | {("", "q", "a"): {"s": "UP"}, ("k", "p", "a"): {"s": "UP"}})
        with store.read("things") as reader:
            assert reader.count("", "p", "s") == {"UP": 2, "DOWN": 1, "": 1}

    def test_many_items_are_read_at_once(self, store):
        live(store, rows={("", "p", "a"): {"n": 1}, ("k", "p", "a"): {"n": 2}})
        with store.read("things") as reader:
            keys = [("", "p", "a"), ("k", "p", "a"), ("", "p", "nope")]
            assert reader.get_many(keys) == {("", "p", "a"): {"n": 1}, ("k", "p", "a"): {"n": 2}}
            assert reader.get_many([]) == {}

    def test_a_new_generation_is_invisible_until_it_is_switched_to(self, store):
        old = live(store, rows={("", "p", "a"): {"n": "old"}})
        new = store.create("things", 2)
        fill(store, new, {("", "p", "a"): {"n": "new"}}, 7)
        with store.read("things") as reader:
            assert reader.get("", "p", "a") == {"n": "old"}
        assert [(g.number, g.role) for g in store.switch("things", new.number)] == [(old.number, Role.LIVE)]
        with store.read("things") as reader:
            assert (reader.get("", "p", "a"), reader.position, reader.number) == ({"n": "new"}, 7, new.number)
        assert [g.role for g in store.generations()] == [Role.RETIRED, Role.LIVE]
        store.drop("things", old.number)
        store.drop("things", old.number)
        assert [g.number for g in store.generations()] == [new.number]

    def test_generation_numbers_are_never_used_again(self, store):
        first = store.create("things", 1)
        store.drop("things", first.number)
        assert store.create("things", 1).number > first.number

    def test_what_does_not_exist_is_said_to_be_missing(self, store):
        store.create("things", 1)
        with pytest.raises(NoSuchView), store.read("things"):
            pass
        with pytest.raises(NoSuchView):
            store.switch("things", 99)
        with pytest.raises(Overtaken):
            store.write([Changes("things", 99, 0, 1, {})])

    def test_a_copy_is_read_by_its_number(self, store):
        g = store.create("things", 1, Role.COPY)
        fill(store, g, {("", "p", "a"): {"n": 1}})
        with store.read("things", g.number) as reader:
            assert reader.get("", "p", "a") == {"n": 1}
        assert store.generations()[0].role is Role.COPY

    def test_nul_characters_are_stored_alike_everywhere(self, store):
        g = live(store, rows={("", "p", "a"): {"error": "a\0b", "nested": [{"\0": "\0"}], "text": "\\u0000"}})
        assert dump(store, g) == [(("", "p", "a"), {"error": "a\ufffdb", "nested": [{"\ufffd": "\ufffd"}], "text": "\\u0000"})]

    def test_a_failed_write_leaves_no_trace(self, store):
        g = live(store, rows={("", "p", "a"): {"n": 1}})
        with pytest.raises(TypeError):
            fill(store, g, {("", "p", "b"): {"n": 2}, ("", "p", "c"): {"n": object()}}, 2, 1)
        assert dump(store, g) == [(("", "p", "a"), {"n": 1})]
        fill(store, g, {("", "p", "b"): {"n": 2}}, 2, 1)

    def test_it_remembers_which_log_it_was_made_from(self, store):
        assert not store.identity()
        store.adopt("one")
        store.adopt("other")
        assert store.identity() == "other"


class DurableContract(StoreContract):
    """What holds for stores that outlive their process, too."""

    def test_everything_is_there_after_reopening(self, store, reopen):
        g = live(store, rows={("", "p", "a"): {"n": 1}})
        again = reopen()
        assert again.generations() == store.generations()
        assert dump(again, g) == [(("", "p", "a"), {"n": 1})]
        again.close()

    def test_a_reader_keeps_its_snapshot_while_others_write(self, store):
        g = live(store, rows={("", "p", "a"): {"n": 1}})
        with store.read("things") as reader:
            fill(store, g, {("", "p", "a"): {"n": 2}}, 2, 1)
            assert (reader.position, reader.get("", "p", "a")) == (1, {"n": 1})
        with store.read("things") as reader:
            assert (reader.position, reader.get("", "p", "a")) == (2, {"n": 2})

    def test_of_two_writers_at_the_same_position_one_is_told(self, store, reopen):
        g = live(store)
        other = reopen()
        fill(other, g, {("", "p", "a"): {"n": 1}})
        with pytest.raises(Overtaken):
            fill(store, g, {("", "p", "a"): {"n": 2}})
        assert dump(store, g) == [(("", "p", "a"), {"n": 1})]
        other.close()


@pytest.mark.quick
class TestMemory(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


@pytest.mark.quick
class TestSqlite(DurableContract):
    @pytest.fixture
    def reopen(self, tmp_path):
        return lambda: SqliteStore(tmp_path / "views.db")

    @pytest.fixture
    def store(self, reopen):
        store = reopen()
        yield store
        store.close()

    def test_filters_on_indexed_fields_use_the_index(self, store):
        g = live(store, rows={("", "p", "a"): {"v": 1}})
        store.index("things", g.number, ["v"])
        sql = f"""explain query plan select project, id, doc from "things@{g.number}" where kind = ? and project = ? and id > ?
            and doc -> '$.v' = ? order by kind, project, id limit ?"""
        plan = " ".join(row[3] for row in store._db.execute(sql, ("", "p", "", "1", 10)))
        assert f"things@{g.number}.v" in plan
        assert "TEMP B-TREE" not in plan


@pytest.mark.root
class TestPostgres(DurableContract):
    @pytest.fixture
    def reopen(self, postgres_url):
        return lambda: PostgresStore(postgres_url)

    @pytest.fixture
    def store(self, reopen):
        store = reopen()
        yield store
        store.close()

    def test_it_reconnects_after_its_connections_were_cut(self, store):
        g = live(store, rows={("", "p", "a"): {"n": 1}})
        dump(store, g)
        with store._connect() as admin:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'strandline-views' and pid <> pg_backend_pid()"
            )
        with pytest.raises(ConnectionError):
            fill(store, g, {}, 2, 1)
        fill(store, g, {}, 2, 1)
        with pytest.raises(ConnectionError):
            dump(store, g)
        assert dump(store, g) == [(("", "p", "a"), {"n": 1})]
