"""A setting of NCCL is wrong, left over from elsewhere, or differs between ranks that must agree.

Settings come from the environment, from ~/.nccl.conf and /etc/nccl.conf, and from images. NCCL prints each one that it reads
("set by environment to"). Algorithm, protocol, transport and buffer sizes must be the same on all ranks.

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NCCL_PROTO set by environment to Simple
    log b.log: node-b:311:405 [0] NCCL INFO NCCL_PROTO set by environment to LL
    => node-a node-b

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NCCL_IB_DISABLE set by environment to 1.
    log b.log: node-b:311:405 [0] NCCL INFO NCCL_DEBUG_SUBSYS set by environment to INIT
    log b.log: node-b:311:405 [0] NCCL INFO NCCL_IB_HCA set to mlx5_0
    => node-a

Blames
    log a.log: node-a:311:405 [0] net.cc:560 NCCL WARN Error: network AWS Libfabric not found.
    => node-a

Blames
    log a.log: node-a:311:405 [0] enqueue.cc:1210 NCCL WARN Error : no algorithm/protocol available for function AllReduce with datatype ncclInt8.
    => node-a

Blames
    log a.log: node-a:311:405 [0] bootstrap.cc:200 NCCL WARN Invalid NCCL_COMM_ID, please use format: <ipv4>:<port> or [<ipv6>]:<port> or
    => node-a

Blames
    log a.log: node-a:311:405 [0] graph/tuning.cc:90 NCCL WARN All entries except the first must have a prefix: "ring;tree"
    => node-a

Blames
    log a.log: node-a:311:405 [0] graph/xml.cc:250 NCCL WARN Could not open XML topology file /opt/topo.xml : No such file or directory
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NCCL_BUFFSIZE set by environment to 1073741824.
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_dmabuf_mr failed with error Cannot allocate memory
    => node-a

Blames
    log a.log: node-a:311:405 [0] init.cc:210 NCCL WARN Detected mixed local Net device counts across ranks (min 1, max 2). Set
    => -

Blames
    log a.log: node-a:311:405 [0] init.cc:2100 NCCL WARN ncclCommGetUniqueId should not be called when NCCL_COMM_ID is set
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO Using network IB
    log b.log: node-b:311:405 [0] NCCL INFO NCCL_IB_DISABLE set by environment to 1.
    log b.log: node-b:311:405 [0] NCCL INFO Using network Socket
    => node-b

Blames
    log a.log: node-a:311:405 [0] transport.cc:60 NCCL WARN No transport found for rank 1[2000] -> rank 0[1000]
    log a.log: node-a:311:405 [0] transport/net_ib.cc:60 NCCL WARN NET/IB: NCCL_IB_SUBNET_PREFIX_LEN=0 is out of range [1,32]
    log a.log: a:1:2 [0] net_socket.cc:60 NCCL WARN NET/Socket : peer 10.0.0.2<51> message truncated : receiving 524288 bytes instead of 65536. If
    => node-a

Spares
    log a.log: node-a:311:405 [0] NCCL INFO Using network Socket
    log b.log: node-b:311:405 [0] NCCL INFO Using network Socket

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NCCL_SOCKET_IFNAME set by environment to eth0
    log b.log: node-b:311:405 [0] NCCL INFO NCCL_SOCKET_IFNAME set by environment to ens5
"""

from __future__ import annotations

import re
from collections import Counter

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("memlock_limit", "kernel_regression", "peer_reset", "rank_died_exception")

MUST_AGREE = re.compile(
    r"NCCL_(?:ALGO|PROTO|NET|NET_PLUGIN|NET_SHARED_BUFFERS|IB_DISABLE|IB_QPS_PER_CONNECTION|IB_SPLIT_DATA_ON_QPS|NTHREADS|COMM_ID|CROSS_NIC|PXN_DISABLE"
    r"|(?:LL_|LL128_)?BUFFSIZE|P2P_NET_CHUNKSIZE|(?:MIN|MAX)_(?:NCHANNELS|CTAS|NRINGS)|NCHANNELS_PER_NET_PEER|(?:COLLNET|NVLS|MNNVL)_ENABLE"
    r"|NSOCKS_PERTHREAD|SOCKET_NTHREADS|SOCKET_FAMILY)"
)
"""What all ranks must set alike: it decides what they send, and over what."""
LARGE_BUFFER = 256 << 20  # bytes; the default is 4 MiB, and each channel of each peer has its own

READS = (
    Statement(
        r"Error: network (?P<net>\S.*?) not found", "no network {net} as NCCL_NET demands on {who}", "unset NCCL_NET   # or install its plugin", 0.92
    ),
    Statement(
        r"[Nn]o algorithm/protocol available(?: for function (?P<function>\w+))?",
        "the NCCL_ALGO and NCCL_PROTO that are set leave no way to do a collective ({function})",
        "unset NCCL_ALGO NCCL_PROTO   # on every rank",
        0.92,
        "host",
    ),
    Statement(
        r"No transport found for rank|Rank \d+ has no transport for",
        "the settings leave {who} no way to reach a peer",
        "unset NCCL_P2P_DISABLE NCCL_SHM_DISABLE NCCL_NET NCCL_P2P_LEVEL   # on every rank; one of P2P, SHM and a network must be left",
        0.7,
        "host",
    ),
    Statement(
        r"(?P<setting>NCCL_\w+)=(?P<value>\S+) is out of range",
        "{setting}={value} on {who} is not allowed",
        "unset {setting}   # and grep {setting} /etc/nccl.conf ~/.nccl.conf",
        0.85,
        "host",
    ),
    Statement(
        r"NET/Socket : peer (?P<peer>[^\s<]+)<\d+> message truncated : receiving \d+ bytes instead of",
        "a peer sends other amounts than {who} expects: NCCL_ALGO, NCCL_PROTO or another setting differs, or the collectives do",
        "env | grep NCCL_   # on every rank, and grep NCCL_ /etc/nccl.conf ~/.nccl.conf: the same everywhere (NCCL_PROTO, NCCL_ALGO); the same NCCL "
        "version; else TORCH_DISTRIBUTED_DEBUG=DETAIL shows which collective differs",
        0.5,
        "nobody",
    ),
    Statement(r"Invalid NCCL_COMM_ID, ", "NCCL_COMM_ID is not an address and port", "unset NCCL_COMM_ID", 0.92, "host"),
    Statement(r"should not be called when NCCL_COMM_ID is set", "NCCL_COMM_ID is set by somebody else", "unset NCCL_COMM_ID", 0.92, "host"),
    Statement(
        r"All entries except the first must have a prefix", "NCCL_ALGO or NCCL_PROTO cannot be read", "unset NCCL_ALGO NCCL_PROTO", 0.92, "host"
    ),
    Statement(
        r"Could not open XML (?:topology|graph) file (?P<file>[^\s,]+)",
        "{who} has no {file}, which NCCL_TOPO_FILE or NCCL_GRAPH_FILE names",
        "unset NCCL_TOPO_FILE NCCL_GRAPH_FILE   # or put the file {file} on every node",
        0.7,
        "host",
    ),
    Statement(
        r"Detected mixed local (?:Net|CollNet) device counts across ranks",
        "ranks use different numbers of network devices: NCCL_IB_HCA or NCCL_NET differs between them, or a port is missing on some",
        "ibv_devinfo -l; echo $NCCL_IB_HCA $NCCL_NET_PLUGIN   # on every node; NCCL_IGNORE_NET_MISMATCH=1 only hides it",
        0.8,
        "nobody",
    ),
)


def check(run: Run) -> list[Finding]:
    """Settings that ranks must share and do not, and a buffer too large to be registered."""
    settings = [fact for fact in run.of("setting") if str(fact.get("name", "")).startswith("NCCL_")]
    names = sorted({name for fact in settings if MUST_AGREE.fullmatch(name := str(fact.get("name")))})
    speakers = list(dict.fromkeys(fact.host for fact in settings if fact.host))
    result = [finding for name in names for finding in _differing(name, [fact for fact in settings if fact.get("name") == name], speakers)]
    large = [f for f in settings if f.get("name") == "NCCL_BUFFSIZE" and isinstance(f.get("value"), int) and f.get("value") >= LARGE_BUFFER]
    result += _networks(run)
    refused = run.of("ib-memory")
    if large and refused:
        title = f"NCCL_BUFFSIZE={large[0].get('value')} is more than the network device can register"
        hosts = list(dict.fromkeys(fact.host for fact in refused if fact.host))
        remedy = "unset NCCL_BUFFSIZE   # the default is 4194304"
        result.append(Finding("nccl-env-misconfig", title, Culprit(hosts=hosts or None), 0.85, reading.quote(large[0], refused[0]), remedy))
    return result


def _networks(run: Run) -> list[Finding]:
    """Hosts that go over another network than most: they cannot meet."""
    spoken = {fact.host: fact for fact in reversed(run.of("net")) if fact.host}
    names = Counter(str(fact.get("name")) for fact in spoken.values())
    if len(names) < 2 or len(spoken) < 2:
        return []
    odd = min(names, key=lambda name: (names[name], name != "Socket"))
    facts = [fact for fact in spoken.values() if str(fact.get("name")) == odd]
    other = next(fact for fact in spoken.values() if str(fact.get("name")) != odd)
    why = [fact for fact in run.of("setting") if fact.get("name") in ("NCCL_IB_DISABLE", "NCCL_NET", "NCCL_NET_PLUGIN")]
    hosts = [str(fact.host) for fact in facts]
    title = f"{', '.join(hosts)} goes over the network {odd} and {other.host} over {other.get('name')}: they cannot meet"
    remedy = (
        "echo $NCCL_IB_DISABLE $NCCL_NET $NCCL_NET_PLUGIN $NCCL_IB_HCA   # the same on every node (unset NCCL_IB_DISABLE); ibv_devinfo -l on each"
    )
    return [Finding("nccl-env-misconfig", title, Culprit(hosts=hosts), 0.8 if why else 0.65, reading.quote(*facts[:2], other, *why[:1]), remedy)]


def _differing(name: str, facts: list[Fact], speakers: list[str]) -> list[Finding]:
    values: dict[str, list[str]] = {}
    for fact in facts:
        if fact.host and fact.host not in values.setdefault(str(fact.get("value")), []):
            values[str(fact.get("value"))].append(fact.host)
    told = [host for hosts in values.values() for host in hosts]
    silent = [host for host in speakers if host not in told]
    remedy = f"export {word(name)} with one value on every node, or unset {word(name)} everywhere; grep {word(name)} /etc/nccl.conf ~/.nccl.conf"
    if len(values) > 1 and len(set(told)) > 1:
        said = ", ".join(f"{value} on {', '.join(hosts)}" for value, hosts in values.items())
        return [
            Finding(
                "nccl-env-misconfig",
                f"{name} differs between ranks: {said}",
                Culprit(hosts=list(dict.fromkeys(told))),
                0.75,
                reading.quote(*facts),
                remedy,
            )
        ]
    if values and silent:
        title = f"{name} is set to {next(iter(values))} on {', '.join(told)} and not on {', '.join(silent)}"
        return [Finding("nccl-env-misconfig", title, Culprit(hosts=told), 0.45, reading.quote(*facts), remedy)]
    return []
