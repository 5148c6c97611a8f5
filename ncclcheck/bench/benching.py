"""Runs `ncclcheck bench`: one server after the other, each in a run of its own, a line for each cell, and the tables at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import cluster as clusters
from ncclcheck import emulate, ending, safe_files, session, token_sharing, vllm_model
from ncclcheck.bench import asked, child, document, html, text, words
from ncclcheck.bench.cells import Cell, Result
from ncclcheck.bench.found import Found, Row
from ncclcheck.bench.grid import Launch, Plan
from ncclcheck.bench.store import Store
from ncclcheck.collect import host
from ncclcheck.drilling import is_first
from ncclcheck.live import Live
from ncclcheck.model import EXIT_CODES, Fact, Outcome, Report, Status
from ncclcheck.printing import Usage, check_output, writable
from ncclcheck.report import json
from ncclcheck.units import seconds_text

DEFAULT_SHAPE = "2x2"  # of emulated nodes: TP=2 fits into one, and over both
FORMATS = ("text", "json", "html")
PROBE = "vllm_bench"
ALL_REDUCES = {"budget": 1.5, "max_bytes": 2**20}  # of the bandwidth probe before it


@dataclass(frozen=True, slots=True)
class Nodes:
    """Where it is measured. `first`: this is node 0, which prints; `words`: the options of `ncclcheck probe` that say so."""

    nodes: int
    each: int
    first: bool
    emulated: bool
    gpus: Sequence[str]  # names of this node's
    cluster: clusters.Cluster | None = None  # where several real nodes take part


def run(model: str | None, given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Measure; the exit code. `given` holds the command line's options by name. Raises Usage."""
    _check(given)
    folder = writable(Path(given["run_dir"]))
    if model is not None and not os.access(Path(model) / "config.json", os.R_OK):
        raise Usage(f"MODEL {model}: no readable config.json there")
    if host.versions().get("vllm") is None:
        print("ncclcheck: vllm is not installed here: pip install 'ncclcheck[vllm]' into the environment that serves", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    shape = session.emulation(given, environ, DEFAULT_SHAPE)
    where = _nodes(given, environ, shape)
    path = os.path.abspath(model) if model is not None else None
    plan = asked.plan({**given, "model": path}, where.nodes, where.each, not where.gpus, where.emulated)
    work = _Bench(path, given, environ, folder, where, plan)
    interrupted = 0
    try:
        with ending.signals():
            work.run()
    except token_sharing.Missing as missing:
        print(f"ncclcheck: {missing}", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    except ending.Ended as ended:
        interrupted = ended.args[0]
    found = replace(work.found(), interrupted=bool(interrupted))
    if where.first:
        _write(found, given)
    return 128 + interrupted if interrupted else EXIT_CODES[found.status]


def _check(given: Mapping[str, Any]) -> None:
    if given["form"] not in FORMATS:
        raise Usage(f"--format {given['form']} is not known; choose from {', '.join(FORMATS)}")
    if given["output"]:
        check_output(given["output"])


def _nodes(given: Mapping[str, Any], environ: Mapping[str, str], shape: str | None) -> Nodes:
    gpus = [str(gpu.get("name")) for gpu in (host.gpus_by_child() if shape else host.gpus())]
    try:
        if shape:
            nodes, each = emulate.parse(shape)
            return Nodes(nodes, each, True, True, gpus if len(gpus) >= nodes * each else [])
        found = clusters.discover(session.flags(given), environ, gpus=len(gpus))
    except ValueError as error:
        raise Usage(f"{'--emulate: ' if shape else ''}{error}") from None
    if found.task:
        raise Usage("a measurement is started once on each node, not once for each rank")
    return Nodes(found.nnodes, found.nproc_per_node, is_first(found), False, gpus, found if found.nnodes > 1 else None)


def _write(found: Found, given: Mapping[str, Any]) -> None:
    form = given["form"]
    rendered = json.dumps(document.build(found)) if form == "json" else html.render(found) if form == "html" else text.render(found)
    if given["output"]:
        safe_files.write(Path(given["output"]), rendered.encode())
        return
    with contextlib.suppress(BrokenPipeError):  # who closed the pipe has read enough
        sys.stdout.write(rendered)
        sys.stdout.flush()


class _Bench:
    """This node's part. Node 0 decides what is measured; the others take part in as many runs as it says are left."""

    def __init__(self, model: str | None, given: Mapping[str, Any], environ: Mapping[str, str], folder: Path, where: Nodes, plan: Plan) -> None:
        self._model, self._given, self._nodes, self.plan, self._folder = model, given, where, plan, folder
        self._environ, self._token = dict(environ), ""
        if where.emulated and not where.gpus:  # too few for all layouts: none gets any, so that all compare
            self._environ["CUDA_VISIBLE_DEVICES"] = ""
        self._live = Live(sys.stderr, enabled=True)
        self._tp = asked.made_for(plan)
        versions = host.versions()
        facts = {
            "model": model or asked.BUILTIN,
            "weights": vllm_model.digest(Path(model)) if model else f"made for TP={self._tp}",
            "vllm": versions.get("vllm"),
            "torch": versions.get("torch"),
            "device": ", ".join(sorted(set(where.gpus))) or "CPU",
            "machine": host.name(),
            "emulated": where.emulated,
        }
        self._store = Store(folder / "bench", facts)
        self._kept = {cell for cell in plan.cells if not given["again"] and self._store.get(cell)}
        self._told = set(self._kept)
        self._why: dict[Cell, str] = {}
        self._started = time.monotonic()

    def run(self) -> None:
        """Measure what is not kept yet. Raises token_sharing.Missing, and Usage."""
        if self._nodes.cluster and not self._given["insecure"]:
            self._token = token_sharing.settled(self._nodes.cluster, self._nodes.first, self._given, self._say).text
        if self._kept:
            self._say(f"{len(self._kept)} of {len(self.plan.cells)} cells were measured before, and are kept in {self._store.folder}")
        left = [launch for launch in self.plan.launches if self._pending(launch)]
        while left:
            launch, *left = left
            pending = self._pending(launch)
            settings = [f"{name} {value}" for name, value in launch.server.settings if (name, value) not in self.plan.reference.server.settings]
            self._say(f"{'; '.join([str(launch.server.layout), *settings])}: starting a server ({len(pending)} cells)")
            report, why = child.run(self._asked(launch, pending, len(left)), self._environ, partial(self._look, pending))
            self._judge(launch, pending, report, why)
            if report and not self._nodes.first:
                left = list(self.plan.launches[-told:]) if (told := _left(report)) else []

    def found(self) -> Found:
        """Everything that is known by now."""
        base = dict(self.plan.reference.server.settings)
        rows = []
        for cell in self.plan.cells:
            changed = ", ".join(f"{name} {value}" for name, value in cell.server.settings if base.get(name) != value)
            result = self._store.get(cell) if cell in self._told else None
            rows.append(Row(cell, result, "" if result else self._why.get(cell, "not reached"), cell in self._kept, changed))
        shape = asked.shape(self._model, self._tp, base.get("dtype"))
        layouts = dict.fromkeys(cell.server.layout for cell in self.plan.cells)
        curves = {layout: curve for layout in layouts if (curve := self._store.curve(layout))}
        seconds = time.monotonic() - self._started
        insecure = bool(self._nodes.cluster and self._given["insecure"])
        return Found(self.plan, rows, self._store.where, shape, curves, self._nodes.emulated, seconds, insecure=insecure)

    def _pending(self, launch: Launch) -> list[Cell]:
        return [cell for cell in launch.cells if cell not in self._told]

    def _asked(self, launch: Launch, pending: Sequence[Cell], left: int) -> child.Asked:
        """One run: the ranks' all-reduces where nobody has timed them, and the server."""
        layout = launch.server.layout
        whole = self._nodes.emulated or layout.ranks == self._nodes.nodes * self._nodes.each
        timed = layout.ranks > 1 and whole and (layout.nodes > 1 or bool(self._nodes.gpus)) and not self._store.ways(layout).exists()
        options: dict[str, Any] = {
            "bench": {
                "server": launch.server, "loads": [cell.load for cell in pending], "store": str(self._store.folder.resolve()),
                "where": self._store.where, "made_for": self._tp, "left": left,
            },
            **({"model": self._model} if self._model else {}),
            **(ALL_REDUCES if timed else {}),
        }  # fmt: skip
        of_probe = ("nnodes", "node_rank", "master", "nproc_per_node", "hosts", "insecure", "force", "deadline")
        given = {
            **{name: self._given[name] for name in of_probe},
            "token": self._token,
            "token_file": None,
            "emulate": f"{layout.nodes}x{layout.each}" if self._nodes.emulated else None,
            "roll_call_timeout": self._given["roll_call_timeout"],
            "run_dir": str(self._folder),
            "form": "json",
            "output": None,
            "model": self._model,
            "allow_degraded": True,
            "allow_network_faults": False,
        }
        servers = [msgspec.to_builtins(other.server) for other in self.plan.launches]
        return child.Asked([*(["bandwidth"] if timed else []), PROBE], msgspec.to_builtins(options), given, layout.link, servers)

    def _look(self, pending: Sequence[Cell]) -> None:
        """A line for every cell that has been measured meanwhile."""
        for cell in pending:
            if cell not in self._told and self._store.path(cell).exists() and (result := self._fresh(cell)):
                self._told.add(cell)
                number = f"{len(self._told)}/{len(self.plan.cells)}"
                self._say(
                    f"{number} {cell.server.layout}, {cell.load}: {words.rate(result.tokens_per_second)} tokens/s, "
                    f"TTFT {seconds_text(result.ttft.p50)}, TPOT {seconds_text(result.tpot.p50)}"
                )

    def _fresh(self, cell: Cell) -> Result | None:
        """What was measured in this run; with --again the file of an earlier one may still lie there."""
        with contextlib.suppress(OSError):
            if self._store.path(cell).stat().st_mtime >= time.time() - (time.monotonic() - self._started):
                return self._store.get(cell)
        return None

    def _judge(self, launch: Launch, pending: Sequence[Cell], report: Report | None, why: str) -> None:
        """Keep what the run measured of the links, and why cells are missing."""
        failed: dict[str, str] = {}
        if report:
            probes = {probe.name: probe for probe in report.probes}
            if (probe := probes.get("bandwidth")) and probe.samples:
                safe_files.write(self._store.ways(launch.server.layout), msgspec.json.encode(report))
            bench = probes.get(PROBE)
            if bench and bench.status is Status.PASS:  # else what came of a load is a consequence
                failed = {str(fact.get("load")): str(fact.get("why")) for fact in bench.facts if fact.kind == "cell-failed"}
            why = report.findings[0].title if report.findings else report.summary
            if not self._nodes.first:
                self._copy(pending, bench.facts if bench else [])
        self._look(pending)
        for cell in self._pending(launch):
            self._why[cell] = failed.get(str(cell.load), why)
        for reason in dict.fromkeys(self._why[cell] for cell in self._pending(launch)):
            self._say(f"{launch.server.layout}: not measured: {reason}")

    def _copy(self, pending: Sequence[Cell], facts: Sequence[Fact]) -> None:
        """Keep on this node, too, what node 0 has measured: so all know what is left when the measurement goes on."""
        results = {str(fact.get("load")): fact.get("result") for fact in facts if fact.kind == "cell"}
        for cell in pending:
            with contextlib.suppress(msgspec.ValidationError):
                if told := results.get(str(cell.load)):
                    self._store.put(cell, msgspec.convert(told, Result))

    def _say(self, line: str) -> None:
        self._live.say(f"bench: {line}")


def _left(report: Report) -> int:
    """How many runs node 0 will start after this one."""
    told = [fact.get("left") for probe in report.probes for fact in probe.facts if fact.kind == "bench"]
    return next((int(number) for number in told if isinstance(number, int)), 0)
