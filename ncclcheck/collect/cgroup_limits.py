"""What the cgroups of this process, its own and those above it, let it use: memory, CPUs and processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ncclcheck.cgroup import levels

_ENDLESS = 1 << 62  # bytes: version 1 says so large a number where there is no limit


def read(proc: Path = Path("/proc/self")) -> dict[str, Any]:
    """`version`; `memory_limit`, `memory_used` (without what is only cached), `cpus`, `pids_limit` and `pids_used`, of the level that
    leaves the least; None where there is no limit or no such cgroup.
    """
    mountinfo, membership = (proc / "mountinfo").read_text(), (proc / "cgroup").read_text()
    memory, version = levels("memory", mountinfo, membership)
    cpu, cpu_version = levels("cpu", mountinfo, membership)
    pids, _ = levels("pids", mountinfo, membership)
    limit, used = min(_memory(memory, version), key=lambda pair: pair[0] - pair[1], default=(None, None))
    pids_limit, pids_used = min(_pids(pids), key=lambda pair: pair[0] - pair[1], default=(None, None))
    cpus = min(_cpus(cpu, cpu_version), default=None)
    return {"version": version, "memory_limit": limit, "memory_used": used, "cpus": cpus, "pids_limit": pids_limit, "pids_used": pids_used}


def _memory(folders: list[Path], version: int) -> Iterator[tuple[int, int]]:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), 2: ("memory.max", "memory.current", "inactive_file")}
    limit, used, cached = names.get(version, names[2])
    for folder in folders:
        most, now = _number(folder / limit), _number(folder / used)
        if most is not None and now is not None and most < _ENDLESS:
            lines = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
            yield most, max(0, now - int(lines.get(cached, 0)))


def _pids(folders: list[Path]) -> Iterator[tuple[int, int]]:
    for folder in folders:
        most, now = _number(folder / "pids.max"), _number(folder / "pids.current")
        if most is not None and now is not None:
            yield most, now


def _cpus(folders: list[Path], version: int) -> Iterator[float]:
    for folder in folders:
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
        words = " ".join(_text(folder / name) for name in files).split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            yield int(words[0]) / int(words[1])


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """Empty where there is no such file: not every level has every controller."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
