"""The Python stacks of a foreign job, read from outside by py-spy: nothing is stopped and no signal is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ncclcheck.collect import patient
from ncclcheck.collect.jobs import Member
from ncclcheck.collect.stacks import py_spy
from ncclcheck.collect.taken import Item, Missing, Taken

BOUND = 3.0  # seconds for one process
_AT_ONCE = 2
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


def stacks(members: Sequence[Member]) -> Iterator[Item]:
    """`pyspy.*` of each Python process, in the order given, two at a time."""
    program = py_spy()
    if not program:
        yield Missing("Python stacks", "py-spy is not installed", "pip install py-spy")
        return
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield from pool.map(lambda member: _stack(program, member), [member for member in members if member.python])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stack(program: str, member: Member) -> Item:
    words = (program, "dump", "--nonblocking", "--pid", str(member.pid))
    what = f"Python stack of process {member.pid}" + (f" (rank {member.rank})" if member.rank is not None else "")
    try:
        text = patient.output(words, BOUND)
    except TimeoutError as error:
        return Missing(what, f"py-spy: {error}", f"cat /proc/{member.pid}/stack   # as root: where it is in the kernel")
    except OSError as error:
        reason = f"py-spy: {error}"
        return Missing(what, reason, _remedy() if "ermission" in reason or "not permitted" in reason else "")
    return Taken(f"pyspy.{member.label}.txt", text, " ".join((Path(program).name, *words[1:])))


def _remedy() -> str:
    """What lets this user read another process's memory here."""
    try:
        scope = int(_SCOPE.read_text())
    except (OSError, ValueError):
        scope = 0
    ways = ["sudo ncclcheck collect", "in a container: docker run --cap-add SYS_PTRACE, or securityContext.capabilities.add: [SYS_PTRACE]"]
    if scope:
        ways.insert(1, f"sysctl kernel.yama.ptrace_scope=0 (it is {scope})")
    return "; or ".join(ways)
