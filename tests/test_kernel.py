"""The kernel: its messages about GPUs are told from those about programs, and bridges that redirect peer traffic are read from their registers."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import cards
import machines
import pytest
from machines import faults, node, said, titles

from ncclcheck.collect import kernel, kernel_log
from ncclcheck.model import Fact
from ncclcheck.preflight.kernel import judge
from ncclcheck.survey import Question

LOST = "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
LOADED = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build"
REDIRECT = 0x1D  # source validation, request and completion redirect, upstream forwarding
UPSTREAM, DOWNSTREAM, ROOT = 5, 6, 4


def recording(**changed: Any) -> dict[str, Any]:
    """Two healthy H200s where the messages here say that they are."""
    return machines.recording(pci_bus_id_0="00000000:1B:00.0", pci_bus_id_1="00000000:43:00.0", **changed)


def judged(*lines: str | tuple[float, str], devices: dict[str, Any] | None = None, **found: Any) -> list[Fact]:
    stamped = [{"seconds": line[0], "text": line[1]} if isinstance(line, tuple) else {"seconds": 100.0, "text": line} for line in lines]
    section = {"nvidia": True, "uptime": 7300.0, "lines": stamped, "gpus": [], "cards": [], "iommu": {}, "virtual": False, "unread": {}, **found}
    return said(judge, node(kernel=section, **({"devices": devices} if devices else {})))


# -- messages ----------------------------------------------------------------------------------------------------------


def test_a_message_is_found_among_all_that_the_kernel_still_has() -> None:
    try:
        everything = kernel_log.about(re.compile(""), 100_000)
    except OSError as error:
        pytest.skip(f"/dev/kmsg: {error}")
    if not everything:
        pytest.skip("the kernel's log is empty")
    middle = everything[len(everything) // 2]
    assert middle in kernel_log.about(re.compile(re.escape(middle[1])), 100_000)
    assert kernel_log.about(re.compile("no such message: 4711-0815"), 5) == []
    newest = kernel_log.about(re.compile(""), 3)
    assert len(newest) <= 3 and newest[-1][0] >= middle[0]


def test_this_machine_is_read_and_is_not_at_fault() -> None:
    found = kernel.section(Question())
    assert {"nvidia", "uptime", "lines", "gpus", "cards", "iommu", "virtual", "unread"} == found.keys()
    if not found["nvidia"]:
        assert said(judge, node(kernel=found)) == []


def test_a_gpu_that_fell_off_the_bus_stops_a_launch() -> None:
    (fact,) = judged(LOST)
    assert (fact.kind, fact.get("cause"), fact.get("devices")) == ("fail", "xid-hardware", ["gpu-07:0000:1b:00"])
    assert fact.get("title") == "GPU 0000:1b:00 of gpu-07 reported Xid 79 2 h ago: it has fallen off the bus"
    assert fact.get("evidence") == [f"kernel log: [100 s] {LOST}"]
    (other,) = judged("NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.", LOST)  # the same event twice
    assert "2 times since boot" in other.get("title")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("NVRM: Xid (PCI:0000:1b:00): 48, pid=7, name=python, DBE (double bit error)", [("fail", "xid-hardware")]),
        ("NVRM: Xid (PCI:0000:1b:00 GPU-I:05): 95, pid=7, Uncontained: LTC TAG (0x2, 0x1). RST: Yes", [("fail", "xid-hardware")]),
        ("NVRM: Xid (PCI:0000:1b:00): 119, pid=7, name=python, Timeout after 6s of waiting for RPC response", [("fail", "xid-hardware")]),
        ("NVRM: Xid (PCI:0000:1b:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", [("fail", "xid-hardware")]),
        ("NVRM: Xid (PCI:0000:1b:00): 154, GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)", []),
        ("NVRM: Xid (PCI:0000:1b:00): 94, pid=7062, Contained: CE User Channel (0x9). RST: No, D-RST: No", [("degraded", "xid-hardware")]),
        ("NVRM: Xid (PCI:0000:1b:00): 31, pid=7, name=python, MMU Fault", []),
        ("NVRM: Xid (PCI:0000:1b:00): 13, pid=7, name=python, Graphics Exception", []),
        ("NVRM: Xid (PCI:0000:1b:00): 45, pid=7, name=python, Ch 00000001", []),
        ("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 33 LTSSM Fault Up", [("fail", "xid-hardware")]),
        ("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 33 egress non-posted PRIV error", []),
        (LOADED, []),
        ("NVRM: GPU at PCI:0000:1b:00: GPU-bc0fa0b9-cac2-f507-b715-9bebdb69c71e", []),
    ],
)
def test_errors_of_hardware_are_told_from_those_of_programs(line: str, fault: list[tuple[str, str]]) -> None:
    assert faults(judged(line)) == fault


def test_an_error_before_the_driver_was_loaded_again_is_a_warning() -> None:
    facts = judged((100.0, LOST), (500.0, LOADED))
    assert faults(facts) == [("degraded", "xid-hardware")]
    assert "the driver was loaded again since" in titles(facts)[0]
    assert faults(judged((10.0, LOADED), (100.0, LOST))) == [("fail", "xid-hardware")]


def test_an_error_of_a_gpu_that_no_rank_uses_is_a_note() -> None:
    assert faults(judged(LOST, devices=machines.section(recording(), "1"))) == []
    asks = recording(recovery_action_0=1)
    assert faults(judged(LOST, devices=machines.section(asks, "0"))) == [("fail", "xid-hardware")]
    another_tenants = LOST.replace("1b:00", "7f:00")  # which NVML does not show here, and the kernel's log does
    facts = judged(another_tenants, devices=machines.section(recording()))
    assert faults(facts) == [] and "no rank uses it" in titles(facts)[0]


def test_an_error_of_a_gpu_that_does_not_tell_its_address_any_more_stops_a_launch() -> None:
    gone = machines.section(recording(uuid_0={"refused": "GPU is lost"}))
    assert faults(judged(LOST, devices=gone)) == [("fail", "xid-hardware")]


def test_an_error_of_a_gpu_that_is_well_again_is_a_warning() -> None:
    well = machines.section(recording())
    facts = judged(LOST, devices=well)
    assert faults(facts) == [("degraded", "xid-hardware")] and "NVML asks for no reset of it" in titles(facts)[0]
    recovered = "NVRM: Xid (PCI:0000:1b:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
    facts = judged((100.0, LOST), (500.0, recovered))
    assert faults(facts) == [("degraded", "xid-hardware")] and "its recovery is done since" in titles(facts)[0]
    assert faults(judged((100.0, LOST), (500.0, recovered.replace("1b:00", "43:00")))) == [("fail", "xid-hardware")]
    assert faults(judged((100.0, LOST), (500.0, recovered), (600.0, LOST))) == [("fail", "xid-hardware")]


def test_an_iommu_that_refuses_a_gpu_is_named_and_one_that_refuses_others_is_not() -> None:
    refused = "nvidia 0000:1b:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0030 address=0x2000 flags=0x0020]"
    assert faults(judged(refused)) == [("degraded", "p2p-broken")]
    other = "DMAR: [DMA Write] Request device [41:00.0] fault addr 39ffc000000 [fault reason 05] PTE Write access is not set"
    assert judged(other) == []
    assert faults(judged(other, gpus=[{"pci": "0000:41:00.0", "iommu": None, "bridges": []}])) == [("degraded", "p2p-broken")]


def test_a_bus_that_loses_what_a_gpu_sends_is_named() -> None:
    gpus = [{"pci": "0000:1b:00.0", "iommu": None, "bridges": []}]
    lost = "pcieport 0000:1a:01.0: AER: Uncorrected (Fatal) error received: 0000:1b:00.0"
    corrected = "pcieport 0000:1a:01.0: AER: Corrected error received: 0000:1b:00.0"
    assert faults(judged(lost, gpus=gpus)) == [("degraded", "xid-hardware")]
    assert [fact.kind for fact in judged(corrected, gpus=gpus)] == ["note"]
    assert judged(lost, gpus=[]) == []  # it was another device


def test_a_log_that_may_not_be_read_is_not_called_empty() -> None:
    refused = {"kernel log": "/dev/kmsg: Operation not permitted"}
    (fact,) = judged(unread=refused)
    assert (fact.kind, fact.get("title")) == ("unread", "kernel log: could not be read: /dev/kmsg: Operation not permitted")
    assert judged(unread=refused, nvidia=False) == []  # there is no GPU that it could tell of


# -- the bus -----------------------------------------------------------------------------------------------------------


def config(port: int | None = None, acs: int | None = None, *, whole: bool = True) -> bytes:
    """A PCI device's registers: the kind of its port, and its ACS control where it has that."""
    data = bytearray(4096)
    data[0x34] = 0x40
    data[0x40:0x44] = struct.pack("<BBH", 0x01, 0x60, 0)  # power management, then PCI Express
    data[0x60:0x64] = struct.pack("<BBH", 0x10, 0, 2 | (port or 0) << 4)
    data[0x100:0x104] = struct.pack("<I", 0x0001 | 1 << 16 | (0x180 << 20 if acs is not None else 0))  # error reporting
    if acs is not None:
        data[0x180:0x188] = struct.pack("<IHH", 0x000D | 1 << 16, 0x5F, acs)
    return bytes(data if whole else data[:64])


def switch(root: Path, acs: int, *, iommu: str = "identity", **how: Any) -> None:
    """Two GPUs and a network card below one switch: 0000:00:01.0 -> 0000:1a:00.0 -> 0000:1b:0N.0 -> device."""
    top = root / "sys/devices/pci0000:00/0000:00:01.0"
    files = {top: config(ROOT, REDIRECT, **how), top / "0000:1a:00.0": config(UPSTREAM, **how)}
    for number, device in enumerate(("0000:1c:00.0", "0000:1d:00.0", "0000:01:00.0")):
        bridge = top / "0000:1a:00.0" / f"0000:1b:0{number}.0"
        files |= {bridge: config(DOWNSTREAM, acs, **how), bridge / device: config()}
    for folder, registers in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config").write_bytes(registers)
        gpu = folder.name in ("0000:1c:00.0", "0000:1d:00.0")
        (folder / "vendor").write_text("0x10de\n" if gpu else "0x15b3\n")
        (folder / "class").write_text("0x030200\n" if gpu else "0x020700\n")
        (folder / "iommu_group").mkdir()
        (folder / "iommu_group/type").write_text(f"{iommu}\n")
        link = root / "sys/bus/pci/devices" / folder.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
    card = root / "sys/class/infiniband/mlx5_0"
    card.mkdir(parents=True)
    (card / "device").symlink_to(root / "sys/bus/pci/devices/0000:01:00.0")
    (root / "proc").mkdir()
    (root / "proc/cmdline").write_text("BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on quiet\n")
    (root / "proc/cpuinfo").write_text("flags\t\t: fpu vme avx512f\n")


def below(**changed: Any) -> dict[str, Any]:
    """The devices of that machine: two GPUs at those addresses, by default without NVLink between them."""
    pair = {"p2p_nvlink_0_1": 5, "common_ancestor_0_1": 10, **changed}
    links = {f"nvlink_state_{gpu}_{link}": 0 for gpu in range(2) for link in range(18)}
    found = machines.recording(pci_bus_id_0="00000000:1C:00.0", pci_bus_id_1="00000000:1D:00.0", **pair, **links)
    return machines.section(found)


def test_the_way_up_the_bus_is_read_with_its_registers(tmp_path: Path) -> None:
    switch(tmp_path, REDIRECT)
    found = kernel.bus(tmp_path)
    assert [gpu["pci"] for gpu in found["gpus"]] == ["0000:1c:00.0", "0000:1d:00.0"]
    bridges = found["gpus"][0]["bridges"]
    assert [(bridge["pci"], bridge["port"]) for bridge in bridges] == [
        ("0000:1b:00.0", "downstream switch port"),
        ("0000:1a:00.0", "upstream switch port"),
        ("0000:00:01.0", "root port"),
    ]
    assert bridges[0]["acs"] == {
        "source_validation": True,
        "request_redirect": True,
        "completion_redirect": True,
        "upstream_forwarding": True,
        "direct_translated": False,
    }
    assert (bridges[1]["acs"], found["cards"][0]["device"]) == (None, "mlx5_0")
    assert (found["iommu"]["command_line"], found["virtual"]) == (["intel_iommu=on"], False)


def test_a_switch_that_redirects_is_named_where_gpus_have_no_nvlink(tmp_path: Path) -> None:
    switch(tmp_path, REDIRECT)
    facts = judged(devices=below(), **kernel.bus(tmp_path))
    assert faults(facts) == [("degraded", "p2p-broken"), ("degraded", "gdr-missing")]
    assert "0000:1b:00.0, 0000:1b:01.0" in titles(facts)[0]
    nvlinked = machines.section(recording())
    assert faults(judged(devices=nvlinked, **kernel.bus(tmp_path))) == [("degraded", "gdr-missing")]
    refused = below(p2p_read_0_1=5)  # nobody will try
    assert faults(judged(devices=refused, **kernel.bus(tmp_path))) == [("degraded", "gdr-missing")]


@pytest.mark.parametrize("acs", [0, 0x01, REDIRECT | 0x40])
def test_a_switch_that_lets_peers_through_is_not_at_fault(tmp_path: Path, acs: int) -> None:
    switch(tmp_path, acs)
    assert faults(judged(devices=below(), **kernel.bus(tmp_path))) == []


def test_registers_that_only_root_sees_are_hidden(tmp_path: Path) -> None:
    switch(tmp_path, REDIRECT, whole=False)
    found = kernel.bus(tmp_path)
    assert all(bridge["hidden"] and bridge["acs"] is None for bridge in found["gpus"][0]["bridges"])
    facts = judged(devices=below(), **found)
    assert [fact.kind for fact in facts] == ["unread"] and "only root sees their registers" in titles(facts)[0]


def test_an_iommu_that_translates_is_named_on_bare_metal_only(tmp_path: Path) -> None:
    switch(tmp_path, 0, iommu="DMA-FQ")
    facts = judged(devices=below(), **kernel.bus(tmp_path))
    assert faults(facts) == [("degraded", "p2p-broken")]
    assert "intel_iommu=on" in facts[0].get("evidence")
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu vme hypervisor\n")
    assert faults(judged(devices=below(), **kernel.bus(tmp_path))) == []


@pytest.mark.parametrize("data", [b"", b"\xff" * 4096, bytes(4096), b"\x10" * 300])
def test_registers_that_make_no_sense_end_the_reading(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config").write_bytes(data)
    assert kernel.registers(tmp_path / "config")["acs"] is None


def test_cards_of_the_other_tests_have_a_place_on_the_bus(tmp_path: Path) -> None:
    cards.port(tmp_path, "mlx5_4")
    link = tmp_path / "sys/bus/pci/devices/0000:05:00.0"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "sys/devices/pci0000:00/0000:05:00.0")
    (card,) = kernel.bus(tmp_path)["cards"]
    assert (card["device"], card["pci"], card["bridges"]) == ("mlx5_4", "0000:05:00.0", [])
