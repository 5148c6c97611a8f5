"""Node 0 hears of a node what concerns that node, in the form on which judging relies; the rest is left out or ends whoever sent it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import arrivals, documents, wire
from ncclcheck.arrivals import Sender
from ncclcheck.journal import Line, Slot
from ncclcheck.message_limits import DEEPEST, LONGEST_TEXT, Invalid, plain
from ncclcheck.model import Evidence, Fact

NODE = Sender(1, "gpu-02", range(2, 4), {"bandwidth"})
SLOT = Slot(7, 2, 5, 8, 1.0, None, 2.0, False, False, False, 0.0, 0.0, 1, 5, 9, "all_reduce", "world", "float32")
FAIL = {"cause": "data-corruption", "title": "wrong", "ranks": [2]}


def report(**parts: Any) -> wire.Progress:
    """What is left of a report of node 1."""
    return arrivals.progress(wire.Progress("01-x", **{"slots": [], "lines": [], "beats": {}, "facts": [], **parts}), NODE)


def line(kind: str, rank: int = 2, **fields: Any) -> Line:
    return Line(rank, kind, 1.0, 1, fields, "rank2.jsonl", 3)


def test_what_a_node_says_of_its_own_ranks_arrives_as_it_was_said() -> None:
    told = line("fact", fact="note", fields={"title": "all well\n\tso far", "more": [1, None, {"deep": 2.5}]})
    seen = report(
        slots=[SLOT], lines=[told], beats={3: 4}, facts=[Fact("gone", "gpu-02", 3, 8, {"code": -9})], starved={2: 0.5}, blocks={2: [(1, 2)]}
    )
    assert (seen.slots, seen.lines, seen.beats, seen.starved, seen.blocks) == ([SLOT], [told], {3: 4}, {2: 0.5}, {2: [(1, 2)]})
    assert seen.facts == [Fact("gone", "gpu-02", 3, 8, {"code": -9})]


def test_what_a_node_says_of_other_nodes_ranks_and_hosts_is_not_heard() -> None:
    foreign = replace(SLOT, rank=0)
    seen = report(
        slots=[foreign], lines=[line("error", 0, type="E", message="", where="")], beats={0: 1}, facts=[Fact("gone", "gpu-01", 0)],
        starved={9: 1.0}, blocks={1: [(1, 1)]},
    )  # fmt: skip
    assert (seen.slots, seen.lines, seen.beats, seen.facts, seen.starved, seen.blocks) == ([], [], {}, [], {}, {})
    (fact,) = arrivals.facts([Fact("gone", "gpu-01", 2)], NODE)
    assert fact.host == "gpu-02"


def test_a_process_that_takes_itself_for_another_rank_is_heard_when_it_says_so() -> None:
    claim = line("claim", 0, host="gpu-02", pid=7, local_rank=0, environment={"RANK": "0"}, interfaces=["lo"])
    assert report(lines=[claim]).lines == [claim]


@pytest.mark.parametrize(
    "parts",
    [
        {"slots": [Slot(7, 2, 5, -8, 1.0, None, 2.0, False, False, False, 0.0, 0.0, 1, 5, 9, "a", "b", "c")]},
        {"slots": [Slot(7, 2, 5, 8, math.nan, None, 2.0, False, False, False, 0.0, 0.0, 1, 5, 9, "a", "b", "c")]},
        {"starved": {2: math.inf}},
        {"sent": math.nan},
        {"lines": [line("hello", identity={"rank": 2})]},
        {"lines": [line("claim", host="a", pid=1, local_rank=0, environment=[], interfaces=[])]},
        {"lines": [line("probe", name="vllm_engine")]},
        {"lines": [line("probe", name="../x")]},
        {"lines": [line("sample", name="all_reduce", nbytes="many")]},
        {"lines": [line("fact", fact="fail", fields={"cause": "no-such-cause", "title": "x"})]},
        {"lines": [line("fact", fact="environment", fields={"added": [1]})]},
        {"lines": [line("fact", fact="Fail", fields={})]},
        {"facts": [Fact("fail", fields={**FAIL, "title": ["unhashable"]})]},
        {"facts": [Fact("gone", fields={"code": math.nan})]},
        {"facts": [Fact("gone", time=math.inf)]},
        {"facts": [Fact("gone", fields={"text": "x" * (LONGEST_TEXT + 1)})]},
    ],
)
def test_what_no_agent_of_this_version_says_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        report(**parts)


def test_what_changes_a_terminal_is_replaced_in_whatever_is_quoted() -> None:
    evil = "a\x1b[2J\x9b1m\u202eb\r\n\tc"
    fact = Fact("said", fields={evil: [evil]}, source=Evidence(evil, 1, evil))
    (seen,) = arrivals.facts([fact], NODE)
    assert seen.source
    for text in (*seen.fields, *seen.fields[next(iter(seen.fields))], seen.source.text, seen.source.file):
        assert not set(text) & set("\x1b\x9b\u202e\r") and text.startswith("a") and text.endswith("c")


letters = st.text(st.characters(categories=["L", "N", "P", "Zs"]))
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | letters
json = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3), max_leaves=9)


@given(json)
def test_open_values_of_plain_text_and_numbers_stay_as_they_are(value: Any) -> None:
    assert plain(value) == value


@pytest.mark.parametrize("value", [datetime(2026, 1, 1), {1: 2}, math.nan, [[-math.inf]]])
def test_open_values_that_are_not_json_are_refused(value: Any) -> None:
    with pytest.raises(Invalid):
        plain(value)


def test_open_values_are_at_most_so_deep() -> None:
    value: Any = 1
    for _ in range(DEEPEST):
        value = [value]
    assert plain(value) == value
    with pytest.raises(Invalid, match="levels"):
        plain([value])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be unpacked|another form"),
        (documents.pack("x" * 2**20), "MiB"),
        (documents.pack([0] * (documents.MOST_VALUES + 1)), "values"),
        (documents.pack({"x": 1}), "another form"),
        (documents.pack([[[1]]])[:-6], "another form|cannot be unpacked"),
    ],
)
def test_a_document_that_grows_beyond_its_bounds_is_refused_before_it_is_read(data: bytes, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        documents.unpack(data, list[int], 2**20 if "MiB" in why else 2**24)
