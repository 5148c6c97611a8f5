"""Try the way between every two nodes, in both directions, over every interface by which they may speak to each other.

What it checks
    Each node connects to each other at a random port, as NCCL, Gloo and vLLM do, from the exact address of the interface; sends a message
    larger than any packet, and has one sent; finds the largest packet that passes; and measures round trip and rate. Tried is the network
    of node 0, and every other network that two nodes share; not docker's, nor others that stay on a host. Up to 64 nodes every pair is tried,
    of more a sample that covers every node and every switch, and the answer says so. Each node also looks up the others' host names.

What a failure means
    blocked-port: the nodes are there and a firewall lets only some ports pass. network-unreachable: nothing passes over that interface.
    mtu-mismatch: packets larger than so many bytes vanish. slow-link: a link is far slower than the others, each time that it was looked at.
    hostname-resolution: a name leads to another machine. A failure that has one direction is told with it: "gpu-1 -> gpu-2". Where all nodes
    reach each other, and the settings do not name the interface yet, the line to export is noted.

Run it alone
    ncclcheck probe reachability
    on every node; one node knows no ways.
"""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck.model import Fact
from ncclcheck.preflight import ways
from ncclcheck.survey import Survey

WHERE = "nodes"
TIMEOUT = 90.0  # seconds; 64 nodes on one small machine take 20
DEFAULT = True
ORDER = 3
READS = ("settings",)
WAYS = True


def judge(survey: Survey) -> Iterator[Fact]:
    """Findings and notes from the facts in `survey.ways`, which are of these kinds.

    way: how it is from one node's address to another's. host, node_rank, interface, source: this end; peer, peer_rank, peer_interface,
    address, port: the other; network; main (between the addresses by which the agents speak with node 0), control (an end is node 0: they
    do speak on it); mtu (the largest packet that both interfaces take). answer: ok, timeout, unreachable, refused, no-source (our address
    cannot be had), no-echo (nobody could listen there), silent, large-lost, unsure; text: the same in words; first: what it was at the first
    try, where that was something else. rtt_ms, out_bytes_per_s, in_bytes_per_s, segments, retransmits, out_lost, in_lost: as in facts of kind
    "path". datagrams (small ones are answered), path_mtu (the largest packet that arrives), heard (the other end heard our datagrams),
    ping, others (what other ports say): where they were asked. looks: rate, and what was usual then, of each later look at a slow way.
    door: an address by which a node may be reached: node_rank, interface, address, mtu, state, network, main, listens; names and addresses
    are all that the node has. names: what a node's resolver says: resolved, failed, late. tried: how many ordered pairs, of how many.
    """
    yield from ways.judge(survey)


if __name__ == "__main__":
    print(__doc__)
