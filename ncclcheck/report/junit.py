"""JUnit XML for CI: a test case per probe or planted fault, and one for the verdict, so that a run that is not ready is never green."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from ncclcheck.model import EXIT_CODES, Finding, Outcome, Report, Status
from ncclcheck.report.text import details, sentence
from ncclcheck.safe_text import printable

# degraded and fail are failures; what could not be told is an error, since it must not look like a pass
_ELEMENTS = {Status.DEGRADED: "failure", Status.FAIL: "failure", Status.SKIP: "skipped", Status.UNKNOWN: "error", Status.CRASHED: "error"}


def render(report: Report) -> str:
    """One `testsuite`. Failures and errors carry the findings; XML's forbidden characters are replaced."""
    suite = ElementTree.Element("testsuite", name="ncclcheck", time=f"{report.seconds:.3f}")
    story = "\n\n".join(_story(finding) for finding in report.findings)
    for probe in report.probes:
        element = _ELEMENTS.get(probe.status)
        _case(suite, "ncclcheck.probes", probe.name, probe.seconds, element, probe.status, probe.detail, story)
    for row in report.drill:
        status, name = Status(row["status"]), f"{row['fault']} in rank {row['victim']}"
        _case(suite, "ncclcheck.drill", name, row["seconds"] or 0.0, _ELEMENTS.get(status), status, row["said"], printable(row["spec"]))
    element = None if EXIT_CODES[report.status] == 0 else "error" if report.status == Outcome.UNKNOWN else "failure"
    _case(suite, "ncclcheck", "verdict", report.seconds, element, report.status, sentence(report), story)
    suite.set("tests", str(len(suite)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, group: str, name: str, seconds: float, element: str | None, kind: str, message: str, story: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=group, name=printable(name), time=f"{seconds:.3f}")
    if element:
        outcome = ElementTree.SubElement(case, element, message=printable(message))
        if element != "skipped":
            outcome.set("type", kind)
            outcome.text = story or None


def _story(finding: Finding) -> str:
    lines = [f"{printable(finding.title)} [{printable(finding.cause)}]", *(f"{label}: {text}" for label, text in details(finding))]
    return "\n".join(lines)
