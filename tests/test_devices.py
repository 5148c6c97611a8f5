"""GPUs: what NVML says is recorded and played back whole, and from it a launch that would fail or crawl is foretold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import machines
import psutil
import pytest
from machines import JOB, faults, node, recording, said, titles

from ncclcheck.collect import devices, gpus, host, nvml
from ncclcheck.collect.nvml import Nvml
from ncclcheck.model import Fact
from ncclcheck.preflight.devices import judge, named
from ncclcheck.survey import Question

LOST = {"refused": "GPU is lost"}


def judged(setting: str | None = None, **changed: Any) -> list[Fact]:
    return said(judge, node(devices=machines.section(recording(**changed), setting)))


# -- the layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", machines.HEALTHY, ids=lambda path: path.stem)
def test_a_recording_that_is_recorded_again_is_the_same(path: Path) -> None:
    text = path.read_text()
    recorded = json.loads(text)
    with Nvml.played(recorded) as played:
        assert nvml.record(played) == recorded["answers"]
    assert nvml.written(recorded) == text
    assert recorded["origin"] == "recorded"


def test_every_question_is_a_function_of_the_bindings() -> None:
    pynvml = pytest.importorskip("pynvml")
    functions = {ask.function for ask in nvml.QUESTIONS.values()} - {"field", "field of link", "fabric"}
    assert [name for name in sorted(functions) if not callable(getattr(pynvml, name, None))] == []
    assert (pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT, pynvml.NVML_FI_DEV_NVLINK_GET_SPEED) == (230, 91, 164)
    assert {getattr(pynvml, name) for name in dir(pynvml) if name.startswith("nvmlClocksEventReason")} - {0, pynvml.nvmlClocksEventReasonAll} <= set(
        devices.THROTTLES
    )
    fabric = pynvml.c_nvmlGpuFabricInfoV_t()
    assert {"state", "status", "cliqueId", "healthMask", "clusterUuid"} <= {name for name, _ in fabric._fields_}


def test_the_recorder_answers_on_every_machine_and_what_it_prints_can_be_played() -> None:
    done = subprocess.run([sys.executable, "-m", "ncclcheck.collect.nvml", "--record"], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    recorded = json.loads(done.stdout)
    assert recorded["origin"] == "recorded"
    if "error" in recorded:
        with pytest.raises(OSError, match="NVML"):
            Nvml.played(recorded)
    else:
        with Nvml.played(recorded) as played:
            assert nvml.record(played) == recorded["answers"]


def test_the_roll_call_and_the_bundle_read_their_gpus_through_the_same_layer() -> None:
    recorded = recording(processes_1=[{"pid": 7, "memory": 1 << 30}], nvlink_state_0_3=0)
    with Nvml.played(recorded) as played:
        rolled = host.gpus_told(played)
        bundled = gpus.told(played)
    assert [(gpu["index"], gpu["name"], gpu["processes"]) for gpu in rolled] == [(0, "NVIDIA H200", []), (1, "NVIDIA H200", [7])]
    assert rolled[0].keys() == {"index", "name", "uuid", "pci_bus_id", "memory_total", "memory_used", "processes"}
    assert (bundled[0]["power"], bundled[0]["throttle_reasons"], bundled[0]["mig"]) == (79.916, "0x1", 0)
    assert bundled[0]["nvlinks"] == [1, 1, 1, 0, *[1] * 14]
    with Nvml.played(recording(**dict.fromkeys(("name_0", "uuid_0"), LOST))) as played:
        assert gpus.told(played)[0] == {"index": 0, "error": "GPU is lost"}


# -- the collector -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(host.nvidia_present(), reason="this machine has an NVIDIA device")
def test_a_machine_without_gpu_says_so_and_is_not_at_fault() -> None:
    found = devices.section(Question(environment={"CUDA_VISIBLE_DEVICES": ""}))
    assert (found["gpus"], found["why"]) == ([], "no GPU")
    assert said(judge, node(devices=found)) == []


def test_a_windows_that_lends_its_gpu_shows_an_nvidia_device(tmp_path: Path) -> None:
    for name in ("dev/dxg", "usr/lib/wsl/lib/libnvidia-ml.so.1"):
        assert not host.nvidia_present(tmp_path)  # one of them alone may be another maker's
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert host.nvidia_present(tmp_path)


def test_who_holds_a_gpu_is_named_with_user_and_command_and_no_secret(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text("import sys; print('up', flush=True); sys.stdin.read()")
    command = [sys.executable, str(script), "--api-key", "Gf5Hs8Ka2Ld9Qw3Er7Ty"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        facts = judged(processes_1=[{"pid": process.pid, "memory": 3 << 30}])
    (fact,) = [fact for fact in facts if fact.kind == "fail"]
    assert fact.get("cause") == "gpu-busy"
    assert f"pid {process.pid} ({psutil.Process(os.getpid()).username()}: {sys.executable}" in fact.get("title")
    assert fact.get("devices") == ["gpu-07:GPU 1"]
    assert f"kill {process.pid}" in fact.get("remedy")
    assert "Gf5Hs8Ka2Ld9Qw3Er7Ty" not in str(fact)


def test_the_numa_node_is_what_the_kernel_says(tmp_path: Path) -> None:
    for address, numa in (("0000:00:06.0", "1\n"), ("0000:00:07.0", "-1\n")):
        folder = tmp_path / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(numa)
    with Nvml.played(recording()) as played:
        read = devices.read(played, None, tmp_path)
    assert [(gpu["pci"], gpu["numa_node"]) for gpu in read["gpus"]] == [("0000:00:06.0", 1), ("0000:00:07.0", None)]
    assert read["pairs"] == [{"gpus": [0, 1], "nvlink": True, "topology": "NVLink", "bus": "PHB", "read": "ok", "write": "ok"}]
    assert (read["driver"], read["cuda"], read["visible"], read["unread"]) == ("580.159.04", "13.0", [0, 1], {})


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", machines.HEALTHY, ids=lambda path: path.stem)
def test_nothing_is_said_of_healthy_gpus(path: Path) -> None:
    section = machines.section(json.loads(path.read_text()))
    job = replace(JOB, nproc_per_node=len(section["gpus"]))
    assert section["gpus"] and titles(said(judge, node(devices=section), job)) == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"remapped_rows_0": [0, 1, 0, 1]}, ("fail", "xid-hardware")),
        ({"remapped_rows_0": [0, 1, 1, 0]}, ("degraded", "xid-hardware")),
        ({"recovery_action_0": 1}, ("fail", "xid-hardware")),
        ({"recovery_action_0": 2}, ("fail", "xid-hardware")),
        ({"recovery_action_0": 3}, ("degraded", "xid-hardware")),
        ({"ecc_uncorrected_0": 2}, ("degraded", "xid-hardware")),
        ({"ecc_corrected_0": 250_000}, ("degraded", "xid-hardware")),
        ({"retired_pages_pending_0": 1}, ("degraded", "xid-hardware")),
        ({"uuid_0": LOST}, ("fail", "xid-hardware")),
        ({"memory_0": {"refused": "Unknown Error"}}, ("fail", "xid-hardware")),
        ({"fabric_0": {"state": 2, "status": 0, "clique": 0, "health": 0}}, ("fail", "fabric-manager")),
        ({"fabric_0": {"state": 3, "status": 999, "clique": 0, "health": 0}}, ("fail", "fabric-manager")),
        ({"fabric_0": {"state": 3, "status": 0, "clique": 0, "health": 1}}, ("degraded", "slow-link")),
        ({"mig_mode_0": [1, 1]}, ("fail", "device-visibility")),
        ({"compute_mode_0": 2}, ("fail", "gpu-busy")),
        ({"memory_0": {"total": 100, "free": 20, "used": 80}}, ("degraded", "gpu-busy")),
        ({"throttle_reasons_0": 0x41}, ("degraded", "slow-gpu")),
        ({"throttle_reasons_0": 0x80}, ("degraded", "slow-gpu")),
        ({"throttle_reasons_0": 0x4}, ("degraded", "slow-gpu")),
        ({"power_limit_0": 450_000}, ("degraded", "slow-gpu")),
        ({"pcie_width_0": 8}, ("degraded", "slow-gpu")),
        ({"pcie_generation_0": 3, "throttle_reasons_0": 0}, ("degraded", "slow-gpu")),
        ({"nvlink_state_0_7": 0}, ("degraded", "slow-link")),
        ({"nvlink_speed_0_7": 13281}, ("degraded", "slow-link")),
        ({"p2p_read_0_1": 5, "p2p_write_0_1": 5}, ("degraded", "p2p-broken")),
        ({"p2p_read_0_1": 5, "p2p_write_0_1": 5, "p2p_nvlink_0_1": 5}, ("degraded", "p2p-broken")),
    ],
)
def test_a_gpu_that_is_not_as_it_should_be_is_named_once(changed: dict[str, Any], fault: tuple[str, str]) -> None:
    facts = [fact for fact in judged(**changed) if fact.kind != "note"]
    assert faults(facts) == [fault], titles(facts)
    assert "gpu-07:GPU 0" in facts[0].get("devices")
    assert facts[0].get("remedy") and facts[0].get("evidence")


@pytest.mark.parametrize(
    "changed",
    [
        {"throttle_reasons_0": 0x5},  # a power cap that idles
        {"pcie_generation_0": 1},
        {"pcie_generation_0": 1, "performance_state_0": 8, "throttle_reasons_0": 0},
        {"ecc_corrected_0": 12},
        {"ecc_uncorrected_ever_0": 3},
        {"recovery_action_0": {"refused": "Not Supported"}},
        {"fabric_0": {"state": 0, "status": 0, "clique": 0, "health": 0}},
        {"compute_mode_0": 3},
        {"nvlink_replays_0_4": 3},
        {"p2p_read_0_1": 5, "p2p_nvlink_0_1": 5, **{f"nvlink_remote_{gpu}_{link}": 0 for gpu in range(2) for link in range(18)}},
        {f"nvlink_state_{gpu}_{link}": 0 for gpu in range(2) for link in range(12, 18)},  # bridged cards use some of theirs, all alike
    ],
)
def test_what_is_usual_is_no_fault(changed: dict[str, Any]) -> None:
    assert faults(judged(**changed)) == []


def test_a_question_that_is_forbidden_is_said_to_be_unread() -> None:
    (fact,) = judged(pcie_replays_1={"refused": "Insufficient Permissions"})
    assert (fact.kind, fact.get("title")) == ("unread", "NVML pcie_replays 1: could not be read: Insufficient Permissions")


def test_nvml_that_gave_no_answer_leaves_the_node_unknown() -> None:
    (fact,) = said(judge, node(devices={"error": "no answer in 6 s"}))
    assert (fact.kind, fact.get("needed")) == ("unread", True)


def test_a_device_whose_driver_does_not_work_stops_a_launch() -> None:
    broken = {"setting": None, "nvidia": True, "gpus": [], "pairs": [], "visible": [], "why": "NVML: Driver/library version mismatch"}
    (fact,) = said(judge, node(devices=broken))
    assert (fact.kind, fact.get("cause")) == ("fail", "driver-not-working")
    assert "version mismatch" in fact.get("title")
    assert faults(said(judge, node(devices={**broken, "setting": ""}))) == []  # the CPU was asked for


def test_fewer_visible_gpus_than_ranks_stop_a_launch() -> None:
    (short,) = judged("0")
    assert short.get("cause") == "device-visibility"
    assert short.get("title") == "CUDA_VISIBLE_DEVICES names 1 GPU and 2 ranks are started on gpu-07: local rank 1 has none"
    (wrong,) = judged("0,7,1")
    assert "leaves 1 of the 2 GPUs" in wrong.get("title")
    four = said(judge, node(devices=machines.section(recording())), replace(JOB, nproc_per_node=4))
    assert faults(four) == [("fail", "device-visibility")]
    assert "local ranks 2 to 3" in titles(four)[0]


def test_the_setting_alone_tells_where_there_is_no_gpu() -> None:
    bare = {"nvidia": False, "gpus": [], "pairs": [], "visible": [], "why": "no GPU"}
    assert faults(said(judge, node(devices={**bare, "setting": "0"}))) == [("fail", "device-visibility")]
    for fine in (None, "", "-1", "0,1", "GPU-1234,GPU-5678", "0, 1 ,2"):
        assert said(judge, node(devices={**bare, "setting": fine})) == [], fine
    assert [named(text) for text in ("0,0", "0,,1", "3", "MIG-1,MIG-2")] == [1, 1, 1, 2]


def test_a_gpu_that_no_rank_uses_is_not_at_fault() -> None:
    one = replace(JOB, nproc_per_node=1)
    lost = machines.section(recording(uuid_1=LOST, remapped_rows_1=[0, 0, 0, 1]), "0")
    facts = said(judge, node(devices=lost), one)
    assert faults(facts) == []
    assert any("GPU 1 of gpu-07 cannot be read: GPU is lost; no rank uses it" in title for title in titles(facts))


def test_a_gpu_that_is_visible_and_that_no_rank_takes_is_worth_a_note() -> None:
    one = replace(JOB, nproc_per_node=1)
    held = machines.section(recording(processes_1=[{"pid": 2**22 + 1, "memory": 1 << 30}], remapped_rows_1=[0, 1, 0, 1]))
    facts = said(judge, node(devices=held), one)
    assert faults(facts) == []
    assert sum("GPU 1 of gpu-07" in title and title.endswith("; no rank uses it") for title in titles(facts)) == 2
    assert ("fail", "gpu-busy") in faults(said(judge, node(devices=held)))
    reversed_ = machines.section(recording(processes_1=[{"pid": 2**22 + 1, "memory": 1 << 30}]), "1,0")
    assert faults(said(judge, node(devices=reversed_), one)) == [("fail", "gpu-busy")]  # rank 0 takes the first that is named


def test_parts_of_gpus_that_are_named_are_enough_and_their_gpus_are_not_known() -> None:
    facts = judged("MIG-5e2b6f0a-1c1e-5a5e-9d5c-1a2b3c4d5e6f,MIG-6e2b6f0a-1c1e-5a5e-9d5c-1a2b3c4d5e6f")
    assert faults(facts) == [] and "names parts of GPUs (MIG)" in titles(facts)[0]
    assert faults(judged("MIG-5e2b6f0a-1c1e-5a5e-9d5c-1a2b3c4d5e6f")) == [("fail", "device-visibility")]


def test_exclusive_mode_is_a_fault_only_where_ranks_share_a_gpu() -> None:
    found = machines.section(recording(compute_mode_0=3), "0")
    assert ("fail", "gpu-busy") in faults(said(judge, node(devices=found)))
    assert faults(said(judge, node(devices=found), replace(JOB, nproc_per_node=1))) == []


def test_links_that_are_down_on_one_of_two_equal_gpus_are_counted() -> None:
    facts = judged(**{f"nvlink_state_1_{link}": 0 for link in (3, 4)})
    assert [title for title in titles(facts) if "NVLinks" in title] == [
        "2 of 18 NVLinks of GPU 1 of gpu-07 are down; 18 are up on others of its kind"
    ]


def test_what_the_kernel_says_of_gpus_is_judged_with_them() -> None:
    line = {"seconds": 9.0, "text": "NVRM: Xid (PCI:0000:00:06): 79, pid=7, GPU has fallen off the bus."}
    asks = recording(recovery_action_0={"refused": "Not Supported"})
    there = node(devices=machines.section(asks), kernel={"nvidia": True, "uptime": 10.0, "lines": [line], "gpus": [], "cards": []})
    assert faults(said(judge, there)) == [("fail", "xid-hardware")]
    assert [fact.kind for fact in said(judge, node(devices=machines.section(recording()), kernel={"error": "no answer in 6 s"}))] == ["unread"]
