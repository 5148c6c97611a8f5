"""What agents say to each other: one type for each message, and its form on the way (msgpack)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from ncclcheck.journal import Line, Slot
from ncclcheck.message_limits import (
    Address,
    Count,
    Document,
    Host,
    Invalid,
    Label,
    Name,
    NodeRank,
    Places,
    Port,
    RankNumber,
    Seconds,
    Secret,
    one_line,
)
from ncclcheck.model import Fact

PROTOCOL = 2
MAX_MESSAGE = 2**20  # bytes
BEAT = 1.0  # seconds between signs of life
SILENCE = 6.0  # seconds without any, after which a peer counts as lost
PAUSE = SILENCE / 2  # seconds that pass unnoticed only for a process that was stopped or starved itself
MOST_TARGETS = 64  # ways that one node tries at once
MOST_NAMES = 128  # that one node looks up
_few, _some, _many = Meta(max_length=8), Meta(max_length=256), Meta(max_length=1024)


class Message(msgspec.Struct, frozen=True, tag=True):
    """Anything that one agent sends to another."""


class Door(msgspec.Struct, frozen=True):
    """An address by which other nodes may come to this one, and the port of the echo there; port 0: none could be opened."""

    interface: Label
    address: Address
    port: Port
    mtu: Count
    prefixlen: Annotated[int, Meta(ge=0, le=128)]
    state: Label  # up, down, no-carrier
    speed: Count = 0  # Mbit/s; 0: not known


class Gpu(TypedDict):
    """A GPU that a rank of the node would see (see collect/host.py)."""

    index: RankNumber
    name: Label
    uuid: Label
    pci_bus_id: Label
    memory_total: Count
    memory_used: Count
    processes: Annotated[list[Count], _many]


class Task(TypedDict):
    """An agent's place in a launcher that starts one process for each rank (see launchers.Task)."""

    rank: RankNumber
    local_rank: RankNumber
    node_rank: NodeRank
    world_size: Places
    local_world_size: Places


class Permits(msgspec.Struct, frozen=True):
    """What an agent's user lets a run do on this node."""

    probes: Annotated[list[Name], _some] = []
    fault: Label = ""  # a fault.Spec as text; "": none is to be planted here
    network_faults: bool = False
    model: bool = False  # this node's user named a model


class Hello(Message, frozen=True):
    """An agent at roll call: what it is, what it has, and what it believes."""

    protocol: Count
    version: Label
    nnodes: Places
    node_rank: NodeRank | None
    nproc_per_node: Places
    host: Host
    pid: Count
    source: Label
    addresses: Annotated[Mapping[Label, Annotated[list[Address], _some]], _many]  # interface -> addresses
    gpus: Annotated[list[Gpu], _some]
    versions: Annotated[Mapping[Name, Label | None], _some]  # distribution -> version, None where it is not installed
    nvidia: bool  # an NVIDIA device is there, whether or not it works
    task: Task | None = None  # inside a launcher that starts one process per rank
    echo: tuple[Address, Port] = ("", 0)  # address and port to which others try the way (see paths); port 0: none
    doors: Annotated[list[Door], _some] = []  # every address by which others may come, that of `echo` first (see doors)
    secret: Secret = b""  # by which its echoes know who belongs to the run
    permits: Permits = Permits()


class Peer(msgspec.Struct, frozen=True):
    """Another node as this one finds it: where its echo listens."""

    node_rank: NodeRank
    host: Host
    address: Address
    port: Port
    secret: Secret = b""  # for its echo (see ticket)


class Roster(Message, frozen=True):
    """Roll call so far: the numbers that are there, how many are expected, seconds left."""

    there: list[Label]
    missing: list[Label]
    seconds_left: float


class Welcome(Message, frozen=True):
    """The roll is complete: this run's id, this agent's number, and the nodes to which it is to try the way where something goes wrong."""

    run_id: Name
    node_rank: NodeRank
    peers: Annotated[list[Peer], _few] = []
    node0: Peer | None = None


class Survey(Message, frozen=True):
    """Say what your node is and has: these sections, each a module of collect/. `peers` are the other nodes' addresses."""

    sections: Annotated[list[Name], _some]
    peers: list[Address]
    records: bool = False  # what NCCL says is recorded on the nodes of this run (see Launch)


class Surveyed(Message, frozen=True):
    """Section -> what was read there, as compressed JSON; with an error there is none."""

    inventory: Document
    error: Label = ""


class Fault(msgspec.Struct, frozen=True):
    """A fault that is planted (see fault.Spec)."""

    name: Name
    rank: RankNumber
    after: Count = 0
    delay: Seconds = 0.0


class Load(msgspec.Struct, frozen=True):
    """What a server is put under (see bench/cells.py)."""

    concurrency: Places
    input: Annotated[int, Meta(ge=1, le=2**24)]
    output: Annotated[int, Meta(ge=1, le=2**24)]
    requests: Annotated[int, Meta(ge=1, le=2**24)]


class Bench(msgspec.Struct, frozen=True):
    """One run of `ncclcheck bench`: which of the servers that this node's user asked for, under which loads; `left` runs come after it."""

    server: Mapping[Name, Any]
    loads: list[Load]
    left: Count = 0


class Launch(Message, frozen=True):
    """Start your ranks of these probes, whose store is at this port of the master address. What they get beside the user's environment, each
    node makes of what is said here and of what its own user asked for (see permissions).
    """

    id: Name
    probes: Annotated[list[Name], _some]
    port: Annotated[int, Meta(ge=1024, le=65535)]
    nnodes: Places
    nproc_per_node: Places
    sizes: Mapping[Name, float | int] = {}  # of "budget" (seconds), "max_bytes", "max_model_len", "tp", "pp": those that node 0's user gave
    model: bool = False  # use the model that this node's user named
    bench: Bench | None = None
    fault: Fault | None = None
    records: bool = False  # let NCCL and torch record what they do
    times: bool = False  # let them time it, too


class Progress(Message, frozen=True):
    """What changed on one node since the last one. `beats`: rank -> a number that moves while an opaque step works."""

    launch: Name
    slots: list[Slot]
    lines: list[Line]
    beats: Mapping[RankNumber, int]
    facts: list[Fact]  # deaths and stops, as they are noticed
    ended: bool = False  # the launcher has left and no rank is alive
    sent: float = 0.0  # that node's monotonic clock
    blocks: Mapping[RankNumber, list[tuple[int, int]]] = {}  # rank -> end and digest of blocks of its calls
    starved: Mapping[RankNumber, float] = {}  # rank -> seconds in which it could have run and got no CPU


class Collect(Message, frozen=True):
    """Look at every rank now, before anything is ended, and at the network."""

    launch: Name
    ranks: bool = True
    network: bool = True
    recorder: bool = False  # ask the flight recorders, too: seconds, and only where ranks hang on their GPUs


class Collected(Message, frozen=True):
    """What one node saw."""

    launch: Name
    facts: list[Fact]


class Stop(Message, frozen=True):
    """End this launch and prove that nothing of it is left."""

    launch: Name


class Stopped(Message, frozen=True):
    """It is ended; facts of kind "left-over" say what could not be."""

    launch: Name
    facts: list[Fact]


class Strike(Message, frozen=True):
    """Let the fault strike with which this launch was ordered; it is mended when the launch is stopped, or this agent ends."""

    launch: Name
    others: list[Address]  # the other nodes' addresses
    ports: list[Port]  # of the agents and of the rendezvous


class Target(msgspec.Struct, frozen=True):
    """A way to try: from one of our doors to one of a peer's."""

    peer: Peer  # with the address and the port of that door
    peer_interface: Label
    interface: Label  # ours,
    source: Address  # and its address
    mtu: Count  # bytes of the largest packet that both interfaces are set to take
    main: bool  # between the addresses by which the agents speak with node 0
    network: Label  # which of the nodes' networks it is: `10.1.0.0/24`, with the interfaces where they have several there


class Try(Message, frozen=True):
    """Try these ways, all at once. The first of a series tells which names to look up meanwhile, the closing one asks for what came of it."""

    round: Count
    targets: Annotated[list[Target], Meta(max_length=MOST_TARGETS)]
    nbytes: Annotated[int, Meta(ge=0, le=2**20)]  # of a large message
    names: Annotated[list[Host], Meta(max_length=MOST_NAMES)] = []
    closing: bool = False


class Tried(Message, frozen=True):
    """How the ways are; at the end also how names resolve here, and who was heard: (address, ours), whether or not our answers arrived."""

    round: Count
    facts: list[Fact]
    heard: list[tuple[Address, Address]] = []


class Examine(Message, frozen=True):
    """Bundle what can be seen of the jobs that run on this node."""


class Examined(Message, frozen=True):
    """One part of a node's bundle; with an error there is none."""

    part: Count
    count: Count
    data: Document
    error: Label = ""


class Result(Message, frozen=True):
    """The verdict: a model.Report as compressed JSON (see outcome.pack)."""

    report: Document


class Ack(Message, frozen=True):
    """The verdict has arrived."""


class Beat(Message, frozen=True):
    """A sign of life."""


class Goodbye(Message, frozen=True):
    """This agent leaves, and why."""

    reason: Label


Any_ = (
    Hello
    | Roster
    | Welcome
    | Survey
    | Surveyed
    | Launch
    | Progress
    | Collect
    | Collected
    | Stop
    | Stopped
    | Strike
    | Try
    | Tried
    | Examine
    | Examined
    | Result
    | Ack
    | Beat
    | Goodbye
)
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Any_] = msgspec.msgpack.Decoder(Any_).decode


def ended(closed: float | None, fell_silent: float) -> bool:
    """Whether who fell silent then (monotonic) ended the connection: a network that fails ends none, and one that is mended later ends it late."""
    return closed is not None and closed < fell_silent + 2 * BEAT


def encode(message: Message) -> bytes:
    """Raises ValueError where a message is larger than the wire allows."""
    data = _encode(message)
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"{type(message).__name__} of {len(data)} bytes; at most {MAX_MESSAGE} travel")
    return data


def decode(data: bytes) -> Any_:
    """The message, of a type that we know and with every value within its limits. Raises Invalid for anything else.

    What its open values hold (a fact's fields, say) is as yet unread: see arrivals.
    """
    if len(data) > MAX_MESSAGE:
        raise Invalid(f"{len(data)} bytes; at most {MAX_MESSAGE} travel")
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:  # (UnicodeDecodeError is a ValueError)
        raise Invalid(one_line(str(error))) from None


def batches(lines: list[Line]) -> list[list[Line]]:
    """Journal lines in portions that fit into a message each; at least one, which may be empty."""
    portions: list[list[Line]] = [[]]
    size = 0
    for line in lines:
        length = len(msgspec.msgpack.encode(line))
        if size + length > MAX_MESSAGE // 2:
            portions.append([])
            size = 0
        portions[-1].append(line)
        size += length
    return portions
