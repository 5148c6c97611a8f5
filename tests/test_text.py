"""Text is scanned completely, with the line numbers that an editor shows, in bounded time and memory."""

from __future__ import annotations

import io
import re
import signal
import time
from collections.abc import Iterator
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck.evidence import _chunks, text
from ncclcheck.evidence._reads import anchors, compiled
from ncclcheck.model import Fact

WARNING = "gpu-04:811:900 [0] transport/net_ib.cc:199 NCCL WARN Duplicate GPU detected : rank {} and rank 0 both on CUDA device 1b000"
READS = text.everything().reads


def said(data: bytes, file: str = "log") -> list[tuple[int, str]]:
    """Line and quote of each statement."""
    return [(fact.source.line, fact.source.text) for fact in text.read(io.BytesIO(data), file) if fact.kind == "says" and fact.source]


@given(
    st.lists(st.sampled_from(["x", "", WARNING.format(1), "é ✓", "\f\x0b\x1c\u2028"]), max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_lines_count_as_a_text_file_read_by_python_does(lines: list[str], end: str, ended: bool) -> None:
    data = (end.join(lines) + end * ended).encode()
    shown = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read().split("\n")  # as Path.read_text() reads
    expected = [(number, line) for number, line in enumerate(shown, 1) if "Duplicate GPU" in line]
    assert said(data) == expected[:1]  # the same speaker says the same only once


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_count_across_chunks_wherever_these_are_cut(end: bytes) -> None:
    for shift in range(4):
        before = end.join([b"y" * 97] * (_chunks.CHUNK // 97 * 2)) + b"z" * shift
        data = before + end + WARNING.format(3).encode() + end
        ((line, _),) = said(data)
        assert line == len(before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")) + 1


@pytest.mark.parametrize("size", [_chunks.CHUNK - 1, _chunks.CHUNK, _chunks.CHUNK + 1, 3 * _chunks.CHUNK + 7])
def test_a_line_longer_than_a_chunk_counts_as_one_and_hides_nothing_after_it(size: int) -> None:
    data = WARNING.format(1).encode() + b" " * size + b"\n" + WARNING.format(2).encode() + b"\n"
    assert [line for line, _ in said(data)] == [1, 2]


def test_of_a_long_line_only_its_beginning_is_looked_at() -> None:
    assert said(b" " * _chunks.LONGEST_LINE + WARNING.format(1).encode()) == []


def test_a_pipe_that_gives_a_byte_at_a_time_reads_the_same() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 1, 1))

    data = b"a\r\nb\r" + WARNING.format(1).encode() + b"\n"
    assert [fact.source for fact in text.read(Slow(data), "log")] == [fact.source for fact in text.read(io.BytesIO(data), "log")] != []


def test_what_was_coloured_is_read_as_if_it_were_not_and_quoted_as_it_stands() -> None:
    line = WARNING.format(1).replace("gpu-04", "\x1b[36;1mgpu-04\x1b[0m")
    (fact,) = [fact for fact in text.read(io.BytesIO(line.encode()), "log") if fact.kind == "says"]
    assert (fact.host, fact.pid) == ("gpu-04", 811)
    assert fact.source is not None and fact.source.text == line


def test_bytes_of_another_encoding_spoil_only_themselves() -> None:
    ((line, quote),) = said("größe\n".encode("latin-1") + WARNING.format(1).encode() + b" \xe4\n")
    assert line == 2 and quote.endswith("\ufffd")


def test_zeros_where_a_log_was_cut_hide_nothing() -> None:
    assert [line for line, _ in said(b"ok\n" + b"\0" * 3_000_000 + WARNING.format(1).encode())] == [2]


def test_what_is_said_very_often_is_kept_by_its_first_and_its_newest() -> None:
    count = text.SAME + 3 * _chunks.CHUNK // 100
    data = "\n".join(WARNING.format(number) for number in range(count)).encode()
    numbers = [line for line, _ in said(data)]
    assert numbers[: text.SAME] == list(range(1, text.SAME + 1))
    assert numbers[-1] == count and len(numbers) <= text.SAME + text.FEW
    assert numbers == sorted(numbers)


def test_the_rest_of_a_file_is_read_when_a_reader_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(line: object, following: object) -> Iterator[Fact]:
        raise KeyError("missing")
        yield

    from ncclcheck.evidence._reads import Block

    known = text.everything()
    index = next(number for number, (_, read) in enumerate(known.reads) if "Duplicate GPU" in read.pattern)
    broken = list(known.reads)
    broken[index] = ("broken", Block(known.reads[index][1].pattern, fails))
    monkeypatch.setattr(text, "everything", lambda: type(known)(known.automaton, known.owners, tuple(broken)))
    facts = list(text.read(io.BytesIO(f"{WARNING.format(1)}\ngpu-04:811:900 [0] NCCL INFO NCCL version 2.27.3+cuda12.9\n".encode()), "log"))
    assert [fact.kind for fact in facts if fact.kind == text.FAILED] == [text.FAILED]
    assert [fact.source.line for fact in facts if fact.kind == "nccl-version" and fact.source] == [2]


def nasty(pattern: str) -> Iterator[str]:
    """Lines made to cost a pattern as much time as they can: its own anchors and characters, again and again.

    They are long enough that a pattern whose time grows with the cube of a line's length is found; with the square, as of
    everything that begins with \\w+, is what LONGEST_LINE allows for.
    """
    size = _chunks.LONGEST_LINE // 8
    literal = re.sub(r"\\[dws]|\(\?P<\w+>|[\\^$*+?()\[\]{}|]", " ", pattern)
    for piece in [*anchors(pattern), *sorted(set(literal)), literal, "a", "0", "rank 1 ", "1.", "a.", "a, ", "[", "("]:
        for tail in ("", "\x01", "!"):
            yield (piece * (size // len(piece) + 1))[: size - len(tail)] + tail
    for anchor in anchors(pattern):
        for filler in "a0 .,:([{'\"-_/":
            yield (anchor + filler * size)[: size - 1] + "\x01"
            yield (filler * (size - len(anchor) - 1)) + anchor + "\x01"


@pytest.mark.parametrize(("name", "pattern"), [(name, read.pattern) for name, read in READS])
def test_no_line_keeps_a_pattern_busy_for_long(name: str, pattern: str) -> None:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
    try:
        for line in nasty(pattern):
            signal.setitimer(signal.ITIMER_VIRTUAL, 1.0)
            compiled(pattern).search(line)
    except TimeoutError:
        pytest.fail(f"{name}: over 1 s for one line that begins {line[:40]!r} and ends {line[-10:]!r}: {pattern}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_the_speaker_is_found_in_bounded_time_whatever_stands_before_a_line() -> None:
    from ncclcheck.evidence import places

    for piece in ("[", "[0] ", "1:", "a:", "a.", "(Worker", "(Worker_TP0 pid=1) ", "2026-01-01 ", "[rank0]: ", "[PG ", "a-", "Jan 1 "):
        for tail in ("", "\x01"):
            line = (piece * _chunks.LONGEST_LINE)[: _chunks.LONGEST_LINE] + tail
            start = time.process_time()
            places.of_line(line)
            assert time.process_time() - start < 5.0, piece  # a bound against endless backtracking, not a measurement


def test_a_heading_says_who_speaks_below_it() -> None:
    said = "CUDA error: uncorrectable ECC error encountered"
    heap = f"==> logs/gpu-a.rank0.log <==\n{said}\n\n==> logs/gpu-b.rank1.log <==\n[rank5]: {said}\n{said}\n===== gpu-c =====\n{said}\n"
    facts = [fact for fact in text.read(io.BytesIO(heap.encode()), "all.txt") if fact.kind == "says"]
    assert {(fact.host, fact.rank, fact.source.line) for fact in facts if fact.source} >= {
        ("gpu-a", 0, 2), ("gpu-b", 5, 5), ("gpu-b", 1, 6), ("gpu-c", None, 8),
    }  # fmt: skip
