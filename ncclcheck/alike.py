"""What must be the same everywhere in a job, and who differs where it is not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ncclcheck.preflight.nccl_names import UNREAD

T = TypeVar("T")

SETTINGS = ("NCCL_", "TORCH_NCCL_", "GLOO_")
"""How the settings begin that decide what ranks say to each other."""

EACH_ITS_OWN = frozenset(
    {
        "NCCL_HOSTID",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "NCCL_IB_HCA",
        "NCCL_IB_GID_INDEX",
        "NCCL_TOPO_FILE",
        "NCCL_CONF_FILE",
        "NCCL_RAS_ADDR",
        "VLLM_HOST_IP",
        "VLLM_PORT",
        "VLLM_API_KEY",
        "VLLM_DP_RANK",
        "VLLM_DP_RANK_LOCAL",
    }
)
"""Settings that may well differ between nodes; so may all that concern only what is logged (NCCL_DEBUG...), and where files are."""

_LOGGED = (
    "NCCL_DEBUG",
    *(f"TORCH_NCCL_{word}" for word in ("TRACE_", "DUMP_", "DEBUG_", "LOG_", "WAIT_TIMEOUT_DUMP_")),
    "VLLM_LOGGING",
    "VLLM_USAGE",
    "VLLM_NO_USAGE",
)
_PLACES = ("_FILE", "_PATH", "_ROOT", "_DIR", "_FOLDER", "_CACHE")


def must_be(name: str) -> bool:
    """Whether a setting must have one value on all ranks."""
    ours = name not in EACH_ITS_OWN and name not in UNREAD
    return ours and not name.startswith(_LOGGED) and not name.endswith("_FILE" if name.startswith(SETTINGS) else _PLACES)


def odd(values: Mapping[str, Sequence[T]]) -> list[T]:
    """Who differs from the most; with a tie, who says anything where others say nothing (the value ""); else everybody."""
    (most, count), (_, second) = Counter({value: len(same) for value, same in values.items()}).most_common(2)
    if count == second and "" in values:
        most, second = "", 0
    return [one for value, same in values.items() if count == second or value != most for one in same]
