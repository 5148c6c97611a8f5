"""Reads the drawings in rules' docstrings into runs.

    rank 1 @ b: init, all_reduce 8... | stack stuck_here (x.py:3) | exit -9
    fact missing-node @ b node_rank=1

A rank's steps are separated by commas; `...` marks the one it is still inside; a number after a name is its size in
bytes. `calls a; b` is a history of calls.
After `|` stand facts about that rank. `=>` gives the culprits: ranks, or hosts, or "N of M" for world size M, or `-` for
nobody. `log FILE: TEXT` is a line of a log; the lines of one FILE are read together, by the real readers.
"""

from __future__ import annotations

import io
import re
import textwrap
from dataclasses import replace
from typing import Any

from ncclcheck import assemble, history
from ncclcheck.evidence import source
from ncclcheck.model import Fact, RankId, Run, Step


def drawings(doc: str, heading: str) -> list[str]:
    """The drawings under each `heading` of a docstring."""
    return [textwrap.dedent(body) for body in re.findall(rf"^{heading}\n((?:    .*\n?)+)", doc, re.M)]


def read(drawing: str) -> tuple[Run, list[str]]:
    """The run that a drawing shows, and whom it blames, as text."""
    ranks: dict[int, RankId] = {}
    steps: list[Step] = []
    facts: list[Fact] = []
    blamed: list[str] = []
    world_size = None
    logs: dict[str, list[str]] = {}
    for line in drawing.splitlines():
        if match := re.match(r"log (\S+): ?(.*)$", line):
            logs.setdefault(match[1], []).append(match[2])
        elif match := re.match(r"rank (\d+)(?: @ (\S+))?: (.*)$", line):
            rank, host = int(match[1]), match[2] or ""
            ranks[rank] = RankId(rank, 0, 0, host, 100 + rank)
            told, *about = match[3].split(" | ")
            steps += [_step(rank, seq, text) for seq, text in enumerate(told.split(", "))]
            facts += [_about(rank, host, text) for text in about]
        elif match := re.match(r"fact (\S+)(?: @ (\S+))?((?: \S+=\S+)*)$", line):
            facts.append(Fact(match[1], match[2], fields=dict(_field(pair) for pair in match[3].split())))
        elif line.startswith("=> "):
            blamed = line.removeprefix("=> ").split()
            if "of" in blamed:
                world_size = int(blamed[-1])
                blamed = blamed[: blamed.index("of")]
        elif line.strip():
            raise ValueError(f"not a line of a drawing: {line!r}")
    if logs:
        run = assemble.run([source.read(io.BytesIO("\n".join(lines).encode()), file) for file, lines in logs.items()])
        assert not ranks, "a drawing shows either steps or logs"
        return replace(run, world_size=world_size or run.world_size, facts=[*run.facts, *facts]), blamed
    return Run(world_size or len(ranks) or None, ranks, steps, facts), blamed


def _step(rank: int, seq: int, text: str) -> Step:
    name, _, size = text.removesuffix("...").partition(" ")
    return Step(rank, seq, name, float(seq), None if text.endswith("...") else seq + 0.5, nbytes=int(size or 0))


def _about(rank: int, host: str, text: str) -> Fact:
    kind, _, rest = text.partition(" ")
    if kind == "calls":
        calls = rest.split("; ")
        texts = list(dict.fromkeys(calls))
        signatures = [history.signature([text]) for text in texts]
        fields = {"last": len(calls), "signatures": signatures, "texts": texts, "calls": [texts.index(call) for call in calls]}
        return Fact(kind, host, rank, 100 + rank, fields)
    fields: dict[str, dict[str, Any]] = {
        "stack": {"frames": [rest], "own": rest},
        "recorded": {"group": "default_pg", "what": "all_reduce [8] Float", "seq": 7, "state": rest},
        "exit": {"code": int(rest or 0) if kind == "exit" else 0},
        "gone": {"code": int(rest) if kind == "gone" and rest else None},
        "error": dict(zip(("type", "message"), rest.split(": ", 1), strict=False)),
    }
    return Fact(kind, host, rank, 100 + rank, fields.get(kind, {}))


def _field(pair: str) -> tuple[str, Any]:
    key, _, value = pair.partition("=")
    if key in ("addresses", "probes", "there", "processes", "ranks", "changed", "lost"):
        return key, value.split(",")
    if value in ("True", "False"):
        return key, value == "True"
    return key, int(value) if re.fullmatch(r"-?\d+", value) else value
