"""From what the user typed to a printed report: choose probes and cluster, emulate nodes where asked, run, print."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, cast

from ncclcheck import cluster as clusters
from ncclcheck import emulate, fault, node, printing, registry
from ncclcheck.collect import host
from ncclcheck.live import Live
from ncclcheck.model import EXIT_CODES, Outcome
from ncclcheck.options import Options
from ncclcheck.printing import Usage, writable

FULL_REPORT_NODES = 8  # above this many nodes only node 0 prints the whole report


def probe(names: Sequence[str], given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Run `ncclcheck probe`; its exit code. `given` holds the command line's options by name. Raises Usage."""
    options = _options(names, given)
    folder = writable(Path(given["run_dir"]))
    printing.check(given)
    if host.amd_present() and not host.nvidia_present():
        print("ncclcheck: unsupported: this is a ROCm machine, and only NVIDIA GPUs and CPUs can be tested", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    emulated = _emulation(given, environ)
    if emulated:
        return _emulate(emulated, options, given, folder)
    return take_part(options, folder, given, environ)


def take_part(options: Options, folder: Path, given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Find the other nodes and do this one's part; the exit code. Raises Usage."""
    try:
        found = clusters.discover(_flags(given), environ, gpus=len(host.gpus()))
    except ValueError as error:
        raise Usage(str(error)) from None
    return _take_part(found, options, given["token"] or node.DEFAULT_TOKEN, folder, given, sys.stdout, sys.stderr)


def suite() -> list[str]:
    """The default probes in the order in which they run."""
    plugins = [registry.describe("probes", name) for name in registry.names("probes")]
    return [plugin.name for plugin in sorted(plugins, key=lambda plugin: plugin.get("ORDER", 50)) if plugin.get("DEFAULT")]


def _options(names: Sequence[str], given: Mapping[str, Any]) -> Options:
    known = registry.names("probes")
    for name in (*names, *given["skip"]):
        if name not in known:
            raise Usage(f"there is no probe {name!r}; choose from {', '.join(known)}")
    asked = [name for name in names or suite() if name not in given["skip"]]
    if not asked:
        raise Usage("no probe is left to run")
    if given["inject"]:
        try:
            fault.parse(given["inject"])
        except ValueError as error:
            raise Usage(f"--inject: {error}") from None
        except KeyError as error:
            raise Usage(f"--inject: there is no fault {error}; choose from {', '.join(registry.names('faults'))}") from None
    if given["model"] and not os.access(Path(given["model"]) / "config.json", os.R_OK):
        raise Usage(f"--model {given['model']}: no readable config.json there")
    model = {"model": str(Path(given["model"]).resolve())} if given["model"] else {}
    limits = {name: given[name] for name in ("budget", "max_bytes") if given[name]}
    return Options(
        probes=asked,
        not_asked=[name for name in suite() if name not in asked],
        roll_call_timeout=given["roll_call_timeout"],
        deadline=given["deadline"],
        force=given["force"],
        inject=given["inject"],
        probe_options={**model, **limits},
    )


def _flags(given: Mapping[str, Any]) -> clusters.Flags:
    hosts = tuple(filter(None, given["hosts"].split(","))) if given["hosts"] else None
    return clusters.Flags(given["nnodes"], given["node_rank"], given["master"], given["nproc_per_node"], hosts)


def _emulation(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """`2x1` where nodes are to be emulated: asked for, or nothing real to test here."""
    about_a_cluster = [
        f"--{name.replace('_', '-')}" for name in ("nnodes", "node_rank", "master", "nproc_per_node", "hosts") if given[name] is not None
    ]
    if given["emulate"]:
        if about_a_cluster:
            raise Usage(f"--emulate makes its own nodes: leave {' and '.join(about_a_cluster)} out")
        return str(given["emulate"])
    if about_a_cluster or clusters.looks_scheduled(environ) or host.nvidia_present():
        return None
    print("ncclcheck: no NVIDIA GPU and no scheduler here: emulating two nodes (--emulate 2x1)", file=sys.stderr)
    return "2x1"


def _emulate(text: str, options: Options, given: Mapping[str, Any], folder: Path) -> int:
    """Every emulated node takes part as a real one would; node 0 prints, or, if it was killed, the first that lives."""
    try:
        nodes, ranks = emulate.parse(text)
    except ValueError as error:
        raise Usage(f"--emulate: {error}") from None
    gpus = len(host.gpus_by_child())
    if 0 < gpus < nodes * ranks:
        print(f"ncclcheck: {gpus} GPU(s) are too few for {nodes * ranks} ranks: emulating with Gloo on the CPU", file=sys.stderr)
        os.environ["CUDA_VISIBLE_DEVICES"], gpus = "", 0
    token = given["token"] or secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        quiet = [cast(TextIO, stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))) for _ in range(nodes)]

        def body(me: emulate.Node) -> int:
            first = me.rank == 0
            found = clusters.Cluster(nodes, me.rank, "node0", clusters.DEFAULT_PORT, ranks, source="emulated")
            mine = replace(options, emulated=text, environment=emulate.environment(me))
            return _take_part(found, mine, token, folder, given, sys.stdout if first else quiet[me.rank], sys.stderr if first else quiet[me.rank])

        try:
            codes = emulate.run(nodes, ranks, body, gpus=gpus)
        except emulate.EmulationRefused as error:
            print(f"ncclcheck: permission-denied: {error}\n  do: {error.remedy}", file=sys.stderr)
            return EXIT_CODES[Outcome.UNKNOWN]
        alive = next((rank for rank, code in enumerate(codes) if code >= 0), None)
        if alive:
            quiet[alive].seek(0)
            print(quiet[alive].read(), end="")
        return codes[alive] if alive is not None else 128 - codes[0]


def _take_part(found: clusters.Cluster, options: Options, token: str, folder: Path, given: Mapping[str, Any], out: TextIO, err: TextIO) -> int:
    live = Live(err, enabled=True)
    try:
        result = node.run(found, options, token, folder, live.say, live.show)
    except node.Interrupted as interrupted:
        live.close()
        live.say("ncclcheck: interrupted; everything that was started has been ended")
        return 128 + int(interrupted.args[0])
    live.close()
    if not (found.task and found.task.local_rank):  # of the processes of one node, the first speaks for all
        try:
            printing.show(result, given, out, brief=found.nnodes > FULL_REPORT_NODES and found.node_rank != 0)
        except OSError as error:  # a verdict that nobody can read is none
            print(f"ncclcheck: cannot write the result: {error}", file=sys.stderr)
            return EXIT_CODES[Outcome.UNKNOWN]
    if result.status is Outcome.DEGRADED and given["allow_degraded"]:
        return 0
    return EXIT_CODES[result.status]
