"""Arguments in, one call, exit code out: no logic, and nothing heavy imported before it is needed."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ncclcheck import __version__, units


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ncclcheck")
def main() -> None:
    """Find the rank, host, link or setting that breaks distributed PyTorch, NCCL or vLLM.

    \b
    On each node of a cluster, before a launch:
        ncclcheck probe --nnodes 2 --node-rank 0 --master 10.0.0.1     # and --node-rank 1 on the other
    On one machine, to see what it does (two nodes are emulated):
        ncclcheck probe
    To learn a word, a probe or a cause:
        ncclcheck explain busbw
    """


@main.command()
@click.argument("names", nargs=-1, metavar="[PROBE]...")
@click.option("--skip", multiple=True, metavar="PROBE", help="Leave a probe out (repeatable); the verdict then says that it was not asked.")
@click.option("--nnodes", type=click.IntRange(1), help="How many nodes take part. Found in Slurm's, torchrun's, Kubernetes' and MPI's variables.")
@click.option("--node-rank", type=click.IntRange(0), help="This node's number. May be left out: the node that has the master address is 0.")
@click.option("--master", metavar="ADDR[:PORT]", help="Where node 0 listens (default port 29600); the same on every node.")
@click.option("--nproc-per-node", type=click.IntRange(1), help="Ranks on each node (default: its GPUs, or 1 without any).")
@click.option("--hosts", metavar="A,B,C", help="The hosts that should take part, node 0 first, so that a missing one can be named.")
@click.option("--emulate", metavar="NODESxRANKS", help="Make that many nodes here, each a network namespace, e.g. 2x1. Nothing is left behind.")
@click.option("--token", envvar="NCCLCHECK_TOKEN", metavar="SECRET", help="Only agents with the same token take part (or set NCCLCHECK_TOKEN).")
@click.option("--roll-call-timeout", type=Seconds(), default="60s", show_default=True, help="How long the nodes wait for each other.")
@click.option("--deadline", type=Seconds(), default="15m", show_default=True, help="For the whole run, after which it is ended and judged.")
@click.option("--budget", type=Seconds(), default="6s", show_default=True, help="For the bandwidth sweep: it ends at the largest size that fits.")
@click.option("--max-bytes", type=Size(), help="Largest message of the bandwidth sweep, e.g. 1GiB.")
@click.option("--model", metavar="PATH", help="A local model for vllm_engine, instead of the tiny one that it writes.")
@click.option("--inject", metavar="FAULT@rank=N,after=STEPS", help="Plant a fault to see it found, e.g. hang@rank=1,after=20.")
@click.option("--force", is_flag=True, help="Run although other processes hold the GPUs.")
@click.option("--run-dir", default="ncclcheck-runs", show_default=True, metavar="DIR", help="Where this node's records go.")
@click.option("--format", "form", default="text", show_default=True, metavar="FORMAT", help="text, json, junit or prometheus.")
@click.option("--output", metavar="FILE", help="Write the result there instead of to standard output.")
@click.option("--allow-degraded", is_flag=True, help="Exit with 0 also where everything works, but slower than it should.")
def probe(names: tuple[str, ...], **given: Any) -> None:
    """Check this cluster: run on every node, get one verdict.

    \b
    Without PROBE the default suite runs (`ncclcheck list` shows it). Started inside torchrun, srun, mpirun or a
    Kubernetes job the nodes find each other; on a machine with no GPU and no scheduler two nodes are emulated.
    Exit code: 0 ready, 1 not ready, 2 wrong usage, 3 not proven, 130 or 143 interrupted.
    """
    from ncclcheck import session

    try:
        code = session.probe(names, given, os.environ)
    except (session.Usage, OSError) as error:
        click.echo(f"ncclcheck: {error}", err=True)
        code = 2
    _leave(code)


@main.command("list")
def list_() -> None:
    """The probes, faults and causes that this release knows."""
    from ncclcheck import terms

    click.echo(terms.listing())


@main.command()
@click.argument("word")
def explain(word: str) -> None:
    """What a word, a probe, a fault or a cause means, and what to do about it."""
    from ncclcheck import terms

    if text := terms.explain(word):
        click.echo(text)
        return
    near = ", ".join(terms.suggest(word))
    click.echo(f"ncclcheck: nothing is called {word!r}" + (f"; did you mean {near}?" if near else "; see `ncclcheck list`"), err=True)
    _leave(2)


def _leave(code: int) -> None:
    """Exit, and let a closed pipe be no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
