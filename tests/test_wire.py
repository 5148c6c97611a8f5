"""What agents say to each other means the same at both ends."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import wire

HELLO = wire.Hello(wire.PROTOCOL, "1", 2, None, 1, "a", 7, "flags", {"lo": ["127.0.0.1"]}, [], {"torch": None}, False)

leaves = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(0, 1e9) | st.text(max_size=20)
open_value = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)
PLAIN: Mapping[object, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20), int: st.integers(-(2**63), 2**63 - 1), float: st.floats(allow_nan=False), bool: st.booleans(),
    bytes: st.binary(max_size=99), type(None): st.none(), Any: open_value,
}  # fmt: skip


@functools.cache
def anything(form: Any) -> st.SearchStrategy[Any]:
    """Any value that a message may hold in a field of this type."""
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if origin is typing.Annotated:
        return limited(inner[0], inner[1])
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(anything, inner))
    if origin is list:
        return st.lists(anything(inner[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(anything, inner))
    if origin in (dict, Mapping):
        return st.dictionaries(anything(inner[0]), anything(inner[1]), max_size=3)
    if typing.is_typeddict(form):
        return st.fixed_dictionaries({name: anything(each) for name, each in hints(form).items()})
    if form in PLAIN:
        return PLAIN[form]
    return st.builds(form, **{name: anything(each) for name, each in hints(form).items() if not name.startswith("_")})


def limited(form: Any, meta: msgspec.Meta) -> st.SearchStrategy[Any]:
    """Any value of a type within its limits."""
    if meta.pattern:
        return st.from_regex(meta.pattern)
    if form is int:
        least, most = meta.ge, meta.le if meta.le is not None else meta.lt - 1 if meta.lt else None
        return st.integers(int(least) if least is not None else None, int(most) if most is not None else None)
    if form is float:
        return st.floats(meta.ge, meta.le)
    if form is bytes:
        return st.binary(max_size=min(meta.max_length or 99, 99))
    return anything(form)


def hints(form: Any) -> dict[str, Any]:
    return typing.get_type_hints(form, include_extras=True)


@given(st.one_of([anything(kind) for kind in typing.get_args(wire.Any_)]))
def test_every_message_arrives_as_it_was_said(said: wire.Message) -> None:
    assert wire.decode(wire.encode(said)) == said


def test_a_message_that_is_too_large_is_refused_where_it_is_made() -> None:
    overhead = len(wire.encode(wire.Result(b"x" * 2**19))) - 2**19
    assert len(wire.encode(wire.Result(bytes(wire.MAX_MESSAGE - overhead)))) == wire.MAX_MESSAGE
    with pytest.raises(ValueError, match="Result of 1048577 bytes; at most 1048576 travel"):
        wire.encode(wire.Result(bytes(wire.MAX_MESSAGE - overhead + 1)))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"GET / HTTP/1.1", wire.encode(HELLO)[:-1], b"{}"], ids=len)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(wire.Invalid):
        wire.decode(data)
