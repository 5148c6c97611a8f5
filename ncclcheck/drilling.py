"""Runs a drill: one `ncclcheck probe` after the other, each with a fault, each followed by a healthy one, and a table at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import __version__, drill, emulate, ending, interpreter, left_behind, printing, registry, run_token, session, token_sharing
from ncclcheck import cluster as clusters
from ncclcheck.collect import host, master
from ncclcheck.drill import Row, Trial
from ncclcheck.live import Live
from ncclcheck.model import EXIT_CODES, Outcome, Report, Status
from ncclcheck.printing import Usage, writable

DEFAULT_SHAPE = "2x2"
RUN_BOUND = 240.0  # seconds that one run may take once all nodes are there; then it is ended, and that is a row of its own
_MARK = "NCCLCHECK_DRILL"  # in the environment of everything that one run of a drill starts
HEALTHY_BUDGET = "1s"  # of the healthy job after each fault


def run(names: Sequence[str], given: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Run `ncclcheck drill`; its exit code. `given` holds the command line's options by name. Raises Usage."""
    known = registry.names("faults")
    for name in names:
        if name not in known:
            raise Usage(f"there is no fault {name!r}; choose from {', '.join(known)}")
    printing.check(given)
    folder = writable(Path(given["run_dir"]))
    shape = session.emulation(given, environ, DEFAULT_SHAPE)
    started = time.monotonic()
    live = Live(sys.stderr, enabled=True)
    work = _Drill(given, folder, shape, environ, live)
    rows = []
    interrupted = 0
    trials = drill.trials(names or known, work.nodes, work.each, given["repeat"], given["seed"])
    try:
        with ending.signals():
            work.share_a_token()
            for number, trial in enumerate(trials, 1):
                live.show(f"{number}/{len(trials)}: {trial.name}")
                rows.append(row := work.trial(trial))
                live.say(f"{number}/{len(trials)} {_line(row)}")
    except ending.Ended as ended:
        interrupted = ended.args[0]
    except token_sharing.Missing as missing:
        print(f"ncclcheck: {missing}", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    finally:
        live.close()
    tally = drill.Tally(rows, work.alarms)
    status, told = drill.summary(tally)
    found = Report(
        schema=1,
        status=status if not interrupted else Outcome.UNKNOWN,
        summary=f"{status}: {told}",
        seconds=round(time.monotonic() - started, 3),
        findings=[],
        emulated=bool(shape),
        environment={},
        probes=[],
        nodes=work.seen,
        ranks=[],
        run={"ncclcheck": __version__, "seed": given["seed"], "repeat": given["repeat"], **drill.figures(tally)},
        drill=[asdict(row) for row in rows],
    )
    if given["insecure"] and work.nodes > 1 and not shape:
        found = run_token.marked(found)
    if work.first:
        printing.show(found, given, sys.stdout)
    elif any(not row.clean for row in rows):
        print("ncclcheck: something was left on this node: see above", file=sys.stderr)
    return 128 + interrupted if interrupted else EXIT_CODES[found.status]


class _Drill:
    """This node's part. Every node draws the same trials; the roll call of each run keeps them in step."""

    def __init__(self, given: Mapping[str, Any], folder: Path, shape: str | None, environ: Mapping[str, str], live: Live) -> None:
        self._folder, self._live, self._shape, self._given = folder, live, shape, given
        self._found: clusters.Cluster | None = None
        self._token: int | None = None  # the descriptor in which every run finds it
        self._allowed = given["allow_network_faults"]
        self.alarms = 0  # healthy runs that were not ready
        self.seen: Sequence[Mapping[str, Any]] = []  # the nodes, as the last report has them
        if shape:
            try:
                self.nodes, self.each = emulate.parse(shape)
            except ValueError as error:
                raise Usage(f"--emulate: {error}") from None
            self.first = True
            self._cluster = ["--emulate", shape]
            self._gpus = len(host.gpus_by_child()) >= self.nodes * self.each
        else:
            try:
                found = clusters.discover(session.flags(given), environ, gpus=len(host.gpus()))
            except ValueError as error:
                raise Usage(str(error)) from None
            if found.task:
                raise Usage("a drill is started once on each node, not once for each rank")
            self._found = found
            self.nodes, self.each, self.first = found.nnodes, found.nproc_per_node, is_first(found)
            names = ("nnodes", "node_rank", "master", "nproc_per_node", "hosts")
            self._cluster = [word for name in names if given[name] is not None for word in (f"--{name.replace('_', '-')}", str(given[name]))]
            self._cluster += ["--allow-network-faults"] * bool(given["allow_network_faults"])
            self._gpus = bool(host.gpus())
        self._cluster += ["--force"] * bool(given["force"])
        self._cluster += ["--roll-call-timeout", f"{given['roll_call_timeout']:g}s"]
        self._environ = environ

    def share_a_token(self) -> None:
        """Have the one that all runs need where several nodes take part. Raises token_sharing.Missing, and Usage."""
        if not self._found or self.nodes == 1:
            return
        token = token_sharing.settled(self._found, self.first, self._given, self._live.say)
        if token.insecure:
            self._cluster.append("--insecure")
            return
        self._token = os.memfd_create("token")  # neither an argument nor a variable nor a file on a disk
        os.fchmod(self._token, 0o600)
        os.write(self._token, token.text.encode())
        self._cluster += ["--token-file", f"/dev/fd/{self._token}"]

    def trial(self, trial: Trial) -> Row:
        """Plant one fault, look at what was said of it and at what is left, and see a healthy run after it."""
        if reason := self._unmet(trial):
            return trial.row(Status.SKIP, reason)
        before = left_behind.Trace.now()
        report, failed, left = self._probe(trial.probe, "--inject", str(trial.spec))
        left += before.news()
        again, broken, more = self._probe(drill.JOB, "--budget", HEALTHY_BUDGET)
        left += more
        if again is None or again.status is not Outcome.READY:
            self.alarms += 1
            left.append(f"a healthy run after it: {broken or (again and again.summary)}")
        if report is None:
            return trial.row(Status.CRASHED, failed, left)
        self.seen = report.nodes
        return drill.score(trial, report, self.each, left)

    def _unmet(self, trial: Trial) -> str:
        """Why a fault cannot be planted here; empty if it can."""
        plugin = trial.spec.plugin
        have = {
            "gpu": (self._gpus, "no GPU for each rank"),
            "vllm": (host.versions().get("vllm") is not None, "vllm is not installed"),
            "two-nodes": (self.nodes > 1, "it needs two nodes"),
            "two-ranks-on-a-node": (self.each > 1, "it needs two ranks on a node"),
        }
        needs = [*plugin.get("NEEDS", ()), *(["vllm"] if trial.probe == drill.ENGINE else [])]
        for need in needs:
            met, reason = have.get(need) or (Path(need).exists(), f"there is no {need}")
            if not met:
                return reason
        if not plugin.get("SAFE") and not self._shape and not (self._allowed and os.geteuid() == 0):
            return "it breaks this node's real network for a while: --allow-network-faults, as root, permits that"
        return ""

    def _probe(self, probe: str, *words: str) -> tuple[Report | None, str, list[str]]:
        """One run: its report, or why there is none; and what is left of it."""
        command = interpreter.module("ncclcheck", "probe", probe, *self._cluster, *words, "--format", "json", "--run-dir", str(self._folder))
        scratch = tempfile.mkdtemp(prefix="ncclcheck-drill-")
        mark = f"{_MARK}={secrets.token_hex(8)}"
        bound = RUN_BOUND + self._given["roll_call_timeout"]
        environ = {**self._environ, "TMPDIR": scratch, **dict([mark.split("=")])}
        try:
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                passed = () if self._token is None else (self._token,)
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environ, pass_fds=passed)
                try:
                    process.wait(bound)
                except subprocess.TimeoutExpired:
                    ending.end(process)
                    return None, f"no end within {bound:g} s", []
                except BaseException:
                    ending.end(process)
                    raise
                out.seek(0)
                err.seek(0)
                text, said = out.read(), err.read().decode("utf-8", "replace")
            left = [f"left in the temporary directory: {name}" for name in sorted(os.listdir(scratch))]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        try:
            report = msgspec.json.decode(text, type=Report)
        except msgspec.MsgspecError:
            return None, f"no report, exit code {process.returncode}: {said.strip()[-300:]}", left
        return report, "", left + left_behind.processes_of(mark)


def is_first(found: clusters.Cluster) -> bool:
    """Whether this is node 0: the one that prints."""
    if found.node_rank is not None or found.nnodes == 1:
        return not found.node_rank
    try:
        return master.own(socket.gethostbyname(found.master), host.addresses())
    except (OSError, UnicodeError):
        return False  # each run will say so


def _line(row: Row) -> str:
    """One line of progress."""
    if row.status is Status.SKIP:
        return f"{row.fault}: skip ({row.said})"
    seconds = f" after {row.seconds:.1f} s" if row.seconds is not None else ""
    return f"{row.fault} in rank {row.victim}: {row.status}{seconds}: {row.said}"
