"""A service mesh (Istio, Linkerd) puts a proxy into each pod that intercepts the ranks' connections and resets what is not HTTP.

Blames
    log a.log: Containers: istio-proxy, trainer
    log a.log: node-a:311:405 [0] misc/socket.cc:71 NCCL WARN socketProgress: Connection closed by remote peer 10.0.0.2<40112>
    => -

Blames
    log a.log: upstream connect error or disconnect/reset before headers. reset reason: protocol error
    => -

Blames
    log a.log: 2026-03-02T10:00:00.173796Z debug envoy connection [C72] remote early close
    => -

Spares
    log a.log: node-a:311:405 [0] misc/socket.cc:71 NCCL WARN socketProgress: Connection closed by remote peer 10.0.0.2<40112>
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("peer_reset", "rank_died_exception", "store_lost")

REMEDY = (
    "no sidecar in the job's pods: annotate it with sidecar.istio.io/inject=false (linkerd.io/inject=disabled), then kubectl rollout restart; "
    "or traffic.sidecar.istio.io/excludeInboundPorts and excludeOutboundPorts for all ports of the ranks"
)

READS = (
    Clue("proxy", r"(?P<name>istio-proxy|istio-init|linkerd-proxy|envoy-sidecar|sidecar\.istio\.io/status)"),
    Clue("proxy", r"(?:debug|info|warning|error)\s+(?P<name>envoy) (?:connection|conn_handler|upstream|filter|pool|router|config)\b"),
    Statement(r"upstream connect error or disconnect/reset before headers", "a proxy answers in place of the peer", REMEDY, 0.85, "nobody"),
)


def check(run: Run) -> list[Finding]:
    """A proxy is in the pods, and connections between ranks are reset or never come about."""
    proxies = run.of("proxy")
    broken = [*run.of("reset"), *run.of("connect"), *run.of("joined")]
    if not proxies:
        return []
    title = f"a service mesh ({proxies[0].get('name')}) intercepts the connections between the ranks"
    return [Finding("service-mesh", title, confidence=0.75 if broken else 0.5, evidence=reading.quote(*proxies[:2], *broken[:2]), remedy=REMEDY)]
