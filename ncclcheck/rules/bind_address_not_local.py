"""A process is told to bind an address that this host does not have: it was set on another host, or the interface is gone.

Blames
    log a.log: (RayWorkerWrapper pid=512, ip=10.4.0.6) Traceback (most recent call last):
    log a.log: (RayWorkerWrapper pid=512, ip=10.4.0.6)   File "/opt/nixl.py", line 9, in listen
    log a.log: zmq.error.ZMQError: Cannot assign requested address (addr='tcp://10.4.0.5:31990')
    => 10.4.0.6

Blames
    log node-b.log: [rank4]: OSError: [Errno 99] Cannot assign requested address
    => 4

Blames
    log node-b.log: [W socket.cpp:426] [c10d] The server socket has failed to bind to 10.4.0.5:29500 (errno: 99 - Cannot assign requested address).
    => node-b

Spares
    log a.log: [W socket.cpp:663] [c10d] The client socket has failed to connect to [localhost]:29500 (errno: 99 - Cannot assign requested address).
"""

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("rank_died_exception", "peer_reset")

READS = (
    Clue("bind-address", r"^(?!.*The client socket).*?Cannot assign requested address(?: \(addr='\w+://(?P<address>[^']*?):(?P<port>\d+)')?"),
    Clue("bind-address", r"server socket has failed to bind to \[?(?P<address>[\w.:]+?)\]?:(?P<port>\d+) \(errno: 99"),
)


def check(run: Run) -> list[Finding]:
    """Every line that says so; who said it is known from the traceback that it ends."""
    facts = run.of("bind-address")
    if not facts:
        return []
    lines = {(fact.source.file, fact.source.line) for fact in facts if fact.source}
    errors = [fact for fact in run.of("error") if fact.source and (fact.source.file, fact.source.line) in lines]
    ranks = sorted({fact.rank for fact in [*facts, *errors] if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in [*facts, *errors] if fact.host))
    address = next((str(fact.get("address")) for fact in facts if fact.get("address")), "an address")
    who = run.name(ranks[0]) if ranks else hosts[0] if hosts else "a process"
    return [
        Finding(
            "bind-address-not-local",
            f"{who} was told to bind {address}, which is not an address of its host",
            Culprit(ranks=ranks or None, hosts=hosts or None),
            0.92,
            reading.quote(*facts[:8]),
            f"ip -br addr   # on that host: is {word(address)} there? then give each host its own address in the variable that names it: "
            "VLLM_HOST_IP, VLLM_NIXL_SIDE_CHANNEL_HOST, SGLANG_HOST_IP, MASTER_ADDR / --master-addr (node 0's, which only it binds), NCCL_COMM_ID",
        )
    ]
