"""What agents say arrives whole at those who have the run's token, and at nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st
from running import free_port

from ncclcheck import wire
from ncclcheck.journal import Line, Slot
from ncclcheck.model import Evidence, Fact
from ncclcheck.survey import Question

T = typing.TypeVar("T")
BOUND = 60.0  # seconds for anything here to happen
HELLO = wire.Hello(wire.PROTOCOL, "1", 2, None, 1, "a", 7, "flags", {"lo": ["127.0.0.1"]}, [], {"torch": None}, False)

text = st.text(max_size=20)
number = st.integers(-(2**31), 2**31)
seconds = st.floats(0, 1e9)
plain = st.none() | st.booleans() | number | seconds | text | st.lists(text, max_size=3)
evidence = st.builds(Evidence, text, number, text)
facts = st.lists(st.builds(Fact, text, st.none() | text, st.none() | number, st.none() | number, st.dictionaries(text, plain), st.none() | evidence))
flag, signature = st.booleans(), st.integers(0, 2**64 - 1)
where = (number, number, number, number, seconds, st.none() | seconds, seconds)
slot = st.builds(Slot, *where, flag, flag, flag, seconds, seconds, signature, number, number, text, text, text)
line = st.builds(Line, number, text, seconds, number, st.dictionaries(text, plain), text, number)
peer = st.builds(wire.Peer, number, text, text, number)
door = st.builds(wire.Door, text, text, number, number, number, text)
target = st.builds(wire.Target, peer, text, text, text, number, flag, text)
FIELDS: Mapping[str, st.SearchStrategy[typing.Any]] = {
    "addresses": st.dictionaries(text, st.lists(text)),
    "gpus": st.lists(st.dictionaries(text, plain)),
    "versions": st.dictionaries(text, st.none() | text),
    "doors": st.lists(door),
    "targets": st.lists(target),
    "heard": st.lists(st.tuples(text, text)),
    "task": st.none() | st.dictionaries(text, number),
    "env": st.dictionaries(text, text),
    "beats": st.dictionaries(number, number),
    "blocks": st.dictionaries(number, st.lists(st.tuples(number, signature))),
    "starved": st.dictionaries(number, seconds),
    "slots": st.lists(slot),
    "lines": st.lists(line),
    "facts": facts,
    "node_rank": number,
    "report": st.binary(),
    "echo": st.tuples(text, number),
    "peers": st.lists(peer),
    "node0": st.none() | peer,
    "question": st.builds(Question, st.dictionaries(text, text), number, text, text, st.lists(text), st.none() | text),
    "sections": st.lists(text),
}
BY_TYPE: Mapping[object, st.SearchStrategy[typing.Any]] = {
    str: text,
    int: number,
    float: seconds,
    bool: st.booleans(),
    bytes: st.binary(),
    list[str]: st.lists(text),
    list[int]: st.lists(number),
}


def message(kind: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
    """Any message of this type."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: FIELDS[name] if name in FIELDS else BY_TYPE[hints[name]] for name in kind.__struct_fields__})


@given(st.one_of([message(kind) for kind in typing.get_args(wire.Any_)]))
def test_every_message_arrives_as_it_was_said(said: wire.Message) -> None:
    assert msgspec.msgpack.decode(wire.encode(said), type=wire.Any_) == said


def test_a_message_that_is_too_large_is_refused_where_it_is_made() -> None:
    overhead = len(wire.encode(wire.Result(b"x" * 2**19))) - 2**19
    assert len(wire.encode(wire.Result(bytes(wire.MAX_MESSAGE - overhead)))) == wire.MAX_MESSAGE
    with pytest.raises(ValueError, match="Result of 1048577 bytes; at most 1048576 travel"):
        wire.encode(wire.Result(bytes(wire.MAX_MESSAGE - overhead + 1)))


@given(text, text)
def test_the_same_token_gives_the_same_keys_and_another_gives_others(one: str, other: str) -> None:
    public, secret = wire.keys(one)
    assert (public, secret) == wire.keys(one)
    assert zmq.curve_public(secret) == public
    assert (wire.keys(other) == (public, secret)) == (one == other)


class Wire:
    """A server on a port of its own, what it hears, and those who speak to it."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address, self.port = address, free_port(address)
        self.endpoint = f"tcp://[{address}]:{self.port}" if ":" in address else f"tcp://{address}:{self.port}"
        self.server = wire.Server("one")
        self.heard: list[tuple[bytes, wire.Any_]] = []
        self.clients: list[wire.Client] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self.clients:
            client.close()
        await self.server.close()

    def open(self) -> Wire:
        """Listen, and note what is heard."""
        self.server.bind(self.address, self.port)
        self._tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self.server.watch())]
        return self

    async def _hear(self) -> None:
        while True:
            self.heard.append(await self.server.receive())

    def client(self, token: str = "one") -> wire.Client:
        self.clients.append(wire.Client(self.endpoint, token))
        return self.clients[-1]

    async def arrives(self, client: wire.Client, said: wire.Message) -> bytes:
        """Say it until it is heard (a client drops what it cannot send yet); who said it, as the server knows it."""

        def heard() -> bytes | None:
            client.send(said)
            return next((peer for peer, message in self.heard if message == said), None)

        return await until(heard)


async def until(condition: Callable[[], T | None]) -> T:
    """The value of a condition as soon as it has one."""
    async with asyncio.timeout(BOUND):
        while not (value := condition()):
            await asyncio.sleep(0.02)
        return value


async def received(client: wire.Client) -> wire.Any_:
    return await asyncio.wait_for(client.receive(), BOUND)


@contextlib.contextmanager
def bare(kind: int, token: str) -> Iterator[zmq.asyncio.Socket]:
    """A socket with the token's keys that minds no other rule of the wire."""
    with zmq.asyncio.Context.instance().socket(kind) as sock:
        public, secret = wire.keys(token)
        sock.linger, sock.ipv6 = 0, True
        sock.curve_publickey, sock.curve_secretkey = public, secret
        if kind == zmq.ROUTER:
            sock.curve_server = True
        else:
            sock.curve_serverkey = public
        yield sock


def plays(scene: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test of what happens between sockets, in an event loop of its own."""

    def test() -> None:
        asyncio.run(asyncio.wait_for(scene(), 3 * BOUND))

    test.__name__ = scene.__name__
    return test


@pytest.mark.parametrize("address, other", [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_a_server_speaks_to_its_clients_and_listens_on_its_own_address_only(address: str, other: str) -> None:
    async def scene() -> None:
        try:
            opened = Wire(address)
        except OSError as error:
            pytest.skip(f"{address}: {error}")
        async with opened as line:
            line.open()
            first, second = line.client(), line.client()
            peer, other_peer = await line.arrives(first, HELLO), await line.arrives(second, wire.Goodbye("x"))
            assert peer != other_peer
            line.server.send(peer, wire.Welcome("run", 1))
            line.server.send(other_peer, wire.Welcome("run", 2))
            assert await received(first) == wire.Welcome("run", 1)
            assert await received(second) == wire.Welcome("run", 2)
            assert line.server.callers == {address}
            assert line.server.wrong_keys == 0
            with pytest.raises(OSError):
                await asyncio.open_connection(other, line.port)

    asyncio.run(scene())


@plays
async def test_node_0_speaks_to_its_own_agent_without_the_network() -> None:
    async with Wire() as line:
        line.open()
        line.endpoint = wire.LOCAL
        agent = line.client()
        line.server.send(await line.arrives(agent, HELLO), wire.Beat())
        assert await received(agent) == wire.Beat()
        assert line.server.callers == set()


@plays
async def test_an_agent_that_was_there_first_meets_the_server_when_it_comes() -> None:
    async with Wire() as line:
        early = line.client()
        early.send(wire.Goodbye("nobody is there to hear this"))
        line.open()
        await line.arrives(early, HELLO)
        assert {message for _, message in line.heard if isinstance(message, wire.Goodbye)} == set()


@plays
async def test_who_has_another_token_is_never_answered_and_is_counted() -> None:
    async with Wire() as line:
        line.open()
        stranger = line.client("two")
        answer = asyncio.ensure_future(stranger.receive())

        def refused_twice() -> bool:
            stranger.send(HELLO)
            return line.server.wrong_keys >= 2

        await until(refused_twice)
        await line.arrives(line.client(), wire.Goodbye("one of us"))
        assert {type(message) for _, message in line.heard} == {wire.Goodbye}
        assert line.server.callers == {"127.0.0.1"}
        assert not answer.done()
        answer.cancel()


@plays
async def test_a_malformed_message_is_dropped_and_the_next_one_is_heard() -> None:
    async with Wire() as line:
        line.open()
        with bare(zmq.DEALER, "one") as peer:
            peer.connect(line.endpoint)
            for frames in ([b""], [b"\xc1"], [b"GET / HTTP/1.1"], [wire.encode(HELLO)[:-1]], [b"{}", b""], [wire.encode(HELLO)]):
                await peer.send_multipart(frames)
            await until(lambda: line.heard)
            assert [message for _, message in line.heard] == [HELLO]


@plays
async def test_a_malformed_answer_is_dropped_and_the_next_one_is_received() -> None:
    async with Wire() as line:
        with bare(zmq.ROUTER, "one") as server:
            server.bind(line.endpoint)
            agent = line.client()
            asking = asyncio.ensure_future(server.recv_multipart())

            def asked() -> bool:
                agent.send(HELLO)
                return asking.done()

            await until(asked)
            peer, _ = asking.result()
            for frame in (b"", b"\xc1", wire.encode(wire.Welcome("run", 1))[:-1], wire.encode(wire.Welcome("run", 1))):
                await server.send_multipart([peer, frame])
            assert await received(agent) == wire.Welcome("run", 1)


@plays
async def test_neither_a_web_browser_nor_a_giant_message_disturbs_the_others() -> None:
    async with Wire() as line:
        line.open()
        agent = line.client()
        await line.arrives(agent, HELLO)
        browser, writer = await asyncio.open_connection(line.address, line.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        with bare(zmq.DEALER, "one") as giant:
            giant.connect(line.endpoint)
            await giant.send(wire.encode(wire.Goodbye("small")))
            await until(lambda: any(message == wire.Goodbye("small") for _, message in line.heard))
            await giant.send(msgspec.msgpack.encode(wire.Result(bytes(2 * wire.MAX_MESSAGE))))
            await line.arrives(agent, wire.Goodbye("still here"))
            with contextlib.suppress(ConnectionError):
                while await asyncio.wait_for(browser.read(4096), BOUND):  # at most a greeting, then the end
                    pass
        writer.close()
        assert {type(message) for _, message in line.heard} == {wire.Hello, wire.Goodbye}


@pytest.mark.parametrize("address, number", [("127.0.0.1", errno.EADDRINUSE), ("192.0.2.1", errno.EADDRNOTAVAIL)])
def test_an_address_that_cannot_be_had_is_an_error_of_the_system(address: str, number: int) -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with Wire() as line:
                with pytest.raises(OSError) as error:
                    line.server.bind(address, taken.getsockname()[1])
                assert error.value.errno == number

    asyncio.run(scene())
