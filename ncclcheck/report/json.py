"""One JSON document with everything a report knows; fields are only ever added."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from ncclcheck.model import Report


def render(report: Report) -> str:
    """Indented for people, lists of numbers on one line. NaN and infinity become null; what is not JSON becomes its text."""
    document = msgspec.json.encode(_plain(msgspec.to_builtins(report, enc_hook=str)))
    indented = msgspec.json.format(document, indent=2).decode()
    # a real newline is never inside a JSON string, so this finds only lists without strings, lists and objects in them
    return re.sub(r'\[\n[^\[\]{}"]*\]', lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), indented) + "\n"


def _plain(value: Any) -> Any:
    """Without what JSON cannot say: non-finite numbers, keys that are not text, and the lone surrogates of undecodable log lines."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {_plain(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
