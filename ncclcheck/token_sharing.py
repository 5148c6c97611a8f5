"""How the nodes of a run come to have one token: node 0 makes it, the others look for it, and each says what to type."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncclcheck import cluster as clusters
from ncclcheck.run_token import AT_HOME, MAKE_ONE, Token, at_home, given, home_file, make_at_home, own

_LOOK = 0.2  # seconds between two looks for a token that another node may just be making
_PATIENCE = 1.0  # seconds after which it is said that there is none: most of the time it comes sooner, or never

# What hands a token on, by what started the nodes (see Cluster.source).
_HANDED_ON = {
    "slurm": f"{MAKE_ONE}   # before srun, which carries it to every node",
    "mpi": f"{MAKE_ONE}   # then mpirun -x NCCLCHECK_TOKEN ..., which carries it to every node",
    "kubernetes": "ncclcheck token > /dev/null; kubectl create secret generic ncclcheck --from-file ~/.config/ncclcheck/token   # then "
    "mount it in every pod, and set NCCLCHECK_TOKEN_FILE to where it is",
}


class Missing(Exception):
    """This node has no token, and none came; args: what to do, in words."""


async def obtain(cluster: clusters.Cluster, first: bool, end: float, say: Callable[[str], None]) -> Token | None:
    """The token at home where none was given: node 0 makes it and says how the others get it; another node looks for it until `end` (monotonic).

    Raises Usage.
    """
    if first:
        if make_at_home():
            for line in _how_others_get_it(cluster, sys.argv[1:]):
                say(f"ncclcheck: {line}")
        return own()
    speaks: float | None = time.monotonic() + _PATIENCE
    while not (token := at_home()):
        now = time.monotonic()
        if speaks and now > min(speaks, end):
            speaks = None
            lacking = f"neither NCCLCHECK_TOKEN nor {home_file()} is there"
            say(f"ncclcheck: this node has no token, as {lacking}; it looks for that file for {end - now:.0f} s")
            say(f"ncclcheck: do: {handed_on(cluster)}")
        if now > end:
            return None
        await asyncio.sleep(_LOOK)
    return token


def settled(cluster: clusters.Cluster, first: bool, options: Mapping[str, Any], say: Callable[[str], None]) -> Token:
    """The token of a command that starts several runs. Raises Missing where it does not come before the roll call would end, and Usage."""
    end = time.monotonic() + options["roll_call_timeout"]
    token = given(options) or asyncio.run(obtain(cluster, first, end, say))
    if not token:
        raise Missing(f"no-token: this node has none, and {home_file()} was looked for in vain\n  do: {handed_on(cluster)}")
    return token


def handed_on(cluster: clusters.Cluster, path: str | Path = AT_HOME) -> str:
    """The line to type on a node that lacks the token; node 0 keeps it in `path`."""
    host = f"[{cluster.master}]" if ":" in cluster.master else cluster.master
    into = shlex.quote(str(home_file().parent)) if os.environ.get("XDG_CONFIG_HOME") else "~/.config/ncclcheck"
    copy = f"mkdir -p -m 700 {into}; scp -p {shlex.quote(f'{host}:{path}')} {into}/"
    return _HANDED_ON.get(cluster.source, f"{copy}   # or export as NCCLCHECK_TOKEN what `ncclcheck token` prints on node 0")


def _how_others_get_it(cluster: clusters.Cluster, words: Sequence[str]) -> list[str]:
    """What is said where a token was made. The token itself only to a person: what a scheduler or a file gets is kept and read by others."""
    path = home_file()
    made = f"made a token for your runs, in {path}: nodes that share this home folder have it"
    if clusters.looks_scheduled(os.environ) or not sys.stderr.isatty():
        return [made, f"where a node does not: {handed_on(cluster, path)}"]
    number = "1" if cluster.nnodes == 2 else f"N   # N: 1 to {cluster.nnodes - 1}"
    command = shlex.join(["ncclcheck", *_without_number(words)])
    return [f"{made}; on every other one type:", f"    export NCCLCHECK_TOKEN={own().text}", f"    {command} --node-rank {number}"]


def _without_number(words: Sequence[str]) -> list[str]:
    """A command's words without --node-rank."""
    kept = [word for at, word in enumerate(words) if word != "--node-rank" and (not at or words[at - 1] != "--node-rank")]
    return [word for word in kept if not word.startswith("--node-rank=")]
