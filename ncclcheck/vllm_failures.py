"""What is wrong with an engine, as failures: its own words, who took part with what, and tokens that differ."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from ncclcheck import triage
from ncclcheck.model import Fact, Finding
from ncclcheck.vllm_answers import Answers
from ncclcheck.vllm_layout import Layout

EVERYWHERE = frozenset({"tp-not-divisible", "world-size-mismatch", "software-bug-version"})  # causes that lie in what all ranks were asked


def fail(cause: str, title: str, **proof: Any) -> Fact:
    """A fact that fails the probe."""
    return Fact("fail", fields={"cause": cause, "title": title, **proof})


def causes(lines: Sequence[str], phase: str = "", rank: int | None = None) -> list[Fact]:
    """The causes that vLLM's own words name; `phase` is where its start had come to, `rank` who said it, where another may say otherwise."""
    return [_stated(finding, phase, rank) for finding in triage.stated_by(lines, "vLLM")]


def _stated(finding: Finding, phase: str, rank: int | None) -> Fact:
    if finding.cause in EVERYWHERE:  # neither who said it nor when tells more
        return fail(finding.cause, finding.title, remedy=finding.remedy)
    who = f" ({socket.gethostname()}, rank {rank})" if rank is not None else ""
    where = f" (vLLM's start was in the phase {phase})" if phase else ""
    proof = {"ranks": [rank]} if rank is not None else {}
    return fail(finding.cause, f"{finding.title}{who}{where}", **proof, remedy=finding.remedy)


def attendance(everyone: Sequence[Mapping[str, Any]], layout: Layout) -> list[Fact]:
    """What is wrong with those who took part: a rank is missing, doubled or elsewhere in the layout, or they loaded different weights."""
    found = []
    places = sorted((one["rank"], (one["tp_rank"], one["pp_rank"])) for one in everyone)
    if places != [(rank, layout.place(rank)) for rank in range(layout.ranks)]:
        present = ", ".join(
            f"rank {one['rank']} on {one['host']} (pid {one['pid']}) is number {one['tp_rank']} of stage {one['pp_rank']}" for one in everyone
        )
        found.append(fail("world-size-mismatch", f"the engine's group is not the job's {layout.ranks} ranks as {layout}: {present}"))
    holders: dict[str, list[str]] = {}
    for one in everyone:
        holders.setdefault(one["weights"], []).append(f"rank {one['rank']} ({one['host']})")
    if len(holders) > 1:
        listed = "; ".join(f"{digest[:12]} on {', '.join(ranks)}" for digest, ranks in sorted(holders.items(), key=lambda item: -len(item[1])))
        remedy = "sha256sum the model's files on every node, and copy them anew where they differ"
        found.append(fail("weights-differ", f"the ranks loaded different weights: {listed}", remedy=remedy))
    return found


def difference(trusted: str, expected: Answers, suspect: str, actual: Answers) -> Fact | None:
    """The first token that is not the expected one, as a failure; None where all are equal."""
    for prompt, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        if wanted != got:
            pairs = enumerate(zip(wanted, got, strict=False))
            position = next((index for index, (left, right) in pairs if left != right), min(len(wanted), len(got)))
            left, right = (tokens[position] if position < len(tokens) else None for tokens in (wanted, got))
            title = f"{suspect} answers prompt {prompt} with token {right} at position {position}, {trusted} with {left}"
            return fail("data-corruption", title, prompt=prompt, position=position, expected=left, actual=right)
    return None
