"""Judges the copies that were made between a node's GPUs: did they arrive, and unchanged?"""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck.model import Fact
from ncclcheck.rules.p2p_broken import REMEDY
from ncclcheck.survey import Job, Node, degrades, stop, unread


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """Facts about one node."""
    section = node.read("peer_copy")
    if section is None:
        yield unread("copies between GPUs", node.why("peer_copy"), [node.host])
        return
    for copy in section.get("copies", ()):
        one, other = copy["gpus"]
        result, devices = str(copy["result"]), [f"{node.host}:GPU {gpu}" for gpu in (one, other)]
        told = [f"CUDA: copy from GPU {one} to GPU {other}: {result}"]
        if result == "wrong":
            title = f"what GPU {one} of {node.host} sends to GPU {other} by peer access arrives changed"
            yield stop("p2p-broken", title, [node.host], REMEDY, evidence=told, devices=devices)
        elif result not in ("ok", "no peer access"):
            title = f"GPU {one} of {node.host} cannot send to GPU {other} by peer access, which its driver announces: {result}"
            yield degrades("p2p-broken", title, [node.host], REMEDY, evidence=told, devices=devices, confidence=0.7)
    if hung := section.get("hung"):
        one, other = hung["gpus"]
        title = f"a copy from GPU {one} to GPU {other} of {node.host} by peer access did not end in {hung['seconds']:g} s"
        devices = [f"{node.host}:GPU {gpu}" for gpu in (one, other)]
        evidence = [f"CUDA: copy from GPU {one} to GPU {other}: begun, and not ended"]
        yield stop("p2p-broken", title, [node.host], REMEDY, evidence=evidence, devices=devices, confidence=0.7)
    if why := section.get("why"):
        yield unread("copies between GPUs", str(why), [node.host])
