"""Runs `ncclcheck plan`: from what the user typed to a printed plan or to the files that start it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncclcheck import printing, safe_files
from ncclcheck.expect import gpus, links
from ncclcheck.model import EXIT_CODES, Outcome
from ncclcheck.plan import choose, config, emit, fields, hardware, measured, render
from ncclcheck.plan.commands import Engine, servers
from ncclcheck.plan.curves import Measured
from ncclcheck.plan.emit import Launch
from ncclcheck.plan.hardware import Hardware
from ncclcheck.plan.predict import Load
from ncclcheck.plan.render import Plan
from ncclcheck.plan.shape import Shape
from ncclcheck.printing import Usage

FORMATS = ("text", "json")
MOST_GPUS = 4096


def run(model: str, given: Mapping[str, Any]) -> int:
    """Plan; the exit code. `given` holds the command line's options by name. Raises Usage."""
    _check(given)
    try:
        runs = [measured.read(Path(path)) for path in given["run"]]
        shape = config.read(Path(model))
    except fields.Unknown as error:
        print(f"ncclcheck: {error}", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    except (measured.Unusable, fields.Unreadable) as error:
        raise Usage(str(error)) from None
    cluster = _cluster(given, runs)
    if not choose.starts(shape, cluster.gpu):
        raise Usage(f"vLLM cannot compute in INT8 on the {cluster.gpu.name}, as these weights ask for; take FP8 weights")
    shape = shape.served(choose.dtype(shape, given["dtype"], cluster.gpu))
    load = _load(given, shape)
    _possible(shape, cluster, given["tp"], given["pp"])
    ranked = choose.ranked(shape, cluster, load, given["tp"], given["pp"])
    if not ranked:
        raise Usage(f"TP={given['tp'] or 'any'} PP={given['pp'] or 'any'} does not lie evenly on {cluster.nodes} nodes of {cluster.each} GPUs")
    lacking = choose.lacking(shape, cluster, load, ranked) if not ranked[0].fits else []
    emulated = any(one.emulated for one in runs)
    launch = None if lacking else _launch(model, given, shape, load, ranked, cluster, runs)
    plan = Plan(shape, cluster, load, ranked, lacking, launch, emulated)
    if lacking and given["emit"]:
        print(f"ncclcheck: {'; '.join(lacking)}", file=sys.stderr)
    else:
        _write(_rendered(plan, given), given["output"])
    return EXIT_CODES[Outcome.NOT_READY if lacking else Outcome.READY]


def _check(given: Mapping[str, Any]) -> None:
    if given["form"] not in FORMATS:
        raise Usage(f"--format {given['form']} is not known; choose from {', '.join(FORMATS)}")
    if given["emit"] and given["emit"] not in emit.forms():
        raise Usage(f"--emit {given['emit']} is not known; choose from {', '.join(emit.forms())}")
    if given["output"]:
        printing.check_output(given["output"])


def _cluster(given: Mapping[str, Any], runs: Sequence[Measured]) -> Hardware:
    """Nodes, GPUs and links: what is said counts, then what the largest run saw."""
    widest = max(runs, key=lambda one: one.curve.group.size, default=None)
    seen = widest.curve.group if widest else None
    nodes, each = given["nodes"] or (seen.nodes if seen else None), given["gpus_per_node"] or (seen.each if seen else None)
    name = given["gpu"] or (widest.device if widest else "")
    missing = [flag for flag, value in (("--nodes", nodes), ("--gpus-per-node", each), ("--gpu", name)) if not value]
    if nodes is None or each is None or missing:
        raise Usage(f"say {' and '.join(missing)}, or --run with what `ncclcheck probe` measured on the cluster")
    if nodes * each > MOST_GPUS:
        raise Usage(f"{nodes} x {each} GPUs: at most {MOST_GPUS} can be planned for")
    try:
        gpu = gpus.find(name)
        network = links.network(given["network"]) if given["network"] else None
    except ValueError as error:
        raise Usage(str(error)) from None
    for one in runs:
        if one.device and _known_gpu(one.device) not in (None, gpu):
            raise Usage(f"{one.source} was measured on {one.device}: its links say nothing about {gpu.name}; leave --gpu out, or that --run")
    inside = given["inside"] or gpu.inside
    if inside not in links.INSIDE:
        raise Usage(f"--inside {inside} is not known; choose from {', '.join(links.INSIDE)}")
    found = hardware.build(nodes, each, gpu, links.INSIDE[inside], network, runs)
    if nodes > 1 and found.network is None:
        raise Usage("what joins the nodes? Say --network, such as 100G or 8x400G-rdma, or give the --run of a probe over them")
    return found


def _known_gpu(name: str) -> gpus.Gpu | None:
    try:
        return gpus.find(name)
    except ValueError:
        return None  # the user says which of the table is nearest


def _load(given: Mapping[str, Any], shape: Shape) -> Load:
    needed = given["prompt"] + given["answer"]
    longest = given["max_model_len"] or min(shape.longest, max(8192, needed))
    if needed > longest:
        raise Usage(f"{given['prompt']} tokens in and {given['answer']} out are more than the {longest} of a request at most")
    if longest > shape.longest:
        raise Usage(f"--max-model-len {longest}: {shape.name} takes requests of {shape.longest} tokens at most")
    return Load(given["requests"], given["prompt"], given["answer"], longest)


def _possible(shape: Shape, cluster: Hardware, tp: int | None, pp: int | None) -> None:
    """Raises Usage where the layout that was asked for cannot be, and says which can."""
    if tp and (reason := shape.refuses(tp)):
        raise Usage(f"--tp {tp}: {reason}; TP can be {', '.join(map(str, shape.slices(cluster.gpus)))}")
    if pp and pp > shape.layers:
        raise Usage(f"--pp {pp}: the model has {shape.layers} layers")
    if (tp or 1) * (pp or 1) > cluster.gpus:
        raise Usage(f"TP={tp or 1} x PP={pp or 1} needs {(tp or 1) * (pp or 1)} GPUs, there are {cluster.gpus}")


def _launch(
    model: str, given: Mapping[str, Any], shape: Shape, load: Load, ranked: Sequence[Any], cluster: Hardware, runs: Sequence[Measured]
) -> Launch | None:
    """What to start. None, said on standard error, where the model's path can stand in no command; raises Usage where only commands are wanted."""
    taken = ranked[0]
    hosts = tuple(filter(None, map(str.strip, given["hosts"].split(",")))) if given["hosts"] else _known(cluster, runs)
    if hosts and len(hosts) != cluster.nodes:
        raise Usage(f"--hosts: {len(hosts)} hosts are named, but there are {cluster.nodes} nodes")
    if given["node_rank"] is not None and given["node_rank"] >= cluster.nodes:
        raise Usage(f"--node-rank {given['node_rank']}: the nodes are 0 to {cluster.nodes - 1}")
    folder = str((Path(model) if Path(model).is_dir() else Path(model).parent).resolve())
    if fields.masked(folder) != folder:
        reason = "the model's path has characters that a script cannot carry; rename or link it"
        if given["emit"] or given["form"] == "json":
            raise Usage(reason)
        print(f"ncclcheck: {reason}", file=sys.stderr)
        return None
    engine = Engine(folder, shape.dtype, load.longest, taken.requests)
    started = servers(taken.layout, cluster.each, engine)
    launch = Launch(taken.layout, cluster.each, engine, started, hosts, given["node_rank"])
    if not launch.wanted:
        raise Usage(f"--node-rank {given['node_rank']}: {taken.layout} leaves that node unused; it takes the nodes 0 to {launch.nodes - 1}")
    if not (Path(folder) / "config.json").is_file():
        print(f"ncclcheck: {folder} has no config.json: vLLM will not find the model there", file=sys.stderr)
    return launch


def _known(cluster: Hardware, runs: Sequence[Measured]) -> tuple[str, ...]:
    """The nodes' addresses, or else their names, where a run saw as many."""
    found = [one.addresses or one.hosts for one in runs if not one.emulated]
    return next((hosts for hosts in found if len(hosts) == cluster.nodes), ())


def _rendered(plan: Plan, given: Mapping[str, Any]) -> str:
    if given["emit"]:
        assert plan.launch
        try:
            return emit.write(plan.launch, given["emit"])
        except ValueError as error:
            raise Usage(f"--emit {given['emit']}: {error}") from None
    if given["form"] == "json":
        from ncclcheck.report.json import dumps

        return dumps(render.document(plan))
    return render.text(plan)


def _write(text: str, output: str | None) -> None:
    if output:
        safe_files.write(Path(output), text.encode(), mode=0o666)  # no evidence: for whoever starts it
        return
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(text)
        sys.stdout.flush()
