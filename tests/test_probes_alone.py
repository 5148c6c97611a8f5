"""Probes run by hand under torchrun, the numbers they check with, and the faults that are planted in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from ncclcheck import pattern, registry  # noqa: E402
from ncclcheck.fault import Planted, Spec  # noqa: E402
from ncclcheck.journal import Journal, SlotReader, Tail, create_maps  # noqa: E402
from ncclcheck.model import RankId  # noqa: E402
from ncclcheck.probe import FIRST_BOUND, STALL_FLOOR, Rank  # noqa: E402
from ncclcheck.probes import collectives, wiring  # noqa: E402

ROOT = Path(__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
TYPES = collectives.TYPES


def python(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python on loopback without a GPU and without an agent, for at most 240 s; nothing that it started stays."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("NCCLCHECK_")}
    surroundings |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env
    with tempfile.TemporaryDirectory() as scratch:  # torchrun leaves a folder
        surroundings["TMPDIR"] = scratch
        process = subprocess.Popen([sys.executable, *words], env=surroundings, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                for child in (*psutil.Process(process.pid).children(recursive=True), process):
                    child.kill()
                process.wait()
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


@pytest.mark.slow
def test_a_probe_runs_alone_and_prints_its_table() -> None:
    done = python(*TORCHRUN, "-m", "ncclcheck.probes.wiring")
    assert done.returncode == 0, done.stderr
    assert registry.describe("probes", "wiring").title in done.stdout
    for rank in (0, 1):
        assert f"rank {rank}: wiring rank={rank} local_rank={rank}" in done.stdout


@pytest.mark.slow
def test_probes_follow_each_other_in_one_launch_and_every_result_is_correct() -> None:
    done = python(*TORCHRUN, "-m", "ncclcheck.rank", "collectives", "bandwidth", "hang", NCCLCHECK_OPTIONS='{"budget": 5}')
    assert done.returncode == 0, done.stderr
    samples = [line for line in done.stdout.splitlines() if " float32 " in line]
    operations = ["all_reduce", "all_reduce max", "all_gather", "reduce_scatter", "all_to_all", "broadcast from 0", "broadcast from 1", "send/recv"]
    sizes = [line[16:28].strip() for line in samples[len(operations) : -1]]
    assert [line[:16].strip() for line in samples[: len(operations)]] == operations
    assert sizes[:4] == ["8 B", "64 B", "512 B", "4 KiB"]
    assert all(line.endswith(" correct") for line in samples)
    assert "rank 1: checked operations=169 types=7" in done.stdout


@pytest.mark.slow
def test_a_probe_that_hangs_alone_is_ended_by_its_watchdog_which_prints_the_stack_of_the_victim() -> None:
    words = (*TORCHRUN, "-m", "ncclcheck.probes.hang")
    done = python(*words, NCCLCHECK_INJECT="hang@rank=1,after=20", NCCLCHECK_OPTIONS='{"timeout": 15}')
    assert done.returncode == 1
    assert "no end after 15 s" in done.stderr
    assert "in stuck_here" in done.stderr


@pytest.mark.slow
def test_one_wrong_element_from_one_rank_fails_the_probe_and_names_that_rank(tmp_path: Path) -> None:
    script = tmp_path / "corrupt.py"
    script.write_text(
        "import os, sys\n"
        "from ncclcheck import pattern, rank\n"
        "honest = pattern.marks\n"
        "def marks(sender, count, dtype, device):\n"
        "    data = honest(sender, count, dtype, device)\n"
        "    if os.environ['RANK'] == '1' and sender == 1 and count > 5:\n"
        "        data[5] += 1\n"
        "    return data\n"
        "pattern.marks = marks\n"
        "sys.exit(rank.main(['collectives']))\n"
    )
    done = python(*TORCHRUN, str(script))
    failures = [line for line in done.stdout.splitlines() if "cause=data-corruption" in line]
    assert done.returncode == 1
    assert {line.partition("title=")[2].partition(" (")[0] for line in failures} == {"all_gather", "all_to_all", "broadcast from 1", "send/recv"}
    for line in failures:
        assert line.startswith("rank 0: fail ")
        assert "the data came from rank 1 ranks=[1]" in line


def test_a_job_with_too_few_ranks_is_refused_with_both_numbers() -> None:
    done = python("-m", "ncclcheck.rank", "bandwidth")
    assert done.returncode == 1
    assert "bandwidth needs 2 ranks or more, this job has 1" in done.stderr


def test_kill_ends_its_process_by_sigkill() -> None:
    assert python("-c", "from ncclcheck.faults import kill; kill.inject()").returncode == -9


def test_freeze_stops_its_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "from ncclcheck.faults import freeze; freeze.inject()"], cwd=ROOT)
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        process.kill()
        process.wait()


def _rank(folder: Path, planted: Planted | None = None) -> Rank:
    create_maps(folder, 1)
    return Rank(RankId(0), 1, Journal(folder, 0, 0), {}, planted)


def test_a_fault_strikes_before_its_victim_says_that_it_entered(tmp_path: Path) -> None:
    struck: list[int] = []
    refused: list[str] = []
    rank = _rank(tmp_path, Planted(Spec("exception", 0, after=2), lambda: struck.append(1), refused.append))
    with pytest.raises(IndexError, match="sample 17"), rank.step("first") as announced:
        announced.repeat(lambda: None, 5)
    with pytest.raises(IndexError, match="sample 17"), rank.step("second"):
        pass
    (slot,) = SlotReader(tmp_path / "slots", 1).read()
    assert slot and (slot.name, slot.seq, slot.left is None) == ("first", 2, False)
    assert [(line.kind, line.fields["step"], line.seq) for line in Tail(tmp_path).more() if line.kind != "call"] == [("enter", "first", 1)]
    assert (struck, refused) == ([1], [])


def test_a_step_may_take_long_only_the_first_time(tmp_path: Path) -> None:
    rank, reader, bounds = _rank(tmp_path), SlotReader(tmp_path / "slots", 1), []
    for nbytes in (8, 8, 64):
        with rank.step("all_reduce", nbytes=nbytes):
            (slot,) = reader.read()
            bounds.append(slot.bound if slot else None)
    assert bounds == [FIRST_BOUND, STALL_FLOOR, FIRST_BOUND]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 64, 1000])
def test_every_sum_and_every_partial_sum_is_exact_in_every_type(n: int, dtype: Any) -> None:
    count = 13 * -(-n // 20) + 5
    total = torch.zeros(count, dtype=dtype)
    for rank in range(n):
        total += pattern.summands(rank, n, count, dtype, "cpu")
    assert pattern.difference(total, pattern.sums(n, count, dtype, "cpu")) is None
    assert int(pattern.sums(n, count, torch.int64, "cpu").max()) <= 240 < pattern.UNTOUCHED


def test_no_two_ranks_send_the_same_marks() -> None:
    first = {tuple(pattern.marks(rank, 3, torch.bfloat16, "cpu").tolist()) for rank in range(2000)}
    assert len(first) == 2000


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_wrong_element_is_found(dtype: Any) -> None:
    expected = pattern.marks(1, 1021, dtype, "cpu")
    result = expected.clone()
    assert pattern.difference(result, expected) is None
    result[700] += 1
    wrong = pattern.difference(result, expected)
    assert wrong and (wrong.count, wrong.index.tolist(), (wrong.actual - wrong.expected).tolist()) == (1, [700], [1.0])


def test_a_nan_is_wrong_even_where_a_nan_is_expected() -> None:
    nan = torch.tensor([1.0, float("nan")])
    wrong = pattern.difference(nan, nan)
    assert wrong and wrong.index.tolist() == [1]


@pytest.mark.parametrize("n", [2, 8, 64])
@pytest.mark.parametrize("sign", [-1, 1], ids=["lost", "counted twice"])
def test_the_rank_whose_summand_is_lost_or_counted_twice_is_named(n: int, sign: int) -> None:
    expected = pattern.sums(n, 1000, torch.float32, "cpu")
    wrong = pattern.difference(expected + sign * pattern.summands(n - 1, n, 1000, torch.float32, "cpu"), expected)
    assert wrong and pattern.miscounted(wrong, n) == [n - 1]


@pytest.mark.parametrize("n, rank", [(2, 0), (2, 1), (4, 3), (8, 5), (21, 20), (64, 17)])
@pytest.mark.parametrize("bit", [20, 21, 22, 23, 24, 26, 31])
def test_the_rank_whose_summand_had_a_bit_flipped_is_named(n: int, rank: int, bit: int) -> None:
    expected = pattern.sums(n, 1000, torch.float32, "cpu")
    total = torch.zeros_like(expected)
    for other in range(n):
        part = pattern.summands(other, n, 1000, torch.float32, "cpu")
        if other == rank:
            part.view(torch.int32)[:64] ^= 1 << bit if bit < 31 else -(2**31)
        total += part
    wrong = pattern.difference(total, expected)
    assert wrong and pattern.flipped(wrong, n) == [rank]


@given(n=st.integers(2, 40), at=st.lists(st.integers(0, 63), min_size=1, unique=True), bit=st.integers(0, 30), data=st.data())
def test_no_other_rank_is_named_for_a_flipped_bit_whichever_elements_show_it(n: int, at: list[int], bit: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, n - 1))
    expected = pattern.sums(n, 64, torch.float32, "cpu")
    total = torch.zeros_like(expected)
    for other in range(n):
        part = pattern.summands(other, n, 64, torch.float32, "cpu")
        if other == rank:
            part.view(torch.int32)[at] ^= 1 << bit
        total += part
    wrong = pattern.difference(total, expected)
    assert wrong is None or pattern.flipped(wrong, n) in ([rank], [])


def test_nobody_is_named_for_a_wrong_sum_that_no_single_flipped_bit_explains() -> None:
    expected = pattern.sums(4, 1000, torch.float32, "cpu")
    everywhere = pattern.difference(expected + 100.5, expected)
    lost = pattern.difference(expected - pattern.summands(2, 4, 1000, torch.float32, "cpu"), expected)
    broken = pattern.difference(torch.full_like(expected, float("nan")), expected)
    assert everywhere and pattern.flipped(everywhere, 4) == []
    assert lost and pattern.flipped(lost, 4) == []
    assert broken and pattern.flipped(broken, 4) == []


def test_nobody_is_named_where_the_same_flipped_bit_in_either_of_two_ranks_explains_a_wrong_sum() -> None:
    n, alike = 14, [0, 13, 26, 39, 52]  # where ranks 0 and 13 contribute the same
    parts = [pattern.summands(rank, n, 64, torch.float32, "cpu") for rank in range(n)]
    assert parts[0][alike].tolist() == parts[13][alike].tolist()
    parts[0].view(torch.int32)[alike] ^= 1 << 30
    wrong = pattern.difference(torch.stack(parts).sum(0), pattern.sums(n, 64, torch.float32, "cpu"))
    assert wrong and wrong.index.tolist() == alike and pattern.flipped(wrong, n) == []


def test_nobody_is_named_for_a_wrong_sum_that_no_single_summand_explains() -> None:
    expected = pattern.sums(4, 1000, torch.float32, "cpu")
    everywhere, once = pattern.difference(expected + 1, expected), expected.clone()
    once[7] -= pattern.summands(2, 4, 1000, torch.float32, "cpu")[7]  # one element can be chance
    single = pattern.difference(once, expected)
    assert everywhere and pattern.miscounted(everywhere, 4) == []
    assert single and pattern.miscounted(single, 4) == []


@pytest.mark.parametrize("name, make", [(name, make) for name, _, make in collectives.trials(4)], ids=[name for name, *_ in collectives.trials(4)])
def test_the_rank_that_sent_a_wrong_element_is_named_wherever_data_is_only_moved(name: str, make: Callable[[Any], Any]) -> None:
    trial = make(collectives.Shape(rank=1, n=4, count=1021, dtype=torch.float32, device="cpu"))
    index = len(trial.expected) - 1  # in the last segment, where there are segments
    result = trial.expected.clone()
    result[index] += 1
    wrong = pattern.difference(result, trial.expected)
    sender = {"all_gather": [3], "all_to_all": [3], "send/recv": [0], **{f"broadcast from {root}": [root] for root in range(4)}}
    assert wrong and trial.culprits(wrong) == sender.get(name, [])


def test_a_failure_says_what_was_expected_what_came_and_whom_to_suspect() -> None:
    expected = pattern.marks(2, 64, torch.float16, "cpu")
    result = expected.clone()
    result[3] = 99
    wrong = pattern.difference(result, expected)
    assert wrong
    fact = pattern.corruption(0, "broadcast from 2", result, wrong, [2])
    assert fact.get("title") == ("broadcast from 2 (float16, 128 B) gave rank 0 1 wrong elements: 3 must be 17 and is 99; the data came from rank 2")
    assert (fact.get("cause"), fact.get("ranks"), fact.get("index")) == ("data-corruption", [2], 3)
    assert pattern.corruption(5, "all_reduce", result, wrong, []).get("ranks") == [5]


def row(number: int, /, **changed: Any) -> dict[str, Any]:
    """A rank of a healthy job: two nodes with two GPUs each."""
    node, local = divmod(number, 2)
    healthy = {
        "rank": number,
        "local_rank": local,
        "node_rank": node,
        "host": f"node{node}",
        "pid": 100 + number,
        "device": f"GPU {local}",
        "uuid": f"GPU-{number}",
        "pci_bus_id": f"00000000:0{local}:00.0",
        "world_size": 4,
        "torch": "2.13.0",
        "nccl": "2.28.9",
        "RANK": str(number),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": str(node),
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29500",
        "CUDA_VISIBLE_DEVICES": None,
    }
    assert changed.keys() <= healthy.keys()
    return healthy | changed


def blamed(changes: Mapping[int, Mapping[str, Any] | None]) -> list[tuple[str, list[int]]]:
    """(cause, ranks) that the check finds in the healthy job with these rows changed, or left out (None)."""
    rows = [row(rank, **(changes.get(rank) or {})) for rank in range(4) if changes.get(rank, {}) is not None]
    return [(fact.get("cause"), fact.get("ranks")) for fact in wiring.check(rows)]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, []),
        ({rank: {"uuid": None, "pci_bus_id": None, "nccl": None} for rank in range(4)}, []),
        ({rank: {"GROUP_RANK": None, "node_rank": 0} for rank in range(4)}, []),
        ({rank: {"host": "one"} for rank in range(4)}, []),
        ({2: None}, [("missing-rank-at-rendezvous", [2])]),
        ({3: {"rank": 2, "RANK": "2"}}, [("missing-rank-at-rendezvous", [3]), ("duplicate-rank", [2])]),
        ({3: {"RANK": "1"}}, [("duplicate-rank", [3])]),
        ({3: {"WORLD_SIZE": "8"}}, [("world-size-mismatch", [3])]),
        ({3: {"uuid": "GPU-2"}}, [("duplicate-gpu", [2, 3])]),
        ({3: {"nccl": "2.27.3"}}, [("nccl-version-mismatch", [3])]),
        ({2: {"nccl": "2.27.3"}, 3: {"nccl": "2.27.3"}}, [("nccl-version-mismatch", [0, 1, 2, 3])]),
        ({0: {"torch": "2.11.0"}}, [("version-mismatch", [0])]),
        ({1: {"MASTER_ADDR": "10.0.0.1"}}, [("wrong-master-addr", [1])]),
        ({1: {"MASTER_PORT": "29501"}}, [("wrong-master-addr", [1])]),
        ({1: {"host": "other"}}, [("duplicate-rank", [0, 1])]),
        ({1: {"local_rank": 0}}, [("duplicate-rank", [0, 1])]),
        ({1: {"local_rank": 2}}, [("world-size-mismatch", [0, 1])]),
    ],
)
def test_wiring_blames_the_ranks_that_are_wired_wrongly(
    changes: Mapping[int, Mapping[str, Any] | None], expected: list[tuple[str, list[int]]]
) -> None:
    assert blamed(changes) == expected


def test_wiring_says_who_shares_a_gpu_and_what_each_was_shown() -> None:
    (fact,) = wiring.check([row(0), row(1, uuid="GPU-0", CUDA_VISIBLE_DEVICES="0"), row(2), row(3)])
    assert "ranks 0, 1 (node0) share GPU-0" in fact.get("title")
    assert "rank 1 with CUDA_VISIBLE_DEVICES=0" in fact.get("title")
    assert json.loads(json.dumps(dict(fact.fields))) == dict(fact.fields)
