"""Another program listens on the port that node 0 wants, or answers there in its place.

Blames
    fact bind @ a address=10.0.0.1 port=29600 errno=98 owner=python
    => a

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=silent text=silent
    => node0

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=zmq text=zmq
"""

from ncclcheck.model import Culprit, Evidence, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """The port could not be bound, or what answers on it is not an ncclcheck agent."""
    taken = [
        Finding(
            "port-in-use",
            f"port {fact.get('port')} on {fact.host} is taken" + (f" by {fact.get('owner')}" if fact.get("owner") else ""),
            Culprit(hosts=[fact.host] if fact.host else None),
            0.97,
            reading.quote(fact),
            f"ss -ltnp 'sport = :{fact.get('port')}'   # end that program, or give every node another port: --master {fact.get('address')}:PORT",
        )
        for fact in run.of("bind")
    ]
    strange = [
        Finding(
            "port-in-use",
            f"another program listens at {fact.get('address')}:{fact.get('port')}, where node 0's agent should: {fact.get('text')}",
            Culprit(hosts=[str(fact.get("name"))]),
            0.9,
            [Evidence("", 0, str(fact.get("text")))],
            f"on {fact.get('name')}: ss -ltnp 'sport = :{fact.get('port')}'   # who is it? or on every node: --master {fact.get('name')}:PORT",
        )
        for fact in run.of("master")
        if fact.get("answer") in ("silent", "closed", "other")
    ]
    return taken + strange
