"""The master address is wrong: not an address of node 0, or one that cannot be reached from here.

Blames
    fact master @ b name=10.0.0.99 address=10.0.0.99 port=29600 answer=unreachable text=no-route
    => b

Blames
    fact master @ a name=10.0.0.9 address=10.0.0.9 port=29600 answer=not-ours text=x
    => a

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused
"""

from ncclcheck.model import Culprit, Evidence, Finding, Run

_TITLES = {
    "unreachable": "{host} cannot reach the master address {name}:{port}: {text}",
    "silent-host": "{host} gets no answer at all from the master address {name}:{port}: no such host, a dead one, or a firewall",
    "not-ours": "the master address {name} is not an address of {host}, which is to be node 0: {text}",
}


def check(run: Run) -> list[Finding]:
    """What a node saw when it tried the master address."""
    return [
        Finding(
            "wrong-master-addr",
            _TITLES[fact.get("answer")].format(host=fact.host, **fact.fields),
            Culprit(hosts=[fact.host] if fact.host else None),
            0.8 if fact.get("answer") == "silent-host" else 0.9,
            [Evidence("", 0, str(fact.get("text")))],
            "give --master, on every node, the address that node 0 has on the network they share (`ip -br addr` there); then ping it from here",
        )
        for fact in run.of("master")
        if fact.get("answer") in _TITLES
    ]
