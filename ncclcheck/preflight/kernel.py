"""Judges what the kernel says of a node's GPUs: their errors since boot, and protections of the PCIe bus that stand in the way of peer access.

What an Xid means is what the rule xid-hardware says of it, and NVIDIA's catalogue of Xids says which of them leave a GPU unusable until it
is reset. ACS and the IOMMU are a matter only where GPUs reach each other over PCIe (NCCL's manual: troubleshooting).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck.evidence import kernel_log as reader
from ncclcheck.evidence._reads import Clue, Line
from ncclcheck.model import Fact
from ncclcheck.preflight import taken
from ncclcheck.rules import p2p_broken
from ncclcheck.rules.xid_hardware import FOLLOWING, REMEDY, SOFTWARE
from ncclcheck.survey import Job, Node, Section, degrades, note, stop, unread

FATAL = {
    48: "an uncorrectable memory error",
    62: "the GPU's own controller halted",
    64: "a row of memory could not be remapped",
    74: "an NVLink error",
    79: "it has fallen off the bus",
    95: "an uncontained memory error",
    119: "its system processor (GSP) does not answer",
    120: "an error of its system processor (GSP)",
    143: "it could not be initialised",
    149: "a fatal NVLink error",
    154: "it must be reset or the node rebooted",
}
_HARMLESS = re.compile(r"recovery action changed from 0x\w+ \([^)]*\) to 0x0\b", re.I)  # Xid 154 says that as well
_LOADED = re.compile(r"NVRM: loading NVIDIA UNIX")
_QUOTES = 6


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """Facts about one node."""
    section = node.read("kernel")
    if section is None:
        yield unread("the kernel's messages", node.why("kernel"), [node.host])
        return
    lines = [(float(line["seconds"]), str(line["text"])) for line in section.get("lines", ())]
    yield from _errors(node, job, section, lines)
    yield from _faults(node, section, lines)
    yield from _peers(node, section)
    yield from _direct(node, section)
    if section.get("nvidia"):  # without a GPU there is nothing to know
        for what, why in dict(section.get("unread", {})).items():
            yield unread(what, why, [node.host])


def _errors(node: Node, job: Job, section: Section, lines: Sequence[tuple[float, str]]) -> Iterator[Fact]:
    """Xids and their like. What was before the driver was loaded or the GPU was reset may be mended: then it is no more than a warning.

    The kernel's log is the machine's, and NVML may show this job's GPUs only: an error of one that NVML does not show is no matter of ours.
    """
    loaded = max((seconds for seconds, text in lines if _LOADED.search(text)), default=0.0)
    found: dict[tuple[str, int | str], list[tuple[float, str]]] = {}
    reset: dict[str, float] = {}
    for seconds, text in lines:
        for fact in _read(text):
            code = 79 if fact.kind == "gpu-lost" else fact.get("code")
            if fact.kind == "sxid":
                code = f"SXid {code}"
            device = _short(str(fact.get("device", "")))
            if code == 154 and _HARMLESS.search(text):
                reset[device] = seconds
            elif isinstance(code, int | str):
                found.setdefault((device, code), []).append((seconds, text))
    devices = node.read("devices") or {}
    gpus: Sequence[Mapping[str, Any]] = devices.get("gpus", ())
    ours = {gpu["index"] for gpu in gpus} if taken.parts(devices) else set(taken.gpus(devices, job))
    address = {gpu["index"]: _short(str(gpu["pci"])) if gpu.get("pci") else "" for gpu in gpus}
    used = {address[gpu["index"]] for gpu in gpus if gpu["index"] in ours}
    unused = set(address.values()) - used - {""}
    known = bool(gpus) and "" not in used  # a GPU that is lost does not tell its address
    sound = {address[gpu["index"]] for gpu in gpus if gpu.get("recovery") == "none"} - {""}
    for (device, code), said in found.items():
        since, text = said[-1]
        name = f"GPU {device} of {node.host}" if device else f"a GPU of {node.host}"
        ago = f"{_span(float(section.get('uptime') or since) - since)} ago" + (f", {len(said)} times since boot" if len(said) > 1 else "")
        more: dict[str, Any] = {"evidence": [f"kernel log: [{when:.0f} s] {line}" for when, line in said[-_QUOTES:]]}
        more |= {"devices": [f"{node.host}:{device}"]} if device else {}
        if isinstance(code, str):
            fatal = "non-fatal" not in text.lower() and "fatal" in text.lower()
            title = f"the NVSwitch {device} of {node.host} reported {code} {ago}"
            if fatal and since >= loaded:
                yield stop("xid-hardware", title, [node.host], REMEDY, confidence=0.85, **more)
            else:
                yield note(title, [node.host], **more)
        elif device in unused or (known and device and device not in used):
            yield note(f"{name} reported Xid {code} {ago}; no rank uses it", [node.host], **more)
        elif code in SOFTWARE or code in FOLLOWING:
            yield note(f"{name} reported Xid {code} {ago}: {SOFTWARE.get(code, 'it follows another error')}", [node.host], **more)
        elif code in FATAL and since >= loaded and since >= reset.get(device, since) and device not in sound:
            title = f"{name} reported Xid {code} {ago}: {FATAL[code]}"
            yield stop("xid-hardware", title, [node.host], REMEDY, confidence=0.95 if code == 79 else 0.9, **more)
        else:
            mended = (
                "the driver was loaded again since"
                if since < loaded
                else "its recovery is done since"
                if since < reset.get(device, since)
                else "NVML asks for no reset of it"
            )
            what = f": {FATAL[code]}; {mended}" if code in FATAL else ", which is hardware's"
            yield degrades("xid-hardware", f"{name} reported Xid {code} {ago}{what}", [node.host], REMEDY, confidence=0.7, **more)


def _read(text: str) -> Iterator[Fact]:
    """What the reader of kernel logs makes of a message."""
    line = Line("kernel log", 0, text, text)
    for read in reader.READS:
        if isinstance(read, Clue) and read.kind in ("xid", "sxid", "gpu-lost"):
            facts = list(read.read(line, iter(())))
            yield from facts
            if facts:
                return


def _faults(node: Node, section: Section, lines: Sequence[tuple[float, str]]) -> Iterator[Fact]:
    """The IOMMU refuses a GPU's access, and the bus loses what a GPU sends."""
    gpus = [str(gpu["pci"]) for gpu in section.get("gpus", ())]

    def about_a_gpu(text: str) -> bool:
        return "nvidia" in text.lower() or any(gpu in text or gpu.partition(":")[2] in text for gpu in gpus)

    refused = [f"kernel log: {text}" for _, text in lines if re.search(r"IO_PAGE_FAULT|DMAR: \[DMA", text) and about_a_gpu(text)]
    if refused:
        title = f"the IOMMU of {node.host} refused what a GPU reads or writes, {len(refused)} times since boot"
        yield degrades("p2p-broken", title, [node.host], p2p_broken.REMEDY, evidence=refused[-_QUOTES:], confidence=0.8)
    bus = [text for _, text in lines if re.search(r"AER: |PCIe Bus Error", text) and about_a_gpu(text)]
    lost = [f"kernel log: {text}" for text in bus if re.search(r"[Uu]ncorrect", text)]
    if lost:
        title = f"the PCIe bus lost what a GPU of {node.host} sent or got, {len(lost)} times since boot (AER, uncorrected)"
        yield degrades("xid-hardware", title, [node.host], REMEDY, evidence=lost[-_QUOTES:], confidence=0.75)
    elif bus:
        yield note(f"the PCIe bus corrected errors of GPUs of {node.host}, {len(bus)} times since boot", [node.host], evidence=bus[-_QUOTES:])


def _peers(node: Node, section: Section) -> Iterator[Fact]:
    """GPUs without NVLink between them that may use peer access, behind bridges that redirect it or an IOMMU that translates it."""
    devices = node.read("devices") or {}
    chosen = set(devices.get("visible", ()))
    address = {gpu["index"]: gpu.get("pci") for gpu in devices.get("gpus", ())}
    there = {gpu["pci"]: gpu for gpu in section.get("gpus", ())}
    redirected: dict[str, list[str]] = {}
    translated: dict[str, str] = {}
    hidden: set[str] = set()
    for pair in devices.get("pairs", ()):
        one, other = (there.get(address.get(gpu)) for gpu in pair["gpus"])
        if pair.get("nvlink") or not set(pair["gpus"]) <= chosen or pair.get("read") != "ok" or not one or not other:
            continue
        hidden |= {str(bridge["pci"]) for gpu in (one, other) for bridge in gpu.get("bridges", ()) if bridge.get("hidden")}
        for bridge in _between(one, other):
            redirected.setdefault(bridge, []).append("-".join(map(str, pair["gpus"])))
        translated |= {gpu["pci"]: str(gpu["iommu"]) for gpu in (one, other) if str(gpu.get("iommu") or "").startswith("DMA")}
    if hidden:
        yield unread(f"ACS of the PCIe bridges {', '.join(sorted(hidden)[:4])}", "only root sees their registers", [node.host])
    if redirected:
        bridges = ", ".join(list(redirected)[:4])
        title = f"PCIe bridges of {node.host} ({bridges}) send the traffic between GPUs through the CPU (ACS request redirect); it is slow or hangs"
        evidence = [f"{bridge}: ACS request redirect on, between GPUs {', '.join(pairs[:4])}" for bridge, pairs in list(redirected.items())[:_QUOTES]]
        yield degrades("p2p-broken", title, [node.host], p2p_broken.REMEDY, evidence=evidence, confidence=0.7)
    if translated and not section.get("virtual"):
        title = f"the IOMMU of {node.host} translates what its GPUs exchange over PCIe; peer access can be slow or hang"
        line = " ".join(section.get("iommu", {}).get("command_line", ())) or "no iommu= on the kernel's command line"
        evidence = [*(f"{pci}: IOMMU group type {kind}" for pci, kind in list(translated.items())[:_QUOTES]), line]
        yield degrades("p2p-broken", title, [node.host], p2p_broken.REMEDY, evidence=evidence, confidence=0.6)


def _direct(node: Node, section: Section) -> Iterator[Fact]:
    """A GPU and a network card below one PCIe switch that sends their traffic through the CPU; in a virtual machine that must be so."""
    if section.get("virtual"):
        return
    pairs = [(gpu, card, _between(gpu, card)) for gpu in section.get("gpus", ()) for card in section.get("cards", ())]
    hit = [(gpu["pci"], card["device"], bridges[0]) for gpu, card, bridges in pairs if bridges]
    if hit:
        said = [f"{bridge}: ACS request redirect on, between GPU {gpu} and {card}" for gpu, card, bridge in hit[:_QUOTES]]
        title = f"PCIe switches of {node.host} send GPUDirect RDMA through the CPU (ACS request redirect): {len(hit)} pairs of GPU and card"
        yield degrades("gdr-missing", title, [node.host], p2p_broken.REMEDY, evidence=said, confidence=0.65)


def _between(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The bridges between two devices below one switch that redirect what these exchange; none where they meet at the CPU only."""
    ways = [[(str(bridge["pci"]), bridge) for bridge in device.get("bridges", ())] for device in (one, other)]
    shared = {pci for pci, _ in ways[0]} & {pci for pci, _ in ways[1]}
    if not any(bridge.get("port") == "upstream switch port" for pci, bridge in ways[0] if pci in shared):
        return []
    apart = {pci: bridge.get("acs") or {} for way in ways for pci, bridge in way if pci not in shared}
    return [pci for pci, acs in apart.items() if acs.get("request_redirect") and not acs.get("direct_translated")]


def _short(device: str) -> str:
    """`PCI:0000:3b:00` -> `0000:3b:00`; the driver leaves the function out, and sometimes not."""
    return re.sub(r"\.\d$", "", device.removeprefix("PCI:").partition(" ")[0])


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
