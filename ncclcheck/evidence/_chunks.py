"""A text in pieces of whole lines that all end the same way, whatever the text is made of."""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck.evidence._streams import Stream

CHUNK = 1 << 20  # bytes at once
LONGEST_LINE = 1 << 14  # bytes of a line that are looked at: a pattern's time may grow with their square


def chunks(stream: Stream) -> Iterator[bytes]:
    """Pieces that end with a whole line, with "\\n" as the only line end. A line longer than a chunk is cut short."""
    rest, skipping, carriage = b"", False, False
    while piece := _filled(stream):
        if carriage and piece.startswith(b"\n"):
            piece = piece[1:]  # its "\r" already ended the line
            carriage = False
            if not piece:
                continue
        carriage = piece.endswith(b"\r")
        if b"\0" in piece:
            piece = piece.replace(b"\0", b"")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if skipping:
            at = piece.find(b"\n")
            if at < 0:
                continue
            piece, skipping = piece[at:], False
        piece = rest + piece
        cut = piece.rfind(b"\n") + 1
        if cut == 0 and len(piece) > CHUNK:
            rest, skipping = piece[:LONGEST_LINE], True
            continue
        rest = piece[cut:]
        if cut:
            yield piece[:cut]
    if rest:
        yield rest


def _filled(stream: Stream) -> bytes:
    """The next CHUNK bytes, fewer only at the end: a pipe gives as little as it likes."""
    pieces, missing = [], CHUNK
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def pairwise(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk with the one after it."""
    current = next(chunks, None)
    for following in chunks:
        assert current is not None
        yield current, following
        current = following
    if current is not None:
        yield current, b""
