"""Settings that do harm are named with what they do and what to type, wherever they are set; secrets stay where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ncclcheck.causes import CAUSES
from ncclcheck.collect import settings as collected
from ncclcheck.model import Fact
from ncclcheck.preflight import harmful, settings
from ncclcheck.preflight.nccl_names import NAMES, meant
from ncclcheck.survey import Job, Node, Question

JOB = Job(2, 8, "10.0.0.1")


def said(variables: dict[str, str], job: Job = JOB, rdma: list[str] | None = None, **more: Any) -> list[Fact]:
    nccl = {name: {"value": value, "from": "environment"} for name, value in variables.items() if name.startswith("NCCL_")}
    section = {"variables": variables, "added": [], "nccl": nccl, "files": [], "overruled": [], "absent": [], **more}
    return list(settings.judge(Node(1, "b", "10.0.0.2", {"settings": section, "limits": {"rdma": rdma or []}}), job))


@pytest.mark.parametrize(
    "name, value",
    [
        ("NCCL_P2P_DISABLE", "1"),
        ("NCCL_P2P_LEVEL", "LOC"),
        ("NCCL_SHM_DISABLE", "1"),
        ("NCCL_ALGO", "Tree"),
        ("NCCL_PROTO", "LL128"),
        ("NCCL_MAX_NCHANNELS", "1"),
        ("NCCL_NTHREADS", "64"),
        ("NCCL_BUFFSIZE", "65536"),
        ("NCCL_DEBUG", "TRACE"),
        ("CUDA_LAUNCH_BLOCKING", "1"),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL"),
        ("TORCH_NCCL_BLOCKING_WAIT", "1"),
        ("NCCL_BLOCKING_WAIT", "1"),
        ("NCCL_ASYNC_ERROR_HANDLING", "0"),
        ("VLLM_TRACE_FUNCTION", "1"),
    ],
)
def test_what_is_left_over_from_debugging_degrades_a_job_and_is_unset(name: str, value: str) -> None:
    (fact,) = said({name: value})
    assert (fact.kind, fact.get("hosts"), fact.get("remedy")) == ("degraded", ["b"], f"on b: unset {name}")
    assert fact.get("title").startswith(f"{name}={value} on b: ") and fact.get("evidence") == [f"environment of b: {name}={value}"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_HCA": "mlx5"},
        {"NCCL_P2P_DISABLE": "0", "CUDA_LAUNCH_BLOCKING": "0", "NCCL_BUFFSIZE": "8388608", "NCCL_MAX_NCHANNELS": "16"},
        {"NCCL_VERSION": "2.28.3-1", "NCCL_HOME": "/usr", "NCCL_P2P_LEVEL": "NVL", "TORCH_DISTRIBUTED_DEBUG": "INFO"},
        {"NCCL_IB_DISABLE": "1"},  # there is no such device
        {"NCCL_ASYNC_ERROR_HANDLING": ""},
    ],
)
def test_settings_that_do_no_harm_are_left_alone(variables: dict[str, str]) -> None:
    assert said(variables) == []


@pytest.mark.parametrize("variables", [{"NCCL_IB_DISABLE": "1"}, {"NCCL_NET": "Socket"}])
def test_tcp_is_forced_only_where_there_is_something_better_and_another_node(variables: dict[str, str]) -> None:
    (fact,) = said(variables, rdma=["mlx5_0"])
    assert fact.kind == "degraded" and "InfiniBand or RoCE" in fact.get("title")
    assert said(variables, Job(1, 8, "10.0.0.1"), rdma=["mlx5_0"]) == []


def test_peer_access_matters_only_to_ranks_that_have_a_peer_on_their_node() -> None:
    assert said({"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}, Job(2, 1, "10.0.0.1")) == []


def test_all_that_nccl_logs_is_too_much_only_where_it_logs() -> None:
    assert said({"NCCL_DEBUG_SUBSYS": "ALL"}) == []
    (fact,) = said({"NCCL_DEBUG_SUBSYS": "ALL", "NCCL_DEBUG": "INFO"})
    assert fact.kind == "degraded"


def test_what_is_added_for_evidence_is_not_held_against_the_user() -> None:
    assert said({"NCCL_DEBUG": "TRACE"}, added=["NCCL_DEBUG"]) == []


def test_kubernetes_service_called_vllm_stops_vllm() -> None:
    (fact,) = said({"VLLM_PORT": "tcp://10.96.0.7:8000"})
    assert (fact.kind, fact.get("remedy")) == ("fail", "on b: unset VLLM_PORT")


@pytest.mark.parametrize("value", ["'eth0'", '"eth0"', "eth0 ", "eth0\r"])
def test_quotes_blanks_and_line_ends_that_became_part_of_a_value_are_seen(value: str) -> None:
    (fact,) = said({"GLOO_SOCKET_IFNAME": value})
    assert (fact.kind, fact.get("cause")) == ("degraded", "nccl-env-misconfig")


@pytest.mark.parametrize(
    "wrong, right",
    [("NCCL_SOCKET_IFNAM", "NCCL_SOCKET_IFNAME"), ("NCCL_P2P_DISBALE", "NCCL_P2P_DISABLE"), ("NCCL_IB_DISABLED", "NCCL_IB_DISABLE")],
)
def test_a_misspelt_setting_of_nccl_is_worth_a_note(wrong: str, right: str) -> None:
    (fact,) = said({wrong: "x"})
    assert fact.kind == "note" and right in fact.get("title")


@pytest.mark.parametrize("name", [*(f"NCCL_{name}" for name in sorted(NAMES)), "NCCL_VERSION", "NCCL_SOMETHING_ELSE", "NCCL_TUNER_CONFIG_FILE"])
def test_a_setting_that_nccl_has_or_that_is_like_none_is_not_misspelt(name: str) -> None:
    assert meant(name) == ""


@pytest.mark.parametrize(
    "name, kind, cause", [("NCCL_TOPO_FILE", "degraded", "nccl-env-misconfig"), ("VLLM_NCCL_SO_PATH", "fail", "library-missing")]
)
def test_a_setting_that_names_a_file_that_is_not_there_is_named(name: str, kind: str, cause: str) -> None:
    (fact,) = said({name: "/nowhere"}, absent=[name])
    assert (fact.kind, fact.get("cause")) == (kind, cause) and f"{name}=/nowhere" in fact.get("title")


def test_every_entry_of_the_table_can_be_said_and_names_a_cause_that_is_explained() -> None:
    for one in harmful.SETTINGS:
        assert one.cause in CAUSES and one.weight in (harmful.STOP, harmful.DEGRADES, harmful.NOTE)
        assert one.does and one.does[-1] != "."
    assert all(cause in CAUSES for _, cause, _ in harmful.BY_FILE.values())


def test_a_section_that_was_not_read_is_not_called_fine() -> None:
    (fact,) = settings.judge(Node(0, "a", "10.0.0.1", {"settings": {"error": "no time"}}), JOB)
    assert fact.kind == "unread" and fact.get("needed") and "no time" in fact.get("title")


def files(tmp_path: Path, **texts: str) -> dict[str, Any]:
    """What NCCL's files say, put below a folder in place of /; `own` is the user's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    for name, place in (("own", "home/.nccl.conf"), ("system", "etc/nccl.conf")):
        if name in texts:
            (tmp_path / place).write_text(texts[name])
    read = list(collected.conf_files({}, tmp_path, "/home"))
    return {"files": read, "nccl": collected.nccl({}, read)}


def test_the_users_file_is_before_the_systems_and_the_environment_before_both(tmp_path: Path) -> None:
    found = files(tmp_path, own="# mine\nNCCL_ALGO=Ring\n", system="NCCL_ALGO=Tree\nNCCL_PROTO=LL\nOTHER=x\n")
    assert found["nccl"] == {"NCCL_ALGO": {"value": "Ring", "from": "/home/.nccl.conf"}, "NCCL_PROTO": {"value": "LL", "from": "/etc/nccl.conf"}}
    assert collected.nccl({"NCCL_ALGO": "CollnetDirect"}, found["files"])["NCCL_ALGO"] == {"value": "CollnetDirect", "from": "environment"}


def test_what_a_file_of_nccl_sets_is_judged_and_removed_from_there(tmp_path: Path) -> None:
    (fact,) = said({}, **files(tmp_path, system="NCCL_P2P_DISABLE=1\n"))
    assert fact.get("remedy") == "on b: sed -i '/^NCCL_P2P_DISABLE=/d' /etc/nccl.conf"


@pytest.mark.parametrize("line", ["export NCCL_DEBUG=WARN", "NCCL_DEBUG = WARN", " NCCL_DEBUG=WARN"])
def test_a_line_that_nccl_does_not_understand_is_shown(tmp_path: Path, line: str) -> None:
    (fact,) = said({}, **files(tmp_path, system=f"{line}\n"))
    assert (fact.kind, fact.get("cause")) == ("degraded", "nccl-env-misconfig") and "/etc/nccl.conf" in fact.get("title")


def test_a_file_that_may_not_be_read_is_not_called_fine(tmp_path: Path) -> None:
    (tmp_path / "etc/nccl.conf").mkdir(parents=True)  # to open it fails, whoever tries
    read = list(collected.conf_files({}, tmp_path, "/home"))
    (fact,) = said({}, files=read)
    assert fact.kind == "unread" and "/etc/nccl.conf" in fact.get("title")


def test_no_secret_leaves_the_node_and_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2hunter2hunter2"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("VLLM_API_KEY", secret)
    monkeypatch.setenv("RAY_ADDRESS", f"ray://user:{secret}@head:10001")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("UNRELATED", "x")
    found = collected.section(Question(environment={"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "x"}))
    assert secret not in json.dumps(found)
    assert found["variables"]["HF_TOKEN"] == "[masked]" and "UNRELATED" not in found["variables"]
    assert found["variables"]["NCCL_DEBUG"] == "WARN" and found["added"] == ["NCCL_DEBUG_FILE"]
