"""Flight recorders' dumps of any version are read into something small, and nothing in a file can do harm."""

from __future__ import annotations

import json
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncclcheck import recorder
from ncclcheck.evidence import _newest, flight_recorder
from ncclcheck.recorder import ABORTED, COMPLETED, SCHEDULED, Dump


def entry(seq: int, operation: str = "all_reduce", size: int = 64, state: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "record_id": seq - 1,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "collective_seq_id": seq,
        "p2p_seq_id": 0,
        "profiling_name": f"nccl:{operation}",
        "input_sizes": [[size]],
        "output_sizes": [[size]],
        "input_dtypes": ["Float"],
        "output_dtypes": ["Float"],
        "state": state,
        **more,
    }


def document(entries: list[dict[str, Any]], ranks: object = "[0, 1, 2]", **more: Any) -> dict[str, Any]:
    return {"version": "2.10", "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": ranks}}, "entries": entries, **more}


def read(content: object, name: str = "nccl_trace_rank_1") -> Dump:
    return flight_recorder.read(pickle.dumps(content, protocol=2), name)


def issued(dump: Dump) -> list[str]:
    return [dump.signatures[kind].operation for kind in dump.groups["0"].collectives.kinds]


def test_a_dump_tells_groups_members_sequence_and_states() -> None:
    dump = read(document([entry(1), entry(2, "broadcast"), entry(3, state="scheduled")]))
    group = dump.groups["0"]
    assert (dump.rank, str(group), group.ranks, group.enqueued) == (1, "default_pg", (0, 1, 2), 3)
    assert issued(dump) == ["all_reduce", "broadcast", "all_reduce"]
    assert list(group.collectives.seqs) == [1, 2, 3] and list(group.collectives.states) == [COMPLETED, COMPLETED, SCHEDULED]


def test_json_and_pickle_give_the_same_dump() -> None:
    content = document(
        [entry(1), entry(2, "broadcast", state="started")], pg_status={"0": {"last_enqueued_collective": "2", "last_completed_collective": "1"}}
    )
    one, other = read(content), flight_recorder.read(json.dumps(content).encode(), "nccl_trace_rank_1")
    assert one.signatures == other.signatures and issued(one) == issued(other)
    assert one.groups["0"].collectives.seqs == other.groups["0"].collectives.seqs
    assert one.groups["0"].completed == other.groups["0"].completed == 1


def test_a_record_is_quoted_with_its_place_and_the_line_of_the_user() -> None:
    frames = [
        {"name": "all_reduce", "filename": "/opt/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", "line": 3068},
        {"name": "step", "filename": "/home/me/loop.py", "line": 31},
    ]
    dump = read(document([entry(7), entry(8, state="scheduled", frames=frames)]))
    quote = dump.newest()
    assert (quote.file, quote.line, quote.text) == ("nccl_trace_rank_1", 2, "all_reduce #8 [64] Float scheduled, loop.py:31 in step")


def test_what_completed_after_its_time_out_was_aborted() -> None:
    late = entry(1, time_created_ns=10**9, time_discovered_completed_ns=32 * 10**9, timeout_ms=30_000)
    early = entry(2, time_created_ns=10**9, time_discovered_completed_ns=30 * 10**9, timeout_ms=30_000)
    assert list(read(document([late, early])).groups["0"].collectives.states) == [ABORTED, COMPLETED]


def test_old_dumps_number_all_calls_alike_and_their_collectives_are_counted() -> None:
    old = [
        {"seq_id": seq, "profiling_name": name, "process_group": ("0", "")}
        for seq, name in enumerate(("nccl:all_reduce", "nccl:send 1->2", "nccl:all_reduce"), 1)
    ]
    dump = read({"version": "1.5", "pg_config": {"0": {"ranks": [0, 1, 2]}}, "entries": old})
    assert list(dump.groups["0"].collectives.seqs) == [1, 2] and list(dump.groups["0"].p2p.seqs) == [2]


def test_an_old_dump_that_forgot_its_first_calls_has_no_numbers_that_could_be_compared() -> None:
    names = ("nccl:send 1->2", "nccl:all_reduce", "nccl:all_reduce")
    late = [{"seq_id": seq, "profiling_name": name, "process_group": ("0", "")} for seq, name in enumerate(names, 2000)]
    group = read({"version": "1.5", "pg_config": {"0": {"ranks": [0, 1, 2]}}, "entries": late}).groups["0"]
    assert not group.countable and not len(group.collectives) and list(group.p2p.seqs) == [2000]


def test_the_operations_of_a_batch_are_one_call_and_its_end_is_none() -> None:
    batch = [entry(1), entry(2, "reduce"), entry(2, "reduce", 8), entry(2, "coalesced"), entry(3)]
    dump = read(document(batch))
    assert list(dump.groups["0"].collectives.seqs) == [1, 2, 3]
    assert dump.signatures[dump.groups["0"].collectives.kinds[1]].must == "reduce 64 Float + reduce 8 Float"


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("nccl_trace_rank_12", 12),
        ("folder9/fr_rank_3", 3),
        ("node-07_rank_3.pkl", 3),
        ("Rank5.json", 5),
        ("trace_0", 0),
        ("trace-12.json", 12),
        ("node-07.pkl", None),
        ("10.0.0.7", None),
        ("dump.json", None),
    ],
)
def test_the_rank_is_in_the_files_name(name: str, rank: int | None) -> None:
    assert read(document([entry(1)]), name).rank == rank


def test_the_document_knows_its_rank_better_than_its_name() -> None:
    assert read(document([entry(1)], rank=2)).rank == 2


def test_a_send_tells_whose_dump_it_is() -> None:
    content = document([entry(1, "send 1->0", p2p_seq_id=1)], ranks="[4, 6]")
    assert read(content, "dump.bin").rank == 6


def test_the_only_dump_without_a_rank_is_that_of_the_only_rank_without_a_dump() -> None:
    dumps = (read(document([entry(1)]), "fr_rank_0"), read(document([entry(1)]), "somewhere"), read(document([entry(1)]), "fr_rank_2"))
    assert sorted(recorder.by_rank(dumps)) == [0, 1, 2]


def test_a_dump_is_known_by_its_beginning_whatever_its_name() -> None:
    text = json.dumps(document([entry(1)]))
    assert flight_recorder.sniff(pickle.dumps(document([]), protocol=2)[:64], "x")
    assert flight_recorder.sniff(text.encode(), "x") and flight_recorder.sniff(json.dumps(document([entry(1)]), indent=1).encode(), "x")
    assert not flight_recorder.sniff(b'{"version": "1.0", "rank": 3}', "x") and not flight_recorder.sniff(b"[rank0]: entries", "x")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('it ran')",))


def test_a_pickle_that_calls_something_is_refused_and_does_not_run() -> None:
    with pytest.raises(ValueError, match=r"forbidden: it would call 'builtins'.'exec'"):
        flight_recorder.read(pickle.dumps({"entries": [Bomb()]}), "x")


def test_a_reference_to_something_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="forbidden"):
        flight_recorder.read(b"\x80\x02Pid\n.", "x")


@pytest.mark.parametrize("cut", [1, 2, 20, 200, -1])
def test_a_dump_that_is_cut_off_is_said_to_be(cut: int) -> None:
    whole = pickle.dumps(document([entry(seq) for seq in range(1, 9)]), protocol=2)
    with pytest.raises(ValueError, match=r"cut off|no readable dump"):
        flight_recorder.read(whole[:cut], "x")
    with pytest.raises(ValueError, match=r"cut off|no JSON"):
        flight_recorder.read(json.dumps(document([entry(1)])).encode()[:cut], "x")


@pytest.mark.parametrize("content", [[], 3, {}, {"model": [1]}, "text"])
def test_a_pickle_of_something_else_is_no_dump(content: object) -> None:
    with pytest.raises(ValueError, match="no flight recorder's dump"):
        flight_recorder.read(pickle.dumps(content), "x")


def test_lists_that_hold_each_other_a_thousandfold_take_no_memory() -> None:
    bomb: object = [1]
    for _ in range(60):
        bomb = [bomb, bomb]
    dump = read(document([entry(1, input_sizes=bomb), entry(2, output_dtypes=bomb, process_group=bomb)]))
    assert dump.newest().line == 2


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["nccl:send 0->1", "nccl:recv 9<-8", "[0, 1]", "completed"]),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)
_FIELDS = (
    "record_id",
    "pg_id",
    "process_group",
    "collective_seq_id",
    "p2p_seq_id",
    "profiling_name",
    "input_sizes",
    "output_sizes",
    "input_dtypes",
    "state",
    "frames",
)
_ENTRY = st.dictionaries(st.sampled_from([*_FIELDS, "time_created_ns", "time_discovered_completed_ns", "timeout_ms"]), _ANYTHING | st.integers(0, 9))


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"entries": st.lists(_ENTRY | _ANYTHING, max_size=6) | _ANYTHING},
        optional={"pg_config": _ANYTHING, "pg_status": _ANYTHING, "rank": _ANYTHING},
    ),
    st.text(max_size=12),
)
def test_fields_of_any_kind_are_read_or_refused_with_a_sentence(content: dict[str, Any], name: str) -> None:
    try:
        dump = flight_recorder.read(pickle.dumps(content), name)
    except ValueError as error:
        assert str(error)
    else:
        recorder.differences((dump, dump))
        assert dump.newest().text


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_changed_anywhere_are_read_or_refused_with_a_sentence(data: st.DataObject) -> None:
    whole = bytearray(pickletools.optimize(pickle.dumps(document([entry(1), entry(2)]), protocol=2)))
    for _ in range(data.draw(st.integers(1, 4))):
        # never the opcodes that set a large memo index: those are bounded by the worker that reads
        whole[data.draw(st.integers(2, len(whole) - 1))] = data.draw(st.sampled_from([byte for byte in range(256) if byte not in b"rj"]))
    try:
        flight_recorder.read(bytes(whole), "x")
    except ValueError as error:
        assert str(error)


def test_a_dump_is_small_when_it_travels() -> None:
    dump = read(document([entry(seq, ("all_reduce", "broadcast")[seq % 2]) for seq in range(1, 2001)]))
    assert len(pickle.dumps(dump)) < 45_000


def long(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [entry(at + 1, record_id=at, collective_seq_id=at + 1) for at in range(first, first + count)]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("first", [0, 70_000])
def test_of_a_long_dump_the_newest_records_are_read_and_keep_their_places(protocol: int, first: int) -> None:
    data = pickle.dumps(document(long(3000, first)), protocol)
    short = _newest.shortened(data)
    assert short is not None and len(short) < len(data) / 3
    dump = flight_recorder.read(data, "nccl_trace_rank_1")
    calls = dump.groups["0"].collectives
    assert (dump.newest().line, len(calls)) == (3000, _newest.NEWEST)
    assert (calls.seqs[-1], calls.records[-1], calls.records[0]) == (first + 3000, 3000, 3001 - _newest.NEWEST)
    assert dump.quote(calls, len(calls) - 1).line == 3000


def test_a_long_dump_whose_records_do_not_follow_each_other_is_read_whole() -> None:
    entries = long(1000) + long(1000, first=5000)
    dump = flight_recorder.read(pickle.dumps(document(entries[:1500] + entries[1700:]), 2), "nccl_trace_rank_1")
    assert dump.newest().line == len(entries) - 200
    assert dump.groups["0"].collectives.records[-1] == dump.newest().line


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_long_dump_that_is_written_in_another_way_is_read_whole(protocol: int) -> None:
    dump = flight_recorder.read(pickle.dumps(document(long(1500)), protocol), "nccl_trace_rank_1")
    assert (dump.newest().line, len(dump.groups["0"].collectives)) == (1500, 1500)
