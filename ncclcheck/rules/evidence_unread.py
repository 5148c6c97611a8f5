"""A part of the evidence was not read: the time was up before it, or one of its readers gave up.

What was read is judged all the same, with less confidence, and nothing is called healthy.

Blames
    fact unread file=rank7.log reason=the-time-for-one-source-was-up
    => -

Spares
    log a.log: the rest of the file was not read
"""

from ncclcheck.model import Evidence, Finding, Run

MOST_QUOTES = 8


def check(run: Run) -> list[Finding]:
    """One finding for all sources; it says nothing of the job."""
    facts = run.of("unread")
    if not facts:
        return []
    first = facts[0]
    more = f", and {len(facts) - 1} more source{'s' * (len(facts) > 2)}" if len(facts) > 1 else ""
    return [
        Finding(
            "evidence-unread",
            f"{first.get('file')}{more} {'were' if more else 'was'} not wholly read: {first.get('reason')}",
            confidence=0.9,
            evidence=[Evidence(str(fact.get("file")), 0, str(fact.get("reason"))) for fact in facts[:MOST_QUOTES]],
            remedy="ncclcheck triage --deadline 1h PATH   # PATH: the log of one rank after the other, what was not read first",
        )
    ]
