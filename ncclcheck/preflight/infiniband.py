"""Judges a node's RDMA ports before a launch: are they up and as fast as their equals, does NCCL find those that it is told, and GPUs reach them?

A node without such cards is no worse for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.preflight.hca import Choice, Port
from ncclcheck.rules import gdr_missing, ib_link_error, roce_gid, wrong_hca_path
from ncclcheck.safe_text import word, words
from ncclcheck.survey import Job, Node, Section, degrades, note, stop, unread

DMABUF_KERNEL = (5, 12)  # the first Linux with what GPUDirect RDMA by DMA-BUF needs (NCCL's manual: NCCL_DMABUF_ENABLE)
_UNUSED = ("disabled", "sleep")  # physical states of a port that somebody switched off
_TRUE = re.compile(r"\s*[+-]?0*[1-9]")  # as NCCL reads a number that is not 0


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """Facts about one node's ports."""
    section = node.read("infiniband")
    if section is None:
        yield unread("InfiniBand", node.why("infiniband"), [node.host])
        return
    ports: Sequence[Port] = section.get("ports", ())
    settings = section.get("settings", {})
    choice = Choice.parse(value) if (value := _value(settings, "NCCL_IB_HCA")) else Choice((), False, False)
    used = [port for port in ports if choice.takes(port)]
    live = [port for port in used if port.get("state") == "active"]
    yield from _chosen(node, settings, choice, ports)
    yield from _switched_off(node, settings, live)
    yield from _down(node, ports, used, chosen=bool(choice.entries) and not choice.excludes)
    yield from _slow(node, live)
    yield from _gids(node, settings, live)
    if ports and not section.get("verbs"):
        title = f"{node.host} has RDMA cards ({', '.join(sorted({str(port['device']) for port in ports})[:4])}) and no /dev/infiniband/uverbs*"
        remedy = "docker run --device=/dev/infiniband --cap-add IPC_LOCK, or modprobe ib_uverbs   # until then NCCL goes over TCP"
        yield degrades("permission-denied", title, [node.host], remedy, evidence=["/dev/infiniband: no uverbs device"], confidence=0.85)
    if live and (node.read("devices") or {}).get("gpus"):
        yield from _direct(node, section.get("direct", {}), settings)
    yield from _plugin(node, live)
    for port in used:
        if counted := port.get("counters"):
            said = ", ".join(f"{name} {number}" for name, number in counted.items())
            yield note(f"{_name(port)} on {node.host} counts errors since its driver was loaded: {said}", [node.host], interface=_name(port))


def used(node: Node) -> bool:
    """Whether NCCL would send through an RDMA port of this node: one that it may choose is up, programs may use it, and nothing switches it off."""
    section = node.read("infiniband") or {}
    settings = section.get("settings", {})
    choice = Choice.parse(value) if (value := _value(settings, "NCCL_IB_HCA")) else Choice((), False, False)
    off = _TRUE.match(str(_value(settings, "NCCL_IB_DISABLE") or "")) or str(_value(settings, "NCCL_NET") or "").strip().lower() == "socket"
    return bool(section.get("verbs")) and not off and any(choice.takes(port) and port.get("state") == "active" for port in section.get("ports", ()))


def _chosen(node: Node, settings: Section, choice: Choice, ports: Sequence[Port]) -> Iterator[Fact]:
    """What NCCL_IB_HCA and NCCL_NET want, and nobody has."""
    told = _told(settings, "NCCL_IB_HCA")
    wants_ib = str(_value(settings, "NCCL_NET") or "").strip().upper() == "IB"
    lacking = [entry for entry in choice.entries if not any(choice.fits(entry, port) for port in ports)]
    names = ", ".join(name if number is None else f"{name}:{number}" for name, number in lacking)
    there = ", ".join(_name(port) for port in ports[:12]) or "no RDMA device"
    remedy = f"ls /sys/class/infiniband; unset NCCL_IB_HCA   # or {wrong_hca_path.REMEDY}"
    if wants_ib and not any(choice.takes(port) and port.get("state") == "active" for port in ports):
        title = f"NCCL_NET=IB on {node.host}, and there is no active port for it ({there}): NCCL refuses to start"
        evidence = [*_told(settings, "NCCL_NET"), *told]
        yield stop("nccl-env-misconfig", title, [node.host], "unset NCCL_NET   # or bring a port up: ibstat", evidence=evidence, confidence=0.9)
    elif lacking and not choice.excludes:
        all_lack = len(lacking) == len(choice.entries)
        then = "NCCL goes over TCP instead" if all_lack else "NCCL uses the others only"
        title = f"NCCL_IB_HCA names {names} on {node.host}, which has {there}: {then}"
        yield degrades("wrong-hca-path", title, [node.host], remedy, evidence=[*told, f"/sys/class/infiniband: {there}"], confidence=0.9)
    elif lacking and ports:
        yield note(f"NCCL_IB_HCA on {node.host} leaves out {names}, which is not there", [node.host])
    elif choice.excludes and ports and not any(choice.takes(port) for port in ports):
        title = f"NCCL_IB_HCA leaves out every RDMA device of {node.host} ({there}): NCCL goes over TCP instead"
        yield degrades("wrong-hca-path", title, [node.host], remedy, evidence=told, confidence=0.85)


def _switched_off(node: Node, settings: Section, live: Sequence[Port]) -> Iterator[Fact]:
    names = ", ".join(_name(port) for port in live[:8])
    off = _TRUE.match(str(_value(settings, "NCCL_IB_DISABLE") or ""))
    name = "NCCL_IB_DISABLE" if off else "NCCL_NET" if str(_value(settings, "NCCL_NET") or "").strip().lower() == "socket" else None
    if live and name:
        title = f"{name}={_value(settings, name)} on {node.host} switches RDMA off, and {names} {'is' if len(live) == 1 else 'are'} up"
        yield degrades("nccl-env-misconfig", title, [node.host], f"unset {name}", evidence=_told(settings, name), confidence=0.85)


def _down(node: Node, ports: Sequence[Port], used: Sequence[Port], *, chosen: bool) -> Iterator[Fact]:
    """Ports that are down where others of their kind are up. Ethernet ports serve other purposes too: those count where NCCL is told to use them."""
    for port in ports:
        state, physical = port.get("state"), port.get("physical")
        if state == "active":
            continue
        name, host = _name(port), node.host
        peers = [other for other in ports if other is not port and other.get("link") == port.get("link") and other.get("state") == "active"]
        said = f"{name} on {host} is {state or 'in an unknown state'} (physical state: {physical or 'unknown'})"
        wanted = port in used and (chosen or (port.get("link") == "InfiniBand" and bool(peers) and physical not in _UNUSED))
        unmanaged = port.get("link") == "InfiniBand" and state in ("init", "armed") and port in used
        if unmanaged:
            title = f"{said}: no subnet manager has taken it into the network; active is expected"
            remedy = f"sminfo; ibstat {word(port['device'])}   # start a subnet manager (opensm, or the switch's)"
        else:
            title = f"{said}; " + (f"{len(peers)} others are up ({', '.join(map(_name, peers[:4]))})" if peers else "active is expected")
            remedy = ib_link_error.REMEDY.replace("{device}", word(port["device"]))
        if wanted or unmanaged:
            evidence = [f"/sys/class/infiniband/{port['device']}/ports/{port['port']}/state: {state}, phys_state: {physical}"]
            yield degrades("ib-link-error", title, [host], remedy, evidence=evidence, interface=name, confidence=0.85)
        else:
            yield note(said, [host], interface=name)


def _slow(node: Node, live: Sequence[Port]) -> Iterator[Fact]:
    """Ports slower than others of the same model here. What a card could do at best is not among what the kernel tells."""
    for port in live:
        equals = [other for other in live if _model(other) == _model(port)]
        best = max((other.get("rate") or 0.0 for other in equals), default=0.0)
        rate, lanes = port.get("rate"), port.get("width")
        slower = rate is not None and rate < best
        narrow = port.get("link") == "InfiniBand" and lanes == 1
        if not slower and not narrow:
            continue
        made = ", ".join([f"{lanes or '?'} lanes", *([str(port["speed"])] if port.get("speed") else [])])
        how = f"{rate:g} Gb/s ({made})" if rate is not None else made
        than = f"others of its kind run at {best:g} Gb/s" if slower else "4 lanes are usual"
        title = f"{_name(port)} on {node.host} runs at {how}; {than}"
        remedy = f"mlxlink -d {word(port['device'])} -m -c -e; ibstat {word(port['device'])}   # cable, transceiver, the switch port's setting"
        evidence = [f"/sys/class/infiniband/{port['device']}/ports/{port['port']}/rate: {how}"]
        yield degrades("ib-link-error", title, [node.host], remedy, evidence=evidence, interface=_name(port), confidence=0.8)


def _gids(node: Node, settings: Section, live: Sequence[Port]) -> Iterator[Fact]:
    """RoCE: the entry of the GID table that NCCL is told to use, or whether there is one that others can reach."""
    told = str(_value(settings, "NCCL_IB_GID_INDEX") or "")
    index = int(told) if re.fullmatch(r"\d{1,4}", told) else None
    for port in live:
        if port.get("link") != "Ethernet":
            continue
        gids = port.get("gids", ())
        chosen = next((gid for gid in gids if gid["index"] == index), None)
        have = ", ".join(f"{gid['index']}: {gid.get('address') or gid['gid']} ({gid.get('type')})" for gid in gids[:8]) or "none"
        evidence = [f"/sys/class/infiniband/{port['device']}/ports/{port['port']}/gids: {have}", *_told(settings, "NCCL_IB_GID_INDEX")]
        if index is not None and chosen is None:
            title = f"NCCL_IB_GID_INDEX={index} on {node.host}, and {_name(port)} has no GID there; it has {have}"
            remedy = (
                "unset NCCL_IB_GID_INDEX   # NCCL 2.21 and newer choose by themselves; else show_gids, and the index of RoCE v2 with the IPv4 address"
            )
            yield stop("roce-gid", title, [node.host], remedy, evidence=evidence, interface=_name(port), confidence=0.9)
        elif chosen is not None and "v2" not in str(chosen.get("type")):
            title = f"NCCL_IB_GID_INDEX={index} on {node.host} is {chosen.get('type')} on {_name(port)}, which no router passes on"
            yield degrades("roce-gid", title, [node.host], roce_gid.REMEDY, evidence=evidence, interface=_name(port), confidence=0.8)
        elif index is None and not any("v2" in str(gid.get("type")) and not gid["gid"].startswith("fe80") for gid in gids):
            title = f"{_name(port)} on {node.host} has no RoCE v2 address that another subnet can reach; it has {have}"
            remedy = f"ip -br addr   # give the interface {words(port.get('interfaces', ())) or 'of the card'} an IPv4 address"
            yield degrades("roce-gid", title, [node.host], remedy, evidence=evidence, interface=_name(port), confidence=0.75)


def _direct(node: Node, direct: Section, settings: Section) -> Iterator[Fact]:
    """GPUDirect RDMA rests on nvidia_peermem or on DMA-BUF."""
    kernel = tuple(int(part) for part in re.findall(r"\d+", str(direct.get("kernel") or ""))[:2])
    dmabuf = direct.get("open_driver") and kernel >= DMABUF_KERNEL and _value(settings, "NCCL_DMABUF_ENABLE") != "0"
    if not direct.get("modules") and not dmabuf:
        opened = "open" if direct.get("open_driver") else "not open"
        title = f"{node.host} has GPUs and RDMA cards, and nothing for GPUDirect RDMA: nvidia_peermem is not loaded, and DMA-BUF cannot be used"
        evidence = ["/sys/module/nvidia_peermem: absent", f"the driver's kernel modules: {opened}; Linux {direct.get('kernel')}"]
        yield degrades("gdr-missing", title, [node.host], gdr_missing.REMEDY, evidence=evidence, confidence=0.8)
    level = _value(settings, "NCCL_NET_GDR_LEVEL")
    if level is not None and level.strip().upper() in ("LOC", "0"):
        title = f"NCCL_NET_GDR_LEVEL={level} on {node.host} switches GPUDirect RDMA off"
        evidence = _told(settings, "NCCL_NET_GDR_LEVEL")
        yield degrades("nccl-env-misconfig", title, [node.host], "unset NCCL_NET_GDR_LEVEL", evidence=evidence, confidence=0.85)


def _plugin(node: Node, live: Sequence[Port]) -> Iterator[Fact]:
    """Amazon's EFA speaks no protocol that NCCL knows by itself: it needs the plugin aws-ofi-nccl."""
    plugin = (node.read("libraries") or {}).get("plugin")
    cards = sorted({str(port["device"]) for port in live if port.get("driver") == "efa"})
    if cards and plugin is not None and not plugin.get("path"):
        title = f"{node.host} has EFA cards ({', '.join(cards[:4])}), and the loader finds no network plugin for them: NCCL goes over TCP"
        remedy = "install aws-ofi-nccl, and export LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:$LD_LIBRARY_PATH"
        yield degrades("net-plugin", title, [node.host], remedy, evidence=["libnccl-net.so: not found"], confidence=0.85)


def _name(port: Port) -> str:
    return f"{port['device']}:{port['port']}"


def _model(port: Port) -> tuple[Any, ...]:
    return port.get("kind"), port.get("board"), port.get("link")


def _value(settings: Section, name: str) -> str | None:
    there = settings.get(name)
    return None if there is None else str(there["value"])


def _told(settings: Section, name: str) -> list[str]:
    there = settings.get(name)
    return [] if there is None else [f"{there['from']}: {name}={there['value']}"]
