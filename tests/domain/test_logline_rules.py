"""What a line of output says (reference/miren-sandbox.md §8.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.sandboxes.loglines import STREAMS, Framed, framed

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"plain\t \t\r", Framed("stdout", "plain\t ")),
        (b"  kept", Framed("stdout", "  kept")),
        (b"\xff", Framed("stdout", "�")),
        (b"!USER hello", Framed("user-oob", "hello")),
        (b"!ERROR boom", Framed("error", "boom")),
        (b"!ERRORboom", Framed("stdout", "!ERRORboom")),
        (b"get / trace_id=4bf92f took 3", Framed("stdout", "get / trace_id=4bf92f took 3", "4bf92f")),
        (b"trace_id: abc", Framed("stdout", "trace_id: abc", "abc")),
    ],
)
def test_a_line_names_its_stream_and_its_trace(line: bytes, said: Framed) -> None:
    assert framed("stdout", line) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"msg":"up"}', Framed("stdout", "up")),
        (b'{"message":"up","time":"12:00"}', Framed("stdout", "up")),
        (b'{"msg":"","message":"up"}', Framed("stdout", "up", attributes={"msg": ""})),
        (b'{"msg":"m","message":"other"}', Framed("stdout", "m", attributes={"message": "other"})),
        (b'{"msg":"slow","level":"WARN"}', Framed("stderr", "slow", attributes={"level": "WARN"})),
        (b'{"msg":"bad","level":"error"}', Framed("stderr", "bad", attributes={"level": "error"})),
        (b'{"msg":"ok","level":"Error"}', Framed("stdout", "ok", attributes={"level": "Error"})),
        (b'!USER {"msg":"bad","level":"error"}', Framed("stderr", "bad", attributes={"level": "error"})),
        (b'{"msg":"n","a":1.10,"c":true}', Framed("stdout", "n", None, {"a": "1.10", "c": "true"})),
        (b'{"msg":"n","b":123456789012345678901}', Framed("stdout", "n", None, {"b": "123456789012345678901"})),
        (b'{"msg":"n","a":null,"b":{"x":1},"c":[1]}', Framed("stdout", "n")),
        (b'{"msg":"n","source":"me"}', Framed("stdout", "n", None, {"-source": "me"})),
        (b'{"msg":"n","strandline.sandbox":"x"}', Framed("stdout", "n", None, {"-strandline.sandbox": "x"})),
        (b'{"msg":"n","trace_id":"abc"}', Framed("stdout", "n", "abc", {"trace_id": "abc"})),
    ],
)  # fmt: skip
def test_a_structured_line_is_its_message_with_attributes(line: bytes, said: Framed) -> None:
    assert framed("stdout", line) == said


@pytest.mark.parametrize(
    "line", [b'{"msg":1}', b'{"msg":""}', b"{}", b'{"msg":"a"} x', b'[{"msg":"a"}]', b'{"msg":"a","n":NaN}', b"{" * 100_000 + b"}"]
)
def test_anything_else_is_verbatim(line: bytes) -> None:
    assert framed("stderr", line) == Framed("stderr", line.decode())


def test_our_own_lines_are_what_they_are() -> None:
    line = b'[strandline] not started: {"msg":"x"}'
    assert framed("runtime", line) == Framed("runtime", line.decode())
    assert framed("runtime", b"!ERROR x") == Framed("runtime", "!ERROR x")


@given(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=200))
def test_no_line_is_refused_or_gives_an_attribute_of_ours(stream: str, line: bytes) -> None:
    said = framed(stream, line)
    assert said.stream in STREAMS
    assert not any(name == "source" or name.startswith("strandline.") for name in said.attributes)
