"""Findings made of what programs and the kernel state themselves: the Statements of rules that stand in the evidence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ncclcheck import registry
from ncclcheck.causes import CAUSES
from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.safe_text import word

MOST_QUOTES = 12  # lines quoted of one statement


def findings(run: Run, rule: str) -> list[Finding]:
    """One finding for each of a rule's statements that stand in the evidence, whoever repeats it."""
    said: dict[str, list[Fact]] = {}
    for fact in run.of("says"):
        if fact.get("rule") == rule:
            said.setdefault(fact.get("pattern"), []).append(fact)
    if not said:
        return []
    statements = {read.pattern: read for read in registry.load("rules", rule).READS if isinstance(read, Statement)}
    return [finding for pattern, facts in said.items() for finding in _of_statement(run, rule.replace("_", "-"), statements[pattern], facts)]


def _of_statement(run: Run, cause: str, statement: Statement, facts: Sequence[Fact]) -> Iterator[Finding]:
    titles: dict[str, list[Fact]] = {}
    for fact in facts:
        titles.setdefault(_filled(statement, statement.title, fact, "{who}"), []).append(fact)
    for title, same in titles.items():
        culprit = _blamed(run, statement, same)
        remedy = _filled(statement, statement.remedy or CAUSES[cause].remedy, same[0], "the rank", word)
        evidence = [fact.source for fact in same if fact.source][:MOST_QUOTES]
        time = min((fact.time for fact in same if fact.time is not None), default=None)
        yield Finding(cause, title.replace("{who}", _who(run, culprit)), culprit, statement.confidence, evidence, remedy, time=time)


def _filled(statement: Statement, template: str, fact: Fact, who: str, told: Callable[[object], str] = str) -> str:
    """The template with the fact's fields, as `told` has them, and what is worked out from them in its braces; what the line did not say is `...`."""
    figures = statement.figures(fact.fields) if statement.figures else {}
    words = {**{name: told(value) for name, value in fact.fields.items()}, **figures, "who": who}
    return re.sub(r"\{(\w+)\}", lambda match: str(words.get(match[1], "...")), template)


def _blamed(run: Run, statement: Statement, facts: Sequence[Fact]) -> Culprit:
    """Whom the statement's own groups name, else whom it blames."""
    named = {
        kind: [str(value) for fact in facts for name, value in fact.fields.items() if name.startswith(kind)]
        for kind in ("rank", "host", "device", "interface")
    }
    ranks = sorted({int(rank) for rank in named["rank"] if rank.isdigit()})
    if statement.blames == "speaker" and not ranks:
        ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    hosts = list(dict.fromkeys(named["host"]))
    if not hosts and statement.blames != "nobody":
        hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host)) or run.hosts(ranks)
    return Culprit(
        ranks=ranks or None,
        hosts=hosts or None,
        devices=list(dict.fromkeys(named["device"])) or None,
        interface=next(iter(named["interface"]), None),
    )


def _who(run: Run, culprit: Culprit) -> str:
    if culprit.ranks:
        return run.name(culprit.ranks[0]) if len(culprit.ranks) == 1 else f"ranks {', '.join(map(str, culprit.ranks[:8]))}"
    return culprit.hosts[0] if culprit.hosts else "a process"
