"""Links are read from what a probe wrote: its report, or its run directory; what cannot be used is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import planned
import pytest
from running import Job

from ncclcheck.expect import cost, gpus, links
from ncclcheck.expect.cost import Group
from ncclcheck.journal import sample_fields
from ncclcheck.model import Sample
from ncclcheck.plan import choose, config, hardware, measured, predict
from ncclcheck.plan.curves import Curve, Measured
from ncclcheck.plan.layout import Layout
from ncclcheck.plan.measured import Unusable

SIZES = [8 * 8**power for power in range(9)]


def seconds(group: Group, nbytes: int, inside: links.Link, network: links.Network | None) -> float:
    return cost.all_reduce(group, nbytes, inside, network).seconds


def report(
    group: Group, name: str = "all_reduce", device: str = "NVIDIA H100 80GB HBM3", emulated: bool = False, factor: float = 1.0
) -> dict[str, Any]:
    """What a probe would write of a cluster whose links are exactly those of the tables, `factor` times as slow."""
    network = links.network("8x400G-rdma") if group.nodes > 1 else None
    samples = []
    for rank in range(group.size):
        for nbytes in SIZES:
            took = factor * seconds(group, nbytes, links.INSIDE["nvlink4"], network)
            sample = Sample(name, nbytes, "float32", group.size, [took * (1 + 0.01 * step) for step in range(-5, 6)], 1.0, True)
            samples.append({**sample_fields(sample), "rank": rank})
    ranks = [{"rank": rank, "local_rank": rank % group.each, "node_rank": rank // group.each, "host": f"gpu-{rank // group.each}", "pid": 1,
              "device": {"index": rank % group.each, "name": device}} for rank in range(group.size)]  # fmt: skip
    nodes = [{"node_rank": node, "host": f"gpu-{node}", "addresses": {"lo": ["127.0.0.1"], "eth0": [f"10.0.0.{node + 1}", "fe80::1"]}}
             for node in range(group.nodes)]  # fmt: skip
    probe = {"name": "bandwidth", "status": "pass", "detail": "", "seconds": 1.0, "samples": samples, "facts": []}
    return {"schema": 1, "status": "ready", "summary": "", "seconds": 1.0, "findings": [], "emulated": emulated, "environment": {}, "probes": [probe],
            "nodes": nodes, "ranks": ranks, "run": {}}  # fmt: skip


def read(folder: Path, document: dict[str, Any]) -> Measured:
    (folder / "run.json").write_text(json.dumps(document))
    return measured.read(folder / "run.json")


def test_a_report_says_the_cluster_and_its_links(tmp_path: Path) -> None:
    found = read(tmp_path, report(Group(8, 2)))
    assert (found.curve.group, found.device) == (Group(8, 2), "NVIDIA H100 80GB HBM3")
    assert (found.hosts, found.addresses) == (("gpu-0", "gpu-1"), ("10.0.0.1", "10.0.0.2"))
    assert found.curve.spread == pytest.approx(0.04, abs=0.01)
    for nbytes in SIZES:
        assert found.curve.points[nbytes] == pytest.approx(
            seconds(Group(8, 2), nbytes, links.INSIDE["nvlink4"], links.network("8x400G-rdma")), rel=0.02
        )


@pytest.mark.parametrize("nbytes", [8, 100, 5000, 2**20, 50 * 2**20, 2**30])
def test_between_the_sizes_that_were_measured_a_curve_comes_near(nbytes: int, tmp_path: Path) -> None:
    curve = read(tmp_path, report(Group(8))).curve
    assert curve.cost(nbytes).seconds == pytest.approx(seconds(Group(8), nbytes, links.INSIDE["nvlink4"], None), rel=0.2)
    assert curve.cost(nbytes).seconds <= curve.cost(2 * nbytes).seconds


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_links_are_fitted_to_what_was_measured_for_groups_that_were_not(factor: float, tmp_path: Path) -> None:
    runs = [read(tmp_path, report(group, factor=factor)) for group in (Group(8), Group(1, 2))]
    fitted = hardware.build(2, 8, gpus.find("H100"), links.INSIDE["nvlink4"], links.network("8x400G-rdma"), runs)
    assert fitted.inside.measured and fitted.network and fitted.network.link.measured
    for group in (Group(2), Group(4), Group(8, 2)):
        for nbytes in (8, 2**13, 2**27):
            true = factor * seconds(group, nbytes, links.INSIDE["nvlink4"], links.network("8x400G-rdma"))
            assert fitted.all_reduce(group, nbytes).seconds == pytest.approx(true, rel=0.35), (group, nbytes)


def test_a_run_over_whole_nodes_alone_says_what_the_network_adds(tmp_path: Path) -> None:
    slow = read(tmp_path, report(Group(8, 2), factor=4.0))
    fitted = hardware.build(2, 8, gpus.find("H100"), links.INSIDE["nvlink4"], links.network("8x400G-rdma"), [slow])
    assert not fitted.inside.measured and fitted.network and fitted.network.link.measured
    assert fitted.all_reduce(Group(8, 2), 2**13).seconds == pytest.approx(slow.curve.cost(2**13).seconds)
    assert fitted.all_reduce(Group(4, 2), 8).seconds > 3 * seconds(Group(4, 2), 8, links.INSIDE["nvlink4"], links.network("8x400G-rdma"))


def test_small_all_reduces_in_cuda_graphs_count_before_eager_ones(tmp_path: Path) -> None:
    document = report(Group(2))
    graphs = report(Group(2), name="all_reduce (graph)", factor=0.25)["probes"][0]["samples"]
    document["probes"][0]["samples"] += [sample for sample in graphs if sample["nbytes"] < 2**21]
    points = read(tmp_path, document).curve.points
    plain = read(tmp_path, report(Group(2))).curve.points
    assert points[8] == pytest.approx(plain[8] / 4, rel=0.01) and points[SIZES[-1]] == plain[SIZES[-1]]


def test_a_slower_measured_network_moves_the_plan_from_slices_to_stages(tmp_path: Path) -> None:
    model = config.shape(planned.LLAMA_405B)
    inside = read(tmp_path, report(Group(8)))
    told = []
    for factor in (0.2, 30.0):
        across = read(tmp_path, report(Group(1, 2), factor=factor))
        cluster = hardware.build(2, 8, gpus.find("H100"), links.INSIDE["nvlink4"], None, [inside, across])
        told.append(choose.ranked(model, cluster, planned.LOAD)[0].layout)
    assert told == [Layout(16, 1, 1, 2), Layout(8, 2, 1, 2)]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda document: document["probes"].clear(), "has no all-reduce that was measured"),
        (lambda document: document["ranks"].pop(), "not spread evenly"),
        (lambda document: document["ranks"][0]["device"].update(name="NVIDIA L4"), "different GPUs (NVIDIA H100 80GB HBM3, NVIDIA L4)"),
        (lambda document: document.pop("schema"), "is no report of ncclcheck probe"),
        (lambda document: [sample.update(ranks=1) for sample in document["probes"][0]["samples"]], "of one rank only"),
    ],
)
def test_a_run_that_says_too_little_is_refused_in_one_line(change: Any, said: str, tmp_path: Path) -> None:
    document = report(Group(4))
    change(document)
    with pytest.raises(Unusable) as error:
        read(tmp_path, document)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_adds_up_is_the_mean_and_no_hiccup(tmp_path: Path) -> None:
    document = report(Group(2))
    for sample in document["probes"][0]["samples"]:
        sample["seconds"] = [1e-4] * 60 + [3e-4] * 40 + [30.0]
    assert list(read(tmp_path, document).curve.points.values()) == pytest.approx([1.8e-4] * len(SIZES))
    for strange in (7, "x", [None, "x"], [-1.0] * 50):
        for sample in document["probes"][0]["samples"]:
            sample["seconds"], sample["latency_median"] = strange, 2e-4
        assert set(read(tmp_path, document).curve.points.values()) == {2e-4}, strange


@pytest.mark.parametrize("value", [None, "quick", -1.0, 0.0, float("inf"), [1.0]])
def test_samples_that_cannot_be_are_left_out(value: Any, tmp_path: Path) -> None:
    document = report(Group(2))
    for sample in document["probes"][0]["samples"]:
        if sample["nbytes"] == 8:
            sample["latency_median"] = value
    text = json.dumps(document).replace("Infinity", "1e999")
    (tmp_path / "run.json").write_text(text)
    if value == float("inf"):
        with pytest.raises(Unusable):
            measured.read(tmp_path / "run.json")
    else:
        assert min(measured.read(tmp_path / "run.json").curve.points) == 64


def test_a_layouts_group_that_was_measured_takes_its_time_from_there() -> None:
    curve = Curve(Group(1, 2), {8: 1e-3, 2**20: 5e-3}, 0.1)
    model = config.shape({**planned.LLAMA_1B, "torch_dtype": "float32"})
    cluster = hardware.build(2, 1, gpus.find("CPU"), links.INSIDE["shared-memory"], None, [Measured("run", curve, "CPU")])
    sent = predict.communication(model, Layout(2, 1, 1, 2), cluster, 1, 1)
    reduces = (2 * 16 + 1) * curve.cost(2048 * 4).seconds
    assert reduces < sent.seconds < reduces + 5e-3


def engine(document: dict[str, Any], token: float, compared: str = "TP=1 with TP=2", reduces: Any = None) -> dict[str, Any]:
    """The same report with what the probe vllm_engine saw on every rank."""
    fields = {"tensor_parallel": 2, "compared": [compared], "backend": "gloo"}
    facts = [{"kind": "engine", "rank": rank, "fields": {**fields, "token_seconds": token * (1 - 0.1 * rank)}} for rank in range(2)]
    told = [{"kind": "all-reduces", "rank": 0, "fields": {"seconds": reduces}}]
    document["probes"].append({"name": "vllm_engine", "status": "pass", "facts": [*facts, *told]})
    return document


def inside(*seconds: Any) -> list[Any]:
    """All-reduces of 1 KiB and 64 KiB after 1 MiB was read, and after 16 MiB."""
    kinds = [(2**20, 2**10), (2**20, 2**16), (2**24, 2**10), (2**24, 2**16)]
    return [[*kind, value] for kind, value in zip(kinds, seconds, strict=True)]


INSIDE = inside(1e-3, 2e-3, 3e-3, 4e-3)
CPU = gpus.find("CPU")


def built(folder: Path, document: dict[str, Any], nodes: int = 2, gpu: gpus.Gpu = CPU) -> hardware.Hardware:
    return hardware.build(nodes, 2 // nodes, gpu, links.INSIDE[gpu.inside], None, [read(folder, document)])


def test_where_ranks_have_no_gpu_an_engine_says_what_a_collective_takes_in_it(tmp_path: Path) -> None:
    across = Group(1, 2)
    run = report(across, device="CPU")
    cluster = built(tmp_path, engine(run, 1e-6, reduces=INSIDE))
    costs = [cluster.all_reduce(across, nbytes, read).seconds for read, nbytes in ((0, 8), (2**20, 2**16), (2**24, 2**10), (2**30, 2**16))]
    assert costs == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])  # nothing is known of less and more than was read
    assert cluster.all_reduce(across, 2**10, 2**22).seconds == pytest.approx(2e-3)  # half way, by logarithms
    assert cluster.all_gather(across, 2**10, 2**22).seconds == pytest.approx(1e-3)
    assert cluster.all_reduce(across, SIZES[-1], 2**20).seconds == pytest.approx(read(tmp_path, run).curve.points[SIZES[-1]])  # not measured in it


def test_what_is_lost_around_collectives_is_a_tokens_time_without_what_is_known_of_it(tmp_path: Path) -> None:
    token = CPU.step + 2 * CPU.layer + 5.5 * 5e-3  # five all-reduces and a gather
    cluster = built(tmp_path, engine(report(Group(1, 2), device="CPU"), token, reduces=INSIDE))
    nbytes = 4 * 128 * 4  # four prompts, hidden size, float32
    assert cluster.waiting(Group(1, 2)) == pytest.approx(5e-3 - cluster.all_reduce(Group(1, 2), nbytes).seconds)
    model = config.shape({**planned.LLAMA_1B, "torch_dtype": "float32"})
    time = predict.forecast(model, Layout(2, 1, 1, 2), cluster, predict.Load(1, 16, 16, 64)).token
    assert time.waiting == pytest.approx(33.5 * cluster.waiting(Group(1, 2)))
    assert time.seconds == pytest.approx(time.memory + time.compute + time.overhead + time.communication.seconds + time.waiting)
    assert cluster.waiting(Group(2, 2)) == cluster.waiting(Group(1, 2)) and cluster.waiting(Group(2)) == 0.0  # a group that was not measured


def test_an_engine_of_which_nothing_can_be_said_leaves_the_runs_own_all_reduces(tmp_path: Path) -> None:
    across = Group(1, 2)
    plain = built(tmp_path, report(across, device="CPU")).all_reduce(across, 2048).seconds
    for document in (
        engine(report(across, device="CPU"), 1.0),
        engine(report(across, device="CPU"), 1.0, reduces="none"),
        engine(report(across, device="CPU"), 1.0, reduces=[7, [1, 2], *inside(-1.0, None, "x", 1e9)]),
    ):
        cluster = built(tmp_path, document)
        assert (cluster.all_reduce(across, 2048).seconds, cluster.waiting(across)) == (plain, 0.0)
    other = built(tmp_path, engine(report(across, device="CPU"), 1.0, "the first run with the second", INSIDE))  # than the tiny model
    assert (other.all_reduce(across, 2**10).seconds, other.waiting(across)) == (pytest.approx(1e-3), 0.0)
    cards = built(tmp_path, engine(report(across), 1.0, reduces=INSIDE), gpu=gpus.find("H100"))  # they queue collectives
    assert cards.all_reduce(across, 2048).seconds == pytest.approx(plain)
    ones = [engine(report(Group(2), device="CPU", factor=factor), 1.0, reduces=INSIDE) for factor in (1.0, 100.0)]
    here = [built(tmp_path, one, nodes=1).all_reduce(Group(2), 2048).seconds for one in ones]
    assert here[0] == here[1] < 30e-6  # Gloo was measured, shared memory is what vLLM uses


def test_links_that_other_gpus_had_are_not_taken_for_these(tmp_path: Path) -> None:
    model = tmp_path / "config.json"
    model.write_text(json.dumps(planned.LLAMA_8B))
    told = {"CPU": ("H100", 2), "NVIDIA H100 80GB HBM3": ("A100", 2), "NVIDIA H100 CNX": ("H100-PCIe", 0), "": ("H100", 0)}
    for number, (device, (gpu, code)) in enumerate(told.items()):
        (tmp_path / "run.json").write_text(json.dumps(report(Group(2), device=device)))
        job = Job(tmp_path / str(number), "plan", str(model), "--run", str(tmp_path / "run.json"), "--gpu", gpu)
        assert job.wait(60) == code, job.err
        assert ("its links say nothing about" in job.err) == (code == 2)


@pytest.mark.slow
def test_a_plan_follows_from_a_real_run_by_its_report_and_by_its_directory_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = Job(tmp_path, "probe", "bandwidth", "--emulate", "2x1", "--budget", "1s", "--format", "json")
    try:
        assert job.wait(120) == 0, job.err
    finally:
        job.kill()
    by_report, by_folder = measured.read(tmp_path / "out"), measured.read(job.run_dir)
    assert by_report.curve.group == by_folder.curve.group == Group(1, 2)
    assert by_report.curve.points == pytest.approx(by_folder.curve.points) and len(by_report.curve.points) >= 4
    assert by_report.device == by_folder.device == "CPU" and by_report.emulated
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**planned.LLAMA_1B, "torch_dtype": "float32"}))
    planning = Job(tmp_path / "plan", "plan", str(tmp_path / "model"), "--run", str(tmp_path / "out"), "--format", "json")
    assert planning.wait(60) == 0, planning.err
    cluster = planning.report["cluster"]
    assert (cluster["nodes"], cluster["gpus_per_node"], cluster["gpu"]["name"]) == (2, 1, "CPU")
    assert cluster["links"]["network"]["link"]["measured"] and planning.report["emulated"]
