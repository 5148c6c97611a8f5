"""The vLLM probe: what it makes of an engine's words, its model, its comparisons, and real engines that pass, differ and die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from cpus import CPUS, environment, within_a_node
from running import SOON, free_port, until

from ncclcheck import vllm_answers, vllm_failures, vllm_model, vllm_traffic
from ncclcheck.collect import processes
from ncclcheck.evidence import vllm_log
from ncclcheck.journal import Journal, Slot, SlotReader, create_maps
from ncclcheck.model import RankId
from ncclcheck.probe import Rank
from ncclcheck.vllm_layout import Layout

ROOT = Path(__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")

HEALTHY = """\
Triton is installed, but doesn't include CPU backend. Disabling Triton.
INFO 11-22 15:06:20 [api_utils.py:286] non-default args: {'skip_tokenizer_init': True, 'dtype': 'float32', 'tensor_parallel_size': 2}
WARNING 11-22 15:06:21 [vllm.py:725] Model Runner V2 requires Triton; using the V1 model runner instead.
WARNING 11-22 15:06:21 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs, and JIT kernel warmup.
INFO 11-22 15:06:22 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/tmp/m', enable_prefix_caching=False
WARNING 11-22 15:06:23 [cpu_worker.py:114] libtcmalloc is not found in LD_PRELOAD. For best performance, please follow the section
INFO 11-22 15:06:23 [parallel_state.py:1906] world_size=2 rank=0 local_rank=0 distributed_init_method=env:// backend=gloo
INFO 11-22 15:06:24 [cpu_communicator.py:47] CPU SHM communicator disabled for group tp:0: ranks do not share the same SHM group name
INFO 11-22 15:06:24 [parallel_state.py:2350] rank 0 in world size 2 is assigned as DP rank 0, PP rank 0, PCP rank 0, TP rank 0
INFO 11-22 15:06:24 [cpu_model_runner.py:68] Starting to load model /tmp/m...
INFO 11-22 15:06:24 [default_loader.py:501] Loading weights took 0.00 seconds
INFO 11-22 15:06:25 [cpu_worker.py:260] Explicitly set (0.06/7.09) GiB for KV cache on node 0.
INFO 11-22 15:06:25 [kv_cache_utils.py:2327] CPU KV cache size: 65,536 tokens, Maximum concurrency for 256 tokens per request: 256.00x
INFO 11-22 15:06:25 [core.py:402] init engine (profile, create kv cache, warmup model) took 0.22 s
WARNING 11-22 15:06:25 [base.py:380] Chat template warmup failed
WARNING 11-22 15:06:25 [base.py:380] Traceback (most recent call last):
WARNING 11-22 15:06:25 [base.py:380] ValueError: Tokenizer not available when `skip_tokenizer_init=True`
""".splitlines()

STATED = [
    (
        "  Value error, Total number of attention heads (12) must be divisible by tensor parallel size (8).",
        "tp-not-divisible",
        "12 attention heads cannot be split over tensor parallel size 8",
        "1, 2, 3, 4, 6, 12",
    ),
    (
        "[rank0]: ValueError: Available memory on node 0 (8.84/9.59 GiB) on kv cache allocation is less than requested memory for kv (40.0 GiB).",
        "kv-cache-or-memory-too-small",
        "the KV cache asks for 40.0 GiB and 8.84 of 9.59 GiB are free",
        "--kv-cache-memory-bytes (or VLLM_CPU_KVCACHE_SPACE, in GiB) below 8.84 GiB",
    ),
    (
        "ValueError: Available memory on node 0 (8.15/9.59 GiB) on startup is less than desired CPU memory utilization (1.0, 9.59 GiB). On the CPU",
        "kv-cache-or-memory-too-small",
        "vLLM wants 9.59 GiB (1.0 of 9.59) on node 0 and 8.15 GiB are free",
        "--gpu-memory-utilization below 8.15/9.59",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (2048), (1.5 GiB KV cache is needed, which is larger than the "
        "available KV cache memory (0.2 GiB). Based on the available memory, the estimated maximum model length is 384. Try increasing",
        "kv-cache-or-memory-too-small",
        "one request of 2048 tokens needs 1.5 GiB of KV cache and 0.2 GiB are there",
        "--max-model-len 384",
    ),
    (
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/llama-7b'.",
        "model-not-on-node",
        "this node has no model /models/llama-7b",
        "ls -L /models/llama-7b/*.safetensors on every node",
    ),
    (
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the specified revision on the "
        "local disk and outgoing traffic has been disabled. To enable",
        "model-not-on-node",
        "not in this node's Hugging Face cache",
        "hf download",
    ),
    (
        "[rank0]: RuntimeError: Cannot find any model weights with `/models/llama-7b`",
        "model-not-on-node",
        "this node has /models/llama-7b without its weights",
        "ls -L /models/llama-7b/*.safetensors",
    ),
]


@pytest.mark.parametrize(("line", "cause", "title", "remedy"), STATED, ids=lambda value: value[:30])
def test_what_the_engine_raises_names_its_cause_with_its_numbers(line: str, cause: str, title: str, remedy: str) -> None:
    (fact,) = vllm_failures.causes(["Traceback (most recent call last):", line, line])
    assert (fact.kind, fact.get("cause")) == ("fail", cause)
    assert title in fact.get("title")
    assert remedy in fact.get("remedy")


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "TimeoutError: RPC call to execute_model timed out.",
        "INFO No available shared memory broadcast block found in 60 seconds. This typically happens when some processes are hanging",
        "ValueError: no such thing",
    ],
)
def test_a_consequence_and_an_error_of_unknown_cause_name_none(line: str) -> None:
    assert vllm_failures.causes([line]) == []


def test_a_healthy_start_names_no_cause_and_is_recognised() -> None:
    assert vllm_failures.causes(HEALTHY) == []
    assert vllm_log.sniff("\n".join(HEALTHY))
    assert not vllm_log.sniff("gpu-07:1234:1240 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.7<0>\n")


def test_the_phase_is_the_last_that_the_start_entered() -> None:
    phases = [vllm_log.phase(HEALTHY[:count]) for count in range(len(HEALTHY) + 1)]
    assert list(dict.fromkeys(phases)) == ["", "configuration", "rendezvous", "groups", "weights", "kv-cache", "ready"]


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64])
def test_the_model_can_be_split_over_any_number_of_ranks(tp: int) -> None:
    shape = vllm_model.config(tp)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert shape[name] % tp == 0, name
    assert shape["num_attention_heads"] >= 4
    assert shape["hidden_size"] % shape["num_attention_heads"] == 0
    assert shape["vocab_size"] % 64 == 0, "vLLM would pad it, and the padding need not be divisible"
    assert max(map(max, vllm_answers.PROMPTS)) < shape["vocab_size"]


def test_the_model_is_the_same_bytes_each_time_and_another_seed_is_another_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        vllm_model.write(tmp_path / name, tp=2, seed=seed)
    first, again, other = (vllm_model.digest(tmp_path / name) for name in "abc")
    assert first == again != other


def test_the_digest_of_large_weights_sees_their_size_their_begin_and_their_end(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    digests = set()
    size = vllm_model.WHOLE + 4096
    for offset, length in ((None, size), (None, size + 1), (0, size), (size - 1, size)):
        with open(weights, "wb") as file:
            file.truncate(length)
            if offset is not None:
                file.seek(offset)
                file.write(b"\1")
        digests.add(vllm_model.digest(tmp_path))
    assert len(digests) == 4


def participant(rank: int, **other: object) -> dict[str, object]:
    return {"rank": rank, "tp_rank": rank, "pp_rank": 0, "host": f"gpu-0{rank}", "pid": 100, "weights": "aaaa", **other}


def test_every_rank_once_with_equal_weights_is_in_order() -> None:
    assert vllm_failures.attendance([participant(0), participant(1)], Layout(2)) == []


def test_a_rank_that_took_no_part_is_noticed() -> None:
    (fact,) = vllm_failures.attendance([participant(0), participant(1)], Layout(3))
    assert fact.get("cause") == "world-size-mismatch"


def test_different_weights_name_who_holds_which() -> None:
    (fact,) = vllm_failures.attendance([participant(0), participant(1, weights="bbbb"), participant(2)], Layout(3))
    assert fact.get("cause") == "weights-differ"
    assert fact.get("title") == "the ranks loaded different weights: aaaa on rank 0 (gpu-00), rank 2 (gpu-02); bbbb on rank 1 (gpu-01)"


def test_the_first_different_token_is_named() -> None:
    assert vllm_failures.difference("TP=1", [[1, 2], [3, 4]], "TP=2", [[1, 2], [3, 4]]) is None
    fact = vllm_failures.difference("TP=1", [[1, 2], [3, 4]], "TP=2", [[1, 2], [3, 5]])
    assert fact is not None
    assert fact.get("title") == "TP=2 answers prompt 1 with token 5 at position 1, TP=1 with 4"
    short = vllm_failures.difference("TP=1", [[1, 2]], "TP=2", [[1]])
    assert short is not None
    assert (short.get("position"), short.get("expected"), short.get("actual")) == (1, 2, None)


def test_traffic_that_left_by_no_counter_never_passes() -> None:
    rank = Rank(RankId(0), 2, Journal(None, 0, 0), {})
    kinds = [fact.kind for fact in vllm_traffic.check(rank, vllm_traffic.sent_bytes(), 2**62)]
    assert kinds in (["traffic", "fail"], ["traffic", "note"])  # a note where this machine has ways out that count nothing
    assert [fact.kind for fact in vllm_traffic.check(rank, vllm_traffic.sent_bytes(), 0)] == ["traffic"]


class Job:
    """Processes of one job, all of them marked; `left()` is what remains of it."""

    def __init__(self, folder: Path) -> None:
        self.id = f"test-{uuid4().hex[:12]}"
        self.temporary = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NCCLCHECK_", "TORCHELASTIC_"))}
        mine = {"NCCLCHECK_RUN": self.id, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
        self._environ = clean | mine | {"OMP_NUM_THREADS": "1", "VLLM_HOST_IP": "127.0.0.1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words], env=self._environ | environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._started.append(process)
        return process

    def left(self) -> list[str]:
        """What is still there: processes with our mark, files in /dev/shm and in the temporary folder."""
        alive = [str(process) for process in self.processes()]
        files = [path for path in Path("/dev/shm").iterdir() if self.id in path.name]
        return alive + [str(path) for path in (*files, *self.temporary.glob("ncclcheck-*"))]

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get("NCCLCHECK_RUN") == self.id and process.pid != os.getpid():
                    yield process
            except psutil.Error:
                continue

    def end(self) -> None:
        """As the agent does it: what a killed rank has mapped in /dev/shm goes with it."""
        marked = list(self.processes())
        mapped = {path for process in marked for path in processes.shared_memory(process.pid)}
        for process in marked:
            process.kill()
        for started in self._started:
            started.communicate(timeout=SOON)
        for path in mapped:
            Path(path).unlink(missing_ok=True)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    made = Job(tmp_path)
    yield made
    made.end()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("cpu", CPUS)
def test_an_engine_over_two_ranks_answers_as_one_rank_does_and_leaves_nothing(cpu: str, job: Job) -> None:
    process = job.start(*TORCHRUN, "-m", "ncclcheck.probes.vllm_engine", **environment(cpu))
    output, _ = process.communicate(timeout=190)
    assert process.returncode == 0, output
    (engine,) = [line for line in output.splitlines() if line.startswith("rank 0: engine ")]
    assert "tensor_parallel=2" in engine
    assert "tokens_equal=True" in engine
    assert "TP=1 with TP=2" in engine
    carrier = within_a_node(cpu)
    assert f"backend={carrier} " in engine
    assert ("its shared memory is named" in output) is (carrier == "shared memory"), "what is not used needs no correction"
    until(lambda: not job.left(), SOON, "the end of all that was started")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_rank_with_other_weights_is_caught_although_the_ranks_agree_on_every_token(job: Job, tmp_path: Path) -> None:
    ranks, port = [], free_port()
    for rank in (0, 1):
        model = tmp_path / f"model{rank}"
        vllm_model.write(model, tp=2, seed=rank)
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(job.start("-m", "ncclcheck.probes.vllm_engine", **place, NCCLCHECK_OPTIONS=json.dumps({"model": str(model)})))
    outputs = [process.communicate(timeout=190)[0] for process in ranks]
    assert ranks[0].returncode == 1, outputs[0]
    failures = [line for output in outputs for line in output.splitlines() if ": fail " in line]
    assert len(failures) == 1
    assert failures[0].startswith("rank 0: fail cause=weights-differ title=the ranks loaded different weights: ")
    assert "tokens_equal=True" in outputs[0]
    until(lambda: not job.left(), SOON, "the end of all that was started")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_rank_killed_while_tokens_are_generated_leaves_the_step_it_was_in(job: Job, tmp_path: Path) -> None:
    create_maps(tmp_path, 2)
    planted = {"NCCLCHECK_DIR": str(tmp_path), "NCCLCHECK_INJECT": "kill@rank=1,after=20", "NCCLCHECK_PARENT": str(os.getpid())}
    process = job.start("-m", "ncclcheck.torchrun", *TORCHRUN[2:], "-m", "ncclcheck.rank", "vllm_engine", **planted)
    reader = SlotReader(tmp_path / "slots", 2)
    deadline = time.monotonic() + 180

    def await_slot(rank: int, reached: Callable[[Slot], bool]) -> Slot:
        while not ((slot := reader.read()[rank]) and reached(slot)):
            assert process.poll() is None and time.monotonic() < deadline, slot
            time.sleep(0.05)
        return slot

    victim = await_slot(1, lambda slot: (seen := processes.read(slot.pid)) is None or seen.dead)  # reaped, or not yet
    victim = await_slot(1, lambda _: True)  # once more: the first was read before its death was
    survivor = await_slot(0, lambda slot: slot.seq > 20)
    assert (victim.name, victim.seq, victim.step.inside) == ("vllm generate", 20, False)
    assert (survivor.name, survivor.seq, survivor.step.inside) == ("vllm generate", 21, True)
    job.end()
    until(lambda: not list(job.processes()), SOON, "the end of all that was started")
