"""Arguments in, one call, exit code out: no logic, and nothing heavy imported before it is needed."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ncclcheck import __version__, units
from ncclcheck.model import EXIT_CODES, USAGE, Outcome


class Size(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """`64MiB` -> bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return units.parse_bytes(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """`1.5m` -> seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return units.parse_seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def main() -> None:
    """The program: closed streams are no error, and an interrupt before anything was started exits with 130."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process lives)
    try:
        cli.main(standalone_mode=False, prog_name="ncclcheck")
    except click.ClickException as error:
        error.show()
        _leave(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _leave(130)
    _leave(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ncclcheck")
def cli() -> None:
    """Find the rank, host, link or setting that breaks distributed PyTorch, NCCL or vLLM.

    (A rank is one process of a distributed job, usually with one GPU; a node is one machine.)

    \b
    On each node of a cluster, before a launch:
        ncclcheck probe --nnodes 2 --node-rank 0 --master 10.0.0.1      # on node 0, whose address that is
        ncclcheck probe --nnodes 2 --node-rank 1 --master 10.0.0.1      # on the other, within a minute
    On one machine without a GPU, to see what it does (it makes two nodes itself):
        ncclcheck probe
    To understand a word, a probe or the cause that a verdict names:
        ncclcheck explain busbw
        ncclcheck explain rank-killed
    """


@cli.command()
@click.argument("names", nargs=-1, metavar="[PROBE]...")
@click.option("--skip", multiple=True, metavar="PROBE", help="Leave a probe out (repeatable). The verdict says so.")
@click.option("--nnodes", type=click.IntRange(1), metavar="N", help="How many nodes take part. Under a scheduler or torchrun it is known.")
@click.option("--node-rank", type=click.IntRange(0), metavar="N", help="This node's number, from 0. Without it, --master's owner is 0.")
@click.option("--master", metavar="ADDR[:PORT]", help="Address of node 0 (default port 29600); the same on every node.")
@click.option("--nproc-per-node", type=click.IntRange(1), metavar="N", help="Ranks on each node. Default: one for each GPU, or 1 without any.")
@click.option("--hosts", metavar="A,B,C", help="The hosts that should take part, node 0 first, so that a missing one can be named.")
@click.option("--emulate", metavar="NODESxRANKS", help="Make nodes on this machine, e.g. 2x1: two with one rank each, in network namespaces.")
@click.option(
    "--token", envvar="NCCLCHECK_TOKEN", metavar="SECRET", help="A secret that keeps others out, the same on every node. Better set NCCLCHECK_TOKEN."
)
@click.option("--roll-call-timeout", type=Seconds(), default="60s", show_default=True, help="How long the nodes wait for each other at the start.")
@click.option("--deadline", type=Seconds(), default="15m", show_default=True, help="For the whole run; then it is ended and judged.")
@click.option("--budget", type=Seconds(), help="For the probe bandwidth, whose sizes grow until this is used up.  [default: 8s on GPUs, 4s on CPUs]")
@click.option("--max-bytes", type=Size(), help="Largest message of the probe bandwidth, e.g. 1GiB.")
@click.option("--model", metavar="PATH", help="A model on this disk for the probe vllm_engine, instead of the tiny one that it makes.")
@click.option("--inject", metavar="FAULT@rank=N,after=STEPS", help="Break one rank on purpose, to see it found: hang@rank=1,after=20.")
@click.option("--force", is_flag=True, help="Run although other processes hold the GPUs; it may disturb them.")
@click.option("--run-dir", default="ncclcheck-runs", show_default=True, metavar="DIR", help="Folder for this node's logs, stacks and journals.")
@click.option("--format", "form", default="text", show_default=True, metavar="FORMAT", help="text, json, junit or prometheus.")
@click.option("--output", metavar="FILE", help="Write the result there instead of to standard output.")
@click.option("--allow-degraded", is_flag=True, help="Exit with 0 also where everything works but is slower than it should be.")
def probe(names: tuple[str, ...], **given: Any) -> None:
    """Check this cluster: start it on every node; each prints the same verdict.

    A probe is one check. Without PROBE the default ones run (`ncclcheck list` says which). Under torchrun, srun, mpirun
    or a Kubernetes job the nodes find each other without options; on a machine with no GPU and no scheduler it makes
    two nodes of its own (--emulate 2x1). Nothing is left running, and no setting is changed.

    \b
    Examples:
        srun -N 2 --ntasks-per-node 1 ncclcheck probe                   # Slurm: no options needed
        ncclcheck probe wiring bandwidth --max-bytes 1GiB --budget 60s  # two probes only, larger messages
        ncclcheck probe --format junit --output result.xml              # for a CI system
        ncclcheck probe bandwidth --inject kill@rank=1,after=20         # see what a killed rank looks like

    \b
    Exit code: 0 ready; 1 not ready, or slower than it should be; 2 wrong usage; 3 not proven either way;
    130 or 143 interrupted.
    """
    from ncclcheck import printing, session

    try:
        code = session.probe(names, given, os.environ)
    except (printing.Usage, OSError) as error:
        click.echo(f"ncclcheck: {error}", err=True)
        code = USAGE
    _leave(code)


@cli.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--live", is_flag=True, help="Look at the distributed jobs that run on this node now, without disturbing them.")
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="With --live: only this process and its descendants.")
@click.option("--nnodes", type=click.IntRange(1), metavar="N", help="With --live, on each of N nodes: one verdict for all of them.")
@click.option("--node-rank", type=click.IntRange(0), metavar="N", help="This node's number, from 0. Without it, --master's owner is 0.")
@click.option("--master", metavar="ADDR[:PORT]", help="Address of node 0 (default port 29600); the same on every node.")
@click.option("--hosts", metavar="A,B,C", help="The hosts that should take part, node 0 first, so that a missing one can be named.")
@click.option("--token", envvar="NCCLCHECK_TOKEN", metavar="SECRET", help="A secret that keeps others out. Better set NCCLCHECK_TOKEN.")
@click.option("--roll-call-timeout", type=Seconds(), default="60s", show_default=True, help="How long the nodes wait for each other.")
@click.option("--run-dir", default="ncclcheck-runs", show_default=True, metavar="DIR", help="Where --live keeps what it saw.")
@click.option("--format", "form", default="text", show_default=True, metavar="FORMAT", help="text, json, junit or prometheus.")
@click.option("--output", metavar="FILE", help="Write the result there instead of to standard output.")
def triage(paths: tuple[str, ...], **given: Any) -> None:
    """Say who broke a job, why, and what to type, from whatever was left of it.

    PATH is a log, a folder, a tar or zip, or - for standard input; give as many as there are. Anything helps: logs of
    ranks, torchrun, vLLM or Ray, NCCL_DEBUG output, flight recorder dumps, py-spy or gdb stacks, ncclras, nvidia-smi,
    dmesg, the environment. Files of every rank and host say most, and so do their names (gpu-07.rank3.log).

    \b
    Examples:
        ncclcheck triage logs/                             # a folder of whatever there is
        ncclcheck triage ncclcheck-*.tar.gz                # what `ncclcheck collect` wrote on each node
        kubectl logs -l job-name=train | ncclcheck triage -
        ncclcheck triage --live                            # a job hangs on this node, now
        ncclcheck triage --live --nnodes 2 --master 10.0.0.1   # the same, on both nodes of a job

    \b
    Exit code: 0 nothing wrong; 1 a cause was found; 2 wrong usage; 3 the evidence does not say.
    """
    from ncclcheck import postmortem, printing

    try:
        code = postmortem.triage(paths, given)
    except (printing.Usage, OSError) as error:
        click.echo(f"ncclcheck: {error}", err=True)
        code = USAGE
    _leave(code)


@cli.command()
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="Only this process and its descendants, distributed or not.")
@click.option("--output", default=".", show_default=True, metavar="DIR", help="Folder for the bundle.")
def collect(pid: int | None, output: str) -> None:
    """Bundle what this node knows of its hung job, for later or for somebody else.

    Stacks, states, settings, sockets, GPUs, NCCL RAS, the kernel's log, flight recorder dumps and the ends of logs, in
    one tar.gz that only you may read. Nothing of the job is touched and no signal is sent. Tokens, keys and passwords are
    masked; manifest.json in it lists what was taken, and what could not be and why. As root it sees most.

    \b
    Examples:
        ncclcheck collect                        # on every node of the job, while it hangs
        ncclcheck triage ncclcheck-*.tar.gz      # then, where all the bundles are
    """
    from ncclcheck import postmortem

    try:
        code = postmortem.collect(pid, output)
    except (ValueError, OSError) as error:
        click.echo(f"ncclcheck: {error}", err=True)
        code = USAGE
    _leave(code)


@cli.command("list")
def list_() -> None:
    """List the probes, faults and causes."""
    from ncclcheck import terms

    _print(terms.listing())


@cli.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD")
def explain(words: tuple[str, ...]) -> None:
    """Explain a word, probe, fault or cause.

    \b
    What it means, how it shows and what to do. Some to begin with:
        ncclcheck explain rank              # the words that every page uses
        ncclcheck explain busbw             # how bandwidth is counted
        ncclcheck explain bandwidth         # what a probe checks and what its failure means
        ncclcheck explain blocked-port      # a cause that a verdict named
    """
    from ncclcheck import terms

    word = " ".join(words)
    if text := terms.explain(word):
        _print(text)
        return
    near = ", ".join(terms.suggest(word))
    click.echo(f"ncclcheck: nothing is called {word!r}" + (f"; did you mean {near}?" if near else "; see `ncclcheck list`"), err=True)
    _leave(USAGE)


def _print(text: str) -> None:
    """One page on standard output; who closed the pipe has read enough."""
    try:
        click.echo(text)
    except BrokenPipeError:
        return
    except OSError as error:
        print(f"ncclcheck: cannot write: {error.strerror}", file=sys.stderr)
        _leave(EXIT_CODES[Outcome.UNKNOWN])


def _leave(code: int) -> None:
    """Exit, and let a closed pipe be no error."""
    try:
        sys.stdout.flush()
    except OSError:  # closed, or a full disk: whoever needed it was told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
