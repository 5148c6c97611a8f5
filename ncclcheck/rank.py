"""The data plane: one rank of a launch. torchrun starts `python -m ncclcheck.rank PROBE...`; it runs them in turn.

With NCCLCHECK_DIR set (by the agent) everything goes to that folder: the journal, the log of this process and its
stacks. Without it a probe runs alone: rank 0 prints a table and a watchdog bounds the run.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from ncclcheck import fault, interpreter, muster, open_files, parent, registry, safe_files, units
from ncclcheck.collect import host
from ncclcheck.journal import Journal, fact_fields, sample_fields
from ncclcheck.model import Device, Fact, RankId, Sample
from ncclcheck.probe import Rank

INIT_BOUND = 60.0  # seconds without progress that are normal while communicators are made
IMPORT_BOUND = 120.0  # the same while torch is read from disk
LINGER = 3.0  # seconds a failing rank stays, so that its peers can be looked at before torchrun ends them


def main(probes: list[str]) -> int:
    """Run these probes on this rank. Returns the process's exit code."""
    open_files.as_given()
    struck = fault.start(int(os.environ.get("RANK", "0")))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    folder = Path(os.environ["NCCLCHECK_DIR"]) if "NCCLCHECK_DIR" in os.environ else None
    if folder:
        _settle(folder, rank)
    journal = Journal(folder, rank, local_rank)
    if struck is not None:
        journal.line("planted", struck=struck)
    claim = {"environment": muster.environment(os.environ), "interfaces": [name for _, name in socket.if_nameindex()]}
    journal.line("claim", host=host.name(), pid=os.getpid(), local_rank=local_rank, **claim)
    try:
        failed = _run(probes, journal, rank, local_rank, alone=folder is None)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        journal.line("error", type=type(error).__name__, message=str(error).encode("utf-8", "replace").decode()[:2000], where=where)
        if folder:
            time.sleep(LINGER)  # not a wait for anything: the agent ends us once it has looked around
        return 1
    return 1 if failed and folder is None else 0  # with an agent, a failed check is a result and not an error of this process


def _settle(folder: Path, rank: int) -> None:
    """Output to a file, stacks on SIGUSR2, and no end but the agent's."""
    log = safe_files.private(f"{folder}/rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # at the interpreter's end faulthandler goes first: whoever asks then must not kill us
    faulthandler.register(signal.SIGUSR2, open(folder / f"rank{rank}.stack", "w", opener=safe_files.private), all_threads=True)  # noqa: SIM115
    faulthandler.enable()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, when a peer fails; it kills us after its shutdown time-out
    parent.follow(int(os.environ.get("NCCLCHECK_PARENT", os.getppid())))


def _run(probes: list[str], journal: Journal, rank: int, local_rank: int, alone: bool) -> bool:
    """Run the probes; whether any failed."""
    plugins = [registry.describe("probes", name) for name in probes]
    own_group = not all(plugin.get("GROUP", True) for plugin in plugins)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    for plugin in plugins:
        if not registry.needs_ranks(plugin.name):
            raise ValueError(f"{plugin.name} looks at nodes and runs on no rank: python -m ncclcheck.probes.{plugin.name}")
        if world_size < plugin.get("MIN_RANKS", 1):
            raise ValueError(f"{plugin.name} needs {plugin.get('MIN_RANKS')} ranks or more, this job has {world_size}")
    options = json.loads(os.environ.get("NCCLCHECK_OPTIONS", "{}"))
    if alone:
        _watchdog(rank, options.get("timeout") or sum(plugin.constants["TIMEOUT"] for plugin in plugins))
    journal.enter("import torch", local=True, bound=IMPORT_BOUND, opaque=True)
    import torch
    import torch.distributed as dist

    journal.leave()
    device = _device(torch, local_rank)
    identity = RankId(rank, local_rank, int(os.environ.get("GROUP_RANK", "0")), host.name(), os.getpid(), device)
    vllm = host.versions()["vllm"] if any("vllm" in plugin.needs for plugin in plugins) else None
    journal.line("hello", identity=asdict(identity), torch=str(torch.__version__), nccl=_nccl(torch, device), vllm=vllm)
    if not own_group:
        journal.enter("init_process_group", bound=INIT_BOUND)
        if device.index is not None:
            torch.cuda.set_device(device.index)
        dist.init_process_group("gloo" if device.index is None else "nccl", timeout=timedelta(seconds=600))
        journal.leave()
    planted = fault.planted(
        rank,
        struck=lambda: journal.line("planted", struck=time.monotonic()),
        refused=lambda reason: journal.line("fact", **fact_fields(Fact("not-planted", fields={"reason": reason}))),
    )
    me = Rank(identity, world_size, journal, options, planted)
    failed = [plugin.name for plugin in plugins if _one(plugin, me, journal, alone)]
    if dist.is_initialized():
        dist.destroy_process_group()
    journal.done()
    return bool(failed)


def _one(plugin: registry.Plugin, rank: Rank, journal: Journal, alone: bool) -> bool:
    """Run one probe; whether it failed."""
    journal.line("probe", name=plugin.name)
    journal.enter(f"load {plugin.name}", local=True, bound=IMPORT_BOUND, opaque=True)
    module = registry.load("probes", plugin.name)
    journal.leave()
    failed = False
    if alone and rank.rank == 0:
        print(plugin.title, flush=True)
    for item in module.run(rank):
        if isinstance(item, Sample):
            journal.line("sample", **sample_fields(item))
        else:
            journal.line("fact", **fact_fields(item))
            failed = failed or item.kind == "fail"
        if alone and (rank.rank == 0 or (isinstance(item, Fact) and (item.kind == "fail" or item.rank is not None))):
            _show(rank.rank, item)
    journal.line("probe-end", name=plugin.name)
    return failed


def _show(rank: int, item: Sample | Fact) -> None:
    """A line in one write, since all ranks share the terminal."""
    if isinstance(item, Sample):
        checked = {True: "correct", False: "WRONG", None: ""}[item.correct]
        cells = (units.bytes_text(item.nbytes), item.dtype, units.seconds_text(item.median), units.bandwidth_text(item.busbw))
        print(f"{item.name:16} {cells[0]:>10} {cells[1]:>9} {cells[2]:>9} {cells[3]:>11} {checked}\n", end="", flush=True)
    else:
        fields: Mapping[str, Any] = item.fields
        shown = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        print(f"rank {rank}: {item.kind} {shown}\n", end="", flush=True)


def _device(torch: Any, local_rank: int) -> Device:
    """The GPU of this local_rank; a CPU where torch sees none. Raises RuntimeError where it sees too few."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return Device(name="CPU")
    if local_rank >= count:
        raise RuntimeError(f"invalid device ordinal: local_rank {local_rank} wants GPU {local_rank}, torch sees {count}")
    found = torch.cuda.get_device_properties(local_rank)
    bus = f"{found.pci_domain_id:08x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    return Device(local_rank, found.name, f"GPU-{found.uuid}", bus)


def _nccl(torch: Any, device: Device) -> tuple[str | None, str | None]:
    """The version of the NCCL library that this process has loaded, and of the one that torch was built with; nothing on a CPU."""
    if device.index is None:
        return None, None
    built = ".".join(map(str, torch.cuda.nccl.version()))
    version = ctypes.c_int()
    try:
        ctypes.CDLL(None).ncclGetVersion(ctypes.byref(version))  # torch has loaded it with its symbols visible, or LD_PRELOAD has
    except AttributeError:
        return built, built
    major, minor = divmod(version.value, 10000)
    return f"{major}.{minor // 100}.{minor % 100}", built


def _watchdog(rank: int, seconds: float) -> None:
    """A probe that runs alone has nobody to end it: after its time, every thread's stack is printed and it exits."""

    def bark() -> None:
        print(f"ncclcheck: rank {rank}: no end after {seconds:g} s; its stacks follow", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)

    # torchrun ends the other ranks with SIGTERM as soon as one has left: their stacks first, for theirs may be the cause.
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)
    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()


def run_alone(module: str) -> None:
    """What `torchrun -m ncclcheck.probes.NAME` does. `module` is the probe's `__file__`."""
    interpreter.leave_current_folder()
    sys.exit(importlib.import_module("ncclcheck.rank").main([Path(module).stem]))


if __name__ == "__main__":
    interpreter.leave_current_folder()
    sys.exit(main(sys.argv[1:]))
