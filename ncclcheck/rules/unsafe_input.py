"""A source was refused, because reading it on could do harm: a pickle that would run code, an archive that expands without end.

The rest of the evidence is judged all the same. Real flight recorder dumps hold plain data only.

Blames
    fact refused file=bundle.zip reason=it-expands-to-more-than-is-allowed
    => -

Spares
    log a.log: the file was refused by the server
"""

from ncclcheck.causes import CAUSES
from ncclcheck.model import Evidence, Finding, Run


def check(run: Run) -> list[Finding]:
    """One finding for all of them; it says nothing of the job."""
    facts = run.of("refused")
    if not facts:
        return []
    more = f", and {len(facts) - 1} more" if len(facts) > 1 else ""
    return [
        Finding(
            "unsafe-input",
            f"{facts[0].get('file')} was not read, to be safe: {facts[0].get('reason')}{more}",
            confidence=0.9,
            evidence=[Evidence(str(fact.get("file")), 0, str(fact.get("reason"))) for fact in facts[:8]],
            remedy=CAUSES["unsafe-input"].remedy,
        )
    ]
