"""The union of layers against a model of it that knows nothing of trees: whiteouts first, then entries, on a flat dictionary."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.images import listing, tar, union

from agents.images import ImageFault
from agents.images.writer import LayerTar

pytestmark = pytest.mark.quick

Path_ = tuple[str, ...]
NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
LINKS = st.lists(NAMES, max_size=2).map(lambda names: (*names, "link"))
OPERATIONS = st.one_of(
    st.tuples(st.just("file"), PATHS, st.binary(max_size=4)),
    st.tuples(st.just("dir"), PATHS, st.sampled_from([0o700, 0o755, 0o1777])),
    st.tuples(st.just("symlink"), LINKS, st.sampled_from(["a", "../x", "/etc"])),
    st.tuples(st.just("hardlink"), PATHS, PATHS),
    st.tuples(st.just("whiteout"), st.one_of(PATHS, LINKS), st.none()),
    st.tuples(st.just("opaque"), st.lists(NAMES, max_size=2).map(tuple), st.none()),
)
HIDING = {"whiteout", "opaque"}
LAYERS = st.lists(st.lists(OPERATIONS, max_size=8), min_size=1, max_size=4)


class RefusedError(Exception):
    pass


class Model:
    """Paths to values: ``(mode,)`` of a directory, ``[bytes]`` of a file (one object per inode), a target's text."""

    def __init__(self) -> None:
        self.at: dict[Path_, Any] = {}

    def below(self, path: Path_) -> list[Path_]:
        return [p for p in self.at if p[: len(path)] == path and p != path]

    def remove(self, path: Path_) -> None:
        for gone in [path, *self.below(path)]:
            self.at.pop(gone, None)

    def apply(self, layer: list[tuple[str, Path_, Any]]) -> None:
        for kind, path, _ in layer:
            if kind in HIDING:
                for gone in [*self.below(path), *([path] if kind == "whiteout" else [])]:
                    self.at.pop(gone, None)
        mine: set[Path_] = set()
        for kind, path, value in layer:
            if kind not in HIDING:
                self.enter(kind, path, value, mine)

    def enter(self, kind: str, path: Path_, value: Any, mine: set[Path_]) -> None:
        target = self.at.get(value) if kind == "hardlink" else None
        if kind == "hardlink" and not isinstance(target, list):
            raise RefusedError
        for depth in range(1, len(path)):
            parent = path[:depth]
            if not isinstance(self.at.get(parent), tuple):
                if parent in mine and parent in self.at:
                    raise RefusedError
                self.remove(parent)
                self.at[parent] = (0o755,)
        if kind != "dir" or not isinstance(self.at.get(path), tuple):
            self.remove(path)
        self.at[path] = {"dir": (value,), "file": [value], "symlink": value, "hardlink": target}[kind]
        mine.add(path)


def arranged(layer, random):
    """Whiteouts may stand anywhere in a layer; only a hard link could tell, by what it finds at that moment."""
    if any(kind == "hardlink" for kind, _, _ in layer):
        return sorted(layer, key=lambda operation: operation[0] not in HIDING)
    hidings = [operation for operation in layer if operation[0] in HIDING]
    entries = [operation for operation in layer if operation[0] not in HIDING]
    for hiding in hidings:
        entries.insert(random.randint(0, len(entries)), hiding)
    return entries


def write(layer: LayerTar, operations) -> None:
    for kind, path, value in operations:
        name = "/".join(path)
        match kind:
            case "file":
                layer.file(name, value)
            case "dir":
                layer.directory(name, value)
            case "symlink":
                layer.symlink(name, value)
            case "hardlink":
                layer.hardlink(name, "/".join(value))
            case "whiteout":
                layer.whiteout(name)
            case "opaque":
                layer.entry("/".join([*path, ".wh..wh..opq"]))


@examples.times(5)
@given(layers=LAYERS, random=st.randoms(use_true_random=False))
def test_any_layers_make_the_tree_that_the_model_makes(layers, random):
    model = Model()
    try:
        for layer in layers:
            model.apply(layer)
    except RefusedError:
        model = None
    tars = [tar(lambda t, layer=layer: write(t, arranged(layer, random))) for layer in layers]
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            with pytest.raises(ImageFault) as refusal:
                union(Path(folder) / "u", *tars)
            assert refusal.value.code == "image.bad-layer"
            return
        tree, contents = union(Path(folder) / "u", *tars)
        with contents:
            found = listing(tree, contents)
        stored = {int(path.name) for path in (Path(folder) / "u" / "contents").iterdir()}
    nodes = {tuple(part.decode() for part in path): node for path, node in tree.walk()}
    assert found == {
        "/".join(path): "dir" if isinstance(value, tuple) else value[0] if isinstance(value, list) else ("->", value)
        for path, value in model.at.items()
    }
    for path, value in model.at.items():
        if isinstance(value, tuple):
            assert nodes[path].mode == value[0]
        else:
            same = {p for p, other in model.at.items() if other is value} if isinstance(value, list) else {path}
            assert {p for p, node in nodes.items() if node is nodes[path]} == same
            assert nodes[path].links == len(same)
    assert stored == {node.content for node in nodes.values() if node.content >= 0}, "contents without a name are gone, the others are not"


def test_an_entry_below_a_linked_directory_lands_where_the_link_points(tmp_path):
    def base(layer):
        layer.directory("usr/lib")
        layer.symlink("lib", "usr/lib")
        layer.symlink("abs", "/usr/lib")
        layer.symlink("usr/up", "../usr/lib/../lib")

    def more(layer):
        layer.file("lib/one", b"1")
        layer.file("abs/two", b"2")
        layer.file("usr/up/three", b"3")
        layer.hardlink("abs/four", "lib/one")
        layer.whiteout("abs/nothing")

    tree, contents = union(tmp_path / "u", tar(base), tar(more))
    with contents:
        found = listing(tree, contents)
    assert {name: found[f"usr/lib/{name}"] for name in ("one", "two", "three", "four")} == {
        "one": b"1",
        "two": b"2",
        "three": b"3",
        "four": b"1",
    }
    assert found["lib"] == ("->", "usr/lib")


def test_a_directory_takes_the_place_of_a_link_and_a_link_of_a_directory(tmp_path):
    def base(layer):
        layer.directory("real")
        layer.file("real/kept", b"k")
        layer.symlink("link", "real")
        layer.file("folder/inside", b"i")

    def more(layer):
        layer.directory("link")
        layer.file("link/new", b"n")
        layer.symlink("folder", "real")

    tree, contents = union(tmp_path / "u", tar(base), tar(more))
    with contents:
        found = listing(tree, contents)
    assert found == {"real": "dir", "real/kept": b"k", "link": "dir", "link/new": b"n", "folder": ("->", "real")}


def test_a_name_of_a_hard_link_that_is_replaced_leaves_the_other_names_alone(tmp_path):
    def base(layer):
        layer.file("one", b"old")
        layer.hardlink("two", "one")

    tree, contents = union(tmp_path / "u", tar(base), tar(lambda layer: layer.file("one", b"new")))
    with contents:
        assert listing(tree, contents) == {"one": b"new", "two": b"old"}


def test_a_hard_link_may_take_the_place_that_its_target_had(tmp_path):
    tree, contents = union(tmp_path / "u", tar(lambda layer: layer.file("a", b"x")), tar(lambda layer: layer.hardlink("a/b", "a")))
    with contents:
        assert listing(tree, contents) == {"a": "dir", "a/b": b"x"}


def test_the_root_itself_can_be_described_and_names_may_be_any_bytes(tmp_path):
    def base(layer):
        layer.directory("./", mode=0o711)
        layer.file('./caf\udce9 "quoted"\nline', b"x")

    tree, contents = union(tmp_path / "u", tar(base))
    with contents:
        assert list(listing(tree, contents)) == ['caf\udce9 "quoted"\nline']
    assert tree.root.mode == 0o711


def test_aufs_bookkeeping_is_no_whiteout_and_no_file(tmp_path):
    def base(layer):
        layer.directory(".wh..wh.plnk")
        layer.file(".wh..wh.aufs", b"")
        layer.file("real", b"r")

    tree, contents = union(tmp_path / "u", tar(base))
    with contents:
        assert listing(tree, contents) == {"real": b"r"}
