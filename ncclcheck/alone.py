"""One node looks at itself: what `python -m ncclcheck.probes.host` does."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from ncclcheck import asking, interpreter, registry, report, surveying, triage
from ncclcheck.collect import host
from ncclcheck.model import EXIT_CODES, Report
from ncclcheck.survey import Job, Node, Question, Section, Survey


def run_alone(module: str) -> None:
    """Look, judge, print, exit. `module` is the probe's `__file__`."""
    interpreter.leave_current_folder()
    result = asyncio.run(look(Path(module).stem))
    sys.stdout.write(report.render(report.masked(result), "text"))
    sys.stdout.flush()
    sys.exit(EXIT_CODES[result.status])


async def look(name: str) -> Report:
    """The report of one probe on this node; no other node is asked anything."""
    began = time.monotonic()
    probe: Any = registry.load("probes", name)
    me, ranks = host.name(), len(host.gpus()) or 1
    sections: dict[str, Section]
    try:
        sections = await asking.inventory(Question(nproc_per_node=ranks), list(probe.READS), {})
    except OSError as error:
        sections = {section: {"error": str(error)} for section in probe.READS}
    seen = Survey(Job(1, ranks, ""), [Node(0, me, "", sections)])
    result, found = await surveying.judge(name, probe, seen)
    result.seconds = time.monotonic() - began
    verdict = triage.verdict(found, [], [result], emulated=False, not_asked=[], ranks=0, nodes=1)
    return Report(1, verdict.status, verdict.summary, round(time.monotonic() - began, 3), verdict.findings, False, {}, [result], [], [], {})
