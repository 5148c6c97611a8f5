"""Scans text for what the rules and readers list, fast and in flat memory: one automaton finds the lines worth a look."""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ahocorasick_rs import BytesAhoCorasick

from ncclcheck import registry
from ncclcheck.evidence import places
from ncclcheck.evidence._chunks import LONGEST_LINE, chunks, pairwise
from ncclcheck.evidence._reads import Block, Line, Place, Read, Statement, anchors, compiled
from ncclcheck.evidence._streams import Stream
from ncclcheck.evidence.sections import SECTION
from ncclcheck.model import Fact

FOLLOWING = 2000  # lines that a block may look ahead, within the next chunk
MANY = 20_000  # lines that matched one read, after which only the newest of each chunk are tried
FEW = 16  # how many of the newest
REMEMBERED = 100_000  # lines that are known again when they are repeated word for word
SAME = 20_000  # facts of one kind that are kept of one file, and again as many of the newest
MOST_TEXT = 64 << 20  # characters of quoted lines that are kept of one file
FAILED = "reader-failed"  # the kind of fact that says that a reader did
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")  # colours and the like


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


def read(stream: Stream, file: str) -> Iterator[Fact]:
    """The facts in a text, in the order of its lines; a fact that the same speaker repeats is given once.

    Lines count as `Path.read_text().split("\\n")` does: "\\r\\n" and a lone "\\r" end a line too. Bytes that are not UTF-8
    become U+FFFD; zeros, as a log has that was cut while it was written, are left out. Of what a file says very often, the
    first and the newest are given, the newest last.
    """
    seen: set[object] = set()
    kept: Counter[object] = Counter()
    newest: dict[object, deque[Fact]] = {}
    room = MOST_TEXT
    for fact in _facts(stream, file):
        key = (fact.kind, fact.rank, fact.host, fact.pid, repr(fact.fields))
        if key in seen:
            continue
        kind = (fact.kind, fact.get("pattern"))
        if kept[kind] < SAME and room > 0:
            kept[kind] += 1
            room -= len(fact.source.text) if fact.source else 0
            seen.add(key)
            yield fact
        else:
            newest.setdefault(kind, deque(maxlen=FEW)).append(fact)
    yield from sorted(itertools.chain.from_iterable(newest.values()), key=lambda fact: fact.source.line if fact.source else 0)


def lines(texts: Iterable[str], file: str) -> Iterator[Fact]:
    """The same for lines that are in memory."""
    return read(io.BytesIO("\n".join(text.rstrip("\n") for text in texts).encode("utf-8", "surrogateescape")), file)


def _facts(stream: Stream, file: str) -> Iterator[Fact]:
    known = everything()
    matched = [0] * len(known.reads)
    told: set[int] = set()  # hashes of lines: the same line says nothing new, but what follows it may
    speaker = Place()  # of whom a heading says that it speaks from there on
    last: tuple[str, int] | None = None  # the last line that is not blank, and its number
    before = 1  # the number of the chunk's first line
    for chunk, ahead in pairwise(chunks(stream)):
        number, counted = before, 0
        for start, end, owners in _hits(chunk, known, matched):
            number, counted = number + chunk.count(b"\n", counted, start), start
            text = _text(chunk, start, end)
            if (same := hash(text)) in told:
                owners = [owner for owner in owners if isinstance(known.reads[owner][1], Block)]
            elif len(told) < REMEMBERED:
                told.add(same)
            plain = _plain(text)
            line: Line | None = None
            for owner in owners:
                name, read_ = known.reads[owner]
                if match := compiled(read_.pattern).search(plain):
                    matched[owner] += 1
                    line = line or _line(plain, number, file)
                    if isinstance(read_, Statement):
                        yield _placed(_quoting(_stated(name, read_, match, line), {number: text}), speaker)
                        continue
                    for fact in _told(name, read_, line, text, _Following(chunk, end + 1, ahead, number + 1, file)):
                        if fact.kind == SECTION:
                            speaker = places.of_name(str(fact.get("name")))
                            told.clear()  # what one has said is news from another
                        yield _placed(fact, speaker)
        before = number + chunk.count(b"\n", counted)
        if words := chunk.rstrip():
            begin = words.rfind(b"\n") + 1
            last = _text(words, begin, len(words)), before - chunk.count(b"\n", begin)
    if last:
        text, number = last
        yield _quoting(_line(_plain(text), number, file).fact("last-line"), {number: text})


def _hits(chunk: bytes, known: _Reads, matched: list[int]) -> Iterator[tuple[int, int, list[int]]]:
    """Each line that has an anchor: where it begins and ends, and the reads to try on it."""
    hits: list[tuple[int, int, set[int]]] = []
    start, end, owners = 0, -1, set[int]()
    for anchor, begin, _ in known.automaton.find_matches_as_indexes(chunk, overlapping=True):
        if begin > end:
            start, end, owners = chunk.rfind(b"\n", max(end, 0), begin) + 1, chunk.find(b"\n", begin), set()
            end = end if end >= 0 else len(chunk)
            hits.append((start, end, owners))
        if begin - start < LONGEST_LINE:
            owners.update(known.owners[anchor])
    tired = {owner for owner, count in enumerate(matched) if count > MANY}
    if tired:
        left = dict.fromkeys(tired, FEW)
        for _, _, owners in reversed(hits):
            for owner in owners & tired:
                left[owner] -= 1
                if left[owner] < 0:
                    owners.discard(owner)
    return ((start, end, sorted(owners)) for start, end, owners in hits if owners)


def _placed(fact: Fact, speaker: Place) -> Fact:
    """The fact, of whom the heading above it names where its line names nobody."""
    if (fact.rank is not None or speaker.rank is None) and (fact.host or not speaker.host):
        return fact
    return replace(fact, rank=speaker.rank if fact.rank is None else fact.rank, host=fact.host or speaker.host)


class _Following:
    """The lines after one, made as they are asked for; remembers how those with terminal escapes stand in the file."""

    def __init__(self, chunk: bytes, at: int, ahead: bytes, number: int, file: str) -> None:
        self.raw: dict[int, str] = {}
        self._pieces = ((chunk, at), (ahead, 0))
        self._number, self._file = number, file

    def lines(self) -> Iterator[Line]:
        return itertools.islice(self._lines(), FOLLOWING)

    def _lines(self) -> Iterator[Line]:
        for piece, at in self._pieces:
            while at < len(piece):
                end = piece.find(b"\n", at)
                end = end if end >= 0 else len(piece)
                text = _text(piece, at, end)
                plain = _plain(text)
                if plain is not text:
                    self.raw[self._number] = text
                yield _line(plain, self._number, self._file)
                self._number, at = self._number + 1, end + 1


def _told(name: str, read_: Read, line: Line, text: str, following: _Following) -> Iterator[Fact]:
    """What a reader makes of a line. A reader that fails costs its own fact, not the rest of the file."""
    assert not isinstance(read_, Statement)
    following.raw[line.number] = text
    try:
        for fact in read_.read(line, following.lines()):
            yield _quoting(fact, following.raw)
    except MemoryError:
        raise
    except Exception as error:
        yield line.fact(FAILED, {"reader": name, "error": f"{type(error).__name__}: {error}"})


def _stated(rule: str, statement: Statement, match: re.Match[str], line: Line) -> Fact:
    words = {name: value for name, value in match.groupdict().items() if value is not None}
    return line.fact("says", {"rule": rule, "pattern": statement.pattern, **words})


def _quoting(fact: Fact, raw: dict[int, str]) -> Fact:
    """The fact, quoting the line as it stands in the file, with its terminal escapes."""
    source = fact.source
    if source is None or raw.get(source.line, source.text) == source.text or _plain(raw[source.line]) != source.text:
        return fact
    return replace(fact, source=replace(source, text=raw[source.line]))


def _text(chunk: bytes, start: int, end: int) -> str:
    return chunk[start : min(end, start + LONGEST_LINE)].decode("utf-8", "replace")


def _plain(text: str) -> str:
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def _line(plain: str, number: int, file: str) -> Line:
    place, body, time = places.of_line(plain)
    return Line(file, number, plain, body, place, time)
