"""A host name resolves to the loopback interface or to nothing, so other nodes cannot be found by it.

Debian and Ubuntu write `127.0.1.1 HOSTNAME` into /etc/hosts; on the node itself its name then leads to itself alone.

Blames
    fact resolve @ b name=node0 addresses=127.0.1.1
    => b

Blames
    fact resolve @ b name=nowhere error=unknown
    => b

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Names that a node could not follow to another machine."""
    result = []
    for fact in run.of("resolve"):
        name, error = fact.get("name"), fact.get("error")
        leads = (
            f"does not resolve on {fact.host}: {error}"
            if error
            else f"resolves to {', '.join(fact.get('addresses'))} on {fact.host}: loopback, which no other node can reach"
        )
        result.append(
            Finding(
                "hostname-resolution",
                f"the master's name {name} {leads}",
                Culprit(hosts=[fact.host] if fact.host else None),
                0.95,
                reading.quote(fact),
                f"getent ahosts {name}   # then mend /etc/hosts (no 127.0.1.1 line, the real address) or give --master the numeric address",
            )
        )
    return result
