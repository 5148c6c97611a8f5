"""Reads nvidia-smi: its table, -q, -L, topo -m, nvlink -s, and what it says where it cannot work.

gpu (index, name, bus, memory_used and memory_total in MiB, utilization, ecc, error; from -q also what is wrong: row remapping,
retired pages, slowdown, PCIe width, mig, fabric), gpu-process (gpu, pid, name, memory in MiB), driver (version, cuda), topology
(links {"GPU0-GPU1": "NV18"}), nvlink (gpu, active, inactive: numbers of links), nvml-error (problem).

Reads
    log a.txt: | NVIDIA-SMI 560.35.03              Driver Version: 560.35.03      CUDA Version: 12.6     |
    log a.txt: |   3  NVIDIA H100 80GB HBM3          On  |   00000000:3B:00.0 Off |                    2 |
    log a.txt: | N/A   33C    P0             118W /  700W |   70123MiB /  81559MiB |     97%      Default |
    log a.txt: |   5  NVIDIA RTX A6000               Off |   00000000:5B:00.0  On |                  Off |
    log a.txt: | 30%   33C    P8              18W /  300W |     512MiB /  49140MiB |      0%      Default |
    log a.txt: |   4  NVIDIA H100 80GB HBM3          On  |   00000000:4B:00.0 Off |                 ERR! |
    log a.txt: |ERR!  ERR! ERR!             ERR! / ERR!  |   GPU is lost          |    ERR!         ERR! |
    log a.txt: |    3   N/A  N/A      5110      C   /usr/bin/python3                            70114MiB |
    => driver version=560.35.03 cuda=12.6
    => gpu index=3 bus=00000000:3B:00.0 memory_used=70123 memory_total=81559 utilization=97 ecc=2
    => gpu index=5 memory_used=512
    => gpu index=4 error=True
    => gpu-process gpu=3 pid=5110 name=/usr/bin/python3 memory=70114

Reads
    log a.txt: No devices were found
    log b.txt: Failed to initialize NVML: Driver/library version mismatch
    log c.txt: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.
    log d.txt: Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.  Reboot the system to recover this GPU
    => nvml-error problem=No_devices_were_found
    => nvml-error problem=Driver/library_version_mismatch
    => nvml-error problem=NVIDIA-SMI_has_failed_because_it_couldn't_communicate_with_the_NVIDIA_driver
    => nvml-error problem=GPU_is_lost device=0000:3B:00.0

Reads
    log a.txt: GPU 00000000:3B:00.0
    log a.txt:     Product Name                          : NVIDIA H100 80GB HBM3
    log a.txt:     MIG Mode
    log a.txt:         Current                           : Disabled
    log a.txt:     GPU Link Info
    log a.txt:         Link Width
    log a.txt:             Max                           : 16x
    log a.txt:             Current                       : 8x
    log a.txt:     Clocks Event Reasons
    log a.txt:         HW Thermal Slowdown               : Active
    log a.txt:     Remapped Rows
    log a.txt:         Pending                           : Yes
    log a.txt:     ECC Errors
    log a.txt:         Volatile
    log a.txt:             DRAM Uncorrectable            : 3
    => gpu bus=00000000:3B:00.0 mig=Disabled width=8x width_max=16x slowdown=['HW_Thermal_Slowdown'] remap_pending=Yes uncorrectable=3

Reads
    log a.txt: GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa22bb)
    log a.txt:          Link 0: 26.562 GB/s
    log a.txt:          Link 1: <inactive>
    => gpu index=0 uuid=GPU-11aa22bb
    => nvlink gpu=0 active=1 inactive=1

Reads
    log a.txt:         GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity
    log a.txt: GPU0     X      NV18    PIX     0-31    0
    log a.txt: GPU1    NV18     X      SYS     0-31    0
    log a.txt: NIC0    PIX     SYS      X
    => topology links={'GPU0-GPU1':_'NV18',_'GPU0-NIC0':_'PIX',_'GPU1-NIC0':_'SYS'}
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_BUS = r"^\|\s+(?P<index>\d+)\s+(?P<name>\S.*?)\s+(?:On|Off|N/A|ERR!)?\s*\|\s+(?P<bus>[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)"
_NO_DISPLAY = _BUS + r" Off \|\s+(?P<ecc>\S+) \|"
_DISPLAY = _BUS + r" +On \|\s+(?P<ecc>\S+) \|"
_MEMORY = re.compile(r"(?P<used>\d+)MiB /\s*(?P<total>\d+)MiB \|\s+(?P<utilization>\d+)?")
_QUERY = r"^GPU 0[0-9A-Fa-f]{7}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d\s*$"
_LISTED = r"^GPU (?P<index>\d+): (?P<name>.*?) \(UUID: (?P<uuid>[\w-]+)\)"
_TOPOLOGY = r"^\s+(?:\x1b\[4m)?GPU0\s"
_KEY = re.compile(r"^(?P<indent>\s*)(?P<name>\S.*?)\s*(?: : (?P<value>.*?))?\s*$")
_WANTED = {
    "Product Name": "name",
    "Minor Number": "minor",
    "GPU UUID": "uuid",
    "MIG Mode/Current": "mig",
    "Link Width/Max": "width_max",
    "Link Width/Current": "width",
    "PCIe Generation/Max": "generation_max",
    "PCIe Generation/Current": "generation",
    "Remapped Rows/Pending": "remap_pending",
    "Remapped Rows/Remapping Failure Occurred": "remap_failed",
    "Retired Pages/Pending Page Blacklist": "retire_pending",
    "Fabric/State": "fabric",
    "Fabric/Status": "fabric_status",
    "GPU Recovery Action": "recovery",
}
_SLOW = re.compile(r"Slowdown|Power Brake")


def _row(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(_NO_DISPLAY, line.text) or re.search(_DISPLAY, line.text)
    if not match:
        return
    below = next(following, None)
    text = below.text if below else ""
    fields: dict[str, object] = {"index": int(match["index"]), "name": match["name"], "bus": match["bus"], "ecc": _number(match["ecc"])}
    if memory := _MEMORY.search(text):
        fields |= {"memory_used": int(memory["used"]), "memory_total": int(memory["total"])}
        fields |= {"utilization": int(memory["utilization"])} if memory["utilization"] else {}
    if "ERR!" in line.text or "ERR!" in text or "GPU is lost" in text:
        fields["error"] = True
    yield line.fact("gpu", fields)


def _query(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """One GPU of `nvidia-smi -q`: what identifies it, and what is not as it should be."""
    fields: dict[str, object] = {"bus": line.text.split()[1]}
    path: list[tuple[int, str]] = []  # the headings above, with their indentation
    slow: list[str] = []
    worst = 0
    for each in following:
        if re.search(_QUERY, each.text) or (each.text.strip() and not each.text.startswith((" ", "\t"))):
            break
        if not each.text.strip() or not (match := _KEY.match(each.text)):
            continue
        depth = len(match["indent"])
        path = [heading for heading in path if heading[0] < depth]
        name, value = match["name"], match["value"]
        if value is None:
            path.append((depth, name))
            continue
        parent = path[-1][1] if path else ""
        if (key := _WANTED.get(name) or _WANTED.get(f"{parent}/{name}")) and value != "N/A":
            fields[key] = value
        elif _SLOW.search(name) and value == "Active":
            slow.append(name)
        elif "Uncorrectable" in name and value.isdigit() and len(value) < 10:
            worst = max(worst, int(value))
    yield line.fact("gpu", {**fields, **({"slowdown": slow} if slow else {}), **({"uncorrectable": worst} if worst else {})})


def _listed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(_LISTED, line.text)
    if not match:
        return
    yield line.fact("gpu", {"index": int(match["index"]), "name": match["name"], "uuid": match["uuid"]})
    links = [each.text for each in _while(following, r"^\s+Link \d+: ")]
    if links:
        inactive = sum("inactive" in link for link in links)
        yield line.fact("nvlink", {"gpu": int(match["index"]), "active": len(links) - inactive, "inactive": inactive})


def _topology(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """Each pair once, as GPUs and adapters are linked; the last columns (affinities) have no such name."""
    columns = [word for word in re.sub(r"\x1b\[\d*m", "", line.text).split() if re.fullmatch(r"GPU\d+|NIC\d+|mlx\d_\S+", word)]
    links: dict[str, str] = {}
    for each in _while(following, r"^\s*(?:GPU\d+|NIC\d+|mlx\d_\S+)\s"):
        name, *cells = each.text.split()
        for column, cell in zip(columns, cells, strict=False):
            if cell != "X" and f"{column}-{name}" not in links:
                links[f"{name}-{column}"] = cell
    if links:
        yield line.fact("topology", {"links": links})


def _while(lines: Iterator[Line], pattern: str) -> Iterator[Line]:
    for line in lines:
        if not re.search(pattern, line.text):
            return
        yield line


def _number(value: str) -> object:
    return int(value) if value.isdigit() and len(value) < 19 else value


READS = (
    Clue("driver", r"Driver Version: (?P<version>[\d.]+)(?:\s+CUDA Version: (?P<cuda>[\d.]+))?"),
    Block(_NO_DISPLAY, _row),
    Block(_DISPLAY, _row),
    Clue("gpu-process", r"^\|\s+(?P<gpu>\d+)\s+(?:\S+\s+\S+\s+)?(?P<pid>\d+)\s+(?:C|G|C\+G|M\+C)\s+(?P<name>\S.*?)\s+(?P<memory>\d+)MiB \|"),
    Block(_QUERY, _query),
    Block(_LISTED, _listed),
    Block(_TOPOLOGY, _topology),
    Clue("nvml-error", r"(?P<problem>No devices were found)"),
    Clue("nvml-error", r"Failed to initialize NVML: (?P<problem>.*\w)"),
    Clue("nvml-error", r"(?P<problem>NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver)"),
    Clue("nvml-error", r"Unable to determine the device handle for (?:GPU|gpu) ?(?P<device>[0-9A-Fa-f:.]*[0-9A-Fa-f]): (?P<problem>[^.]+)"),
)
