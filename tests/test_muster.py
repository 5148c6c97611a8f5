"""A rank that believes something else than what was ordered is named before anything can hang on it, and a right job is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import alike, muster
from ncclcheck.causes import CAUSES
from ncclcheck.model import Fact
from ncclcheck.muster import Claim, Order

ORDER = Order(2, 2, "10.0.0.1", 29500)
HOSTS = ("a", "b", "c", "d")


def claim(rank: int, order: Order = ORDER, *, interfaces: tuple[str, ...] = ("lo", "eth0", "ib0"), **environment: str | None) -> Claim:
    """The hello of a rank that is as it was ordered, but for what is given; None takes a variable away."""
    node, local = divmod(rank, order.nproc_per_node)
    right: dict[str, str | None] = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "GROUP_RANK": str(node),
        "WORLD_SIZE": str(order.nnodes * order.nproc_per_node),
        "LOCAL_WORLD_SIZE": str(order.nproc_per_node),
        "MASTER_ADDR": order.master,
        "MASTER_PORT": str(order.port),
    }
    said = {name: value for name, value in (right | environment).items() if value is not None}
    device = {"index": local, "name": "GPU", "uuid": f"GPU-{rank}", "pci_bus_id": f"0{local}"}
    return Claim(node, local, HOSTS[node], 100 + rank, said, interfaces, device, "2.13.0", "2.28.9")


def job(changes: Mapping[int, Mapping[str, Any]] | None = None, order: Order = ORDER) -> list[Claim]:
    """All ranks' claims, those named with another environment."""
    return [claim(rank, order, **(changes or {}).get(rank, {})) for rank in range(order.nnodes * order.nproc_per_node)]


def blamed(claims: list[Claim], order: Order = ORDER) -> list[tuple[str, list[int], list[str]]]:
    return [(fact.get("cause"), fact.get("ranks"), fact.get("hosts")) for fact in check(claims, order)]


def check(claims: list[Claim], order: Order = ORDER) -> list[Fact]:
    found = muster.check(order, claims)
    assert all(fact.kind == "fail" and fact.get("cause") in CAUSES and fact.get("title") for fact in found)
    return found


settings_ = st.dictionaries(st.sampled_from(["NCCL_ALGO", "NCCL_IB_DISABLE", "TORCH_NCCL_BLOCKING_WAIT", "GLOO_X"]), st.text(max_size=5), max_size=3)


@given(st.integers(1, 4), st.integers(1, 4), settings_, st.data())
def test_a_job_that_is_as_ordered_is_left_alone_also_while_not_all_have_come(
    nodes: int, each: int, common: dict[str, str], data: st.DataObject
) -> None:
    order = Order(nodes, each, "fd00::1", 1234)
    claims = job({rank: common for rank in range(nodes * each)}, order)
    there = data.draw(st.lists(st.sampled_from(claims), unique_by=lambda one: (one.node, one.local_rank)))
    assert blamed(there, order) == []


@given(st.dictionaries(st.text(max_size=20) | st.sampled_from(["RANK", "NCCL_X", "CUDA_VISIBLE_DEVICES", "GLOO_Y"]), st.text()))
def test_only_what_wires_a_rank_is_taken_of_its_environment(environ: dict[str, str]) -> None:
    taken = muster.environment(environ | {"HOME": "/root", "AWS_SECRET_ACCESS_KEY": "x", "NCCLCHECK_TOKEN": "x"})
    assert taken.items() <= environ.items()
    assert {name for name in environ if name in ("RANK", "NCCL_X", "CUDA_VISIBLE_DEVICES", "GLOO_Y")} <= taken.keys()


@pytest.mark.parametrize(
    "changes, cause, said",
    [
        ({"RANK": "2"}, "duplicate-rank", "rank 3 (b, pid 103) claims to be rank 2: two processes then share that number, and rank 3 never comes"),
        ({"RANK": None}, "duplicate-rank", "claims to be rank None"),
        ({"WORLD_SIZE": "5"}, "world-size-mismatch", "rank 3 (b, pid 103) has WORLD_SIZE=5, and the job was started with 4"),
        ({"WORLD_SIZE": "3"}, "world-size-mismatch", "WORLD_SIZE=3"),
        ({"MASTER_ADDR": "192.0.2.1"}, "wrong-master-addr", "MASTER_ADDR=192.0.2.1, and the job was started with 10.0.0.1"),
        ({"MASTER_PORT": "29501"}, "wrong-master-addr", "MASTER_PORT=29501, and the job was started with 29500"),
        ({"GLOO_SOCKET_IFNAME": "lo"}, "wrong-interface", "GLOO_SOCKET_IFNAME=lo, which leads to no other node"),
        ({"NCCL_SOCKET_IFNAME": "lo"}, "wrong-interface", "NCCL_SOCKET_IFNAME=lo, which leads to no other node"),
        ({"NCCL_SOCKET_IFNAME": "=lo"}, "wrong-interface", "which leads to no other node"),
        ({"GLOO_SOCKET_IFNAME": "eth"}, "wrong-interface", "GLOO_SOCKET_IFNAME=eth, and that node has no such interface: lo, eth0, ib0"),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "wrong-interface", "NCCL_SOCKET_IFNAME==eth, and that node has no such interface"),
        ({"NCCL_SOCKET_IFNAME": "bond"}, "wrong-interface", "no such interface"),
        ({"NCCL_SOCKET_IFNAME": "^eth,ib"}, "wrong-interface", "which leads to no other node"),
        ({"NCCL_SOCKET_IFNAME": "^eth,ib,lo"}, "wrong-interface", "which leaves none of that node's interfaces"),
        ({"GLOO_SOCKET_IFNAME": "bond0,eth0"}, "wrong-interface", "no such interface bond0: lo, eth0, ib0"),
        ({"GLOO_SOCKET_IFNAME": "^lo"}, "wrong-interface", "GLOO_SOCKET_IFNAME=^lo, which takes plain names only"),
        ({"GLOO_SOCKET_IFNAME": ",eth0"}, "wrong-interface", "a comma too many"),
        ({"GLOO_SOCKET_IFNAME": "=eth0"}, "wrong-interface", "GLOO_SOCKET_IFNAME==eth0, which takes plain names only"),
    ],
)
def test_a_rank_that_believes_something_else_is_named_with_both(changes: dict[str, str | None], cause: str, said: str) -> None:
    (fact,) = check(job({3: changes}))
    assert (fact.get("cause"), fact.get("ranks"), fact.get("hosts")) == (cause, [3], ["b"])
    assert said in fact.get("title")
    assert blamed([claim(3, **changes)]) == [(cause, [3], ["b"])]  # that nobody else has come yet changes nothing


@pytest.mark.parametrize(
    "changes",
    [
        {"GLOO_SOCKET_IFNAME": "eth0"},
        {"GLOO_SOCKET_IFNAME": "ib0,eth0"},
        {"GLOO_SOCKET_IFNAME": "eth0,"},
        {"GLOO_SOCKET_IFNAME": "x"},  # of one character: it is ignored
        {"NCCL_SOCKET_IFNAME": "eth"},
        {"NCCL_SOCKET_IFNAME": "bond,ib"},
        {"NCCL_SOCKET_IFNAME": "=eth0"},
        {"NCCL_SOCKET_IFNAME": "=eth0,ib0"},
        {"NCCL_SOCKET_IFNAME": "^docker,lo"},
        {"NCCL_SOCKET_IFNAME": "^=docker0"},
        {"NCCL_SOCKET_IFNAME": "lo,eth"},
        {"NCCL_SOCKET_IFNAME": ""},
    ],
)
def test_a_name_that_leads_to_the_others_is_as_good_as_none(changes: dict[str, str]) -> None:
    assert blamed(job({3: changes})) == []


def test_both_wrong_names_of_a_rank_make_one_finding_with_a_command() -> None:
    (fact,) = check(job({3: {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}}))
    assert "GLOO_SOCKET_IFNAME=lo, which leads to no other node and NCCL_SOCKET_IFNAME=lo" in fact.get("title")
    assert fact.get("remedy").startswith("on b: ip -br addr")


def test_loopback_is_enough_for_one_node() -> None:
    order = Order(1, 2, "127.0.0.1", 29500)
    assert blamed(job({0: {"NCCL_SOCKET_IFNAME": "lo"}, 1: {"GLOO_SOCKET_IFNAME": "lo"}}, order), order) == []


def test_ranks_that_share_a_gpu_are_both_named_with_what_each_was_shown() -> None:
    claims = job({2: {"CUDA_VISIBLE_DEVICES": "0,1"}, 3: {"CUDA_VISIBLE_DEVICES": "0,0"}})
    claims[3] = replace(claims[3], device={**claims[3].device, "uuid": claims[2].device["uuid"]})
    (fact,) = check(claims)
    assert (fact.get("cause"), fact.get("ranks"), fact.get("hosts")) == ("duplicate-gpu", [2, 3], ["b"])
    assert "ranks 2, 3 use one GPU, GPU-2" in fact.get("title") and "rank 3 with CUDA_VISIBLE_DEVICES=0,0" in fact.get("title")


@pytest.mark.parametrize("device", [{"index": None, "uuid": None}, {"index": None, "uuid": "GPU-0"}, {"index": 0, "uuid": None}])
def test_ranks_without_a_gpu_or_without_its_name_share_none(device: dict[str, Any]) -> None:
    assert blamed([replace(one, device={**one.device, **device}) for one in job()]) == []


@pytest.mark.parametrize("what, cause, name", [("nccl", "nccl-version-mismatch", "NCCL"), ("torch", "version-mismatch", "torch")])
def test_the_rank_with_another_version_than_most_is_named_once_all_have_come(what: str, cause: str, name: str) -> None:
    claims = job()
    claims[2] = replace(claims[2], **{what: "1.0"})
    (fact,) = check(claims)
    assert (fact.get("cause"), fact.get("ranks"), fact.get("hosts")) == (cause, [2], ["b"])
    assert f"different versions of {name}" in fact.get("title") and "1.0 on b (rank 2)" in fact.get("title")
    assert blamed(claims[2:]) == []  # of the first two that come neither is the odd one
    claims[3] = replace(claims[3], **{what: "1.0"})
    assert blamed(claims) == [(cause, [0, 1, 2, 3], ["a", "b"])]


def test_a_version_that_is_not_known_differs_from_none() -> None:
    claims = job()
    claims[1] = replace(claims[1], nccl=None, torch=None)
    assert blamed(claims) == []


@pytest.mark.parametrize("name", ["NCCL_ALGO", "NCCL_P2P_DISABLE", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "GLOO_DEVICE_TRANSPORT"])
@pytest.mark.parametrize(
    "values, odd",
    [
        ({3: "x"}, [3]),  # on one rank only
        ({0: "x", 1: "x", 2: "x"}, [3]),  # on all but one
        ({0: "x", 1: "x", 2: "x", 3: "y"}, [3]),
        ({2: "x", 3: "x"}, [2, 3]),  # half of them say something, the others nothing
        ({0: "x", 1: "x", 2: "y", 3: "y"}, [0, 1, 2, 3]),
    ],
)
def test_a_setting_that_differs_is_blamed_on_those_that_differ_from_most(name: str, values: dict[int, str], odd: list[int]) -> None:
    (fact,) = check(job({rank: {name: value} for rank, value in values.items()}))
    assert (fact.get("cause"), sorted(fact.get("ranks"))) == ("nccl-env-misconfig", odd)
    assert fact.get("title").startswith(f"{name} differs between the ranks")
    assert f"unset {name}" in fact.get("remedy")


def test_of_two_ranks_the_one_that_has_a_setting_is_named() -> None:
    order = Order(2, 1, "10.0.0.1", 29500)
    (fact,) = check(job({1: {"NCCL_ALGO": "Tree"}}, order), order)
    assert (fact.get("ranks"), fact.get("hosts")) == ([1], ["b"])
    assert "nothing on a (rank 0)" in fact.get("title") and "Tree on b (rank 1)" in fact.get("title")


@pytest.mark.parametrize("name", [*sorted(alike.EACH_ITS_OWN - {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"}), "NCCL_DEBUG", "NCCL_DEBUG_FILE"])
def test_settings_that_may_differ_between_nodes_may(name: str) -> None:
    assert blamed(job({3: {name: "x"}})) == []


def test_interfaces_may_be_called_differently_on_each_node() -> None:
    claims = job({0: {"NCCL_SOCKET_IFNAME": "eth0"}, 1: {"NCCL_SOCKET_IFNAME": "eth0"}})
    claims[2:] = [claim(rank, interfaces=("lo", "ens3"), NCCL_SOCKET_IFNAME="ens3") for rank in (2, 3)]
    assert blamed(claims) == []


def test_settings_are_compared_only_once_all_have_come() -> None:
    assert blamed(job({3: {"NCCL_ALGO": "Tree"}})[2:]) == []


@given(st.sampled_from(["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]), st.integers(0, 3), st.text(max_size=6))
def test_only_the_rank_that_was_told_something_wrong_is_named(name: str, rank: int, value: str) -> None:
    right = claim(rank).environment[name]
    ranks = [fact.get("ranks") for fact in check(job({rank: {name: value}}))]
    assert ranks == ([] if value == right else [[rank]])


def test_loopback_is_right_where_the_master_is_there_too() -> None:
    order = Order(2, 1, "127.0.0.1", 29500)
    environments = [
        {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": order.master, "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"} for rank in (0, 1)
    ]
    claims = [Claim(rank, 0, "a", 7 + rank, environment, ["lo", "eth0"]) for rank, environment in enumerate(environments)]
    assert muster.check(order, claims) == []


def test_where_a_launcher_around_us_numbers_the_ranks_their_places_are_its_own_word() -> None:
    order = Order(2, 1, "10.0.0.1", 29500, tasks=True)
    environments = [{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": order.master, "MASTER_PORT": "29500"} for rank in (0, 1)]
    claims = [Claim(rank, rank, "a", 7 + rank, environment, ["lo", "eth0"]) for rank, environment in enumerate(environments)]
    assert muster.check(order, claims) == []
    assert [fact.get("cause") for fact in muster.check(replace(order, tasks=False), claims)] == ["duplicate-rank"]
