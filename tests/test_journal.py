"""What a rank says of itself can be read at any moment, whatever becomes of the rank."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import SOON, until

from ncclcheck import history
from ncclcheck.history import signature
from ncclcheck.journal import NOW_BYTES, RECORD_BYTES, Journal, SlotReader, Tail, create_maps

WRITER = """
import sys
from pathlib import Path
from ncclcheck.journal import Journal
journal, era = Journal(Path(sys.argv[1]), 7, 0), 0
while True:
    era += 1
    journal.enter(f"step {era}", nbytes=3 * era + 1, group=f"group {era}", dtype=str(era % 10))
    for _ in range(4):
        if journal.seq % 2:
            journal.leave()
        journal.again()
    if journal.seq % 2:
        journal.leave()
"""


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    """A map for two ranks."""
    create_maps(tmp_path, 2)
    return tmp_path / "slots"


@pytest.fixture
def writer(slots: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing but write to the first slot, and has begun to."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(slots.parent)])
    until(lambda: SlotReader(slots, 2).read()[0], SOON, "the first slot")
    yield process
    process.kill()
    process.wait()


def test_a_slot_says_what_the_rank_announced_and_where_it_is(tmp_path: Path, slots: Path) -> None:
    reader = SlotReader(slots, 2)
    assert reader.read() == [None, None]
    journal = Journal(tmp_path, rank=5, local_rank=1)
    before = time.monotonic()
    journal.enter("all_reduce", nbytes=1024, bound=3.5, group="tp", dtype="bfloat16")
    _, slot = reader.read()
    assert slot
    assert (slot.rank, slot.seq, slot.nbytes, slot.bound, slot.name, slot.group, slot.dtype) == (5, 1, 1024, 3.5, "all_reduce", "tp", "bfloat16")
    assert (slot.local, slot.opaque, slot.done, slot.step.inside) == (False, False, False, True)
    assert before <= slot.entered <= time.monotonic()
    journal.leave()
    _, left = reader.read()
    assert left and left.left and not left.step.inside and left.writes > slot.writes
    journal.enter("load", local=True, opaque=True)
    journal.done()
    _, ended = reader.read()
    assert ended and (ended.seq, ended.name, ended.local, ended.opaque, ended.done) == (1, "load", True, True, True)
    assert reader.read()[0] is None


def test_each_iteration_of_a_collective_has_its_own_number_and_local_work_has_none(tmp_path: Path, slots: Path) -> None:
    journal, reader = Journal(tmp_path, 0, 0), SlotReader(slots, 2)
    seen = []
    announcements: list[Callable[[], None]] = [
        lambda: journal.enter("barrier"),
        journal.again,
        lambda: journal.enter("fill", local=True),
        journal.again,
        lambda: journal.enter("barrier"),
    ]
    for announce in announcements:
        announce()
        slot = reader.read()[0]
        assert slot
        seen.append((slot.name, slot.seq))
    assert seen == [("barrier", 1), ("barrier", 2), ("fill", 2), ("fill", 2), ("barrier", 3)]


def test_a_bound_that_is_expected_holds_from_the_next_announcement_on(tmp_path: Path, slots: Path) -> None:
    journal, reader = Journal(tmp_path, 0, 0), SlotReader(slots, 2)
    bounds = []
    journal.enter("all_reduce", bound=20)
    journal.expect(2)
    for _ in range(2):
        slot = reader.read()[0]
        assert slot
        bounds.append(slot.bound)
        journal.again()
    assert bounds == [20, 2]


def test_a_slot_read_while_it_is_written_all_the_time_is_never_a_mixture(slots: Path, writer: subprocess.Popen[bytes]) -> None:
    reader, read, last = SlotReader(slots, 2), 0, 0
    end = time.monotonic() + 2
    while time.monotonic() < end or read <= 1000:
        slot = reader.read()[0]
        if slot is None:
            continue
        seq, era = slot.seq, (slot.seq + 4) // 5
        assert (slot.name, slot.group, slot.dtype, slot.nbytes) == (f"step {era}", f"group {era}", str(era % 10), 3 * era + 1)
        assert slot.signature == signature((slot.name, slot.group, slot.dtype, str(slot.nbytes), ""))
        assert slot.left is None or (seq % 2 and slot.left > slot.entered - 0.1)
        assert slot.writes == 2 * seq + bool(slot.left)
        assert seq >= last - 1  # while the newest is written, the one before it is read
        read, last = read + 1, seq
    assert writer.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_last_announcement_of_a_killed_or_stopped_rank_can_still_be_read(slots: Path, writer: subprocess.Popen[bytes], number: int) -> None:
    reader = SlotReader(slots, 2)
    writer.send_signal(number)
    if number == signal.SIGKILL:
        writer.wait(SOON)
    else:
        until(lambda: Path(f"/proc/{writer.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", SOON, "the stop")
    slot = reader.read()[0]
    assert slot and (slot.rank, slot.pid, slot.nbytes) == (7, writer.pid, 3 * ((slot.seq + 4) // 5) + 1)
    assert reader.read()[0] == slot


@pytest.mark.parametrize("cut", [0, 8, 16, 40, 150, RECORD_BYTES // 2, RECORD_BYTES])
def test_an_announcement_that_was_cut_short_leaves_the_one_before_it(tmp_path: Path, slots: Path, cut: int) -> None:
    journal, reader = Journal(tmp_path, 0, 0), SlotReader(slots, 2)
    for name in ("first", "second"):
        journal.enter(name)
    before = slots.read_bytes()
    journal.enter("third")
    after = slots.read_bytes()
    (start,) = (at for at in (NOW_BYTES, NOW_BYTES + RECORD_BYTES) if before[at:][:RECORD_BYTES] != after[at:][:RECORD_BYTES])
    torn = bytearray(before)
    torn[start : start + RECORD_BYTES] = after[start : start + cut].ljust(RECORD_BYTES, b"\0")  # it is cleared before it is written
    slots.write_bytes(torn)
    found = reader.read()[0]
    assert found and (found.seq, found.name) == (2, "second")
    slots.write_bytes(after)
    found = reader.read()[0]
    assert found and (found.seq, found.name) == (3, "third")


def test_iterations_that_are_only_stored_are_announced_as_others_are(tmp_path: Path, slots: Path) -> None:
    journal, reader = Journal(tmp_path, 0, 0), SlotReader(slots, 2)
    seen: list[tuple[int, bool]] = []

    def look(*_seq: int) -> None:
        slot = reader.read()[0]
        assert slot and slot.name == "all_reduce"
        seen.append((slot.seq, slot.step.inside))
        assert history.Reader(tmp_path / "calls", 0).calls(slot.seq, 9, slot.since, slot.signature) == [slot.signature] * slot.seq

    journal.enter("all_reduce", nbytes=8)
    seconds = journal.repeat(look, 1, look, opened=True, slow=1e9)
    journal.expect(3.0)
    seconds += journal.repeat(look, 2, look, opened=False, slow=1e9)
    look()
    assert seen == [(1, True), (1, False), (2, True), (2, False), (3, True), (3, False)]
    slot = reader.read()[0]
    assert slot and slot.waited == pytest.approx(sum(seconds))
    assert history.Reader(tmp_path / "calls", 0).calls(3, 9, 4, 0) == [slot.signature] * 3


def test_a_slow_iteration_is_the_last_of_its_row(tmp_path: Path, slots: Path) -> None:
    journal = Journal(tmp_path, 0, 0)
    journal.enter("all_reduce")
    assert len(journal.repeat(lambda: None, 9, None, opened=True, slow=-1.0)) == 1
    assert len(journal.repeat(lambda: None, 9, None, opened=False, slow=1e9)) == 9
    assert journal.seq == 10


def test_what_is_expected_next_does_not_hide_where_the_rank_is(tmp_path: Path, slots: Path) -> None:
    journal, reader = Journal(tmp_path, 0, 0), SlotReader(slots, 2)
    for name in ("first", "second", "third"):
        journal.enter(name)
        for bound in (3.0, 4.0, 5.0):
            journal.expect(bound)
            slot = reader.read()[0]
            assert slot and (slot.name, slot.bound) == (name, 2.0)


@given(name=st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_any_step_name_is_announced_cut_to_the_room_there_is(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    create_maps(folder, 1)
    journal = Journal(folder, 0, 0)
    journal.enter(name)
    journal.line("enter", step=name)
    slot = SlotReader(folder / "slots", 1).read()[0]
    assert slot
    kept = slot.name.removesuffix("\ufffd") if len(name.encode()) > 64 else slot.name
    assert name.startswith(kept)
    assert kept == name or len(kept.encode()) > 60
    call, line = Tail(folder).more()
    assert (call.kind, call.fields["signature"]) == ("call", slot.signature)
    assert line.fields == {"step": name}


def test_a_reader_of_lines_gives_complete_ones_once_and_resumes_where_it_was(tmp_path: Path) -> None:
    tail, path = Tail(tmp_path), tmp_path / "rank3.jsonl"
    first, second, third = (b'{"kind":"%s","at":1.5,"seq":4,"x":1}\n' % kind for kind in (b"one", b"two", b"three"))
    assert list(tail.more()) == []
    with open(path, "ab", buffering=0) as file:
        file.write(first + second[:10])
        assert [(line.rank, line.kind, line.seq, line.fields, line.file, line.number) for line in tail.more()] == [
            (3, "one", 4, {"x": 1}, "rank3.jsonl", 1)
        ]
        assert list(tail.more()) == []
        file.write(second[10:] + b"{torn\n" + b"[1]\n" + b'{"kind":"no more"}\n' + third)
        assert [(line.kind, line.number) for line in tail.more()] == [("two", 2), ("three", 6)]
        assert list(tail.more()) == []


def test_the_lines_of_every_rank_are_followed_those_that_come_later_too(tmp_path: Path) -> None:
    create_maps(tmp_path, 3)
    tail = Tail(tmp_path)
    for rank in (0, 10, 2):
        Journal(tmp_path, rank, 0).line("hello", of=rank)
        assert [(line.rank, line.fields) for line in tail.more()] == [(rank, {"of": rank})]
