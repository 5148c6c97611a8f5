"""A systemd unit for every server, one after the other; the comment before each says on which node it goes, and under which name."""

from __future__ import annotations

import shlex

from ncclcheck.plan.commands import Server
from ncclcheck.plan.emit import Launch, shell


def write(launch: Launch) -> str:
    """The units. Raises ValueError where nodes must find each other and nobody said their addresses."""
    if launch.spread and not launch.hosts:
        raise ValueError("systemd units over several nodes need the nodes' addresses: --hosts A,B,...")
    return "\n".join(_unit(launch, server) for server in launch.wanted)


def _unit(launch: Launch, server: Server) -> str:
    name = "vllm.service" if server.gpus is None else f"vllm-{server.port}.service"
    hosts = [f"hosts=({' '.join(map(shlex.quote, launch.hosts))})", *shell.FUNCTIONS] if launch.spread else []
    script = "; ".join(["set -e", *hosts, *shell.environment(server), f"exec {shell.command(server, launch.engine.model)}"])
    return "\n".join([
        f"# node {server.node}: /etc/systemd/system/{name}",
        "[Unit]",
        f"Description=vLLM, {_escaped(launch.title())}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "# vllm must be found in this PATH: put the bin folder of its environment first",
        "Environment=PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        f"ExecStart=/bin/bash -c {_quoted(script)}",
        "Restart=on-failure",
        "RestartSec=10",
        "KillMode=control-group",
        "TimeoutStopSec=60",
        "LimitNOFILE=1048576",
        "LimitMEMLOCK=infinity",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ])  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """One word for systemd, which expands % and $ by itself and knows backslashes."""
    return '"' + _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("$", "$$") + '"'
