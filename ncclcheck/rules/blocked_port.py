"""A firewall drops what goes to the port, though the host itself answers.

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=filtered text=timeout
    => b

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused
"""

from ncclcheck.model import Culprit, Evidence, Finding, Run


def check(run: Run) -> list[Finding]:
    """The master's host refuses other ports at once and says nothing on this one."""
    return [
        Finding(
            "blocked-port",
            f"{fact.host} reaches the host {fact.get('address')} but not its port {fact.get('port')}: what is sent there is dropped",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.85,
            [Evidence("", 0, str(fact.get("text")))],
            f"open all TCP ports between the nodes (NCCL, Gloo and vLLM use random ones), at least {fact.get('port')}: "
            f"iptables -L -n, nft list ruleset or ufw status on both; or use --master {fact.get('name')}:PORT with an open port",
        )
        for fact in run.of("master")
        if fact.get("answer") == "filtered"
    ]
