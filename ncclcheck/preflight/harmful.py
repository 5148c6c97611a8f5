"""Settings that slow, break or endanger a job, most of them left over from debugging: when, and what each does.

Those of NCCL follow its documentation, which lists most of them under "Debugging": not to be kept set in production. Those of torch, vLLM and
Ray follow their documentation and sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

STOP, DEGRADES, NOTE = "stop", "degrades", "note"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a setting takes effect."""

    local_ranks: int
    nodes: int
    rdma: bool  # there is an InfiniBand or RoCE device
    others: Mapping[str, str]  # all settings


@dataclass(frozen=True, slots=True)
class Harmful:
    """One setting. `when` gets its value in lower case, and the place."""

    name: str
    when: Callable[[str, Place], bool]
    weight: str
    does: str
    cause: str = "nccl-env-misconfig"


def _on(value: str, _place: Place) -> bool:
    return value not in ("", "0", "false", "no", "off", "n", "f")


def _off(value: str, _place: Place) -> bool:
    return value in ("0", "false", "no", "off", "n", "f")


def _set(value: str, _place: Place) -> bool:
    return bool(value)


def _is(*values: str) -> Callable[[str, Place], bool]:
    return lambda value, _place: value in values


def _below(limit: int) -> Callable[[str, Place], bool]:
    return lambda value, _place: value.isdigit() and 0 < int(value) < limit


def _near(value: str, place: Place) -> bool:
    return _on(value, place) and place.local_ranks > 1


def _rdma(value: str, place: Place) -> bool:
    return _on(value, place) and place.rdma and place.nodes > 1


def _sockets(value: str, place: Place) -> bool:
    threads = place.others.get("NCCL_SOCKET_NTHREADS", "1")
    return value.isdigit() and threads.isdigit() and int(value) * int(threads) > 64


_PEER = "NCCL then moves data between the GPUs of a node through host memory, not over NVLink or PCIe, at a fraction of the speed"
_GONE = "NCCL no longer reads it: it does nothing"
_CHECKED = "every call is checked before it is made, which costs time on each"
_SERIAL = "every kernel is waited for before the next one starts, so nothing overlaps: often several times slower"
_BLOCKS = "wait() holds the CPU until a collective is done on the GPU, so nothing overlaps"
_UNWATCHED = "a collective that fails or hangs is not ended: its rank waits for ever, and the job with it"
_OLD = "the name is old: torch warns of it; the new one begins with TORCH_NCCL_"
_VMM = "vLLM refuses it with KV connectors, and its sleep mode turns it off for the KV cache: torch may move what RDMA has registered"
_ONE_SIZE = "one choice is forced on all sizes and operations, where NCCL would take the best of each; an operation without it fails"

SETTINGS: tuple[Harmful, ...] = (
    Harmful("NCCL_P2P_DISABLE", _near, DEGRADES, _PEER),
    Harmful("NCCL_P2P_LEVEL", lambda value, place: value in ("loc", "0") and place.local_ranks > 1, DEGRADES, _PEER),
    Harmful("NCCL_SHM_DISABLE", _near, DEGRADES, "ranks of one node without peer access then talk through the network, not through shared memory"),
    Harmful(
        "NCCL_IB_DISABLE",
        _rdma,
        DEGRADES,
        "NCCL uses TCP between the nodes though there are InfiniBand or RoCE devices: a tenth of the speed, or less",
    ),
    Harmful(
        "NCCL_NET",
        lambda value, place: value == "socket" and place.rdma and place.nodes > 1,
        DEGRADES,
        "NCCL uses TCP between the nodes though there are InfiniBand or RoCE devices: a tenth of the speed, or less",
    ),
    Harmful("NCCL_ALGO", _set, DEGRADES, _ONE_SIZE),
    Harmful(
        "NCCL_PROTO",
        _set,
        DEGRADES,
        f"{_ONE_SIZE}; and LL128 where NCCL does not choose it itself can corrupt data",
    ),
    Harmful("NCCL_MAX_NCHANNELS", _below(3), DEGRADES, "so few channels keep most of the links idle"),
    Harmful("NCCL_MAX_NRINGS", _below(3), DEGRADES, "so few channels keep most of the links idle"),
    Harmful("NCCL_MAX_CTAS", _below(3), DEGRADES, "so few channels keep most of the links idle"),
    Harmful("NCCL_NTHREADS", _below(256), DEGRADES, "so few threads per channel do not fill the links (NCCL takes 256 or 512)"),
    Harmful("NCCL_BUFFSIZE", _below(1 << 20), DEGRADES, "so small a buffer per connection is slow (NCCL takes 4194304 bytes)"),
    Harmful("NCCL_COMM_ID", _set, DEGRADES, "every communicator would meet at this one address, and the second finds its port taken"),
    Harmful("NCCL_CHECK_POINTERS", _on, DEGRADES, _CHECKED),
    Harmful("NCCL_CHECK_MODE", lambda value, _place: value.startswith("debug"), DEGRADES, _CHECKED),
    Harmful("NCCL_DEBUG", _is("trace"), DEGRADES, "every call is logged"),
    Harmful(
        "NCCL_DEBUG_SUBSYS",
        lambda value, place: "all" in value.split(",") and place.others.get("NCCL_DEBUG", "").lower() in ("info", "trace"),
        DEGRADES,
        "with NCCL_DEBUG=INFO or TRACE every collective is logged on every rank",
    ),
    Harmful("NCCL_IGNORE_COLLNET_MISMATCH", _on, NOTE, "ranks that see different networks are no longer refused"),
    Harmful("NCCL_CUMEM_ENABLE", _off, NOTE, "NVLink SHARP, multi-node NVLink and registered buffers need what it turns off"),
    Harmful("NCCL_NVLS_ENABLE", _off, NOTE, "all-reduce is then not done in the NVLink switches, where a node has them"),
    Harmful("NCCL_RAS_ENABLE", _off, NOTE, "a hang cannot be looked into with ncclras"),
    Harmful("NCCL_LAUNCH_MODE", _is("group"), NOTE, "it is out of use since NCCL 2.9"),
    Harmful("NCCL_CHECKS_DISABLE", _set, NOTE, _GONE),
    Harmful("NCCL_SINGLE_RING_THRESHOLD", _set, NOTE, _GONE),
    Harmful("NCCL_LL_THRESHOLD", _set, NOTE, _GONE),
    Harmful("NCCL_TREE_THRESHOLD", _set, NOTE, _GONE),
    Harmful("NCCL_IB_CUDA_SUPPORT", _set, NOTE, f"{_GONE}; NCCL_NET_GDR_LEVEL took its place"),
    Harmful("NCCL_NSOCKS_PERTHREAD", _sockets, NOTE, "times NCCL_SOCKET_NTHREADS it is more than 64, which NCCL cuts down"),
    Harmful("NCCL_SOCKET_NTHREADS", lambda value, _place: value.isdigit() and int(value) > 16, NOTE, "NCCL takes 16 at most"),
    Harmful(
        "NCCL_SOCKET_FAMILY", lambda value, _place: value not in ("", "af_inet", "af_inet6"), NOTE, "NCCL knows AF_INET and AF_INET6, nothing else"
    ),
    Harmful("CUDA_LAUNCH_BLOCKING", _on, DEGRADES, _SERIAL),
    Harmful("TORCH_DISTRIBUTED_DEBUG", _is("detail"), DEGRADES, "every collective is compared between all ranks before it runs"),
    Harmful("TORCH_NCCL_BLOCKING_WAIT", _on, DEGRADES, _BLOCKS),
    Harmful("NCCL_BLOCKING_WAIT", _on, DEGRADES, f"{_BLOCKS}; {_OLD}"),
    Harmful("TORCH_NCCL_ASYNC_ERROR_HANDLING", _off, DEGRADES, _UNWATCHED),
    Harmful("NCCL_ASYNC_ERROR_HANDLING", _off, DEGRADES, f"{_UNWATCHED}; {_OLD}"),
    Harmful("NCCL_ASYNC_ERROR_HANDLING", _on, NOTE, _OLD),
    Harmful("TORCH_NCCL_DESYNC_DEBUG", _on, DEGRADES, "every collective is written to the store, too"),
    Harmful("NCCL_DESYNC_DEBUG", _on, DEGRADES, f"every collective is written to the store, too; {_OLD}"),
    Harmful("TORCH_NCCL_ENABLE_MONITORING", _off, NOTE, "a process whose watchdog hangs is not ended"),
    Harmful("TORCH_COMPILE_DEBUG", _on, DEGRADES, "all that is compiled is written down"),
    Harmful("TORCHDYNAMO_DISABLE", _on, DEGRADES, "nothing is compiled"),
    Harmful("PYTORCH_NO_CUDA_MEMORY_CACHING", _on, DEGRADES, "each tensor is allocated by the driver, which waits for the GPU"),
    Harmful("PYTORCH_CUDA_ALLOC_CONF", lambda value, _place: "expandable_segments:true" in value, NOTE, _VMM),
    Harmful("PYTORCH_ALLOC_CONF", lambda value, _place: "expandable_segments:true" in value, NOTE, _VMM),
    Harmful("VLLM_TRACE_FUNCTION", _on, DEGRADES, "vLLM logs every function call: a hundred times slower, and disks fill"),
    Harmful("VLLM_PORT", lambda value, _place: "://" in value, STOP, "vLLM refuses to start: Kubernetes sets it where a Service is called `vllm`"),
    Harmful("VLLM_DISABLE_PYNCCL", _on, DEGRADES, "vLLM then takes torch's own NCCL calls, which its CUDA graphs cannot hold"),
    Harmful("VLLM_ENABLE_V1_MULTIPROCESSING", _off, DEGRADES, "the engine shares one process with its front end, and each waits for the other"),
    Harmful("VLLM_USE_V1", _set, NOTE, "vLLM has one engine only and no longer reads it"),
    Harmful("VLLM_ATTENTION_BACKEND", _set, NOTE, "vLLM no longer reads it: --attention-backend took its place"),
    Harmful("VLLM_LOGGING_LEVEL", _is("debug"), NOTE, "vLLM logs each step"),
    Harmful(
        "HOST_IP",
        lambda value, place: bool(value) and "VLLM_HOST_IP" not in place.others,
        NOTE,
        "vLLM no longer reads it: VLLM_HOST_IP took its place",
    ),
    Harmful("RAY_ADDRESS", _set, NOTE, "Ray joins this cluster, and does not start one of its own"),
    Harmful("RAY_BACKEND_LOG_LEVEL", _is("debug", "trace"), NOTE, "Ray logs every message"),
    Harmful("RAY_memory_monitor_refresh_ms", _is("0"), NOTE, "Ray ends no worker where memory runs out: the kernel does"),
)

BY_FILE: Mapping[str, tuple[str, str, str]] = {
    "NCCL_TOPO_FILE": (DEGRADES, "nccl-env-misconfig", "NCCL goes on without it, and takes the machine for what it finds itself"),
    "NCCL_GRAPH_FILE": (STOP, "nccl-env-misconfig", "NCCL fails without it"),
    "NCCL_CONF_FILE": (DEGRADES, "nccl-env-misconfig", "NCCL then reads neither it nor ~/.nccl.conf"),
    "VLLM_NCCL_SO_PATH": (STOP, "library-missing", "vLLM loads NCCL from there and nowhere else"),
}
"""Settings that name a file, and what becomes of it where the file is not there."""
