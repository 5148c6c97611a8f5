"""What agents say to each other: one type for each message, and its form on the way (msgpack)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ncclcheck.journal import Line, Slot
from ncclcheck.model import Fact
from ncclcheck.survey import Question

PROTOCOL = 2
MAX_MESSAGE = 2**20  # bytes
BEAT = 1.0  # seconds between signs of life
SILENCE = 6.0  # seconds without any, after which a peer counts as lost
PAUSE = SILENCE / 2  # seconds that pass unnoticed only for a process that was stopped or starved itself


class Message(msgspec.Struct, frozen=True, tag=True):
    """Anything that one agent sends to another."""


class Door(msgspec.Struct, frozen=True):
    """An address by which other nodes may come to this one, and the port of the echo there; port 0: none could be opened."""

    interface: str
    address: str
    port: int
    mtu: int
    prefixlen: int
    state: str  # up, down, no-carrier
    speed: int = 0  # Mbit/s; 0: not known


class Hello(Message, frozen=True):
    """An agent at roll call: what it is, what it has, and what it believes."""

    protocol: int
    version: str
    nnodes: int
    node_rank: int | None
    nproc_per_node: int
    host: str
    pid: int
    source: str
    addresses: Mapping[str, list[str]]  # interface -> addresses
    gpus: list[dict[str, Any]]
    versions: Mapping[str, str | None]  # distribution -> version, None where it is not installed
    nvidia: bool  # an NVIDIA device is there, whether or not it works
    task: Mapping[str, int] | None = None  # rank, local_rank, ... inside a launcher that starts one process per rank
    echo: tuple[str, int] = ("", 0)  # address and port to which others try the way (see paths); port 0: none
    doors: list[Door] = []  # every address by which others may come, that of `echo` first (see doors)
    secret: bytes = b""  # by which its echoes know who belongs to the run


class Peer(msgspec.Struct, frozen=True):
    """Another node as this one finds it: where its echo listens."""

    node_rank: int
    host: str
    address: str
    port: int
    secret: bytes = b""  # for its echo (see ticket)


class Roster(Message, frozen=True):
    """Roll call so far: the numbers that are there, how many are expected, seconds left."""

    there: list[str]
    missing: list[str]
    seconds_left: float


class Welcome(Message, frozen=True):
    """The roll is complete: this run's id, this agent's number, and the nodes to which it is to try the way where something goes wrong."""

    run_id: str
    node_rank: int
    peers: list[Peer] = []
    node0: Peer | None = None


class Survey(Message, frozen=True):
    """Say what your node is and has: these sections, each a module of collect/."""

    question: Question
    sections: list[str]


class Surveyed(Message, frozen=True):
    """Section -> what was read there, as compressed JSON; with an error there is none."""

    inventory: bytes
    error: str = ""


class Launch(Message, frozen=True):
    """Start these ranks. `port` is free on the master address; `env` is added to the user's own environment."""

    id: str
    probes: list[str]
    master: str
    port: int
    nnodes: int
    nproc_per_node: int
    env: Mapping[str, str]


class Progress(Message, frozen=True):
    """What changed on one node since the last one. `beats`: rank -> a number that moves while an opaque step works."""

    launch: str
    slots: list[Slot]
    lines: list[Line]
    beats: Mapping[int, int]
    facts: list[Fact]  # deaths and stops, as they are noticed
    ended: bool = False  # the launcher has left and no rank is alive
    sent: float = 0.0  # that node's monotonic clock
    blocks: Mapping[int, list[tuple[int, int]]] = {}  # rank -> end and digest of blocks of its calls
    starved: Mapping[int, float] = {}  # rank -> seconds in which it could have run and got no CPU


class Collect(Message, frozen=True):
    """Look at every rank now, before anything is ended, and at the network."""

    launch: str
    ranks: bool = True
    network: bool = True
    recorder: bool = False  # ask the flight recorders, too: seconds, and only where ranks hang on their GPUs


class Collected(Message, frozen=True):
    """What one node saw."""

    launch: str
    facts: list[Fact]


class Stop(Message, frozen=True):
    """End this launch and prove that nothing of it is left."""

    launch: str


class Stopped(Message, frozen=True):
    """It is ended; facts of kind "left-over" say what could not be."""

    launch: str
    facts: list[Fact]


class Strike(Message, frozen=True):
    """Break this node, as was asked for (`fault` is a fault.Spec as text); mended when the launch is stopped, or this agent ends."""

    launch: str
    fault: str
    others: list[str]  # the other nodes' addresses
    ports: list[int]  # of the agents and of the rendezvous


class Target(msgspec.Struct, frozen=True):
    """A way to try: from one of our doors to one of a peer's."""

    peer: Peer  # with the address and the port of that door
    peer_interface: str
    interface: str  # ours,
    source: str  # and its address
    mtu: int  # bytes of the largest packet that both interfaces are set to take
    main: bool  # between the addresses by which the agents speak with node 0
    network: str  # which of the nodes' networks it is: `10.1.0.0/24`, with the interfaces where they have several there


class Try(Message, frozen=True):
    """Try these ways, all at once. The first of a series tells which names to look up meanwhile, the closing one asks for what came of it."""

    round: int
    targets: list[Target]
    nbytes: int  # of a large message
    names: list[str] = []
    closing: bool = False


class Tried(Message, frozen=True):
    """How the ways are; at the end also how names resolve here, and who was heard: (address, ours), whether or not our answers arrived."""

    round: int
    facts: list[Fact]
    heard: list[tuple[str, str]] = []


class Examine(Message, frozen=True):
    """Bundle what can be seen of the jobs that run on this node."""


class Examined(Message, frozen=True):
    """One part of a node's bundle; with an error there is none."""

    part: int
    count: int
    data: bytes
    error: str = ""


class Result(Message, frozen=True):
    """The verdict: a model.Report as compressed JSON (see outcome.pack)."""

    report: bytes


class Ack(Message, frozen=True):
    """The verdict has arrived."""


class Beat(Message, frozen=True):
    """A sign of life."""


class Goodbye(Message, frozen=True):
    """This agent leaves, and why."""

    reason: str


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
    """The message. Raises msgspec.DecodeError where it is none."""
    return _decode(data)


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
