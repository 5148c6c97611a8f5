"""A fault strikes its victim where and when it was told to, once, and says so before anything happens."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import SOON, until

torch = pytest.importorskip("torch")

from ncclcheck import cgroup, fault  # noqa: E402
from ncclcheck.collective import Collective, Group  # noqa: E402
from ncclcheck.fault import Planted, Spec  # noqa: E402

ROOT = Path(__file__).parent.parent
WORLD = Group("world", None, Group("half"))


class Told:
    """What a planted fault says of itself."""

    def __init__(self, name: str, after: int = 0, delay: float = 0.0) -> None:
        self.struck = 0
        self.refused: list[str] = []
        self.planted = Planted(Spec(name, 0, after, delay), self._strike, self.refused.append)

    def _strike(self) -> None:
        self.struck += 1


def all_reduce(elements: int = 64, group: Group = WORLD) -> Collective:
    return Collective("all_reduce", torch.arange(elements, dtype=torch.float32), group)


def same(one: Collective, other: Collective) -> bool:
    return (one.operation, one.nbytes, one.dtype, one.group_name, one.detail) == (
        other.operation, other.nbytes, other.dtype, other.group_name, other.detail,
    )  # fmt: skip


# how one is written


@pytest.mark.parametrize(
    "text, spec",
    [
        ("hang@rank=1,after=20", Spec("hang", 1, 20)),
        ("kill@rank=12", Spec("kill", 12)),
        ("kill@rank=0,after=3,delay=0.5s", Spec("kill", 0, 3, 0.5)),
        ("freeze@rank=0,delay=2", Spec("freeze", 0, 0, 2.0)),
        ("freeze@rank=0,delay=20ms", Spec("freeze", 0, 0, 0.02)),
    ],
)
def test_a_fault_is_written_with_its_victim_and_its_moment(text: str, spec: Spec) -> None:
    assert fault.parse(text) == spec
    assert fault.given({fault.VARIABLE: text}) == spec
    assert fault.given({}) is fault.given({fault.VARIABLE: ""}) is None


@pytest.mark.parametrize(
    "text",
    ["hang", "hang@rank=x", "hang@after=3", "hang@rank=-1", "hang@rank=1,after=", "hang@rank=1,delay=0s", "hang@rank=1,delay=1y", "@rank=1", ""],
)
def test_what_is_no_fault_is_the_callers_mistake(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a fault to inject|is not a time|above zero"):
        fault.parse(text)


def test_a_fault_that_does_not_exist_is_named() -> None:
    with pytest.raises(KeyError, match="explode"):
        fault.parse("explode@rank=1")


@given(st.sampled_from(["kill", "wrong_dtype"]), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_fault_that_is_written_down_is_read_as_the_same(name: str, rank: int, after: int, microseconds: int) -> None:
    spec = Spec(name, rank, after, microseconds / 10**6)
    assert fault.parse(str(spec)) == spec


# before a step


def test_a_step_is_struck_only_after_as_many_as_were_asked_for() -> None:
    told = Told("exception", after=3)
    for seq in (1, 2, 3):
        told.planted.before(seq)
    assert told.struck == 0
    with pytest.raises(IndexError):
        told.planted.before(4)
    with pytest.raises(IndexError):
        told.planted.before(5)  # a fault that lasts strikes each step, and is announced once
    assert told.struck == 1
    call = all_reduce()
    assert told.planted.alter(9, call) == [call]


def test_a_delayed_fault_strikes_by_itself_that_long_after_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", os.pwrite)  # what the fault replaces is put back
    honest = os.pwrite
    told = Told("slow_io", after=1, delay=0.05)
    told.planted.before(1)
    assert told.planted._timer is None
    told.planted.before(2)
    told.planted.before(3)
    timer = told.planted._timer
    assert timer is not None and timer.interval == 0.05 and timer.daemon
    until(lambda: os.pwrite is not honest, SOON, "the fault")
    assert told.struck == 1


def test_a_fault_that_cannot_be_planted_is_refused_with_the_reason_and_the_rank_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(limit: int) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cgroup, "make", make)
    told = Told("host_oom")
    told.planted.before(1)
    assert told.struck == 1
    assert told.refused == ["a memory cgroup: [Errno 30] Read-only file system"]


# in a call


def test_a_call_is_exchanged_once_and_only_after_as_many_as_were_asked_for() -> None:
    told, call = Told("skip", after=2), all_reduce()
    assert [len(told.planted.alter(seq, call)) for seq in (1, 2, 3, 4, 5)] == [1, 1, 0, 1, 1]
    assert told.struck == 1
    told.planted.before(9)
    assert told.struck == 1


def test_one_call_more_is_a_copy_that_leaves_the_data_of_the_other_alone() -> None:
    told, call = Told("extra"), all_reduce()
    extra, given_ = told.planted.alter(1, call)
    assert given_ is call and same(extra, call)
    assert extra.tensor.data_ptr() != call.tensor.data_ptr()


def test_two_calls_are_swapped_and_those_after_them_are_not() -> None:
    told, first, second = Told("swapped"), all_reduce(8), all_reduce(16)
    broadcast = Collective("broadcast", torch.zeros(2), WORLD)
    assert told.planted.alter(1, broadcast) == [broadcast] and told.struck == 0  # not one of those that it waits for
    assert told.planted.alter(2, first) == [] and told.struck == 1
    assert [id(call) for call in told.planted.alter(2, second)] == [id(second), id(first)]
    assert [id(call) for call in told.planted.alter(4, first)] == [id(first)]
    assert told.struck == 1


@pytest.mark.parametrize(
    "name, differs",
    [
        ("wrong_dtype", {"dtype": "int32"}),
        ("wrong_shape", {"nbytes": 128, "detail": "[32] sum"}),
        ("wrong_operation", {"detail": "[64] max"}),
        ("wrong_group", {"group_name": "half"}),
        ("corrupt", {}),
    ],
)
def test_a_call_that_is_altered_differs_in_what_the_fault_says_and_in_nothing_else(name: str, differs: dict[str, Any]) -> None:
    told, call = Told(name), all_reduce()
    names = ("operation", "nbytes", "dtype", "group_name", "detail")
    expected = {field: getattr(call, field) for field in names} | differs
    (altered,) = told.planted.alter(1, call)
    assert {field: getattr(altered, field) for field in names} == expected
    assert told.struck == 1
    assert (altered.tensor.view(torch.int32)[0] != 0) == (name == "corrupt")


def test_a_call_that_a_fault_cannot_alter_is_issued_as_it_is_and_the_fault_waits_for_another() -> None:
    told, other = Told("wrong_dtype"), Collective("all_gather", torch.zeros(2), WORLD)
    assert told.planted.alter(1, other) == [other] and told.struck == 0
    (altered,) = told.planted.alter(2, all_reduce())
    assert altered.dtype == "int32" and told.struck == 1


# in the victim


@pytest.mark.parametrize("inject, rank, there", [("kill@rank=1", 1, True), ("kill@rank=1", 0, False), ("link_down@rank=1", 1, False), ("", 0, False)])
def test_only_the_victim_of_a_step_or_a_call_has_a_fault(inject: str, rank: int, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fault.VARIABLE, inject)
    assert (fault.planted(rank, lambda: None, lambda reason: None) is not None) == there


SCRIPT = """
import json, os, time
print("begins", flush=True)
from ncclcheck import fault
struck = fault.start(int(os.environ["RANK"]))
names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LD_PRELOAD")
print(json.dumps([struck is not None and 0 < struck <= time.monotonic(), {name: os.environ.get(name) for name in names}]))
"""


def started(inject: str, rank: int) -> tuple[int, bool, dict[str, str | None]]:
    """A rank of four that starts: how often its program began, whether it was struck, and its environment then."""
    clean = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "NCCLCHECK_STRUCK")}
    environ = {**clean, "RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", fault.VARIABLE: inject}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    *begun, last = done.stdout.splitlines()
    struck, wiring = json.loads(last)
    return len(begun), struck, wiring


@pytest.mark.parametrize(
    "name, changed",
    [("world_too_large", {"WORLD_SIZE": "5"}), ("duplicate_rank", {"RANK": "1"}), ("wrong_master_addr", {"MASTER_ADDR": "192.0.2.1"})],
)
def test_a_rank_that_starts_wrongly_has_a_changed_environment_and_knows_when_it_was_struck(name: str, changed: dict[str, str]) -> None:
    right: dict[str, str | None] = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "LD_PRELOAD": None}
    assert started(f"{name}@rank=2", 2) == (1, True, right | changed)
    assert started(f"{name}@rank=1", 2) == (1, False, right)


def test_a_library_that_is_loaded_first_needs_a_new_start_and_the_moment_is_kept() -> None:
    begun, struck, wiring = started("other_nccl@rank=2", 2)
    assert (begun, struck) == (2, True)
    assert (wiring["LD_PRELOAD"] or "").endswith("libnccl.so.2")
