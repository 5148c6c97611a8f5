"""What logs, peers and file names say never becomes part of a command, and no output lets a terminal obey it."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from drawing import drawings, read

from ncclcheck import printing, registry, report, safe_text, stated, triage
from ncclcheck.evidence._reads import Statement
from ncclcheck.live import Live
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Outcome, ProbeResult, RankId, Report, Run, Status

PLANTED = "; rm -rf ~ $(zap) `zap`\nzap '"
RULES = registry.names("rules")


def harmless(remedy: str) -> bool:
    """Whether what was planted stands only inside of words that a shell takes as they are: whole, with its own quote quoted, or without it."""
    whole = r"'[^'\n]*zap\) `zap` zap '\"'\"'[^'\n]*'"
    return "zap" not in re.sub(rf"{whole}|(?<!\w)'[^'\n]*zap[^'\n]*'", "", remedy)


CONTROLS = "".join(chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0x61C, 0x200B, *range(0x200D, 0x2010), *range(0x2028, 0x202F), 0xFEFF))
CONTROLS += "".join(map(chr, range(0x2060, 0x206A))) + "\U000e0041"


def hostile() -> Report:
    """Every text of it was written by somebody else."""
    finding = Finding("rank-killed", CONTROLS, Culprit(hosts=[CONTROLS]), 0.9, [Evidence(CONTROLS, 1, CONTROLS)], CONTROLS, [CONTROLS])
    probe = ProbeResult(CONTROLS, Status.FAIL, CONTROLS, facts=[Fact("note", fields={"text": CONTROLS, CONTROLS: [CONTROLS]})])
    run = {"directory": CONTROLS}
    return Report(1, Outcome.NOT_READY, CONTROLS, 1.0, [finding], False, {}, [probe], [{"host": CONTROLS}], [RankId(0, host=CONTROLS)], run)


@pytest.mark.parametrize("format", ["text", "json", "junit", "prometheus"])
def test_no_output_holds_anything_that_a_terminal_obeys_or_hides(format: str) -> None:
    assert {character for character in report.render(hostile(), format) if not character.isprintable()} == {"\n"}


def test_json_holds_the_very_text_and_only_its_written_form_is_escaped() -> None:
    rendered = report.render(hostile(), "json")
    assert json.loads(rendered)["findings"][0]["evidence"][0]["text"] == CONTROLS
    assert "\\u009b" in rendered and "\\u202e" in rendered and "\\udb40\\udc41" in rendered
    assert safe_text.json_text('{"节点": "µs"}') == '{"节点": "µs"}'


def test_progress_and_the_sentence_of_a_node_that_prints_no_more_are_one_line_each() -> None:
    for terminal in (False, True):
        stream = Terminal() if terminal else io.StringIO()
        live = Live(stream, enabled=True)
        live.show(CONTROLS)
        live.say(CONTROLS)
        live.close()
        ours = stream.getvalue().replace("\r\x1b[K", "")  # erases the live line
        assert {character for character in ours if not character.isprintable()} == {"\n"}
    out = io.StringIO()
    printing.show(hostile(), {"form": "text", "output": None}, out, brief=True)
    assert out.getvalue().count("\n") == 1 and out.getvalue()[:-1].isprintable()


class Terminal(io.StringIO):
    """A stream that calls itself one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "words", [("triage", "no\x1b[31m\u202efile"), ("explain", "no\x1b[31m\u202eword"), ("probe", "--emulate", "2\x1b[31m\u202ex1")]
)
def test_an_error_that_quotes_what_was_typed_is_plain_text(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "ncclcheck", *words], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "[31m" in done.stderr
    assert {character for character in done.stderr if not character.isprintable()} == {"\n"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [("gpu-07", "gpu-07"), ("10.0.0.1", "10.0.0.1"), ("a b", "'a b'"), ("$(x)", "'$(x)'"), ("a\nb", "'a b'"), ("", "''"), (7, "7")],
)
def test_a_word_of_a_command_is_quoted_only_where_it_must_be(value: object, shown: str) -> None:
    assert safe_text.word(value) == shown and shlex.split(safe_text.word(value)) == [safe_text.printable(str(value))]


@pytest.mark.parametrize("rule", RULES)
def test_a_statements_remedy_takes_what_the_line_says_as_words(rule: str) -> None:
    for statement in getattr(registry.load("rules", rule), "READS", ()):
        if isinstance(statement, Statement):
            groups = {name: PLANTED for name in re.compile(statement.pattern).groupindex}
            (finding,) = stated.findings(Run(facts=[Fact("says", "a", 0, fields={"rule": rule, "pattern": statement.pattern, **groups})]), rule)
            assert harmless(finding.remedy), finding.remedy


def planted(run: Run) -> Iterator[Run]:
    """The run with something in all hosts, and then in one field of one kind of fact after the other."""
    hosts = {host: f"{host}{PLANTED}" for host in {*(who.host for who in run.ranks.values()), *(fact.host for fact in run.facts)} if host}
    ranks = {rank: replace(who, host=hosts.get(who.host, who.host)) for rank, who in run.ranks.items()}
    moved = [replace(fact, host=hosts.get(fact.host or "", fact.host), fields=_with(fact.fields, hosts)) for fact in run.facts]
    yield replace(run, ranks=ranks, facts=moved)
    # a field "remedy" is a command that was made as one, and no fact that has it comes from elsewhere but what a check itself found
    for kind, name in {(fact.kind, name) for fact in run.facts for name in fact.fields if name != "remedy"}:
        yield replace(run, facts=[_planted(fact, name) if fact.kind == kind else fact for fact in run.facts])


def _with(fields: Any, hosts: dict[str, str]) -> dict[str, Any]:
    return {name: hosts.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}


def _planted(fact: Fact, name: str) -> Fact:
    value = fact.fields.get(name)
    if isinstance(value, str):
        value += PLANTED
    elif value is None or isinstance(value, int | float):
        value = PLANTED
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = [each + PLANTED for each in value]
    return replace(fact, fields={**fact.fields, name: value})


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_remedy_takes_what_facts_say_as_words(rule: str) -> None:
    for drawing in drawings(registry.describe("rules", rule).doc, "Blames"):
        for run in planted(read(drawing)[0]):
            for finding in triage._guarded(run, rule):
                for command in (finding.remedy, *finding.collect):
                    assert harmless(command), command
