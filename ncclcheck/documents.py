"""Documents that travel compressed: what arrives is bounded in bytes and in values before any of it is made."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from ncclcheck.message_limits import Invalid, one_line

MOST_VALUES = 2**19  # of one document: each takes up to 100 bytes of memory


def pack(value: Any) -> bytes:
    """Any value as compressed JSON."""
    return zlib.compress(msgspec.json.encode(value))


def unpack(data: bytes, form: Any, most: int) -> Any:
    """The value of this form that was packed. Raises Invalid for what is none, has more than `most` bytes, or more than MOST_VALUES values."""
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, most)
    except zlib.error as error:
        raise Invalid(f"a document that cannot be unpacked: {error}") from None
    if stream.unconsumed_tail:
        raise Invalid(f"a document of more than {most >> 20} MiB")
    if (values := count_values(text)) > MOST_VALUES:
        raise Invalid(f"a document of {values} values; at most {MOST_VALUES}")
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Invalid(f"a document of another form: {one_line(str(error))}") from None


def count_values(text: bytes) -> int:
    """At least as many as a JSON document has: each stands after a comma, a bracket or a brace."""
    return 1 + sum(text.count(sign) for sign in (b",", b"[", b"{"))
