"""Of what many sources say one job is made: a process is the rank and on the host that something says, and nothing is made up."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from ncclcheck import assemble, stated
from ncclcheck.evidence import places, source
from ncclcheck.evidence.source import Reading
from ncclcheck.model import Run
from ncclcheck.recorder import Dump

DUMP = Dump("", None, None, {}, (), {})


def run(**logs: str) -> Run:
    """The job that these logs tell of; in their names `__` stands for a dot."""
    return assemble.run([source.read(io.BytesIO(text.encode()), name.replace("__", ".")) for name, text in logs.items()])


@pytest.mark.parametrize("name", ["Qwen3-32B.log", "exp42.log", "run1.log", "hang-report/vllm.log", "MyProject/out.log", "a/Qwen3-32B/err.log"])
def test_a_name_alone_makes_no_host(name: str) -> None:
    assert places.hosts_of([name], ()) == {}


@pytest.mark.parametrize(
    "names", [("run1.log", "run2.log"), ("Qwen3-32B.log", "Qwen3-14B.log"), ("exp7/out.log", "exp8/out.log"), ("t-v1.log", "t-v2.log")]
)
def test_models_and_experiments_are_no_hosts_however_many(names: tuple[str, ...]) -> None:
    assert places.hosts_of(names, ()) == {}


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("kay-7.rank3.log", "kay-7"),
        ("pyspy.kay-7.rank1.txt", "kay-7"),
        ("kay-7-dmesg.log", "kay-7"),
        ("nccl.kay-7.log", "kay-7"),
        ("logs/nodeB.log", "nodeB"),
        ("gpu-a07/out.log", "gpu-a07"),
        ("bundle/log.exp42.rank1.811.txt", "exp42"),
    ],
)
def test_a_rank_a_kind_of_evidence_or_a_word_for_a_machine_makes_a_name_a_host(name: str, host: str) -> None:
    assert places.hosts_of([name], ()) == {name: host}


def test_names_alike_in_one_folder_are_hosts_and_so_is_a_name_that_a_line_uses() -> None:
    assert places.hosts_of(["x/kay-7.log", "x/kay-8.log", "y/tim-7.log", "z/tim-8.log"], ()) == {"x/kay-7.log": "kay-7", "x/kay-8.log": "kay-8"}
    assert places.hosts_of(["tim-9.log"], {"tim-9"}) == {"tim-9.log": "tim-9"}


def test_the_host_in_a_dump_or_in_its_name_is_that_of_its_rank() -> None:
    readings = [
        Reading("gpu-01.rank7.pkl", "flight recorder", dump=DUMP),
        Reading("fr_rank_2", "flight recorder", dump=replace(DUMP, host="kay-3", rank=2)),
    ]
    assert {rank: who.host for rank, who in assemble.run(readings).ranks.items()} == {7: "gpu-01", 2: "kay-3"}


def test_local_and_node_ranks_that_nobody_said_are_not_known() -> None:
    whose = run(job__log="5: gpu-3:811:900 [0] NCCL INFO cudaDriverVersion 12040\n6: gpu-3:812:901 [1] NCCL INFO cudaDriverVersion 12040\n").ranks
    assert {rank: (who.local_rank, who.node_rank) for rank, who in whose.items()} == {5: (None, None), 6: (None, None)}
    said = run(
        vllm__log="(Worker pid=91) INFO 03-02 10:00:09 [p.py:1] world_size=4 rank=3 local_rank=1 distributed_init_method=env:// backend=nccl\n"
    )
    assert said.ranks[3].local_rank == 1


def test_what_ray_calls_by_its_address_is_the_host_that_nccl_names() -> None:
    lines = "(W pid=703, ip=10.4.0.12) gpu12:703:991 [0] NCCL INFO cudaDriverVersion 12040\n(W pid=704, ip=10.4.0.12) RuntimeError: NCCL error\n"
    assert {fact.host for fact in run(ray__log=lines).facts if fact.pid} == {"gpu12"}


@pytest.mark.parametrize(("prefix", "rank"), [("[rank1]:", 1), ("3: [rank1]:", 1), ("", None)])
def test_the_rank_of_the_job_speaks_and_not_its_number_within_a_group(prefix: str, rank: int | None) -> None:
    told = run(
        a__log=f"{prefix}[E ProcessGroupNCCL.cpp:1537] [PG ID 2 PG GUID 9(dp) Rank 0] Timeout, last enqueued work: 8, last completed work: 7.\n"
    )
    assert [fact.rank for fact in told.of("position")] == [rank]


def test_a_file_is_no_subject_of_what_a_statement_says() -> None:
    told = run(train__log="OSError: [Errno 28] No space left on device\n")
    assert [finding.title for finding in stated.findings(told, "disk_full") if "train.log" in finding.title] == []
    assert stated.findings(told, "disk_full")
