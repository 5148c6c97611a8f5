"""The last calls of a rank are read from shared memory, while it runs and after its end, and blocks of them are compared by digest."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import SOON, until

from ncclcheck import history
from ncclcheck.history import BLOCK, KEPT, Reader, words
from ncclcheck.journal import create_maps

WRITER = """
import sys
from pathlib import Path
from ncclcheck.history import KEPT, words
written, seq = words(Path(sys.argv[1]), 1), 0
while True:
    seq += 1
    written[seq % KEPT] = 3 * seq
    if seq == 5000:
        print("written", flush=True)
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A map for two ranks."""
    create_maps(tmp_path, 2)
    return tmp_path / "calls"


def write(path: Path, index: int, first: int, last: int, changed: int | None = None) -> None:
    written = words(path, index)
    for seq in range(first, last + 1):
        written[seq % KEPT] = 7 if seq == changed else 1000 + seq % 9


@given(st.lists(st.text(max_size=9), min_size=5, max_size=5), st.lists(st.text(max_size=9), min_size=5, max_size=5))
def test_the_number_of_a_call_is_the_same_for_the_same_call_only_and_never_0(one: list[str], other: list[str]) -> None:
    assert 0 < history.signature(one) < 2**64
    assert (history.signature(one) == history.signature(other)) == ("\0".join(one) == "\0".join(other))


def test_the_number_of_a_call_is_the_same_in_every_process() -> None:
    script = "from ncclcheck.history import signature; print(signature(['all_reduce', 'world', 'float32', '8', '[2] sum']))"
    numbers = {
        subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert numbers == {b"%d\n" % history.signature(["all_reduce", "world", "float32", "8", "[2] sum"])}


def test_a_reader_sees_the_calls_of_its_own_rank(calls: Path) -> None:
    first, second = Reader(calls, 0), Reader(calls, 1)
    for seq in (1, 2, 3):
        words(calls, 1)[seq] = 2**64 - seq
    assert second.calls(3, 10, 3 + 1, 0) == [2**64 - 1, 2**64 - 2, 2**64 - 3]
    assert first.calls(3, 10, 3 + 1, 0) == [0, 0, 0]


@pytest.mark.parametrize("seq, most, expected", [(0, 5, []), (3, 5, [1, 2, 3]), (9, 5, [5, 6, 7, 8, 9]), (9, 1, [9]), (9, 0, [])])
def test_the_last_calls_are_given_the_oldest_first_and_no_more_than_asked_for(calls: Path, seq: int, most: int, expected: list[int]) -> None:
    written = words(calls, 0)
    for number in range(1, 12):
        written[number % KEPT] = number
    assert Reader(calls, 0).calls(seq, most, seq + 1, 0) == expected


def test_of_a_long_history_only_what_is_not_about_to_be_overwritten_is_given(calls: Path) -> None:
    written, last = words(calls, 0), KEPT + 3 * BLOCK // 2
    for seq in range(1, last + 1):
        written[seq % KEPT] = seq
    given_ = Reader(calls, 0).calls(last, 10 * KEPT, last + 1, 0)
    assert given_ == list(range(last - (KEPT - BLOCK) + 1, last + 1))


def test_blocks_have_the_same_digest_exactly_where_the_calls_are_the_same(calls: Path) -> None:
    last = 4 * BLOCK - 1
    write(calls, 0, 1, last)
    write(calls, 1, 1, last, changed=2 * BLOCK + 5)
    one, other = (dict(Reader(calls, index).blocks(last, last + 1, 0, False)) for index in (0, 1))
    assert list(one) == list(other) == [BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK]
    assert [end for end in one if one[end] != other[end]] == [3 * BLOCK]


@pytest.mark.parametrize("last", [20, BLOCK + 20])
def test_what_is_left_when_a_rank_ends_is_compared_too_once(calls: Path, last: int) -> None:
    write(calls, 0, 1, last)
    write(calls, 1, 1, last, changed=last - 5)
    readers = [Reader(calls, index) for index in (0, 1)]
    assert [end for reader in readers for end, _ in reader.blocks(last, last + 1, 0, False)] == [BLOCK] * 2 * (last > BLOCK)
    one, other = (dict(reader.blocks(last, last + 1, 0, True)) for reader in readers)
    assert list(one) == list(other) == [last + 1] and one[last + 1] != other[last + 1]
    assert [list(reader.blocks(last, last + 1, 0, True)) for reader in readers] == [[], []]


def test_of_a_rank_that_ends_with_a_block_nothing_is_left(calls: Path) -> None:
    write(calls, 0, 1, BLOCK - 1)
    assert [end for end, _ in Reader(calls, 0).blocks(BLOCK - 1, BLOCK, 0, True)] == [BLOCK]


def test_a_block_is_given_once_and_only_when_it_is_complete(calls: Path) -> None:
    write(calls, 0, 1, 2 * BLOCK)
    reader = Reader(calls, 0)
    assert [end for end, _ in reader.blocks(BLOCK - 2, BLOCK - 2 + 1, 0, False)] == []
    assert [end for end, _ in reader.blocks(BLOCK - 1, BLOCK - 1 + 1, 0, False)] == [BLOCK]
    assert [end for end, _ in reader.blocks(BLOCK - 1, BLOCK - 1 + 1, 0, False)] == []
    assert [end for end, _ in reader.blocks(2 * BLOCK, 2 * BLOCK + 1, 0, False)] == [2 * BLOCK]


def test_who_asks_late_gets_the_newest_blocks_with_what_they_hold(calls: Path) -> None:
    last = 2 * KEPT + 3 * BLOCK
    written = words(calls, 0)
    for seq in range(1, last + 1):
        written[seq % KEPT] = seq
    blocks = dict(Reader(calls, 0).blocks(last, last + 1, 0, False))
    newest = last // BLOCK - 1
    assert list(blocks) == [(block + 1) * BLOCK for block in range(newest - KEPT // BLOCK // 2 + 1, newest + 1)]
    data = b"".join(seq.to_bytes(8, "little") for seq in range(newest * BLOCK, (newest + 1) * BLOCK))
    assert blocks[(newest + 1) * BLOCK] == int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def test_what_a_rank_issued_can_still_be_read_when_it_was_killed(calls: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(calls)], stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"written\n"
        until(lambda: Reader(calls, 1).calls(6000, 1, 6000 + 1, 0) != [0], SOON, "call 6000")
    finally:
        process.kill()
        assert process.wait(SOON) == -signal.SIGKILL
        assert process.stdout
        process.stdout.close()
    read = Reader(calls, 1).calls(6000, 6000, 6000 + 1, 0)
    assert len(read) == 6000
    assert all(word == 3 * seq or (word > 3 * seq and word % 3 == 0 and (word // 3 - seq) % KEPT == 0) for seq, word in enumerate(read, 1))


def test_calls_that_are_repeated_count_before_they_are_written(calls: Path) -> None:
    written, seen, whole = words(calls, 0), Reader(calls, 0), Reader(calls, 1)
    since, last = BLOCK + 5, 3 * BLOCK - 1
    for seq in range(1, since):
        written[seq] = seq
    assert seen.calls(since + 1, 4, since, 7) == [since - 2, since - 1, 7, 7]
    early = list(seen.blocks(last, since, 7, False))
    other = words(calls, 1)
    other[:since] = written[:since]
    history.fill(other, since, last, 7)
    assert early == list(whole.blocks(last, last + 1, 0, False)) and len(early) == 3


def test_a_row_of_repeated_calls_is_written_over_the_end_of_what_is_kept(calls: Path) -> None:
    written = words(calls, 0)
    history.fill(written, KEPT - 2, KEPT + 2, 9)
    assert list(written[KEPT - 3 :]) == [0, 9, 9] and list(written[:4]) == [9, 9, 9, 0]
