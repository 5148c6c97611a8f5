"""Scans text for what the rules and readers list, fast and in flat memory: one automaton finds the lines worth a look."""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ahocorasick_rs import BytesAhoCorasick

from ncclcheck import registry
from ncclcheck.evidence import places
from ncclcheck.evidence._bounds import GaveUp, Meter
from ncclcheck.evidence._chunks import LONGEST_LINE, chunks, pairwise
from ncclcheck.evidence._lines import Lines, decoded, plain
from ncclcheck.evidence._lines import line as made
from ncclcheck.evidence._reads import Block, Line, Place, Read, Statement, anchors, compiled
from ncclcheck.evidence._streams import Stream
from ncclcheck.evidence.sections import SECTION
from ncclcheck.model import Fact

FOLLOWING = 2000  # lines that a block may look ahead, within the next chunk
LOOKS, LOOKS_A_LINE = 2_000_000, 64  # lines that all blocks of one read may look ahead in one file, and more for each of its lines
MANY = 20_000  # facts of one read, after which only the newest lines of each chunk are tried
FEW = 16  # how many of the newest
ANYWAY = 1000  # lines that are tried although the source's time is up: they were read
REMEMBERED = 100_000  # lines that are known again when they are repeated word for word
SAME = 20_000  # facts of one kind that are kept of one file, and again as many of the newest
MOST_KEPT = 96 << 20  # bytes of facts that are kept of one file, about
WEIGHT = 300  # bytes of a fact besides its texts, about
FAILED = "reader-failed"  # the kind of fact that says that a reader did, or that it gave up


@dataclass(frozen=True, slots=True)
class _Reads:
    automaton: BytesAhoCorasick
    owners: tuple[tuple[int, ...], ...]  # anchor -> the reads that it belongs to
    reads: tuple[tuple[str, Read], ...]  # (module, read)


@functools.cache
def everything() -> _Reads:
    """All READS of rules and readers, in one automaton. Made once: what is forked afterwards shares it."""
    reads = tuple(
        (name, read) for kind in ("rules", "evidence") for name in registry.names(kind) for read in getattr(registry.load(kind, name), "READS", ())
    )
    table: dict[str, list[int]] = {}
    for index, (_, read) in enumerate(reads):
        for anchor in anchors(read.pattern):
            table.setdefault(anchor, []).append(index)
    return _Reads(BytesAhoCorasick([anchor.encode() for anchor in table]), tuple(tuple(owners) for owners in table.values()), reads)


def read(stream: Stream, file: str, meter: Meter | None = None) -> Iterator[Fact]:
    """The facts in a text, in the order of its lines; a fact that the same speaker repeats is given once.

    Lines count as `Path.read_text().split("\\n")` does: "\\r\\n" and a lone "\\r" end a line too. Bytes that are not UTF-8
    become U+FFFD; zeros, as a log has that was cut while it was written, are left out. Of what a file says very often, the
    first and the newest are given, the newest last.
    """
    seen: set[int] = set()
    kept: Counter[object] = Counter()
    newest: dict[object, deque[Fact]] = {}
    room = MOST_KEPT
    for fact in _Scan(file, meter or Meter()).facts(stream):
        fields = repr(fact.fields)
        key = hash((fact.kind, fact.rank, fact.host, fact.pid, fields))
        if key in seen:
            continue
        kind = (fact.kind, fact.get("pattern"))
        if kept[kind] < SAME and room > 0:
            kept[kind] += 1
            room -= WEIGHT + len(fields) + (len(fact.source.text) if fact.source else 0)
            seen.add(key)
            yield fact
        else:
            newest.setdefault(kind, deque(maxlen=FEW)).append(fact)
    yield from sorted(itertools.chain.from_iterable(newest.values()), key=lambda fact: fact.source.line if fact.source else 0)


def lines(texts: Iterable[str], file: str) -> Iterator[Fact]:
    """The same for lines that are in memory."""
    return read(io.BytesIO("\n".join(text.rstrip("\n") for text in texts).encode("utf-8", "surrogateescape")), file)


class _Scan:
    """One file's way past all reads. A read that fails loses that line, one that takes too much the rest; the others go on."""

    def __init__(self, file: str, meter: Meter) -> None:
        self._file, self._meter = file, meter
        self._known = everything()
        self._given = Counter[int]()  # facts of each read
        self._tired: set[int] = set()  # reads that have given very many
        self._lost: set[int] = set()  # reads that gave up
        self._looked = Counter[int]()  # lines that each read looked ahead
        self._told: set[int] = set()  # hashes of lines: the same line says nothing new, but what follows it may

    def facts(self, stream: Stream) -> Iterator[Fact]:
        """What all reads make of the text."""
        speaker = Place()  # of whom a heading says that it speaks from there on
        last: tuple[str, int] | None = None  # the last line that is not blank, and its number
        before = 1  # the number of the chunk's first line
        tried = 0  # lines
        for chunk, ahead in pairwise(chunks(stream)):
            number, counted = before, 0
            following = Lines(chunk, ahead, self._file)
            for start, end, owners in self._hits(chunk):
                if self._meter.over and tried >= ANYWAY:
                    return
                tried += 1
                number, counted = number + chunk.count(b"\n", counted, start), start
                for fact in self._of_line(decoded(chunk, start, end), number, start, owners, following):
                    if fact.kind == SECTION:
                        speaker = places.of_name(str(fact.get("name")))
                        self._told.clear()  # what one has said is news from another
                    yield _placed(fact, speaker)
            before = number + chunk.count(b"\n", counted)
            if words := chunk.rstrip():
                begin = words.rfind(b"\n") + 1
                last = decoded(words, begin, len(words)), before - chunk.count(b"\n", begin)
        if last:
            text, number = last
            yield _quoting(made(plain(text), number, self._file).fact("last-line"), {number: text})

    def _hits(self, chunk: bytes) -> Iterator[tuple[int, int, list[int]]]:
        """Each line that has an anchor: where it begins and ends, and the reads to try on it."""
        hits: list[tuple[int, int, set[int]]] = []
        start, end, owners = 0, -1, set[int]()
        for anchor, begin, _ in self._known.automaton.find_matches_as_indexes(chunk, overlapping=True):
            if begin > end:
                start, end, owners = chunk.rfind(b"\n", max(end, 0), begin) + 1, chunk.find(b"\n", begin), set()
                end = end if end >= 0 else len(chunk)
                hits.append((start, end, owners))
            if begin - start < LONGEST_LINE:
                owners.update(self._known.owners[anchor])
        left = dict.fromkeys(self._tired, FEW)
        for _, _, owners in reversed(hits) if left else ():
            for owner in owners & self._tired:
                left[owner] -= 1
                if left[owner] < 0:
                    owners.discard(owner)
        return ((start, end, sorted(owners)) for start, end, owners in hits if owners)

    def _of_line(self, text: str, number: int, at: int, owners: Sequence[int], following: Lines) -> Iterator[Fact]:
        if (same := hash(text)) in self._told:
            owners = [owner for owner in owners if isinstance(self._known.reads[owner][1], Block)]
        elif len(self._told) < REMEMBERED:
            self._told.add(same)
        words = plain(text)
        for owner in owners:
            if owner in self._lost:
                continue
            facts: list[Fact] = []
            try:
                self._meter.reader = owner
                facts.extend(self._of_read(owner, words, number, at, following))
                self._meter.reader = None
            except Exception as error:  # also MemoryError: what was taken is free again
                self._meter.reader = None
                facts.append(self._failure(owner, made(words, number, self._file), error))
            if self._given[owner] + len(facts) > MANY:
                self._tired.add(owner)
            if facts:
                self._given[owner] += len(facts)
                following.raw[number] = text
                yield from (_quoting(fact, following.raw) for fact in facts)

    def _of_read(self, owner: int, words: str, number: int, at: int, following: Lines) -> Iterator[Fact]:
        """What one read makes of a line. Raises what its reader raises."""
        name, read_ = self._known.reads[owner]
        match = compiled(read_.pattern).search(words)
        if not match:
            return
        following.move(number, at)
        line = following.get(number)
        assert line is not None
        if isinstance(read_, Statement):
            yield _stated(name, read_, match, line)
            return
        self._given[owner] += 1  # a line that was tried has cost something, though it may give nothing
        yield from read_.read(line, self._ahead(owner, number, following))

    def _ahead(self, owner: int, number: int, following: Lines) -> Iterator[Line]:
        """The lines after one, for one read. Raises GaveUp where it has looked ahead too often."""
        _, read_ = self._known.reads[owner]
        words = () if isinstance(read_, Block) and read_.mixed else anchors(read_.pattern)
        for each in range(number + 1, number + 1 + FOLLOWING):
            self._looked[owner] += 1
            if self._looked[owner] > LOOKS + LOOKS_A_LINE * number:
                raise GaveUp("it had looked ahead too often")
            if (line := following.get(each)) is None:
                return
            if any(word in line.text for word in words) and compiled(read_.pattern).search(line.text):
                return
            yield line

    def _failure(self, owner: int, line: Line, error: Exception) -> Fact:
        name, _ = self._known.reads[owner]
        if isinstance(error, GaveUp | MemoryError):
            self._lost.add(owner)
            return line.fact(FAILED, {"reader": name, "gave_up": str(error) or "it took too much memory"})
        return line.fact(FAILED, {"reader": name, "error": f"{type(error).__name__}: {error}"})


def _placed(fact: Fact, speaker: Place) -> Fact:
    """The fact, of whom the heading above it names where its line names nobody."""
    if (fact.rank is not None or speaker.rank is None) and (fact.host or not speaker.host):
        return fact
    return replace(fact, rank=speaker.rank if fact.rank is None else fact.rank, host=fact.host or speaker.host)


def _stated(rule: str, statement: Statement, match: re.Match[str], line: Line) -> Fact:
    words = {name: value for name, value in match.groupdict().items() if value is not None}
    return line.fact("says", {"rule": rule, "pattern": statement.pattern, **words})


def _quoting(fact: Fact, raw: dict[int, str]) -> Fact:
    """The fact, quoting the line as it stands in the file, with its terminal escapes."""
    source = fact.source
    if source is None or raw.get(source.line, source.text) == source.text or plain(raw[source.line]) != source.text:
        return fact
    return replace(fact, source=replace(source, text=raw[source.line]))
