"""Arguments in, one call, exit code out: no logic, and nothing heavy imported before it is needed."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from ncclcheck import __version__, interpreter, units
from ncclcheck.model import EXIT_CODES, USAGE, Outcome
from ncclcheck.safe_text import printable

VLLM_MODES = (
    "How vLLM is launched over the nodes: external (each rank by torchrun: probe vllm_engine), serve (its own multi-node `vllm serve`: "
    "vllm_serve), ray (`vllm serve` on a Ray cluster of its own: vllm_ray), or all (Ray where it is installed).  [default: external]"
)


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


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """`1,4,16` -> [1, 4, 16]."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            numbers = [0]
        if not all(1 <= number <= 1_000_000 for number in numbers):
            self.fail(f"{value!r} is not a list of whole numbers above 0, such as 1,4,16", param, ctx)
        return list(dict.fromkeys(numbers))


def _on_nodes(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command in which several nodes take part: which they are, and the secret that they share."""

    @functools.wraps(command)
    def run(*words: Any, **given: Any) -> None:
        if given["insecure"] and (given["token"] or given["token_file"]):
            raise click.UsageError("--insecure means that there is no token: leave the other out")
        if not (given["token"] or given["token_file"]):
            given["token"], given["token_file"] = click.get_current_context().obj
        command(*words, **given)

    options = (
        click.option("--nnodes", type=click.IntRange(1), metavar="N", help="How many nodes take part. Under a scheduler or torchrun it is known."),
        click.option("--node-rank", type=click.IntRange(0), metavar="N", help="This node's number, from 0. Without it, --master's owner is 0."),
        click.option("--master", metavar="ADDR[:PORT]", help="Address of node 0 (default port 29600); the same on every node."),
        click.option("--hosts", metavar="A,B,C", help="The hosts that should take part, node 0 first, so that a missing one can be named."),
        click.option("--token", metavar="SECRET", help="The nodes' shared secret. Others see it in `ps`: better set NCCLCHECK_TOKEN."),
        click.option("--token-file", metavar="FILE", help="The secret's file; or set NCCLCHECK_TOKEN_FILE.  [default: ~/.config/ncclcheck/token]"),
        click.option("--insecure", is_flag=True, help="No secret: whoever reaches the port can take part. The verdict says so; refused as root."),
        click.option("--roll-call-timeout", type=Seconds(), default="60s", show_default=True, help="How long the nodes wait for each other."),
    )
    return _adding(options, run)


def _with_ranks(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that starts ranks on these nodes."""
    every = "Ranks on each node. Default: one for each GPU, or 1 without any."
    made = "Make nodes on this machine, e.g. 2x1: two with one rank each, in network namespaces."
    options = (
        click.option("--nproc-per-node", type=click.IntRange(1), metavar="N", help=every),
        click.option("--emulate", metavar="NODESxRANKS", help=made),
    )
    return _adding(options, command)


def _adding(options: Sequence[Callable[..., Any]], command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def main() -> None:
    """The program: closed streams are no error, and an interrupt before anything was started exits with 130."""
    interpreter.leave_current_folder()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process lives)
    try:
        cli.main(standalone_mode=False, prog_name="ncclcheck")
    except click.ClickException as error:
        error.show(said := io.StringIO())  # it quotes what was typed, and names of files
        click.echo("\n".join(map(printable, said.getvalue().splitlines())), err=True)
        _leave(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _leave(130)
    _leave(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ncclcheck")
@click.pass_context
def cli(context: click.Context) -> None:
    """Find the rank, host, link or setting that breaks distributed PyTorch, NCCL or vLLM.

    (A rank is one process of a distributed job, usually with one GPU; a node is one machine.)

    \b
    On each node of a cluster, before a launch:
        ncclcheck probe --nnodes 2 --node-rank 0 --master 10.0.0.1      # on node 0, whose address that is
        ncclcheck probe --nnodes 2 --node-rank 1 --master 10.0.0.1      # on the other, within a minute
    (They share a secret that node 0 makes: where the home folder is not shared, the other node says how it gets it.)
    On one machine without a GPU, to see what it does (it makes two nodes itself):
        ncclcheck probe
    To understand a word, a probe or the cause that a verdict names:
        ncclcheck explain busbw
        ncclcheck explain rank-killed
    """
    # What a command starts inherits the environment, and nothing of it needs the secret.
    context.obj = [os.environ.pop(name, None) for name in ("NCCLCHECK_TOKEN", "NCCLCHECK_TOKEN_FILE")]


@cli.command()
@click.argument("names", nargs=-1, metavar="[PROBE]...")
@click.option("--skip", multiple=True, metavar="PROBE", help="Leave a probe out (repeatable). The verdict says so.")
@_on_nodes
@_with_ranks
@click.option("--simulate-link", metavar="RATE,DELAY", help="Make the links between emulated nodes slow, e.g. 1Gbit,2ms.")
@click.option("--deadline", type=Seconds(), default="15m", show_default=True, help="For the whole run; then it is ended and judged.")
@click.option("--budget", type=Seconds(), help="For the probe bandwidth, whose sizes grow until this is used up.  [default: 8s on GPUs, 4s on CPUs]")
@click.option("--max-bytes", type=Size(), help="Largest message of the probe bandwidth, e.g. 1GiB.")
@click.option("--model", metavar="PATH", help="A model on the disk of every node, or OWNER/NAME in its cache: parity checks it, vLLM serves it.")
@click.option("--max-model-len", type=click.IntRange(1), metavar="TOKENS", help="With --model: the longest request.  [default: the model's longest]")
@click.option("--tp", type=click.IntRange(1), metavar="N", help="Tensor parallelism of vLLM.  [default: all ranks, or what --pp leaves]")
@click.option("--pp", type=click.IntRange(1), metavar="N", help="Pipeline stages of vLLM; TP times PP are all ranks.  [default: 1]")
@click.option("--vllm-mode", type=click.Choice(["external", "serve", "ray", "all"]), metavar="MODE", help=VLLM_MODES)
@click.option("--inject", metavar="FAULT@rank=N,after=STEPS", help="Break one rank on purpose, to see it found: hang@rank=1,after=20.")
@click.option("--allow-network-faults", is_flag=True, help="Let --inject break the network of a real node, as root; it is mended.")
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

    Several nodes share a secret, the run token: NCCLCHECK_TOKEN, which srun carries (mpirun with -x), a file that
    --token-file or NCCLCHECK_TOKEN_FILE names (a mounted Kubernetes secret), or else ~/.config/ncclcheck/token. Node 0
    makes that file on first use; where the home folder is not shared, the others say what to type.

    \b
    Examples:
        srun -N 2 --ntasks-per-node 1 ncclcheck probe                   # Slurm: no options needed
        ncclcheck probe wiring bandwidth --max-bytes 1GiB --budget 60s  # two probes only, larger messages
        ncclcheck probe vllm_engine --tp 8 --pp 2                       # vLLM as it will be served on two nodes of 8 GPUs
        ncclcheck probe --vllm-mode serve                               # `vllm serve` on all nodes, and requests over HTTP
        ncclcheck probe --format junit --output result.xml              # for a CI system
        ncclcheck probe bandwidth --inject kill@rank=1,after=20         # see what a killed rank looks like

    \b
    Exit code: 0 ready; 1 not ready, or slower than it should be; 2 wrong usage; 3 not proven either way;
    129, 130 or 143 interrupted.
    """
    from ncclcheck import session

    _end(lambda: session.probe(names, given, os.environ))


@cli.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--live", is_flag=True, help="Look at the distributed jobs that run on this node now, without disturbing them.")
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="With --live: only this process and its descendants.")
@_on_nodes
@click.option("--deadline", type=Seconds(), default="5m", show_default=True, help="For reading and judging; a fifth of it for one source.")
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
    from ncclcheck import postmortem

    _end(lambda: postmortem.triage(paths, given))


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
        click.echo(printable(f"ncclcheck: {error}"), err=True)
        code = USAGE
    _leave(code)


@cli.command()
@click.argument("names", nargs=-1, metavar="[FAULT]...")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Plant each fault so often, each time elsewhere.")
@click.option("--seed", type=int, default=1, show_default=True, help="Victims and moments are drawn from it; the same on every node.")
@_on_nodes
@_with_ranks
@click.option("--allow-network-faults", is_flag=True, help="On real nodes, as root: break this node's network, too, for some seconds each.")
@click.option("--force", is_flag=True, help="Drill although other processes hold the GPUs; it may disturb them.")
@click.option("--run-dir", default="ncclcheck-runs", show_default=True, metavar="DIR", help="Folder for the logs, stacks and journals of every run.")
@click.option("--format", "form", default="text", show_default=True, metavar="FORMAT", help="text, json, junit or prometheus.")
@click.option("--output", metavar="FILE", help="Write the result there instead of to standard output.")
def drill(names: tuple[str, ...], **given: Any) -> None:
    """Break a small job on purpose, in every way there is, and see that each is found.

    A detector that nobody has tried is a hope. Each fault is planted in a real job, in a random rank and at a random
    moment; the verdict is compared with what was planted; then everything must be gone, and a healthy job must run.
    Without FAULT all of them are planted (`ncclcheck list` names them): about 20 s each. Only own processes are broken,
    and the network of emulated nodes.

    \b
    Examples:
        ncclcheck drill hang kill wrong_dtype           # three of them, on emulated nodes where there is no GPU
        ncclcheck drill --repeat 3 --seed 7             # all of them, three times, elsewhere
        ncclcheck drill --nnodes 2 --master 10.0.0.1    # on each of two nodes
        ncclcheck drill --format json --output drill.json

    \b
    Exit code: 0 every fault was detected, blamed on the right place and cleaned up after; 1 not so; 2 wrong usage;
    3 none could be planted here; 129, 130 or 143 interrupted.
    """
    from ncclcheck import drilling

    _end(lambda: drilling.run(names, given, os.environ))


@cli.command()
@click.argument("model", metavar="MODEL")
@click.option("--run", multiple=True, metavar="PATH", help="What `ncclcheck probe` measured: its JSON or its run directory (repeatable).")
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="How many nodes. With --run: those that it saw.")
@click.option("--gpus-per-node", type=click.IntRange(1), metavar="N", help="GPUs in each node. With --run: as many as it saw ranks.")
@click.option("--gpu", metavar="NAME", help="Their kind, e.g. H100, A100-80GB, L40S, RTX-4090. With --run: what it saw.")
@click.option("--inside", metavar="LINK", help="What joins them in a node, e.g. nvlink4, pcie5, pcie4-host.  [default: by the GPU]")
@click.option("--network", metavar="RATE", help="What joins the nodes: 100G (TCP), or 8x400G-rdma for eight adapters with RDMA.")
@click.option("--requests", type=click.IntRange(1, 100_000), default=8, show_default=True, metavar="N", help="Requests at once, in all.")
@click.option("--prompt", type=click.IntRange(1, 10_000_000), default=1024, show_default=True, metavar="TOKENS", help="Tokens in of each request.")
@click.option("--answer", type=click.IntRange(1, 10_000_000), default=256, show_default=True, metavar="TOKENS", help="Tokens out of each request.")
@click.option("--max-model-len", type=click.IntRange(1), metavar="TOKENS", help="The longest request.  [default: 8192, or the model's longest]")
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), default="auto", show_default=True, help="As for vLLM.")
@click.option("--tp", type=click.IntRange(1), metavar="N", help="Only layouts with this tensor parallelism.")
@click.option("--pp", type=click.IntRange(1), metavar="N", help="Only layouts with this pipeline parallelism.")
@click.option("--hosts", metavar="A,B,C", help="Addresses or names of the nodes, node 0 first, for the commands.")
@click.option("--node-rank", type=click.IntRange(0), metavar="N", help="Only this node's commands.")
@click.option("--emit", metavar="FORM", help="Only the commands, as shell, systemd, slurm or lws (Kubernetes LeaderWorkerSet).")
@click.option("--format", "form", default="text", show_default=True, metavar="FORMAT", help="text or json.")
@click.option("--output", metavar="FILE", help="Write the result there instead of to standard output.")
def plan(model: str, **given: Any) -> None:
    """Choose a layout (TP, PP, replicas) for a model on a cluster, and say why, with numbers.

    MODEL is a folder with config.json, or that file; the weights need not be there, and nothing is downloaded or started.
    Memory of each GPU, what each token sends over the links, time per token, time to the first token and throughput are
    predicted for every layout that vLLM accepts, from links that were measured (--run) or else from what such links
    usually give; each figure comes with its expected error. `vllm serve` commands for each node follow.

    \b
    Examples:
        ncclcheck plan models/Llama-3.1-70B --nodes 2 --gpus-per-node 8 --gpu H100 --network 8x400G-rdma
        ncclcheck probe bandwidth --nnodes 2 --master 10.0.0.1 --format json --output run.json     # on each node, then
        ncclcheck plan models/Llama-3.1-70B --run run.json --requests 64
        ncclcheck plan models/Llama-3.1-70B --run run.json --emit shell --output serve.sh

    \b
    Exit code: 0 there is a layout that fits; 1 none does; 2 wrong usage; 3 this kind of model is not known.
    """
    from ncclcheck.plan import planning

    _end(lambda: planning.run(model, given))


@cli.command()
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--tp", type=Numbers(), metavar="A,B", help="Tensor parallel sizes.  [default: 1, a node's ranks, all ranks; emulated: 1,2]")
@click.option("--pp", type=Numbers(), default="1", show_default=True, metavar="A,B", help="Pipeline parallel sizes, each with every TP.")
@click.option("--concurrency", type=Numbers(), default="1,4", show_default=True, metavar="A,B", help="Requests at once.")
@click.option("--input-len", type=Numbers(), default="128", show_default=True, metavar="A,B", help="Tokens in of each request.")
@click.option("--output-len", type=Numbers(), default="64", show_default=True, metavar="A,B", help="Tokens out of each request.")
@click.option("--requests", type=click.IntRange(1, 1_000_000), metavar="N", help="Requests of a cell.  [default: 8 for each at once, at least 16]")
@click.option("--set", multiple=True, metavar="NAME=VALUE", help="An option of vllm serve for every server, e.g. max-num-seqs=64 (repeatable).")
@click.option("--vary", multiple=True, metavar="NAME=A,B", help="Change this option alone, to see what it moves (repeatable).")
@click.option("--simulate-link", multiple=True, metavar="RATE,DELAY", help="Over emulated nodes once more with slow links: 1Gbit,2ms (repeatable).")
@click.option("--again", is_flag=True, help="Measure also what is kept from before.")
@_on_nodes
@_with_ranks
@click.option("--deadline", type=Seconds(), default="30m", show_default=True, help="For one server with all its loads.")
@click.option("--force", is_flag=True, help="Measure although other processes hold the GPUs; it may disturb them.")
@click.option("--run-dir", default="ncclcheck-runs", show_default=True, metavar="DIR", help="Folder for logs, and for what was measured (bench/).")
@click.option("--format", "form", default="text", show_default=True, metavar="FORMAT", help="text, json or html (one file with plots).")
@click.option("--output", metavar="FILE", help="Write the result there instead of to standard output.")
def bench(model: str | None, **given: Any) -> None:
    """Measure a model's server: how to set TP, batch and concurrency, and where the bottleneck is.

    Every layout serves MODEL (a folder; without it a tiny model made on the spot) with `vllm serve`, and vLLM's own
    client puts it under load: time to the first token, per token and per request (median, p99), requests and tokens per
    second, KV cache. Then settings are changed one at a time (--vary). It says what moved throughput most, what share of
    a token's time is communication, and what bounds each layout. What is measured is kept: the same command goes on where
    it was interrupted, and measures nothing twice.

    \b
    Examples:
        ncclcheck bench                                                   # tiny model, emulated nodes where there is no GPU
        ncclcheck bench models/Llama-3.1-8B --tp 1,2,8 --concurrency 1,8,64
        ncclcheck bench models/Llama-3.1-8B --tp 8 --vary max-num-seqs=64,256 --vary enable-prefix-caching=off
        ncclcheck bench --emulate 2x2 --simulate-link 1Gbit,2ms --format html --output bench.html

    \b
    Exit code: 0 all is measured; 1 some of it could not be; 2 wrong usage; 3 nothing could be; 129, 130 or 143 interrupted.
    """
    from ncclcheck.bench import benching

    _end(lambda: benching.run(model, given, os.environ))


@cli.command()
def token() -> None:
    """Print this user's run token, the secret that nodes share; it is made on first use.

    It is kept in ~/.config/ncclcheck/token, which only you may read, and is used where nothing else gives one.

    \b
    Examples:
        export NCCLCHECK_TOKEN=$(ncclcheck token)        # before srun, which carries it to every node
        kubectl create secret generic ncclcheck --from-file ~/.config/ncclcheck/token      # after it was made
    """
    from ncclcheck import run_token

    def work() -> int:
        _print(run_token.own().text)
        return 0

    _end(work)


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


def _end(work: Callable[[], int]) -> None:
    """Do a command's work and exit with its code; what the user got wrong, or cannot be read, is said in a line."""
    from ncclcheck import printing

    try:
        code = work()
    except (printing.Usage, OSError) as error:
        click.echo(printable(f"ncclcheck: {error}"), err=True)
        code = USAGE
    _leave(code)


def _leave(code: int) -> None:
    """Exit, and let a closed pipe be no error."""
    try:
        sys.stdout.flush()
    except OSError:  # closed, or a full disk: whoever needed it was told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
