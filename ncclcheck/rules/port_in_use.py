"""Another program listens on the port that node 0 wants, or answers there in its place.

Blames
    fact bind @ a address=10.0.0.1 port=29600 errno=98 owner=python
    => a

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=silent text=silent
    => node0

Blames
    log node-a.log: torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, \
useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use
    => node-a

Blames
    log node-a.log: [rank0]: RuntimeError: The server socket has failed to listen on any local network address. The server socket has \
failed to bind to [::]:29500 (errno: 98 - Address already in use).
    => 0

Blames
    log a.log: (Worker_TP3 pid=7) zmq.error.ZMQError: Address already in use (addr='tcp://10.4.0.5:40043')
    => 3

Blames
    log a.log: [rank0]: OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use
    => 0

Blames
    log a.log: [rank0]: RuntimeError: Address already in use
    => 0

Blames
    log a.log: [rank0]: ValueError: Port 30000 is already in use
    => 0

Blames
    log a.log: [W TCPStore.cpp:308] [c10d] Miscellaneous client with incorrect VALIDATE query is detected
    => -

Blames
    log a.log: ConnectionError: Tried to launch distributed communication on port `29500`, but another process is utilizing it.
    => -

Blames
    log a.log: ConnectionError: Ray is trying to start at 10.9.0.1:6379, but is already running at 10.9.0.1:6379.
    => -

Blames
    log a.log: ValueError: port at 30000 is not available in 60 seconds. It is used by process 71.
    => -

Spares
    fact bind @ a address=fe80::1 port=29600 errno=22 text=x

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=token text=closed
"""

import errno

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("rank_died_exception", "missing_rank_at_rendezvous")
_REMEDY = (
    "ss -ltnp 'sport = :{port}'   # there: who holds it? end that process (an earlier run, perhaps), or choose a free port for all nodes: "
    "MASTER_PORT / --master-port (--master_port, --main_process_port) / --rdzv-endpoint HOST:PORT, "
    "VLLM_PORT for an engine's internal ones, and keep them out of the ephemeral port range "
    "(sysctl net.ipv4.ip_local_port_range)"
)

READS = (
    Statement(
        r"server socket has failed to (?:listen on any local network address|bind)\.? port: (?P<port>\d+),.*(?:EADDRINUSE|code: -98)",
        "port {port} is already in use where {who} wants to listen",
        _REMEDY,
        0.95,
    ),
    Statement(
        r"server socket has failed to (?:bind to|listen on) \S*:(?P<port>\d+) \(errno: 98",
        "port {port} is already in use where {who} wants to listen",
        _REMEDY,
        0.9,
    ),
    Statement(
        r"Address already in use \(addr='\w+://[^']*?:(?P<port>\d+)'", "port {port} is already in use where {who} wants to listen", _REMEDY, 0.95
    ),
    Statement(
        r"(?:Errno 98\]|EADDRINUSE).{0,60}?(?:\('[^']*', (?P<port>\d+)\))?: address already in use",
        "port {port} is already in use where {who} wants to listen",
        _REMEDY,
        0.93,
    ),
    Statement(
        r"(?:Error: |\] )Address already in use$", "a port is already in use where {who} wants to listen", _REMEDY.replace("{port}", "PORT"), 0.9
    ),
    Statement(
        r"Ray is trying to start at \S{1,100}:(?P<port>\d+), but is already running",
        "Ray runs already on port {port} of this node",
        "ray stop --force   # on every node, then ray start again; or join the one that runs: ray start --address HOST:{port}; "
        "or another: ray start --head --port PORT",
        0.93,
        "host",
    ),
    Statement(r"[Pp]ort (?:at )?(?P<port>\d+) is not available", "port {port} is already in use where {who} wants to listen", _REMEDY, 0.85),
    Statement(r"[Pp]ort (?P<port>\d+) is (?:already )?in use", "port {port} is already in use where {who} wants to listen", _REMEDY, 0.85),
    Statement(
        r"Tried to launch distributed communication on port `(?P<port>\d+)`, but another process",
        "port {port} is already in use where the job was launched",
        _REMEDY,
        0.95,
        "host",
    ),
    Statement(
        r"Miscellaneous client with(?:out| incorrect) VALIDATE query",
        "something that is not torch talks to the port of the store",
        _REMEDY.replace("{port}", "PORT"),
        0.5,
        "nobody",
    ),
)


def check(run: Run) -> list[Finding]:
    """The port could not be bound, or what answers on it is not an ncclcheck agent."""
    taken = [
        Finding(
            "port-in-use",
            f"port {fact.get('port')} on {fact.host} is taken" + (f" by {fact.get('owner')}" if fact.get("owner") else ""),
            Culprit(hosts=[fact.host] if fact.host else None),
            0.97,
            reading.quote(fact),
            f"ss -ltnp {_listener(fact)}   # end that program, or give every node another port: --master {word(fact.get('address'))}:PORT",
        )
        for fact in run.of("bind")
        if fact.get("errno") in (None, errno.EADDRINUSE)
    ]
    strange = [
        Finding(
            "port-in-use",
            f"another program listens at {fact.get('address')}:{fact.get('port')}, where node 0's agent should: {fact.get('text')}",
            Culprit(hosts=[str(fact.get("name"))]),
            0.9,
            [Evidence("", 0, str(fact.get("text")))],
            f"on {word(fact.get('name'))}: ss -ltnp {_listener(fact)}   # who is it? or on every node: --master {word(fact.get('name'))}:PORT",
        )
        for fact in run.of("master")
        if fact.get("answer") in ("silent", "closed", "other")
    ]
    return taken + strange


def _listener(fact: Fact) -> str:
    return word(f"sport = :{fact.get('port')}")
