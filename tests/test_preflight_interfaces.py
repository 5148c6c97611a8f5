"""The interfaces that a job names, or that NCCL and Gloo take by themselves, are judged by whether they lead to the other nodes."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ncclcheck import socket_ifname
from ncclcheck.causes import CAUSES
from ncclcheck.collect import interfaces as collected
from ncclcheck.model import Fact
from ncclcheck.preflight import interfaces, wiring
from ncclcheck.survey import Job, Node, Question

JOB = Job(2, 1, "10.0.0.1")


def one(name: str, *addresses: str, kind: str = "physical", state: str = "up") -> dict[str, Any]:
    return {"name": name, "kind": kind, "state": state, "mtu": 1500, "speed": None, "addresses": list(addresses), "driver": None, "master": None}


LO, ETH = one("lo", "127.0.0.1", "::1", kind="loopback"), one("eth0", "10.0.0.2", "fe80::2")
DOCKER = one("docker0", "172.17.0.1", kind="bridge", state="no-carrier")


def judged(
    *there: dict[str, Any],
    names: Sequence[str] = ("10.0.0.2",),
    way: str = "eth0",
    job: Job = JOB,
    node_rank: int = 1,
    more: Mapping[str, Any] | None = None,
    **said: str,
) -> list[Fact]:
    """What is said of node `b`, 10.0.0.2, whose name resolves to `names`."""
    section = {
        "interfaces": [LO, *(there or (ETH,))],
        "ways": {"10.0.0.1": {"source": "10.0.0.2" if way else "", "interface": way}},
        "hostname": {"name": "b", "addresses": list(names)},
        "master": None,
        "said": said,
        "launched": False,
        "far": "10.0.0.2",
        "port_owner": None,
        **(more or {}),
    }
    found = list(interfaces.judge(Node(node_rank, "b", "10.0.0.2", {"interfaces": section}), job))
    for fact in found:
        assert fact.get("hosts") == ["b"]
        assert fact.kind == "note" or (fact.get("cause") in CAUSES and fact.get("remedy") and fact.get("evidence"))
    return found


def told(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    return [(fact.kind, fact.get("cause", "")) for fact in facts]


WRONG = [("fail", "wrong-interface")]


@pytest.mark.parametrize(
    "there",
    [
        (ETH,),
        (DOCKER, ETH),  # docker0 is left out by NCCL itself
        (ETH, one("tailscale0", "100.64.0.1", kind="tun")),
        (ETH, one("ib0", "10.1.0.2", kind="infiniband")),  # NCCL takes ib0, which the control plane's way says nothing against
        (ETH, one("eno2", state="no-carrier"), one("ifb0", kind="ifb", state="down")),  # nobody gave them an address
        (ETH, one("usb0", "169.254.3.1", state="no-carrier")),
        (one("br0", "10.0.0.2", kind="bridge"), one("eth0")),
    ],
)
def test_nodes_as_they_are_found_everywhere_are_left_alone(there: tuple[dict[str, Any], ...]) -> None:
    assert judged(*there, way="br0" if there[0]["name"] == "br0" else "eth0") == []


@pytest.mark.parametrize(
    "first, kind",
    [
        (one("br-5c2f", "172.18.0.1", kind="bridge"), "fail"),
        (one("cni0", "10.244.1.1", kind="bridge"), "fail"),
        (one("tailscale0", "100.64.0.1", kind="tun"), "degraded"),
        (one("wg0", "10.66.0.1", kind="wireguard"), "degraded"),
        (one("wlp3s0", "192.168.0.9", kind="wireless"), "degraded"),
    ],
)
def test_what_nccl_would_take_by_itself_is_wrong_where_it_leads_nowhere(first: dict[str, Any], kind: str) -> None:
    (fact,) = judged(first, ETH)
    assert told([fact]) == [(kind, "wrong-interface")]
    assert f"NCCL on b takes {first['name']} by itself" in fact.get("title") and "export NCCL_SOCKET_IFNAME=eth0" in fact.get("remedy")
    assert judged(first, ETH, NCCL_SOCKET_IFNAME="eth0") == []
    assert judged(first, ETH, names=first["addresses"], way=first["name"]) == []  # where the kernel uses it, it is right


def test_a_wireless_interface_is_called_slower_and_not_wrong() -> None:
    wireless = one("wlp3s0", "192.168.0.9", kind="wireless")
    (fact,) = judged(ETH, wireless, NCCL_SOCKET_IFNAME="wlp3s0")
    assert told([fact]) == [("degraded", "wrong-interface")] and "wlp3s0 is wireless, and slower" in fact.get("title")
    (fact,) = judged(ETH, wireless, names=["192.168.0.9"])
    assert told([fact]) == [("degraded", "wrong-interface")] and "Gloo on b takes wlp3s0" in fact.get("title")


def test_the_first_address_of_the_hosts_name_is_what_gloo_takes() -> None:
    bridge = one("virbr0", "192.168.122.1", kind="bridge")
    (fact,) = judged(ETH, bridge, names=["192.168.122.1"])
    assert told([fact]) == WRONG and "Gloo on b takes virbr0" in fact.get("title")
    assert judged(ETH, bridge, names=["192.168.122.1"], GLOO_SOCKET_IFNAME="eth0") == []


@pytest.mark.parametrize("value", ["^docker", "^docker0", "^=docker0"])
def test_a_list_of_what_not_to_take_lets_loopback_in(value: str) -> None:
    (fact,) = judged(DOCKER, ETH, NCCL_SOCKET_IFNAME=value)
    assert told([fact]) == WRONG and "lo does not lead to the other nodes; eth0 does" in fact.get("title")
    assert judged(DOCKER, ETH, NCCL_SOCKET_IFNAME="^docker,lo") == []


@pytest.mark.parametrize(
    "said, words",
    [
        ({"NCCL_SOCKET_IFNAME": "ib7"}, "no such interface"),
        ({"GLOO_SOCKET_IFNAME": "eth0,ib7"}, "no such interface ib7"),
        ({"GLOO_SOCKET_IFNAME": "^lo"}, "plain names only"),
        ({"TP_SOCKET_IFNAME": "eth"}, "no such interface"),
        ({"NCCL_SOCKET_IFNAME": "lo"}, "leads to no other node"),
        ({"NCCL_SOCKET_IFNAME": "eno2"}, "eno2 is without carrier"),
        ({"GLOO_SOCKET_IFNAME": "eth0,eno2"}, "eno2 is without carrier"),
        ({"GLOO_SOCKET_IFNAME": "eno3"}, "eno3 has no address"),
    ],
)
def test_a_named_interface_that_cannot_be_used_stops_a_launch(said: dict[str, str], words: str) -> None:
    facts = judged(ETH, one("eno2", "10.5.0.2", state="no-carrier"), one("eno3"), **said)
    fact = next(fact for fact in facts if fact.kind == "fail")
    assert fact.get("cause") == "wrong-interface" and words in fact.get("title")


def test_nccl_does_without_those_of_several_that_are_down() -> None:
    assert judged(ETH, one("eth1", state="down"), NCCL_SOCKET_IFNAME="eth") == []


def test_loopback_is_enough_for_one_node() -> None:
    assert judged(names=["127.0.1.1"], job=Job(1, 4, "127.0.0.1"), node_rank=0, NCCL_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo") == []


def test_an_interface_with_an_address_that_is_down_is_named_once() -> None:
    down = one("ib1", "10.1.1.2", kind="infiniband", state="down")
    assert told(judged(ETH, down)) == [("degraded", "network-unreachable")]
    assert told(judged(ETH, down, NCCL_SOCKET_IFNAME="ib1")) == WRONG
    assert told(judged(one("eth0", "10.0.0.2", state="no-carrier"), way="")) == [("fail", "network-unreachable")] * 2


@pytest.mark.parametrize("names, words", [(["127.0.1.1"], "loopback"), (["192.0.2.77"], "no such address"), ([], "does not resolve")])
def test_a_host_name_that_does_not_lead_to_its_host_stops_gloo_unless_an_interface_is_named(names: list[str], words: str) -> None:
    (fact,) = judged(names=names)
    assert told([fact]) == [("fail", "hostname-resolution")] and words in fact.get("title") and "10.0.0.2 b" in fact.get("remedy")
    assert told(judged(names=names, GLOO_SOCKET_IFNAME="eth0")) == [("degraded", "hostname-resolution")]


def test_gloo_passes_over_addresses_that_are_not_its_own() -> None:
    assert judged(names=["192.0.2.77", "10.0.0.2"]) == []


@pytest.mark.parametrize("said", ["10.0.0.9", "127.0.0.1", "172.17.0.9"])
def test_an_engines_address_must_be_the_nodes_own(said: str) -> None:
    (fact,) = judged(VLLM_HOST_IP=said)
    assert told([fact]) == [("fail", "vllm-host-ip")] and "VLLM_HOST_IP=10.0.0.2" in fact.get("remedy")
    assert judged(VLLM_HOST_IP="10.0.0.2") == []


def test_what_vllm_would_take_by_itself_is_worth_a_note_where_it_is_another() -> None:
    (fact,) = judged(more={"far": "192.168.0.2"})
    assert fact.kind == "note" and "192.168.0.2" in fact.get("title")


@pytest.mark.parametrize(
    "name, addresses, rank, right",
    [
        ("10.0.0.1", ["10.0.0.1"], 1, True),
        ("head", ["10.0.0.1"], 1, True),
        ("10.9.9.9", ["10.9.9.9"], 1, False),
        ("head", [], 1, False),
        ("b", ["10.0.0.2"], 1, False),
        ("localhost", ["127.0.0.1"], 1, False),
        ("localhost", ["127.0.0.1"], 0, False),
        ("10.0.0.2", ["10.0.0.2"], 0, True),  # another address of node 0
        ("b", ["127.0.1.1"], 0, True),  # as Debian names a host at home
        ("127.0.0.1", ["127.0.0.1"], 0, False),
    ],
)
def test_a_master_address_that_leads_elsewhere_stops_a_launch(name: str, addresses: list[str], rank: int, right: bool) -> None:
    facts = judged(node_rank=rank, more={"master": {"name": name, "addresses": addresses}}, MASTER_ADDR=name)
    assert told(facts) == ([] if right else [("fail", "wrong-master-addr")])


@pytest.mark.parametrize(
    "name, address, more, right",
    [
        ("10.0.0.1", "10.0.0.1", {"meets": ["10.0.0.1"]}, True),
        ("gpu-01.example", "10.0.0.1", {"resolved": ["10.0.0.1"]}, True),
        ("10.1.0.1", "10.1.0.1", {"meets": ["10.0.0.1", "10.1.0.1"]}, True),  # a second address of node 0
        ("10.9.9.9", "10.9.9.9", {"meets": ["10.0.0.1"], "resolved": ["10.0.0.1"]}, False),
        ("b", "10.0.0.2", {"meets": ["10.0.0.1"], "resolved": ["10.0.0.2"]}, False),  # the name leads each node to itself
        ("gpu-01", "127.0.0.1", {"resolved": ["127.0.0.1"]}, False),
    ],
)
def test_a_master_that_is_given_by_name_is_known_by_its_addresses(name: str, address: str, more: Mapping[str, Any], right: bool) -> None:
    section = {"master": {"name": name, "addresses": [address]}, "job_master": {"name": "gpu-01x", "addresses": more.get("resolved", [])}}
    job = Job(2, 1, "gpu-01x", meets=more.get("meets", ()))
    assert told(judged(job=job, more=section, MASTER_ADDR=name)) == ([] if right else [("fail", "wrong-master-addr")])


def test_a_node_that_looks_at_itself_alone_knows_of_no_other_master() -> None:
    assert judged(job=Job(1, 1, ""), node_rank=0, more={"master": {"name": "10.0.0.1", "addresses": ["10.0.0.1"]}}, MASTER_ADDR="10.0.0.1") == []


def test_node_0_is_known_by_its_addresses_without_those_that_every_host_has() -> None:
    first = Node(0, "a", "10.0.0.1", {"interfaces": {"interfaces": [LO, DOCKER, one("eth0", "10.0.0.1"), one("eth1", "10.1.0.1", "fe80::1")]}})
    assert set(wiring.meets([first, Node(1, "b", "10.0.0.2", {})])) == {"10.0.0.1", "10.1.0.1"}
    assert wiring.meets([Node(0, "a", "10.0.0.1", {"interfaces": {"error": "no answer"}})]) == ["10.0.0.1"]


def test_no_way_is_asked_for_to_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    found = collected.section(Question(master="localhost", peers=["127.0.0.1", "::1"]))
    assert set(found["ways"]) == {"127.0.0.1", "::1"} and "127.0.0.1" in found["job_master"]["addresses"]


def test_a_port_that_is_taken_matters_on_node_0_and_outside_a_launcher() -> None:
    taken = {"port_owner": "python (pid 7, user a)"}
    assert told(judged(node_rank=0, more=taken, MASTER_PORT="29500")) == [("fail", "port-in-use")]
    assert judged(node_rank=1, more=taken, MASTER_PORT="29500") == []
    assert judged(node_rank=0, more={**taken, "launched": True}, MASTER_PORT="29500") == []
    assert told(judged(MASTER_PORT="auto")) == [("fail", "wrong-master-addr")]


def test_numbers_of_a_former_job_are_named() -> None:
    job = Job(2, 4, "10.0.0.1")
    assert judged(job=job, RANK="5", WORLD_SIZE="8") == []
    assert judged(job=job, RANK="1", WORLD_SIZE="2") == []  # of nodes
    assert told(judged(job=job, RANK="2", WORLD_SIZE="16")) == [("degraded", "world-size-mismatch"), ("degraded", "duplicate-rank")]
    assert judged(job=job, more={"launched": True}, RANK="2", WORLD_SIZE="16") == []


def test_a_section_that_was_not_read_is_not_called_fine() -> None:
    (fact,) = interfaces.judge(Node(0, "a", "10.0.0.1"), JOB)
    assert fact.kind == "unread" and fact.get("needed")


@pytest.mark.parametrize(
    "there, first",
    [(["docker0", "eth0"], "eth0"), (["eth0", "ib0"], "ib0"), (["lo", "docker0"], "docker0"), (["lo", "virbr0"], "lo"), (["lo"], "lo"), ([], None)],
)
def test_nccl_takes_ib_first_and_docker_and_loopback_last(there: list[str], first: str | None) -> None:
    assert next(iter(socket_ifname.picked(there)), None) == first


def test_this_machine_is_read_as_the_kernel_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        found = collected.section(Question(master="127.0.0.1", peers=["127.0.0.1"]))
    assert [entry["name"] for entry in found["interfaces"]] == [name for _, name in socket.if_nameindex()]
    loopback = next(entry for entry in found["interfaces"] if entry["name"] == "lo")
    assert (loopback["kind"], loopback["state"]) == ("loopback", "up") and "127.0.0.1" in loopback["addresses"]
    assert found["ways"] == {"127.0.0.1": {"source": "127.0.0.1", "interface": "lo"}}
    assert found["hostname"]["name"] == os.uname().nodename
    assert "127.0.0.1" in found["master"]["addresses"]
    assert f"pid {os.getpid()}" in found["port_owner"]


def test_a_name_that_nobody_has_is_said_to_have_none() -> None:
    found = collected._resolved("nobody.invalid")
    assert found["addresses"] == [] and found["why"]
