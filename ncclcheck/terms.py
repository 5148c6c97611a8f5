"""Explains every word that this tool and its output use: the vocabulary as data, and where to find the rest."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping

from tabulate import tabulate

from ncclcheck import registry
from ncclcheck.causes import CAUSES, Cause

WIDTH = 100  # columns
LEGEND = (
    "Each rank lists its operations, and `@` names its host; it is still inside the last one if `...` follows. What the agents saw stands after `|`, "
    "and in lines that begin with `fact`; `log FILE:` is a line of a file. `=>` is whom the rule blames; under Spares it must blame nobody."
)

TERMS: Mapping[str, str] = {
    # who takes part
    "rank": "One process of a distributed job, and its number: 0 to world_size - 1. Usually it drives one GPU.",
    "local_rank": "A rank's number among the ranks of its own node, from 0. It usually chooses the GPU: local_rank 1 uses GPU 1.",
    "node_rank": "A node's number in the job, from 0. Node 0 is the one whose address all others are given (the master address).",
    "world_size": "How many ranks the whole job has. Every rank must agree on it, or the job waits for ranks that never come.",
    "node": "One machine, virtual machine or container that takes part in the job. It may be emulated; a host is its name.",
    "host": "The name of a node as its operating system tells it, for example gpu-07.",
    "emulated": "A node made of a network namespace on this machine. It exercises the software and the way a launch works; it says nothing about a "
    "cluster's GPUs and cables.",
    "agent": "The part of `ncclcheck probe` that runs once per node. It starts the ranks, watches them and gathers evidence, but never takes "
    "part in a collective, so a hang cannot stop it.",
    "worker": "A process that works for another one. torchrun calls the ranks it starts workers; vLLM has one worker per GPU.",
    "launch": "One start of the ranks by torchrun. After a failure the ranks are started again: a broken process group is never reused.",
    # how they meet
    "master": "Node 0, and the address under which all others find it (MASTER_ADDR and MASTER_PORT for the ranks, --master for the agents).",
    "roll call": "The first thing that `ncclcheck probe` does: every agent reports to node 0's. It names the nodes that did not come, and where two "
    "contradict each other.",
    "run token": "The secret that the agents of one run share, so that nobody else takes part: NCCLCHECK_TOKEN, a file that --token-file names, or "
    "~/.config/ncclcheck/token, which node 0 makes on first use and `ncclcheck token` prints.",
    "network namespace": "A network of its own inside one machine, with its own interfaces and addresses. The Linux kernel makes it; an emulated "
    "node lives in one.",
    "rendezvous": "How the ranks of a job find each other: each comes to one address and waits until all are there. It fails when an address is "
    "wrong, a port is blocked or a rank is missing.",
    "store": "A small key-value server (torch's TCPStore, on the master address) where ranks leave addresses and counts for each other. A rank "
    "that cannot reach it cannot join. It listens on every address of its node and asks nobody for a token: whoever reaches the port while a job "
    "runs can read and change what is in it, so that port belongs on a network that is trusted.",
    "process group": "The ranks that communicate together. torch makes one of all ranks (the world) and lets a job make smaller ones.",
    "communicator": "NCCL's own object behind a process group: the GPUs, and the connections between them. Making one is slow, and needs every rank.",
    "torchrun": "PyTorch's launcher: on each node it starts the ranks and tells them who they are through RANK, LOCAL_RANK, WORLD_SIZE and "
    "MASTER_ADDR.",
    # what they do
    "collective": "An operation that every rank of a process group must enter, in the same order and with matching sizes. If one stays away, all "
    "others wait.",
    "all-reduce": "A collective after which every rank holds the sum (or maximum, ...) of all ranks' data. Tensor parallelism does it many times per "
    "token.",
    "step": "One operation of one rank, announced before it is entered. A step that was entered and not left is where the rank is now.",
    "seq": "The number of collectives a rank has issued. Ranks of different nodes are compared by it, never by their clocks: the one with the "
    "lowest is behind.",
    "hang": "The job makes no progress and nothing fails: at least one rank waits for something that will not come.",
    "straggler": "A rank that takes part in everything but arrives late. A collective is as fast as its slowest rank.",
    # what they leave behind
    "run directory": "The folder that holds what one run left behind: journals, logs and stacks, one folder per node below it.",
    "journal": "A rank's record of itself: a line per step, and a slot in shared memory that survives even if the rank is killed.",
    "flight recorder": "PyTorch's own list of each rank's last collectives. It can be dumped to a file when the job hangs.",
    "watchdog": "The thread in PyTorch that ends a rank whose collective took longer than the time-out (10 minutes by default). The ranks it names "
    "first are often only waiting.",
    "evidence": "A quoted line with its file and line number. Every finding shows what it rests on.",
    "fact": "One observation, such as an exit code or an interface's address. Facts have no opinion; rules draw the conclusion.",
    # what it means
    "probe": "One check: of the nodes before any rank starts, such as host, or on the ranks, such as bandwidth. Each is a file in probes/ and can "
    "also run alone.",
    "fault": "One way to break a job on purpose, for example stopping a rank. A drill plants it to see that it is found and blamed on the right "
    "rank.",
    "drill": "Planting faults in an own small job and checking that each is detected and blamed correctly. It tests the tool, and shows you what "
    "each failure looks like.",
    "rule": "A function that looks at a run and recognises one cause. Each is a file in rules/.",
    "finding": "What a rule concluded: the cause, whom it names, the evidence, and what to type.",
    "cause": "What went wrong, as a fixed word such as rank-killed. `ncclcheck explain` knows each of them.",
    "symptom": "What a cause makes others show. If one rank dies, the others report lost connections: those are dropped when their cause is found.",
    "verdict": "The answer for the whole run: one status, one sentence, the findings best first.",
    "remedy": "The command to type, or the setting to change, to get rid of a cause.",
    "culprit": "Whom a finding names as the one that caused the problem: ranks, hosts, GPUs, an interface or a link.",
    "victim": "The rank in which a drill planted a fault. Detection is right when the culprit named is the victim.",
    "bystander": "A rank that only waits for the culprit. It looks stuck too, and is often the one that reports the error.",
    "skip": "A probe's status: it could not or need not run here, and says why. A skipped probe has not passed.",
    "unknown": "A status: the check ran and could not tell. It never counts as a pass; the exit code is 3.",
    "degraded": "A status: it works, but more slowly than it should.",
    "crashed": "A probe's status: the check itself failed, which says nothing about what it was to check.",
    # how fast
    "algbw": "Algorithm bandwidth: the bytes of an operation divided by its seconds. It is what the caller sees, and it falls as ranks are added.",
    "busbw": "Bus bandwidth: algbw x a factor, so that it tells what each link carried and can be compared across world sizes. With n ranks the "
    "factor is 2(n-1)/n for all-reduce; (n-1)/n for all-gather, reduce-scatter and all-to-all; 1 for broadcast, reduce and send/recv. "
    "The definition is that of nccl-tests (doc/PERFORMANCE.md).",
    "wire rate": "What a link could carry at best, for example 50 GB/s on a 400 Gb/s network port. A measured busbw stays somewhat below it.",
    "latency": "How long one operation takes. For small sizes it is nearly all fixed cost, so seconds tell more than bandwidth.",
    "p99": "99 % of the iterations took at most this long. Far above the median means that something disturbs the job now and then.",
    "TTFT": "Time to first token: from sending a request until the first token of the answer. It is dominated by reading the prompt (prefill).",
    "TPOT": "Time per output token after the first. It is dominated by memory speed and, with tensor parallelism, by small all-reduces.",
    "QPS": "Queries per second: how many requests a server completes in a second.",
    # with what
    "NCCL": "NVIDIA's library for collectives between GPUs, within a node and across nodes. PyTorch uses it for tensors on GPUs.",
    "Gloo": "A library for collectives between CPUs over TCP. PyTorch uses it where there is no GPU.",
    "NVLink": "NVIDIA's direct link between GPUs, several times as fast as PCIe. NVSwitch joins the NVLinks of all GPUs in a node.",
    "PCIe": "The bus that joins CPU, GPUs and network cards within a node. GPUs without NVLink talk over it.",
    "RDMA": "Remote direct memory access: network cards that read and write another node's memory without its CPU, over InfiniBand or RoCE.",
    "GPUDirect RDMA": "The network card reads and writes GPU memory directly. Without it, every byte takes a detour through the CPU's memory.",
    "InfiniBand": "A network made for clusters, faster and with less delay than TCP over Ethernet. Its cards do RDMA.",
    "RoCE": "RDMA over Converged Ethernet: the same as InfiniBand's RDMA, carried by Ethernet.",
    "KV cache": "The GPU memory in which an engine keeps what it computed for the tokens so far (keys and values), so that each new token is cheap.",
    "interface": "A network port as the operating system names it, for example eth0. A node may have several, and NCCL or Gloo may choose the wrong "
    "one; NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose for them.",
    "CUDA graph": "A recorded sequence of GPU work that is launched as one. It removes the cost of launching each small operation.",
    # how a model is split
    "TP": "Tensor parallelism: every layer is cut into slices, one per GPU, and an all-reduce joins them twice per layer. It needs fast "
    "links: keep it within a node if you can.",
    "PP": "Pipeline parallelism: each group of GPUs holds some of the layers and hands its result on. It sends little, so it can cross slower links.",
    "DP": "Data parallelism: each group of GPUs holds the whole model and serves other requests. The groups exchange little or nothing.",
    "replica": "One copy of a model that answers requests by itself, on one GPU or on many. With DP there are several.",
    "layout": "How a model is spread over GPUs: the slices of its layers (TP), the stages that layers are gathered in (PP), the replicas (DP). "
    "`ncclcheck plan` chooses one.",
    "EP": "Expert parallelism: the experts of a mixture-of-experts model are spread over GPUs, and an all-to-all brings each token to its experts.",
}


def explain(word: str) -> str | None:
    """Everything known by this name: a term, a cause, and the documentation of a probe, a fault or a rule. None if there is nothing.

    Upper and lower case, and blanks, `-` and `_`, are the same.
    """
    parts = [_fill(f"{name}: {text}") for name, text in TERMS.items() if _key(name) == _key(word)]
    parts += [_cause(slug, cause) for slug, cause in CAUSES.items() if _key(slug) == _key(word)]
    for kind, name in _plugins():
        if _key(name) == _key(word):
            plugin = registry.describe(kind, name)
            parts.append(f"{kind.removesuffix('s')} {_shown(kind, name)}: {plugin.doc}")
            parts += [_trial(plugin)] if kind == "faults" and plugin.get("EXPECT") else []
            parts += [f"How to read the drawings\n{_fill(LEGEND, '    ')}"] if kind == "rules" else []
    return "\n\n".join(parts) or None


def _trial(plugin: registry.Plugin) -> str:
    """What a fault must be found as, and how to see it."""
    probe = plugin.get("PROBES", ("training",))[0]
    seen = f"ncclcheck probe {probe} --emulate 2x1 --inject {plugin.name}@rank=1,after=50"
    return f"It must be found as {plugin.get('EXPECT')}.\nSee it:   {seen}\nTry it:   ncclcheck drill {plugin.name}"


def suggest(word: str) -> list[str]:
    """Up to three names for one that nothing has, best first: those that look like it, contain it, or whose explanation mentions it."""
    wanted = _key(word)
    causes = {slug: f"{cause.meaning} {cause.shows_as}" for slug, cause in CAUSES.items()}
    texts = {**{_shown(kind, name): "" for kind, name in _plugins()}, **causes, **TERMS}
    names = {_key(name): name for name in texts}
    mentions = re.compile(rf"\b{re.escape(word.strip())}", re.IGNORECASE)
    near = [names[key] for key in difflib.get_close_matches(wanted, names)]
    near += [name for key, name in names.items() if wanted in key]
    near += [name for name, text in texts.items() if mentions.search(text)]
    return list(dict.fromkeys(near))[:3]


def listing() -> str:
    """What `ncclcheck list` prints: every probe and fault with its title, and the causes by group."""
    tables = []
    for kind in ("probes", "faults"):
        plugins = [registry.describe(kind, name) for name in registry.names(kind)]
        optional = {plugin.name for plugin in plugins if kind == "probes" and not plugin.get("DEFAULT")}
        rows = [(plugin.name, plugin.title + " (runs only when named)" * (plugin.name in optional)) for plugin in plugins]
        tables.append(tabulate(rows, (kind.removesuffix("s"), "title"), tablefmt="simple"))
    groups: dict[str, list[str]] = {}
    for slug, cause in CAUSES.items():
        groups.setdefault(cause.group, []).append(slug)
    lines = [f"  {group}\n{_fill(', '.join(sorted(slugs)), '    ')}" for group, slugs in groups.items()]
    return "\n\n".join([*tables, "\n".join(["causes (`ncclcheck explain CAUSE` says what one means, how it shows and what to do)", *lines])])


def _cause(slug: str, cause: Cause) -> str:
    told = (("What it means", cause.meaning), ("How it shows", cause.shows_as), ("What to do", cause.remedy))
    return "\n\n".join([f"cause {slug} ({cause.group})", *(f"{title}\n{_fill(text, '    ')}" for title, text in told)])


def _plugins() -> Iterator[tuple[str, str]]:
    for kind in registry.KINDS:
        yield from ((kind, name) for name in registry.names(kind))


def _shown(kind: str, name: str) -> str:
    """As it is typed and printed: a rule is known by its cause."""
    return name.replace("_", "-") if kind == "rules" else name


def _fill(text: str, indent: str = "") -> str:
    """Wrapped, but for what stands in backquotes: a command is copied, so it stays on one line."""
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    lines = textwrap.fill(whole, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def _key(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")
