"""Every evidence reader's docstring draws what it reads: the lines of a log, and the facts that the real reader makes of them."""

from __future__ import annotations

import io
import re

import pytest
from drawing import drawings

from ncclcheck import registry
from ncclcheck.evidence import text
from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Fact

READERS = [
    name
    for name in registry.names("evidence")
    if any(not isinstance(read, Statement) for read in getattr(registry.load("evidence", name), "READS", ()))
]


def drawn() -> list[object]:
    return [
        pytest.param(drawing, id=f"{name}-{index}")
        for name in READERS
        for index, drawing in enumerate(drawings(registry.describe("evidence", name).doc, "Reads"))
    ]


def facts(drawing: str) -> list[Fact]:
    """What the readers make of a drawing's lines; the lines of one file are read together."""
    logs: dict[str, list[str]] = {}
    for line in drawing.splitlines():
        if match := re.match(r"log (\S+): ?(.*)$", line):
            logs.setdefault(match[1], []).append(match[2])
    return [fact for name, lines in logs.items() for fact in text.read(io.BytesIO("\n".join(lines).encode()), name)]


def shows(fact: Fact, kind: str, fields: dict[str, str]) -> bool:
    """Whether a fact is the one that `=> kind name=value ...` draws (`_` may stand for a blank); what it is about counts as a field too."""
    told = {"rank": fact.rank, "host": fact.host, "pid": fact.pid, **fact.fields}
    return fact.kind == kind and all(str(told.get(name)).replace(" ", "_") == value.replace(" ", "_") for name, value in fields.items())


@pytest.mark.parametrize("name", READERS)
def test_a_reader_draws_what_it_reads(name: str) -> None:
    assert drawings(registry.describe("evidence", name).doc, "Reads")


@pytest.mark.parametrize("drawing", drawn())
def test_a_reader_makes_the_facts_that_its_drawing_shows(drawing: str) -> None:
    found = facts(drawing)
    expected = [line.removeprefix("=> ") for line in drawing.splitlines() if line.startswith("=> ")]
    assert expected, "a drawing without a fact proves nothing"
    missing = [
        line
        for line in expected
        for kind, _, rest in [line.partition(" ")]
        if not any(shows(fact, kind, dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", rest))) for fact in found)
    ]
    assert missing == [], f"read: {[(fact.kind, fact.rank, dict(fact.fields)) for fact in found]}"
