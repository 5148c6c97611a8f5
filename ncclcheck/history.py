"""The last calls of each rank as numbers in shared memory, so that a call that differs between ranks is found even if it completed.

A rank writes 8 bytes per collective; of a call that is repeated it does so at the end, and until then its slot tells. Agents compare
digests of whole blocks while the job runs, and of what is left at its end; only where these differ, or the job fails, are single calls looked at.
"""

from __future__ import annotations

import array
import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

KEPT = 1 << 16  # calls of each rank
BLOCK = 1 << 10  # calls that are compared at once
_WORD = 8
_FIRST, _LAST = ord("!"), ord("~")  # the characters that stand for small numbers
_NUMBERS = bytes(max(0, character - _FIRST) for character in range(256))
RANK_BYTES = KEPT * _WORD


def signature(call: Sequence[str]) -> int:
    """The number of a call: equal on all ranks for equal operation, group, type, size and detail. Never 0."""
    return int.from_bytes(hashlib.blake2b("\0".join(call).encode(), digest_size=_WORD).digest(), "little") | 1


def words(path: Path | None, index: int) -> memoryview:
    """The rank's side: call number `seq` is noted as word `seq % KEPT`. None: it is noted where nobody looks."""
    if path is None:
        return memoryview(bytearray(RANK_BYTES)).cast("Q")
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), RANK_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=index * RANK_BYTES)).cast("Q")


def fill(words_: memoryview, first: int, last: int, signature_: int) -> None:
    """Note the calls from number `first` to number `last`, which are all the same."""
    while first <= last:
        start = first % KEPT
        count = min(last - first + 1, KEPT - start)
        words_[start : start + count] = memoryview(array.array("Q", [signature_]) * count)
        first += count


def pack(numbers: Sequence[int]) -> str | list[int]:
    """Small numbers as they travel, a character each: as lists, those of thousands of ranks would fill node 0's memory."""
    return bytes(_FIRST + number for number in numbers).decode() if max(numbers, default=0) <= _LAST - _FIRST else list(numbers)


def unpack(packed: str | Sequence[int]) -> bytes | tuple[int, ...]:
    """The numbers that were packed. Raises ValueError for what is none."""
    return packed.encode("ascii").translate(_NUMBERS) if isinstance(packed, str) else tuple(packed)


class Reader:
    """The agent's side: what one rank issued, and which blocks of it are complete."""

    def __init__(self, path: Path, index: int) -> None:
        with open(path, "rb") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), RANK_BYTES, offset=index * RANK_BYTES, access=mmap.ACCESS_READ)).cast("Q")
        self._compared, self._done = 0, False  # blocks, and whether the rank had ended

    def calls(self, seq: int, most: int, since: int, repeated: int) -> list[int]:
        """The last calls up to number `seq`, the oldest first; at most `most` of them and only those that are kept.

        Those from number `since` on are all `repeated`: they may not be written yet.
        """
        first = max(1, seq - min(most, KEPT - BLOCK) + 1)  # the oldest are about to be overwritten
        return [repeated if number >= since else self._words[number % KEPT] for number in range(first, seq + 1)]

    def blocks(self, seq: int, since: int, repeated: int, done: bool) -> Iterator[tuple[int, int]]:
        """(end, digest) of each block that was completed by call number `seq` and not asked for before: it ends before call number `end`.

        Of a rank that is `done`, what is left is a block, too. Who asks late gets only the newest.
        """
        complete = (seq + 1) // BLOCK
        ends = [(block + 1) * BLOCK for block in range(max(self._compared, complete - KEPT // BLOCK // 2), complete)]
        if done and not self._done and seq + 1 > complete * BLOCK:
            ends.append(seq + 1)
        for end in ends:
            start = (end - 1) // BLOCK * BLOCK
            written = max(start, min(end, since))
            words_ = bytes(self._words[start % KEPT :][: written - start]) + repeated.to_bytes(_WORD, "little") * (end - written)
            yield end, int.from_bytes(hashlib.blake2b(words_, digest_size=_WORD).digest(), "little")
        self._compared, self._done = complete, done
