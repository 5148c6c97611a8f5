"""What agents say to each other means the same at both ends."""

from __future__ import annotations

import typing
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import wire
from ncclcheck.journal import Line, Slot
from ncclcheck.model import Evidence, Fact
from ncclcheck.survey import Question

HELLO = wire.Hello(wire.PROTOCOL, "1", 2, None, 1, "a", 7, "flags", {"lo": ["127.0.0.1"]}, [], {"torch": None}, False)

text = st.text(max_size=20)
number = st.integers(-(2**31), 2**31)
seconds = st.floats(0, 1e9)
plain = st.none() | st.booleans() | number | seconds | text | st.lists(text, max_size=3)
evidence = st.builds(Evidence, text, number, text)
facts = st.lists(st.builds(Fact, text, st.none() | text, st.none() | number, st.none() | number, st.dictionaries(text, plain), st.none() | evidence))
flag, signature = st.booleans(), st.integers(0, 2**64 - 1)
where = (number, number, number, number, seconds, st.none() | seconds, seconds)
slot = st.builds(Slot, *where, flag, flag, flag, seconds, seconds, signature, number, number, text, text, text)
line = st.builds(Line, number, text, seconds, number, st.dictionaries(text, plain), text, number)
peer = st.builds(wire.Peer, number, text, text, number)
door = st.builds(wire.Door, text, text, number, number, number, text)
target = st.builds(wire.Target, peer, text, text, text, number, flag, text)
FIELDS: Mapping[str, st.SearchStrategy[typing.Any]] = {
    "addresses": st.dictionaries(text, st.lists(text)),
    "gpus": st.lists(st.dictionaries(text, plain)),
    "versions": st.dictionaries(text, st.none() | text),
    "doors": st.lists(door),
    "targets": st.lists(target),
    "heard": st.lists(st.tuples(text, text)),
    "task": st.none() | st.dictionaries(text, number),
    "env": st.dictionaries(text, text),
    "beats": st.dictionaries(number, number),
    "blocks": st.dictionaries(number, st.lists(st.tuples(number, signature))),
    "starved": st.dictionaries(number, seconds),
    "slots": st.lists(slot),
    "lines": st.lists(line),
    "facts": facts,
    "node_rank": number,
    "report": st.binary(),
    "echo": st.tuples(text, number),
    "peers": st.lists(peer),
    "node0": st.none() | peer,
    "question": st.builds(Question, st.dictionaries(text, text), number, text, text, st.lists(text), st.none() | text),
    "sections": st.lists(text),
}
BY_TYPE: Mapping[object, st.SearchStrategy[typing.Any]] = {
    str: text,
    int: number,
    float: seconds,
    bool: st.booleans(),
    bytes: st.binary(),
    list[str]: st.lists(text),
    list[int]: st.lists(number),
}


def message(kind: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
    """Any message of this type."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: FIELDS[name] if name in FIELDS else BY_TYPE[hints[name]] for name in kind.__struct_fields__})


@given(st.one_of([message(kind) for kind in typing.get_args(wire.Any_)]))
def test_every_message_arrives_as_it_was_said(said: wire.Message) -> None:
    assert wire.decode(wire.encode(said)) == said


def test_a_message_that_is_too_large_is_refused_where_it_is_made() -> None:
    overhead = len(wire.encode(wire.Result(b"x" * 2**19))) - 2**19
    assert len(wire.encode(wire.Result(bytes(wire.MAX_MESSAGE - overhead)))) == wire.MAX_MESSAGE
    with pytest.raises(ValueError, match="Result of 1048577 bytes; at most 1048576 travel"):
        wire.encode(wire.Result(bytes(wire.MAX_MESSAGE - overhead + 1)))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"GET / HTTP/1.1", wire.encode(HELLO)[:-1], b"{}"], ids=len)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        wire.decode(data)
