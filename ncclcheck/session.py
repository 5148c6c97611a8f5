"""From what the user typed to a printed report: choose probes and cluster, emulate nodes where asked, run, print."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, cast

from ncclcheck import cluster as clusters
from ncclcheck import drill, emulate, fault, link, namespaces, node, printing, registry, run_token, vllm_layout
from ncclcheck.collect import host, hub
from ncclcheck.live import Live
from ncclcheck.message_limits import one_line
from ncclcheck.model import EXIT_CODES, Outcome
from ncclcheck.options import Options
from ncclcheck.printing import Usage, writable

DEFAULT_SHAPE = "2x1"  # of emulated nodes: the least that has a network
LAYOUT = ("tp", "pp")
ENGINES = {"external": "vllm_engine", "serve": "vllm_serve", "ray": "vllm_ray"}  # how vLLM is launched -> the probe that does it so
FULL_REPORT_NODES = 8  # above this many nodes only node 0 prints the whole report


def probe(names: Sequence[str], given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Run `ncclcheck probe`; its exit code. `given` holds the command line's options by name. Raises Usage."""
    return carry_out(_options(names, given), given, environ)


def carry_out(options: Options, given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Run what is asked for, here or on nodes that are emulated; the exit code. Raises Usage."""
    folder = Path(given["run_dir"])
    with contextlib.suppress(printing.Full):  # the others must hear of it: the run will end with it
        writable(folder)
    printing.check(given)
    if host.amd_present() and not host.nvidia_present():
        print("ncclcheck: unsupported: this is a ROCm machine, and only NVIDIA GPUs and CPUs can be tested", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    if not (given["nnodes"] or given["master"] or clusters.looks_scheduled(environ)):
        _has_model(given)
    emulated = emulation(given, environ, DEFAULT_SHAPE)
    if emulated:
        return _emulate(emulated, options, given, folder)
    if options.link:
        raise Usage("--simulate-link makes the links of emulated nodes slow: say --emulate 2x1; a real network is left as it is")
    if options.inject and not fault.parse(options.inject).plugin.get("SAFE") and not (given["allow_network_faults"] and os.geteuid() == 0):
        raise Usage("--inject: this fault breaks the network of a real node for a while; --allow-network-faults, as root, permits that")
    return take_part(options, folder, given, environ)


def take_part(options: Options, folder: Path, given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Find the other nodes and do this one's part; the exit code. Raises Usage."""
    try:
        found = clusters.discover(flags(given), environ, gpus=len(host.gpus()))
    except ValueError as error:
        raise Usage(str(error)) from None
    _fits(options, found.nnodes * found.nproc_per_node)
    if found.nnodes == 1:  # of several, whoever lacks it is named by node 0
        _has_model(given)
    token = run_token.given(given) if found.nnodes > 1 else run_token.fresh()
    return _take_part(found, options, token, folder, given, sys.stdout, sys.stderr)


def suite() -> list[str]:
    """The default probes in the order in which they run."""
    plugins = [registry.describe("probes", name) for name in registry.names("probes")]
    return [plugin.name for plugin in sorted(plugins, key=lambda plugin: plugin.get("ORDER", 50)) if plugin.get("DEFAULT")]


def vllm_probes(mode: str | None) -> list[str]:
    """The probes for a way in which vLLM is launched ("external", "serve", "ray", or "all" of them); none where nothing was asked."""
    return list(ENGINES.values()) if mode == "all" else [ENGINES[mode]] if mode else []


def _options(names: Sequence[str], given: Mapping[str, Any]) -> Options:
    known = registry.names("probes")
    for name in (*names, *given["skip"]):
        if name not in known:
            raise Usage(f"there is no probe {name!r}; choose from {', '.join(known)}")
    chosen = vllm_probes(given["vllm_mode"])
    wanted = list(names) or [name for name in suite() if not chosen or name not in ENGINES.values()]
    wanted += [name for name in chosen if name not in wanted]
    asked = [name for name in wanted if name not in given["skip"]]
    if not asked:
        raise Usage("no probe is left to run")
    if given["inject"]:
        try:
            fault.parse(given["inject"])
        except ValueError as error:
            raise Usage(f"--inject: {error}") from None
        except KeyError as error:
            raise Usage(f"--inject: there is no fault {error}; choose from {', '.join(registry.names('faults'))}") from None
        _plantable(fault.parse(given["inject"]), asked)
    model = {"model": _model(given["model"])} if given["model"] else {}
    limits = {name: given[name] for name in ("budget", "max_bytes", "max_model_len", *LAYOUT) if given.get(name)}
    if any(given[name] for name in LAYOUT) and not set(ENGINES.values()) & set(asked):
        raise Usage("--tp and --pp are for vLLM's probes, and none is among those to run")
    return Options(
        probes=asked,
        not_asked=[name for name in suite() if name not in asked],
        spared=[ENGINES["ray"]] if given["vllm_mode"] == "all" and ENGINES["ray"] not in names else [],
        roll_call_timeout=given["roll_call_timeout"],
        deadline=given["deadline"],
        force=given["force"],
        inject=given["inject"],
        allow_network_faults=given["allow_network_faults"],
        probe_options={**model, **limits},
        link=_link(given),
    )


def _model(said: str) -> str:
    """A path from the root, where a link stays one, since it may lead elsewhere on each node; or the name of a model on the hub."""
    return said if hub.is_name(said) and not os.path.isdir(said) else os.path.abspath(said)


def _link(given: Mapping[str, Any]) -> link.Link | None:
    try:
        return link.parse(given["simulate_link"]) if given["simulate_link"] else None
    except ValueError as error:
        raise Usage(f"--simulate-link: {error}") from None


def _has_model(given: Mapping[str, Any]) -> None:
    """Raises Usage where --model is not on the only node."""
    model = given.get("model")
    if not model:
        return
    folder, why = hub.find(model, os.environ)
    if why:
        raise Usage(f"--model {model}: {why}")
    if not os.access(folder / "config.json", os.R_OK):
        raise Usage(f"--model {model}: no readable config.json there")


def _fits(options: Options, ranks: int) -> None:
    """Raises Usage where --tp and --pp do not make so many ranks."""
    try:
        vllm_layout.choose(ranks, *(options.probe_options.get(name) for name in LAYOUT))
    except ValueError as error:
        raise Usage(str(error)) from None


def _plantable(spec: fault.Spec, asked: Sequence[str]) -> None:
    """Raises Usage for a fault that would never strike in these probes."""
    fitting = [name for name in asked if registry.needs_ranks(name)]
    fitting = [name for name in fitting if spec.strikes != "call" or registry.describe("probes", name).get("CALLS")]
    jobs = spec.plugin.get("PROBES", (drill.JOB,))
    if drill.JOB not in jobs:  # it breaks what only these have
        fitting = [name for name in fitting if name in jobs]
    if not fitting:
        can = [name for name in registry.names("probes") if registry.describe("probes", name).get("CALLS")] if spec.strikes == "call" else jobs
        raise Usage(f"--inject: {spec.name} can only be planted in {' and '.join(can)}")


def flags(given: Mapping[str, Any]) -> clusters.Flags:
    hosts = tuple(filter(None, given["hosts"].split(","))) if given["hosts"] else None
    return clusters.Flags(given["nnodes"], given["node_rank"], given["master"], given["nproc_per_node"], hosts)


def emulation(given: Mapping[str, Any], environ: Mapping[str, str], default: str) -> str | None:
    """`2x1` or another `default` where nodes are to be emulated: asked for, or nothing real to test here."""
    about_a_cluster = [
        f"--{name.replace('_', '-')}" for name in ("nnodes", "node_rank", "master", "nproc_per_node", "hosts") if given[name] is not None
    ]
    if given["emulate"]:
        if about_a_cluster:
            raise Usage(f"--emulate makes its own nodes: leave {' and '.join(about_a_cluster)} out")
        return str(given["emulate"])
    if about_a_cluster or clusters.looks_scheduled(environ) or host.nvidia_present():
        return None
    print(f"ncclcheck: no NVIDIA GPU and no scheduler here: emulating two nodes (--emulate {default})", file=sys.stderr)
    return default


def _emulate(text: str, options: Options, given: Mapping[str, Any], folder: Path) -> int:
    """Every emulated node takes part as a real one would; node 0 prints, or, if it was killed, the first that lives."""
    try:
        nodes, ranks = emulate.parse(text)
    except ValueError as error:
        raise Usage(f"--emulate: {error}") from None
    _fits(options, nodes * ranks)
    gpus = len(host.gpus_by_child())
    if 0 < gpus < nodes * ranks:
        print(f"ncclcheck: {gpus} GPU(s) are too few for {nodes * ranks} ranks: emulating with Gloo on the CPU", file=sys.stderr)
        os.environ["CUDA_VISIBLE_DEVICES"], gpus = "", 0
    token = run_token.fresh()
    run_token.derive_key(token.text)  # once, before the nodes are forked
    with contextlib.ExitStack() as stack:
        quiet = [cast(TextIO, stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))) for _ in range(nodes)]

        def body(me: emulate.Node) -> int:
            first = me.rank == 0
            found = clusters.Cluster(nodes, me.rank, "node0", clusters.DEFAULT_PORT, ranks, source="emulated")
            mine = replace(options, emulated=text, environment=emulate.environment(me))
            out, err = (sys.stdout, sys.stderr) if first else (quiet[me.rank], quiet[me.rank])
            peers = [namespaces.address(other) for other in range(nodes) if other != me.rank]
            try:
                with link.kept(options.link, namespaces.INTERFACE, peers):
                    return _take_part(found, mine, token, folder, given, out, err)
            except link.Refused as error:
                print(f"ncclcheck: {error}", file=sys.stderr)
                return EXIT_CODES[Outcome.UNKNOWN]

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


def _take_part(
    found: clusters.Cluster, options: Options, token: run_token.Token | None, folder: Path, given: Mapping[str, Any], out: TextIO, err: TextIO
) -> int:
    live = Live(err, enabled=True)
    try:
        result = node.run(found, options, token, folder, live.say, live.show)
    except node.Interrupted as interrupted:
        live.say("ncclcheck: interrupted; everything that was started has been ended")
        return 128 + int(interrupted.args[0])
    finally:
        live.close()
    if not (found.task and found.task.local_rank):  # of the processes of one node, the first speaks for all
        try:
            printing.show(result, given, out, brief=found.nnodes > FULL_REPORT_NODES and found.node_rank != 0)
        except OSError as error:  # a verdict that nobody can read is none
            print(f"ncclcheck: cannot write the result: {error}", file=sys.stderr)
            return EXIT_CODES[Outcome.UNKNOWN]
        except Exception as error:  # nobody foresaw what is in it: it stands for no verdict
            said = one_line(f"{type(error).__name__}: {error}")
            print(f"ncclcheck: the result cannot be shown as {given['form']} ({said}); report it to ncclcheck", file=sys.stderr)
            return EXIT_CODES[Outcome.UNKNOWN]
    if result.status is Outcome.DEGRADED and given["allow_degraded"]:
        return 0
    return EXIT_CODES[result.status]
