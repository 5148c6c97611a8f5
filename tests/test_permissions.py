"""A node does what its own user asked for, and nothing that an order adds to it."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec
import pytest

from ncclcheck import fault, wire
from ncclcheck.options import Options
from ncclcheck.permissions import Permissions, Refused

LAUNCH = wire.Launch("01-bandwidth", ["bandwidth"], 29700, 2, 2)
SERVER = {"layout": {"tp": 2}, "settings": []}


def added(options: Options, node_rank: int = 1, **order: Any) -> dict[str, str]:
    """What a launch adds to the environment of the ranks of node 1 of 2."""
    return Permissions(options).launch(msgspec.structs.replace(LAUNCH, **order), node_rank, 2, 2)


def test_a_launch_that_was_asked_for_adds_only_known_variables_with_values_made_here() -> None:
    asked = Options(["bandwidth"], probe_options={"model": "/models/mine", "budget": 3.0})
    made = added(asked, sizes={"budget": 1.5, "max_bytes": 4096}, model=True, records=True, times=True)
    assert json.loads(made.pop("NCCLCHECK_OPTIONS")) == {"budget": 1.5, "max_bytes": 4096, "model": "/models/mine"}
    assert sorted(made) == [
        "NCCL_DEBUG", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ENABLE_TIMING", "TORCH_NCCL_TRACE_BUFFER_SIZE",
    ]  # fmt: skip
    assert json.loads(added(asked)["NCCLCHECK_OPTIONS"]) == {}


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"probes": ["training"]}, "training was ordered"),
        ({"probes": ["host"]}, "host was ordered"),
        ({"nproc_per_node": 64}, "a job of 2 nodes with 64 ranks each"),
        ({"nnodes": 1}, "a job of 1 nodes"),
        ({"sizes": {"model": 1}}, "model was ordered, which is no size"),
        ({"sizes": {"max_bytes": 2**60}}, "at most"),
        ({"sizes": {"tp": 0}}, "above 0"),
        ({"sizes": {"tp": 1.5}}, "at most"),
        ({"model": True}, "none was named here"),
        ({"bench": wire.Bench(SERVER, [])}, "a server was ordered"),
        ({"fault": wire.Fault("kill", 2)}, "without --inject kill@rank=2"),
    ],
)
def test_a_launch_that_goes_beyond_what_was_asked_for_is_refused(order: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        added(Options(["bandwidth", "host"]), **order)


def test_a_server_is_started_only_if_it_is_one_of_those_that_were_asked_for() -> None:
    own = {"server": {"layout": {"tp": 1}}, "loads": [], "store": "/kept/here", "where": {}, "made_for": 2, "left": 3}
    asked = Options(["bandwidth"], probe_options={"bench": own}, servers=[SERVER])
    made = json.loads(added(asked, bench=wire.Bench(SERVER, [wire.Load(1, 2, 3, 4)], 1))["NCCLCHECK_OPTIONS"])["bench"]
    assert made == {**own, "server": SERVER, "loads": [{"concurrency": 1, "input": 2, "output": 3, "requests": 4}], "left": 1}
    with pytest.raises(Refused, match="a server was ordered"):
        added(asked, bench=wire.Bench({**SERVER, "settings": [["trust-remote-code", "true"]]}, []))


def test_a_fault_is_planted_only_where_its_victim_is_and_only_if_it_was_asked_for_there() -> None:
    order = wire.Fault("kill", 2, 20)
    assert fault.VARIABLE not in added(Options(["bandwidth"]), node_rank=0, fault=order)
    assert added(Options(["bandwidth"], inject="kill@rank=2"), fault=order)[fault.VARIABLE] == "kill@rank=2,after=20"
    planted_by_a_probe = added(Options(["hang"]), probes=["hang"], fault=wire.Fault("hang", 3, 20))
    assert planted_by_a_probe[fault.VARIABLE] == "hang@rank=3,after=20"
    with pytest.raises(Refused):
        added(Options(["hang"]), probes=["hang"], fault=wire.Fault("kill", 3))


def test_a_fault_of_the_network_needs_this_node_s_own_word_or_an_emulated_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def struck(**options: Any) -> bool:
        try:
            return fault.VARIABLE in added(Options(["bandwidth"], inject="link_down@rank=2", **options), fault=wire.Fault("link_down", 2))
        except Refused as refused:
            assert "--allow-network-faults" in str(refused)
            return False

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert struck(allow_network_faults=True) and struck(emulated="2x1") and not struck()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not struck(allow_network_faults=True)


def test_only_sections_that_a_probe_asked_for_here_reads_are_told() -> None:
    Permissions(Options(["reachability"])).survey(wire.Survey(["settings"], []))
    with pytest.raises(Refused, match="devices"):
        Permissions(Options(["reachability"])).survey(wire.Survey(["settings", "devices"], []))
    with pytest.raises(Refused, match="node"):
        Permissions(Options(["reachability"])).survey(wire.Survey(["node"], []))


def test_running_jobs_are_looked_at_only_where_that_was_asked_for() -> None:
    Permissions(Options([], examine=True)).examine()
    with pytest.raises(Refused, match="--live"):
        Permissions(Options(["wiring"])).examine()


@pytest.mark.parametrize(
    ("address", "port", "master", "fine"),
    [
        ("10.0.0.2", 40000, "10.0.0.1", True),
        ("10.0.0.2", 0, "10.0.0.1", True),  # nobody could listen there, and nobody tries
        ("10.0.0.2", 22, "10.0.0.1", False),
        ("127.0.0.1", 40000, "10.0.0.1", False),
        ("127.0.0.1", 40000, "127.0.0.1", True),
        ("169.254.169.254", 40000, "10.0.0.1", False),
        ("224.0.0.1", 40000, "10.0.0.1", False),
        ("::", 40000, "::1", False),
        ("255.255.255.255", 40000, "10.0.0.1", False),
    ],
)
def test_a_way_is_tried_only_to_where_a_node_s_echo_can_be(address: str, port: int, master: str, fine: bool) -> None:
    peer = wire.Peer(1, "b", address, port)
    order = wire.Try(0, [wire.Target(peer, "eth0", "eth0", "10.0.0.9", 1500, True, "10.0.0.0/24")], 8)
    if fine:
        Permissions(Options([])).ways(order, {"10.0.0.9"}.__contains__, master)
    else:
        with pytest.raises(Refused, match="where no node's echo can be"):
            Permissions(Options([])).ways(order, {"10.0.0.9"}.__contains__, master)
    with pytest.raises(Refused, match="no address of this node"):
        Permissions(Options([])).ways(order, {"10.0.0.8"}.__contains__, master)


@pytest.mark.parametrize(
    "message",
    [
        wire.Welcome("../../..", 1),
        wire.Welcome("run\n", 1),
        wire.Welcome("run", -1),
        msgspec.structs.replace(LAUNCH, id="/etc/cron.d"),
        msgspec.structs.replace(LAUNCH, id="x" * 65),
        msgspec.structs.replace(LAUNCH, probes=["os.system"]),
        msgspec.structs.replace(LAUNCH, port=22),
        wire.Strike("01-x", ["$(reboot)"], []),
        wire.Strike("01-x", [], [10**9]),
        wire.Stop(".."),
        wire.Goodbye("\x1b[2J"),
        wire.Examined(0, 1, bytes(2**20 + 1), ""),
        wire.Roster(["node 0 (a)\u202e"], [], 1.0),
    ],
    ids=repr,
)
def test_orders_hold_names_addresses_and_ports_and_nothing_else(message: wire.Message) -> None:
    with pytest.raises(wire.Invalid):
        wire.decode(wire._encode(message))


def test_a_hello_says_only_what_can_be() -> None:
    well = wire.Hello(wire.PROTOCOL, "1", 2, None, 1, "a", 7, "flags", {"lo": ["127.0.0.1"]}, [], {"torch": None}, False)
    assert wire.decode(wire.encode(well)) == well
    for bad in (
        {"node_rank": -1}, {"gpus": [{}]}, {"task": {}}, {"echo": ("10.0.0.1", 10**9)}, {"host": "x" * 900_000}, {"host": "../etc"}, {"host": ""},
        {"nproc_per_node": 0}, {"nnodes": 10**9}, {"addresses": {"lo": ["localhost"]}}, {"version": "1\n"}, {"doors": [1]}, {"pid": -1},
    ):  # fmt: skip
        with pytest.raises(wire.Invalid):
            wire.decode(wire._encode(msgspec.structs.replace(well, **bad)))
