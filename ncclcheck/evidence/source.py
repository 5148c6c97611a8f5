"""One source of evidence, whatever it is: a flight recorder's dump, a JSON document, or text."""

from __future__ import annotations

import codecs
import copyreg
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from ncclcheck import registry
from ncclcheck.evidence import flight_recorder, text
from ncclcheck.evidence._bounds import GaveUp, Meter
from ncclcheck.evidence._streams import Stream
from ncclcheck.model import Evidence, Fact
from ncclcheck.recorder import Dump

HEAD = 4096  # bytes by which a source is known
PIECE = 1 << 20  # bytes read at once
LARGEST_DOCUMENT = 512 << 20  # bytes of a dump or JSON document, which must be read as a whole
MOST_SAID = 3  # failures of readers that are told of one source
NOISE = 0.05  # the share of control characters above which something is not text; of random bytes it is 0.1
_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\r\x1b\f\b")[1:]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source gave. `kind` is how it was read; `problem` says why it, or a part of it, was not."""

    name: str
    kind: str  # flight recorder, text, the name of a reader of JSON documents, or "not read"
    nbytes: int = 0
    facts: Sequence[Fact] = ()
    dump: Dump | None = None
    problem: str = ""
    unsafe: bool = False  # the problem is that reading on could do harm
    unread: bool = False  # it may hold evidence that was not read: the time was up, or a reader gave up


# as the arguments that make them anew: a large heap has many, and dataclasses pickle slowly
copyreg.pickle(Fact, lambda fact: (Fact, (fact.kind, fact.host, fact.rank, fact.pid, fact.fields, fact.source, fact.time)))
copyreg.pickle(Evidence, lambda evidence: (Evidence, (evidence.file, evidence.line, evidence.text)))


class _Counted:
    """The beginning that was looked at, then the rest; counts what is read."""

    def __init__(self, head: bytes, rest: Stream, passed: int) -> None:
        self._head, self._rest = head, rest
        self.nbytes = passed

    def read(self, size: int, /) -> bytes:
        piece, self._head = (self._head[:size], self._head[size:]) if self._head else (self._rest.read(size), b"")
        self.nbytes += len(piece)
        return piece


class _Recoded:
    """A text in another encoding, as UTF-8. A character that cannot be becomes U+FFFD."""

    def __init__(self, rest: Stream, encoding: str) -> None:
        self._rest = rest
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def read(self, size: int, /) -> bytes:
        while piece := self._rest.read(size):
            if recoded := self._decoder.decode(piece).encode("utf-8", "replace"):
                return recoded
        return self._decoder.decode(b"", final=True).encode("utf-8", "replace")


def read(stream: Stream, name: str, meter: Meter | None = None) -> Reading:
    """Read one source to its end. Never raises for what is in it, but MemoryError where there is too much of it."""
    meter = meter or Meter()
    begun, passed = _beginning(stream)
    counted, head = _Counted(begun, stream, passed), begun[:HEAD]
    if flight_recorder.sniff(head, name):
        return _dump(counted, name)
    for reader, module in _of_documents():
        if module.sniff(head, name):
            data, problem = _whole(counted)
            if problem:
                return Reading(name, "not read", counted.nbytes, problem=problem, unsafe=True)
            return _given(counted, name, reader, _metered(meter, reader, module.document(data, name)))
    if encoding := _utf16(head):
        facts = text.read(_Recoded(counted, encoding), name, meter)
        return _given(counted, name, "text", facts, f"it is {encoding}; its lines were read as such")
    if _noise(head):
        return Reading(name, "not read", passed + len(begun), problem="it is binary and no format that is known")
    return _given(counted, name, "text", text.read(counted, name, meter))


def _metered(meter: Meter, reader: str, facts: Iterable[Fact]) -> Iterator[Fact]:
    """The same facts, while the meter sees who makes them."""
    try:
        meter.reader = reader
        yield from facts
    finally:
        meter.reader = None


def _given(stream: _Counted, name: str, kind: str, facts: Iterable[Fact], problem: str = "") -> Reading:
    """What a reader gives. Where it fails, what it gave before is kept, and its failure is said."""
    kept: list[Fact] = []
    try:
        for fact in facts:
            kept.append(fact)
    except Exception as error:  # also MemoryError: what was taken is free again
        why = str(error) if isinstance(error, GaveUp) else "it took too much memory" if isinstance(error, MemoryError) else ""
        fields = {"reader": kind, "gave_up": why} if why else {"reader": kind, "error": f"{type(error).__name__}: {error}"}
        kept.append(Fact(text.FAILED, fields=fields, source=Evidence(name, 0, "")))
    failed = [fact for fact in kept if fact.kind == text.FAILED]
    more = [f"and {len(failed) - MOST_SAID} more failures of readers"] if len(failed) > MOST_SAID else []
    said = [*filter(None, [problem]), *map(_said, failed[:MOST_SAID]), *more]
    return Reading(name, kind, stream.nbytes, kept, problem="; ".join(said), unread=bool(failed))


def _said(failure: Fact) -> str:
    line = failure.source.line if failure.source else 0
    if why := failure.get("gave_up"):
        return f"the reader {failure.get('reader')} gave up on line {line}, as {why}; the other readers went on"
    return f"the reader {failure.get('reader')} failed on line {line}: {failure.get('error')}"


@functools.cache
def _of_documents() -> tuple[tuple[str, ModuleType], ...]:
    """The readers of whole documents, looked for once: a heap has many sources."""
    modules = ((name, registry.load("evidence", name)) for name in registry.names("evidence"))
    return tuple((name, module) for name, module in modules if hasattr(module, "READS_DOCUMENT"))


def _dump(stream: _Counted, name: str) -> Reading:
    data, problem = _whole(stream)
    if problem:
        return Reading(name, "not read", stream.nbytes, problem=problem, unsafe=True)
    try:
        return Reading(name, "flight recorder", stream.nbytes, dump=flight_recorder.read(data, name))
    except ValueError as error:
        unsafe = "forbidden" in str(error) or "memory" in str(error)
        fact = Fact("bad-dump", fields={"reason": str(error)}, source=Evidence(name, 0, str(error)))
        return Reading(name, "not read", stream.nbytes, (fact,), problem=str(error), unsafe=unsafe)


def _whole(stream: _Counted) -> tuple[bytes, str]:
    pieces = []
    while piece := stream.read(PIECE):
        pieces.append(piece)
        if stream.nbytes > LARGEST_DOCUMENT:
            return b"", f"it is larger than {LARGEST_DOCUMENT >> 20} MiB, which must be read as a whole"
    return b"".join(pieces), ""


def _beginning(stream: Stream) -> tuple[bytes, int]:
    """HEAD bytes or more that are not all zeros, and how many were passed over: a log that was cut while it was written begins so."""
    head, passed = b"", 0
    while len(head) < HEAD and (piece := stream.read(PIECE if passed else HEAD - len(head))):
        head += piece
        if len(head) >= HEAD and not head.strip(b"\0"):
            head, passed = b"", passed + len(head)
    return head, passed


def _utf16(head: bytes) -> str:
    """By its mark; without one, by the zeros that every other byte of an ASCII text then is."""
    marked = {codecs.BOM_UTF16_LE: "UTF-16-LE", codecs.BOM_UTF16_BE: "UTF-16-BE"}.get(head[:2], "")
    odd, even = head[1::2].count(0), head[::2].count(0)
    half = len(head) // 2
    return marked or ("UTF-16-LE" if even <= half * 0.05 < half * 0.7 < odd else "UTF-16-BE" if odd <= half * 0.05 < half * 0.7 < even else "")


def _noise(head: bytes) -> bool:
    """Whether this is no text: text has few control characters, in whatever encoding. Zeros may stand where a log was cut."""
    rest = head.replace(b"\0", b"")
    return sum(rest.count(byte) for byte in _CONTROLS) > NOISE * len(rest)
