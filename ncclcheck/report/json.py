"""One JSON document with everything a report knows; fields are only ever added."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ncclcheck.model import Report
from ncclcheck.plain import plain
from ncclcheck.safe_text import json_text


def render(report: Report) -> str:
    """Indented for people, lists of numbers on one line. NaN and infinity become null; what is not JSON becomes its text."""
    return dumps(msgspec.to_builtins(report, enc_hook=str))


def dumps(value: Any) -> str:
    """Any document so, ending in a newline; nothing in it is obeyed or hidden by a terminal."""
    document = msgspec.json.encode(plain(value))
    indented = msgspec.json.format(document, indent=2).decode()
    # a real newline is never inside a JSON string, so this finds only lists without strings, lists and objects in them
    lists = re.sub(r'\[\n[^\[\]{}"]*\]', lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), indented)
    return json_text(lists) + "\n"
