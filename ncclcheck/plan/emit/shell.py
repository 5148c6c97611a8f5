"""A bash script for every node: `bash FILE NODE_RANK`."""

from __future__ import annotations

import shlex

from ncclcheck.plan.commands import Server, placed
from ncclcheck.plan.emit import Launch

# never a loopback address: Debian gives a node's own name 127.0.1.1, where no other node reaches it
ADDRESS = r"""address() { getent ahostsv4 "$1" | awk '$1 !~ /^127\./ { print $1; exit }'; }"""
# the one address that this node has besides loopback and bridges; nothing if there are several, since the wrong one would hang
OWN = (
    "own() { ip -o -4 addr show scope global | awk '$2 !~ /^(docker|br-|virbr|veth|cni|flannel|cali)/ "
    """{ sub("/.*", "", $4); found = $4; n++ } END { if (n == 1) print found }'; }"""
)
UNREACHABLE = "is not an IPv4 address, or a name of one, that other nodes can reach"
INTERFACE = """interface() { ip -o -4 addr show to "$1" | awk 'NR == 1 { print $2 }'; }"""
FUNCTIONS = (ADDRESS, OWN, INTERFACE)


def write(launch: Launch) -> str:
    """One script, in which each node finds its own part by its number."""
    lines = ["#!/usr/bin/env bash", f"# {launch.title()}", "# On each node: bash FILE NODE_RANK", "set -eu", *body(launch)]
    return "\n".join(lines) + "\n"


def body(launch: Launch, node: str = '"${1:-${NODE_RANK:?say the number of this node, from 0}}"') -> list[str]:
    """The lines without what a launcher puts before them. `node`: what the shell knows this node's number as."""
    lines = []
    if launch.spread:
        known = " ".join(map(shlex.quote, launch.hosts)) or "${HOSTS:?say the addresses of the nodes, node 0 first, with blanks between them}"
        lines += [f"hosts=({known})", *FUNCTIONS]
    lines += [f"node={node}", 'case "$node" in']
    for number in sorted({server.node for server in launch.wanted}):
        mine = [server for server in launch.wanted if server.node == number]
        lines += [f"{number})", *(f"    {line}" for line in _node(mine, launch.engine.model)), "    ;;"]
    return [*lines, '*) echo "this plan has no node $node" >&2; exit 2 ;;', "esac"]


def prelude(launch: Launch) -> list[str]:
    """What the lines of `environment` and `command` need before them: the nodes' hosts, or a word for each to be filled in, and functions."""
    if not launch.spread:
        return []
    hosts = " ".join(map(shlex.quote, launch.hosts)) or " ".join(f"ADDRESS_OF_NODE_{node}" for node in range(launch.nodes))
    return [*FUNCTIONS, f"hosts=({hosts})"]


def environment(server: Server) -> list[str]:
    """`export` lines of one server; hosts stand in the array `hosts`."""
    if server.nodes > 1:
        mine, first = (f"${{hosts[{number}]}}" for number in (server.node, server.first))
        return [
            f'VLLM_HOST_IP=$(address "{mine}")',
            "VLLM_HOST_IP=${VLLM_HOST_IP:-$(own)}",
            f': "${{VLLM_HOST_IP:?{mine} {UNREACHABLE}}}"',
            "MASTER=$VLLM_HOST_IP" if server.head else f'MASTER=$(address "{first}")',
            'GLOO_SOCKET_IFNAME=$(interface "$VLLM_HOST_IP")',
            'export VLLM_HOST_IP GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$GLOO_SOCKET_IFNAME}"',
        ]
    return [f"export CUDA_VISIBLE_DEVICES={','.join(map(str, server.gpus))}"] if server.gpus else []


def command(server: Server, model: str) -> str:
    """`vllm serve` with all its arguments."""
    master = "ncclcheck-master"  # quoted otherwise than the rest: the shell fills it in
    words = ["vllm", "serve", model, *server.arguments, *placed(server, master)]
    checked = f'"${{MASTER:?${{hosts[{server.first}]}} {UNREACHABLE}}}"'
    return " ".join(checked if word == master else shlex.quote(word) for word in words)


def _node(mine: list[Server], model: str) -> list[str]:
    """One node's servers. If one of several ends, all do."""
    if len(mine) == 1:
        return [*environment(mine[0]), f"exec {command(mine[0], model)}"]
    started = [f"({'; '.join([*environment(server), f'exec {command(server, model)}'])}) &" for server in mine]
    return ["trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *started, "wait -n"]
