"""RDMA ports: what the kernel shows of them is read, and a port that is down, slow, unreachable or not found is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cards
import machines
import pytest
from machines import faults, node, said, titles

from ncclcheck.collect import infiniband
from ncclcheck.model import Fact
from ncclcheck.preflight.hca import Choice
from ncclcheck.preflight.infiniband import judge
from ncclcheck.survey import Question


def judged(root: Path, *, gpus: bool = False, libraries: dict[str, Any] | None = None, **environ: str) -> list[Fact]:
    sections: dict[str, Any] = {"infiniband": infiniband.read(environ, root, str(root))}
    sections |= {"devices": machines.section(machines.recording())} if gpus else {}
    sections |= {"libraries": libraries} if libraries is not None else {}
    return said(judge, node(**sections))


def ndr(root: Path, count: int = 4) -> None:
    for number in range(count):
        cards.port(root, f"mlx5_{number}")


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_port_is_read_with_everything_that_the_kernel_tells(tmp_path: Path) -> None:
    cards.port(tmp_path, "mlx5_2", link="Ethernet", rate="200 Gb/sec (4X HDR)", interface="ens3np0", counters={"symbol_error": 7})
    cards.port(tmp_path, "mlx5_10")
    found = infiniband.read({}, tmp_path)
    assert [port["device"] for port in found["ports"]] == ["mlx5_2", "mlx5_10"]
    port = found["ports"][0]
    assert (port["state"], port["physical"], port["rate"], port["width"], port["speed"]) == ("active", "linkup", 200.0, 4, "HDR")
    assert (port["link"], port["interfaces"], port["driver"], port["pci"], port["numa_node"]) == (
        "Ethernet",
        ["ens3np0"],
        "mlx5_core",
        "0000:03:00.0",
        0,
    )
    assert [(gid["index"], gid["type"], gid["address"]) for gid in port["gids"]][2:] == [(2, "IB/RoCE v1", "10.1.2.3"), (3, "RoCE v2", "10.1.2.3")]
    assert (port["counters"], port["lid"], found["verbs"]) == ({"symbol_error": 7}, 17, ["uverbs_mlx5_10", "uverbs_mlx5_2"])


def test_a_machine_without_such_cards_says_so_and_is_not_at_fault(tmp_path: Path) -> None:
    assert infiniband.read({}, tmp_path)["why"] == "no InfiniBand device"
    assert judged(tmp_path, gpus=True) == []
    here = infiniband.section(Question())
    assert here["ports"] or here["why"] == "no InfiniBand device"


def test_the_environment_goes_before_the_users_file_and_that_before_the_systems(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nccl.conf").write_text("# ours\nNCCL_IB_HCA=mlx5_0\nNCCL_NET=IB\nNCCL_DEBUG=INFO\n")
    (tmp_path / ".nccl.conf").write_text("NCCL_IB_HCA==mlx5_1\nNCCL_IB_GID_INDEX = 3\nNCCL_IB_DISABLE=0")
    found = infiniband.settings({"NCCL_IB_DISABLE": "1"}, tmp_path, str(tmp_path))
    assert {name: there["value"] for name, there in found.items()} == {"NCCL_IB_HCA": "=mlx5_1", "NCCL_NET": "IB", "NCCL_IB_DISABLE": "1"}
    assert found["NCCL_NET"]["from"] == str(tmp_path / "etc/nccl.conf")
    (tmp_path / "mine.conf").write_text("NCCL_IB_HCA=mlx5_7\n")
    named = infiniband.settings({"NCCL_CONF_FILE": str(tmp_path / "mine.conf")}, tmp_path, str(tmp_path))
    assert named["NCCL_IB_HCA"]["value"] == "mlx5_7"


@pytest.mark.parametrize(
    ("text", "device", "port", "taken"),
    [
        ("mlx5", "mlx5_0", 1, True),
        ("mlx5_1", "mlx5_10", 1, True),  # the beginning of a name is enough
        ("=mlx5_1", "mlx5_10", 1, False),
        ("=mlx5_1,mlx5_10", "mlx5_10", 1, True),
        ("mlx5_0:1", "mlx5_0", 2, False),
        ("mlx5_0:1", "mlx5_0", 1, True),
        ("^mlx5_0", "mlx5_0", 1, False),
        ("^mlx5_0", "mlx5_1", 1, True),
        ("^=mlx5_1", "mlx5_10", 1, True),
        ("", "mlx5_0", 1, True),
        ("=", "mlx5_0", 1, True),
    ],
)
def test_nccl_ib_hca_is_read_as_nccl_reads_it(text: str, device: str, port: int, taken: bool) -> None:
    assert Choice.parse(text).takes({"device": device, "port": port}) is taken


# -- what is said ------------------------------------------------------------------------------------------------------


def test_nothing_is_said_of_healthy_ports(tmp_path: Path) -> None:
    ndr(tmp_path, 8)
    cards.port(tmp_path, "mlx5_8", link="Ethernet", rate=cards.HDR, interface="ens9np0", kind="MT4127")
    cards.direct(tmp_path)
    assert judged(tmp_path, gpus=True) == []
    assert judged(tmp_path, gpus=True, NCCL_IB_HCA="^mlx5_8", NCCL_IB_DISABLE="0") == []


def test_a_port_that_is_down_while_others_are_up_is_named(tmp_path: Path) -> None:
    ndr(tmp_path)
    cards.port(tmp_path, "mlx5_3", state="1: DOWN", physical="2: Polling", rate=cards.SDR)
    (fact,) = judged(tmp_path)
    assert (fact.kind, fact.get("cause"), fact.get("interface")) == ("degraded", "ib-link-error", "mlx5_3:1")
    assert fact.get("title").startswith("mlx5_3:1 on gpu-07 is down (physical state: polling); 3 others are up (mlx5_0:1")
    assert faults(judged(tmp_path, NCCL_IB_HCA="mlx5_0,mlx5_1,mlx5_2")) == []  # nobody uses it


def test_a_port_that_somebody_switched_off_is_a_note(tmp_path: Path) -> None:
    ndr(tmp_path)
    cards.port(tmp_path, "mlx5_3", state="1: DOWN", physical="3: Disabled")
    assert faults(judged(tmp_path)) == []
    assert faults(judged(tmp_path, NCCL_IB_HCA="=mlx5_0,mlx5_3")) == [("degraded", "ib-link-error")]  # it is asked for


def test_an_ethernet_port_without_cable_is_a_note(tmp_path: Path) -> None:
    ndr(tmp_path)
    cards.port(tmp_path, "mlx5_4", link="Ethernet", state="1: DOWN", physical="2: Polling", kind="MT4127")
    assert faults(judged(tmp_path)) == []
    assert "mlx5_4:1 on gpu-07 is down (physical state: polling)" in titles(judged(tmp_path))


def test_a_port_without_subnet_manager_is_named(tmp_path: Path) -> None:
    cards.port(tmp_path, state="2: INIT")
    (fact,) = judged(tmp_path)
    assert (fact.get("cause"), "no subnet manager" in fact.get("title")) == ("ib-link-error", True)


def test_a_port_slower_than_its_equals_is_named_and_another_model_is_not(tmp_path: Path) -> None:
    ndr(tmp_path)
    cards.port(tmp_path, "mlx5_9", rate=cards.HDR, kind="MT4123")
    assert judged(tmp_path) == []
    cards.port(tmp_path, "mlx5_2", rate=cards.HDR)
    (fact,) = judged(tmp_path)
    assert fact.get("title") == "mlx5_2:1 on gpu-07 runs at 200 Gb/s (4 lanes, HDR); others of its kind run at 400 Gb/s"


def test_a_port_with_one_lane_is_named(tmp_path: Path) -> None:
    cards.port(tmp_path, rate="100 Gb/sec (1X NDR)")
    assert faults(judged(tmp_path)) == [("degraded", "ib-link-error")]


def test_cards_that_nobody_has_are_named(tmp_path: Path) -> None:
    ndr(tmp_path)
    (none,) = judged(tmp_path, NCCL_IB_HCA="mlx5_9")
    assert (none.kind, none.get("cause")) == ("degraded", "wrong-hca-path")
    assert none.get("title") == ("NCCL_IB_HCA names mlx5_9 on gpu-07, which has mlx5_0:1, mlx5_1:1, mlx5_2:1, mlx5_3:1: NCCL goes over TCP instead")
    assert none.get("evidence")[0] == "environment: NCCL_IB_HCA=mlx5_9"
    (some,) = judged(tmp_path, NCCL_IB_HCA="=mlx5_0,mlx5_1:2")
    assert "names mlx5_1:2" in some.get("title") and "NCCL uses the others only" in some.get("title")
    assert faults(judged(tmp_path, NCCL_IB_HCA="^mlx5_9")) == []
    assert faults(judged(tmp_path, NCCL_IB_HCA="^mlx5")) == [("degraded", "wrong-hca-path")]


def test_cards_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    assert faults(judged(tmp_path, NCCL_IB_HCA="mlx5_0")) == [("degraded", "wrong-hca-path")]
    assert faults(judged(tmp_path, NCCL_IB_HCA="^mlx5_0")) == []
    assert faults(judged(tmp_path, NCCL_NET="IB")) == [("fail", "nccl-env-misconfig")]


def test_rdma_that_is_switched_off_is_named(tmp_path: Path) -> None:
    assert faults(judged(tmp_path, NCCL_IB_DISABLE="1")) == []  # there is nothing to switch off
    ndr(tmp_path, 2)
    assert faults(judged(tmp_path, NCCL_IB_DISABLE="1")) == [("degraded", "nccl-env-misconfig")]
    assert faults(judged(tmp_path, NCCL_NET="Socket")) == [("degraded", "nccl-env-misconfig")]
    assert faults(judged(tmp_path, NCCL_IB_DISABLE="0")) == []


def test_a_gid_that_is_not_there_stops_a_launch(tmp_path: Path) -> None:
    cards.port(tmp_path, link="Ethernet", rate=cards.HDR, interface="ens3np0")
    assert judged(tmp_path) == [] and judged(tmp_path, NCCL_IB_GID_INDEX="3") == []
    (fact,) = judged(tmp_path, NCCL_IB_GID_INDEX="5")
    assert (fact.kind, fact.get("cause")) == ("fail", "roce-gid")
    assert "3: 10.1.2.3 (RoCE v2)" in fact.get("title")
    assert faults(judged(tmp_path, NCCL_IB_GID_INDEX="2")) == [("degraded", "roce-gid")]


def test_a_roce_port_without_an_address_is_named(tmp_path: Path) -> None:
    cards.port(tmp_path, link="Ethernet", rate=cards.HDR, interface="ens3np0", gids={n: cards.ROCE[n] for n in (0, 1)})
    (fact,) = judged(tmp_path)
    assert (fact.get("cause"), "ens3np0" in fact.get("remedy")) == ("roce-gid", True)


def test_gpus_without_a_way_to_the_cards_are_named(tmp_path: Path) -> None:
    ndr(tmp_path, 2)
    cards.direct(tmp_path, peermem=False)
    assert faults(judged(tmp_path, gpus=True)) == [("degraded", "gdr-missing")]
    assert judged(tmp_path) == []  # without GPUs there is nothing to read


@pytest.mark.parametrize(
    ("kernel", "environ", "fine"), [("6.8.0", {}, True), ("5.4.0-100", {}, False), ("6.8.0", {"NCCL_DMABUF_ENABLE": "0"}, False)]
)
def test_dma_buf_stands_in_for_the_module(tmp_path: Path, kernel: str, environ: dict[str, str], fine: bool) -> None:
    ndr(tmp_path, 2)
    cards.direct(tmp_path, peermem=False, open_driver=True, kernel=kernel)
    assert faults(judged(tmp_path, gpus=True, **environ)) == ([] if fine else [("degraded", "gdr-missing")])


def test_cards_that_programs_may_not_use_are_named(tmp_path: Path) -> None:
    ndr(tmp_path, 1)
    (tmp_path / "dev/infiniband/uverbs_mlx5_0").unlink()
    assert faults(judged(tmp_path)) == [("degraded", "permission-denied")]


def test_efa_without_its_plugin_is_named(tmp_path: Path) -> None:
    cards.port(tmp_path, "rdmap0s6", link="Unspecified", rate="400 Gb/sec (4X NDR)", driver="efa", gids={})
    assert faults(judged(tmp_path, libraries={"plugin": {"path": None}})) == [("degraded", "net-plugin")]
    assert faults(judged(tmp_path, libraries={"plugin": {"path": "/opt/libnccl-net.so"}})) == []


def test_errors_that_a_port_counted_are_a_note(tmp_path: Path) -> None:
    cards.port(tmp_path, counters={"link_downed": 3})
    (fact,) = judged(tmp_path)
    assert (fact.kind, fact.get("title")) == ("note", "mlx5_0:1 on gpu-07 counts errors since its driver was loaded: link_downed 3")
