"""Finds the distributed Python processes of this node, by what launchers put into their environment and their command lines."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ncclcheck import secrets
from ncclcheck.collect import host, patient, processes, roles
from ncclcheck.collect.taken import Missing, refused

BOUND = 10.0  # seconds for the whole node
STALL = 1.0  # seconds for one process: where one hangs in I/O with its memory locked, a read of its command line hangs too

_TOLD = re.compile(
    r"(?:NCCL|TORCH|TORCHELASTIC|PYTORCH|TORCHINDUCTOR|GLOO|TP|CUDA|NVIDIA|VLLM|SGLANG|SGL|RAY|SLURM|MASTER|LOCAL|GROUP|ROLE|PET|OMPI|PMI|PMIX|UCX|FI"
    r"|MLX5|IBV|RDMAV|OMP|MKL|HF|TRANSFORMERS|TOKENIZERS|TRITON|DEEPSPEED|DS|ACCELERATE|FSDP|MEGATRON|HSA|HIP|ROCR|JOBSET|LWS|KUBERNETES|WANDB|GPU)_\w+"
    r"|\w*RANK|\w*WORLD_SIZE|HOSTNAME|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON\w+|VIRTUAL_ENV|CONDA_PREFIX|TMPDIR|(?i:https?_proxy|no_proxy|all_proxy)"
    r"|JOB_COMPLETION_INDEX|XDG_CACHE_HOME|NODE_NAME|POD_NAME|POD_IP"
)


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a job on this node. `rank`, `local_rank`, `world_size` are None where nothing says them.

    `role` is one of: rank, worker (an engine's, by its title), launcher, helper (a rank's child, such as a data loader),
    other (asked for with --pid only).
    """

    pid: int
    ppid: int
    role: str
    rank: int | None
    local_rank: int | None
    world_size: int | None
    host: str
    words: tuple[str, ...] = field(repr=False)  # may hold secrets: `command` does not
    environ: Mapping[str, str] = field(repr=False)  # the whole of it, with its secrets: `environment` is what may be shown
    python: bool
    state: str  # one letter, as ps prints it
    wchan: str
    threads: int
    started: str  # UTC, ISO 8601
    start: int  # ticks since boot, which tell it from a later process with the same pid

    @property
    def command(self) -> str:
        """The command line as a shell would take it, secrets masked."""
        return secrets.mask(shlex.join(self.words))

    @property
    def environment(self) -> dict[str, str]:
        """The variables that bear on a distributed job, sorted, secrets masked."""
        told = {name: self.environ[name] for name in sorted(self.environ) if _TOLD.fullmatch(name)}
        masked: dict[str, str] = secrets.mask_all(told)
        return masked

    @property
    def label(self) -> str:
        """`gpu-07.rank3.4711`, or `gpu-07.4711` for what is no rank: a part of file names."""
        name = self.host.replace("/", "_")
        return f"{name}.rank{self.rank}.{self.pid}" if self.rank is not None and self.role in ("rank", "worker") else f"{name}.{self.pid}"


def find(pid: int | None = None) -> tuple[list[Member], list[Missing]]:
    """The job's processes, ranks first; and those that may not be read or do not answer.

    With `pid`: that process and its descendants, whatever they are. Raises ValueError where there is no such process.
    Never this process or another `ncclcheck`, though the ranks that one starts are a job like others.
    """
    if pid is not None and not processes.read(pid):
        raise ValueError(f"--pid {pid}: there is no such process on this node")
    asked = None if pid is None else {pid, *(child.pid for child in processes.descendants(pid))}
    seen, missing = _read_all(sorted((asked or {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}) - {os.getpid()}))
    seen = {number: member for number, member in seen.items() if not roles.is_ours(member.words)}
    found: dict[int, Member] = {}
    for member in sorted(seen.values(), key=lambda member: member.start):  # parents before their children
        if placed := _place(member, found, seen, everything=asked is not None):
            found[placed.pid] = placed
    for member in found.values():
        secrets.learn(member.environ, member.words)
    order = ("rank", "worker", "launcher", "helper", "other")
    members = sorted(found.values(), key=lambda member: (order.index(member.role), -1 if member.rank is None else member.rank, member.pid))
    return members, [entry for number, entry in missing.items() if asked is not None or _looks_like_a_job(number)]


def _read_all(pids: list[int]) -> tuple[dict[int, Member], dict[int, Missing]]:
    """Every process that can be read. One that does not answer is left behind, and the next is read by another thread."""
    seen: dict[int, Member] = {}
    missing: dict[int, Missing] = {}
    left = iter(pids)
    asked: list[int] = []

    def read() -> Iterator[tuple[int, Member | OSError | None]]:
        for pid in left:
            asked.append(pid)
            try:
                yield pid, _read(pid)
            except OSError as error:
                yield pid, error

    for _ in range(int(BOUND / STALL)):
        try:
            for pid, result in patient.items(read, BOUND, each=STALL):
                if isinstance(result, Member):
                    seen[pid] = result
                elif isinstance(result, PermissionError):
                    missing[pid] = refused(f"environment of process {pid}", result)
            break
        except TimeoutError as error:
            late = asked[-1]
            missing[late] = Missing(f"process {late}", f"/proc/{late}: {error}; it hangs in the kernel", f"sudo cat /proc/{late}/stack")
    return seen, missing


def _read(pid: int) -> Member | None:
    """The process as it is, its role not yet known; None for a kernel thread and for one that is gone. Raises PermissionError."""
    process = processes.read(pid)
    if not process or process.dead:
        return None
    folder = Path(f"/proc/{pid}")
    try:
        words = tuple(word.decode("utf-8", "replace") for word in (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0"))
        entries = (folder / "environ").read_bytes().split(b"\0")
        executable = os.readlink(folder / "exe")
        status = (folder / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    environ = dict(entry.decode("utf-8", "replace").split("=", 1) for entry in entries if b"=" in entry)
    threads = re.search(r"^Threads:\s+(\d+)", status, re.M)
    return Member(
        *(pid, process.ppid, "other", None, None, None, host.name(), words, environ),
        python=roles.is_python(executable.removesuffix(" (deleted)")),
        state=process.state,
        wchan=processes.wchan(pid),
        threads=int(threads[1]) if threads else 1,
        started=_started(process.start),
        start=process.start,
    )


def _place(member: Member, found: Mapping[int, Member], seen: Mapping[int, Member], *, everything: bool) -> Member | None:
    """The process with its role and place in the job; None where it has none."""
    above = next((found[pid] for pid in _ancestors(member, seen) if pid in found), None)
    if not member.environ and above:  # a process that titles itself writes over what /proc shows of its environment
        member = replace(member, environ=above.environ)
    if (title := roles.title(member.words)) is not None:
        return replace(member, role="worker", rank=roles.titled_rank(title), python=True)
    if member.python and roles.is_launcher(member.words):
        return replace(member, role="launcher")
    if member.python and (place := roles.place(member.environ)):
        inherited = above is not None and above.role in ("rank", "helper") and above.rank == place.rank
        role = "helper" if inherited else "rank"
        return replace(member, role=role, rank=place.rank, local_rank=place.local_rank, world_size=place.world_size)
    if above and member.python and above.role != "other":
        return replace(member, role="helper", rank=above.rank)
    return member if everything else None


def _ancestors(member: Member, seen: Mapping[int, Member]) -> Iterator[int]:
    pid = member.ppid
    while pid in seen:
        yield pid
        pid = seen[pid].ppid


def _looks_like_a_job(pid: int) -> bool:
    """Whether a process that may not be read is worth a line: its command line is everybody's to see."""
    with contextlib.suppress(OSError, TimeoutError):
        for text in patient.items(lambda: [Path(f"/proc/{pid}/cmdline").read_text(errors="replace")], STALL):
            words = text.rstrip("\0").split("\0")
            return roles.is_launcher(words) or roles.title(words) is not None or roles.is_python(words[0])
    return True  # one that does not even say its name hangs in the kernel


def _started(ticks: int) -> str:
    """Ticks since boot -> UTC."""
    boot = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK"), UTC).isoformat(timespec="seconds")
