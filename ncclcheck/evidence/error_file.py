"""Reads torchelastic's error files (`error.json`, or its text pasted into a log): the error that a worker left with.

Reads
    log rank1.json: {"message": {"message": "ValueError: bad shard", "extraInfo": {"py_callstack": "Traceback (most recent call last):\\n  \
File \\"/home/me/train.py\\", line 9, in step\\nValueError: bad shard\\n", "timestamp": "1700000000"}}}
    => error type=ValueError message=bad shard where=step (train.py:9)
"""

import json
import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Line
from ncclcheck.model import Fact

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')


def _error(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    start = line.text.find("{")
    try:
        document, _ = json.JSONDecoder().raw_decode(line.text[start:])
        message = document["message"]
        text, stack = str(message["message"]), str(message["extraInfo"].get("py_callstack", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    kind, _, rest = text.partition(": ")
    frames = _FRAME.findall(stack)
    where = f"{frames[-1][2]} ({frames[-1][0].rpartition('/')[2]}:{frames[-1][1]})" if frames else ""
    yield line.fact("error", {"type": kind, "message": rest, "where": where})


READS = (Block(r'"extraInfo": ?\{"', _error),)
