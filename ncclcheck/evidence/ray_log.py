"""Reads Ray's logs and `ray status`: which cluster was joined, what is asked of it, what it has, and on which address.

Reads
    log head.log: 2026-03-04 01:06:09,120 INFO worker.py:1654 -- Connecting to existing Ray cluster at address: 10.9.0.1:6379...
    => ray-joined address=10.9.0.1

Reads
    log head.log: 2026-03-04 01:06:09,120 INFO worker.py:1843 -- Started a local Ray instance. View the dashboard at 127.0.0.1:8265
    => ray-local

Reads
    log head.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 40 seconds. specs=[{'GPU': 1.0, \
'node:10.9.0.1': 0.001}, {'GPU': 1.0}]
    => ray-waits seconds=40 specs=[{'GPU': 1.0, 'node:10.9.0.1': 0.001}, {'GPU': 1.0}]

Reads
    log head.log: WARNING 03-04 01:06:13 ray_utils.py:315] The number of required GPUs exceeds the total number of available GPUs in the placement \
group.
    => ray-short device=GPU

Reads
    log head.log: (autoscaler +41s) Error: No available node types can fulfill resource request {'node:10.9.0.1': 0.001, 'GPU': 1.0}. Add suitable \
node types
    => ray-infeasible request={'node:10.9.0.1': 0.001, 'GPU': 1.0}

Reads
    log status.txt: Total Usage:
    log status.txt:  0.0/64.0 CPU
    log status.txt:  4.0/8.0 GPU
    => ray-resources GPU=8 used=4

Reads
    log status.txt:  {'GPU': 1.0} * 16 (PACK): 1+ pending placement groups
    => ray-pending bundles={'GPU': 1.0} * 16
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_LONGEST_TABLE = 40  # lines of resources that `ray status` may print


def _resources(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """The accelerators of the whole cluster, by Ray's name for their kind: ` 4.0/8.0 GPU`."""
    total: dict[str, int] = {}
    used = 0
    for row in islice(following, _LONGEST_TABLE):
        if match := re.match(r"\s*(?P<used>\d+)[\d.]*/(?P<total>\d+)[\d.]* (?P<kind>[A-Z]PU)\b", row.text):
            if match["kind"] != "CPU":
                total[match["kind"]] = int(match["total"])
                used += int(match["used"])
        elif not re.match(r"\s*[\w.]{1,40}/[\w.]{1,40} ", row.text):
            break
    if total:
        yield line.fact("ray-resources", {**total, "used": used})


READS = (
    Clue("ray-joined", r"Connecting to existing Ray cluster at address: \[?(?P<address>[^\s\]]{1,100}?)\]?:\d+"),
    Clue("ray-local", r"Started a local Ray instance"),
    Clue("ray-waits", r"Waiting for creating a placement group of specs for (?P<seconds>\d+) seconds\. specs=(?P<specs>\[[^\]]*\])"),
    Clue("ray-short", r"The number of required (?P<device>\w+?)s exceeds the total number of available \w+ in the placement group"),
    Clue("ray-infeasible", r"No available node types can fulfill resource requests? (?P<request>\{[^}]*\})"),
    Block(r"^\s*(?:Total )?Usage:\s*$", _resources),
    Clue("ray-pending", r"(?P<bundles>\{'\w+': [\d.]+\}(?: \* \d+)?[^(]{0,200}) \(\w+\): \d+\+? pending placement groups?"),
)
