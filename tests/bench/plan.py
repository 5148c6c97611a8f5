"""Whether `ncclcheck plan` predicts what a real vLLM then does: communication per token, and which layout is quicker.

python tests/bench/plan.py [FOLDER]     # as root, where vLLM's CPU build is; half an hour on 2 cores

On nodes made of network namespaces, with and without a bad link between them, `ncclcheck probe bandwidth vllm_engine`
measures the link; the plan predicts from its report; then vLLM itself runs, with every collective of its workers timed. What one rank
waits for the other is computing, so of each collective, the time of the rank that came last counts, which is the shortest ("timed").
Collectives also slow down what comes after them (caches, sleeping cores): "lost" is what a token takes longer than both
ranks compute where they share memory. "others" is the share of the machine that other programs
used: with more than a few percent, two runs of the same thing differ by a factor of two.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ncclcheck import emulate, namespaces, obstruct, vllm_model
from ncclcheck.expect import gpus, links
from ncclcheck.fault import Place
from ncclcheck.plan import config, hardware, measured, predict
from ncclcheck.plan.layout import Layout
from ncclcheck.plan.predict import Load

BATCHES = (1, 4)
TOKENS = 48
PROMPT = 16
RATE = 25_000_000  # bytes/s of the limited link: 200 Mb/s
DELAY = 1e-3  # seconds, one way, of the long one
BOUND = 900  # seconds for one engine
QUIET, PATIENCE = 0.1, 120.0  # share of the machine that others may use, and seconds that a scene waits for that
GOAL = 0.3  # the error of a prediction that is accepted


@dataclass(frozen=True)
class Scene:
    """Ranks, where they are, and what is wrong with the link between their nodes."""

    name: str
    nodes: int
    each: int
    link: Callable[[emulate.Node], contextlib.AbstractContextManager[None]] = lambda _node: contextlib.nullcontext()


def _limited(_node: emulate.Node) -> contextlib.AbstractContextManager[None]:
    return obstruct.throttled(namespaces.INTERFACE, RATE)


def _long(node: emulate.Node) -> contextlib.AbstractContextManager[None]:
    peer = namespaces.address(1 - node.rank)
    return obstruct.late(Place(namespaces.INTERFACE, node.address, [peer], []), DELAY)


SCENES = (
    Scene("one node", 1, 2),
    Scene("two nodes", 2, 1),
    Scene("two nodes, 200 Mb/s", 2, 1, _limited),
    Scene("two nodes, 1 ms each way", 2, 1, _long),
)


def models() -> dict[str, dict[str, Any]]:
    """config.json of each: the model of the probe vllm_engine, and two in which computing takes time."""
    tiny = vllm_model.config(2)
    small = {**tiny, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
             "head_dim": 64, "vocab_size": 4096}  # fmt: skip
    medium = {**small, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16,
              "num_key_value_heads": 16, "vocab_size": 16384}  # fmt: skip
    return {"tiny": tiny, "small": small, "medium": medium}


def main(folder: Path) -> None:
    """Measure everything, compare, and print."""
    for name, fields in models().items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(fields))
    alone = _run(folder, Scene("TP=1", 1, 1))
    reading = statistics.median(entry["reads"] for entry in alone.values())
    print(f"one core reads {reading / 1e9:.1f} GB/s in a matrix times a vector\n", flush=True)
    rows: list[dict[str, Any]] = []
    near: dict[str, Any] = {}  # both ranks in one node, which exchange next to nothing: what they take is computing
    for scene in SCENES:
        seen = _run(folder, scene)
        near = near or seen
        for name, batch in itertools.product(models(), map(str, BATCHES)):
            computing = near[name][batch]["token"] - near[name][batch]["timed"]
            rows.append(_compare(folder, scene, name, batch, seen[name], alone[name][batch]["token"], computing, reading))
        print(tabulate([row["cells"] for row in rows], HEAD, tablefmt="simple", floatfmt=".2f"), "\n", flush=True)
    for kind in ("lost", "timed", "token"):
        errors = [abs(row[kind]) for row in rows]
        good = sum(error <= GOAL for error in errors)
        print(f"{MEANING[kind]}: {good} of {len(errors)} within {GOAL:.0%}; half of the errors are below {statistics.median(errors):.0%}")
    print(f"TP=2 or TP=1 quicker: predicted rightly in {sum(row['right'] for row in rows)} of {len(rows)}")


MEANING = {"lost": "communication, as what a token takes longer", "timed": "communication, as timed in the workers", "token": "time of a token"}
HEAD = ("scene", "model", "batch", "calls", "sent\npredicted", "lost\nms", "error", "timed\nms", "error", "TPOT\npredicted", "TPOT\nms", "error",
        "TP=1\npredicted", "TP=1\nms", "quicker\nright", "others")  # fmt: skip


def _compare(
    folder: Path, scene: Scene, name: str, batch: str, seen: Mapping[str, Any], alone: float, computing: float, reading: float
) -> dict[str, Any]:
    """One row. `alone`: seconds of a token with TP=1; `computing`: of what TP=2 computes for one, without what it exchanges."""
    shape = config.read(folder / name).served("float32")
    run = measured.read(folder / f"{_slug(scene)}.json")
    cpu = replace(gpus.find("CPU"), bandwidth=reading / predict.READS)
    cluster = hardware.build(scene.nodes, scene.each, cpu, links.INSIDE[cpu.inside], None, [run])
    spread, single = Layout(2, 1, 1, scene.nodes), Layout(1, 1, 2)
    token, alike = (predict.forecast(shape, layout, cluster, Load(int(batch) * layout.replicas, PROMPT, TOKENS, 256)).token
                    for layout in (spread, single))  # fmt: skip
    sent, two, one = token.communication.seconds, token.seconds, alike.seconds
    real = seen[batch]
    lost = max(real["timed"], real["token"] - computing)
    errors = {"lost": (sent + token.waiting) / lost - 1, "timed": sent / real["timed"] - 1, "token": two / real["token"] - 1}
    right = (two < one) == (real["token"] < alone)
    shown = {kind: f"{error:+.0%}" for kind, error in errors.items()}
    cells = [scene.name, name, batch, real["count"], sent * 1e3, lost * 1e3, shown["lost"], real["timed"] * 1e3, shown["timed"], two * 1e3,
             real["token"] * 1e3, shown["token"], one * 1e3, alone * 1e3, "yes" if right else "NO", f"{seen['others']:.0%}"]  # fmt: skip
    return {"cells": cells, "right": right, **errors}


def _slug(scene: Scene) -> str:
    return scene.name.replace(" ", "-").replace(",", "").replace("/", "")


def _run(folder: Path, scene: Scene) -> dict[str, Any]:
    """Probe the link, then run every model, on nodes of their own: model -> batch -> seconds of a token, and of what it sends."""
    ranks = scene.nodes * scene.each
    before = _quiet()

    def body(node: emulate.Node) -> int:
        with scene.link(node):
            if ranks > 1:
                _probe(folder, scene, node)
            for name in models():
                _engine(folder, scene, node, name)
        return 0

    if any(emulate.run(scene.nodes, scene.each, body)):
        raise SystemExit(f"{scene.name}: failed; see {folder}")
    others = _others(before, _Use.now())
    return {
        name: {"others": others} | _gather([json.loads((folder / f"{_slug(scene)}-{name}-{rank}.out").read_text()) for rank in range(ranks)])
        for name in models()
    }


def _gather(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the steps: of the slower rank's time, and of what was spent in collectives once both ranks had come."""
    found: dict[str, Any] = {"reads": ranks[0]["reads"]}
    for batch in map(str, BATCHES):
        steps = [max(seconds) for seconds in zip(*(rank[batch]["steps"] for rank in ranks), strict=True)]
        calls = list(zip(*(rank[batch]["sent"] for rank in ranks), strict=True))  # step -> rank -> seconds of each collective
        waited = [sum(map(min, zip(*step, strict=True))) for step in calls]
        found[batch] = {"token": statistics.median(steps), "timed": statistics.median(waited),
                        "count": statistics.median(len(step[0]) for step in calls)}  # fmt: skip
    return found


def _probe(folder: Path, scene: Scene, node: emulate.Node) -> None:
    cluster = ["--nnodes", str(scene.nodes), "--node-rank", str(node.rank), "--master", "node0", "--nproc-per-node", str(scene.each)]
    limits = ["--budget", "8s", "--max-bytes", "4MiB", "--allow-degraded"]
    words = ["probe", "bandwidth", "vllm_engine", *cluster, *limits, "--format", "json", "--run-dir", str(folder / "runs")]
    output = folder / (f"{_slug(scene)}.json" if node.rank == 0 else f"{_slug(scene)}-{node.rank}.json")
    with open(folder / f"{_slug(scene)}-probe-{node.rank}.log", "wb") as log:
        # a link that is slow on purpose is reported as such: what counts is that it was measured
        subprocess.run([sys.executable, "-m", "ncclcheck", *words, "--output", str(output)], stdout=log, stderr=log, timeout=BOUND)


def _engine(folder: Path, scene: Scene, node: emulate.Node, name: str) -> None:
    launcher = ["--nnodes", str(scene.nodes), "--nproc-per-node", str(scene.each), "--node-rank", str(node.rank), "--master-addr", "node0",
                "--master-port", "29711", "--max-restarts", "0"]  # fmt: skip
    out = folder / f"{_slug(scene)}-{name}"
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, __file__, "--rank", str(folder / name), str(out)]
    with open(f"{out}-{node.rank}.log", "wb") as log, tempfile.TemporaryDirectory(prefix="ncclcheck-") as scratch:  # torchrun and vLLM leave files
        subprocess.run(command, env={**os.environ, "TMPDIR": scratch}, stdout=log, stderr=log, timeout=BOUND, check=True)


@dataclass(frozen=True)
class _Use:
    """CPU time so far, in seconds: of the whole machine, used or idle, and of what this process started and has waited for."""

    used: float
    total: float
    mine: float

    @classmethod
    def now(cls) -> _Use:
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        times = os.times()
        return cls(sum(ticks) - ticks[3] - ticks[4], sum(ticks), sum(times[:4]))


def _others(before: _Use, after: _Use) -> float:
    """The share of the machine that others used meanwhile: what they took from the engines, and what makes both figures doubtful."""
    return max(0.0, (after.used - before.used) - (after.mine - before.mine)) / (after.total - before.total)


def _quiet() -> _Use:
    """Wait for a quiet machine, but not for ever."""
    end = time.monotonic() + PATIENCE
    while True:
        before = _Use.now()
        time.sleep(1.0)
        after = _Use.now()
        if _others(before, after) < QUIET or time.monotonic() > end:
            return after


class _Timer:
    """Seconds of each collective of this process since it was last read."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wrap(self, kind: Any, name: str) -> None:
        inner = getattr(kind, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.seconds.append(time.perf_counter() - start)

        setattr(kind, name, timed)

    def take(self) -> list[float]:
        found, self.seconds = self.seconds, []
        return found


def rank(model: str, out: str) -> None:
    """What one rank does: an engine with random weights, greedy tokens for each batch, every step and every collective timed."""
    from ncclcheck import vllm_answers, vllm_cpu

    vllm_answers.prepare(on_cpu=True)
    import torch
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.distributed.device_communicators import cpu_communicator

    vllm_cpu.correct()
    timer = _Timer()
    for name in ("all_reduce", "all_gather", "gather"):
        timer.wrap(cpu_communicator.CpuCommunicator, name)
    ranks = int(os.environ["WORLD_SIZE"])
    arguments: dict[str, Any] = {
        "model": model, "tensor_parallel_size": ranks, "seed": 0, "enforce_eager": True, "skip_tokenizer_init": True, "load_format": "dummy",
        "enable_prefix_caching": False, "max_model_len": 256, "max_num_seqs": 8, "disable_log_stats": True, "async_scheduling": False,
        "distributed_timeout_seconds": 300, "kv_cache_memory_bytes": 128 * 2**20, "dtype": "float32",
        "distributed_executor_backend": "external_launcher",
    }  # fmt: skip
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    found: dict[str, Any] = {"reads": _reads(torch)}
    for batch in BATCHES:
        steps: list[float] = []
        sent: list[list[float]] = []
        for turn in range(3):  # the first one warms up
            greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
            for number in range(batch):
                prompt = [3 + (7 * number + 3 * index * index) % 250 for index in range(PROMPT)]
                engine.add_request(f"{batch}-{turn}-{number}", {"prompt_token_ids": prompt}, greedy)
            for step in range(TOKENS):
                timer.take()
                start = time.perf_counter()
                engine.step()
                seconds = time.perf_counter() - start
                if turn and step:  # the first step of a turn computes the prompts
                    steps.append(seconds)
                    sent.append(timer.take())
        found[str(batch)] = {"steps": steps, "sent": sent}
    Path(f"{out}-{os.environ['RANK']}.out").write_text(json.dumps(found))
    vllm_answers.stop(engine)


def _reads(torch: Any) -> float:
    """Bytes per second at which this core reads a matrix that no cache holds."""
    matrix, vector = torch.ones(8192, 4096), torch.ones(4096)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - start)
    return float(matrix.nbytes / statistics.median(seconds))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        yield Path(sys.argv[1]).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="ncclcheck-plan-") as name:
        yield Path(name)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], sys.argv[3])
    else:
        with _folder() as chosen:
            main(chosen)
